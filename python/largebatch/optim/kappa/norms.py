# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Norms of the whole tensor, and the base of those of groups.

K is a norm times s, so K* is 0 where the dual norm is at most s and infinite elsewhere: weights end
where their dual norm is at most s t, t = 1 / weight_decay. With ``scale="rms"``, the default, s is
such that this reads as a mean, (mean of \|x\|^q)^(1/q) <= t, and one learning rate fits tensors of
all sizes; with "none" s = 1. Norms are taken in float64 on v / max \|v\|, so 1e-30 and 1e30 work;
u is 0 where the norm is 0.
"""

import math
from dataclasses import dataclass

import torch

from . import _projections as projections
from ._base import Kappa, check_scale, norm2, normalised, number, unit


class Norm(Kappa):
    """A norm: its conjugate is the indicator of the unit ball of the dual norm."""

    def _dual(self, z):
        raise NotImplementedError

    def _conjugate(self, z, tolerance):
        return z.new_tensor(0.0 if self._dual(z) <= 1 + tolerance else torch.inf)


@dataclass(frozen=True)
class L2(Norm):
    r"""Normalised momentum: K = s \|\|v\|\|_2, s = sqrt(numel).

    u = s v / \|\|v\|\|. Weights end in the ball RMS(x) <= t (\|\|x\|\| <= t with ``scale="none"``).
    Two passes.

    Parameters
    ----------
    scale : {"rms", "none"}

    Examples
    --------
    >>> L2(scale="none").subgradient(torch.tensor([3e-30, -4e-30]))
    tensor([ 0.6000, -0.8000])
    """

    scale: str = "rms"
    name = kernel = "l2"

    def _check(self):
        check_scale(self)

    def scale_factor(self, shape):
        """Return s: the root of the number of elements."""
        return math.prod(shape) ** 0.5 if self.scale == "rms" else 1.0

    def _subgradient(self, v):
        return normalised(v.reshape(1, -1)).reshape(v.shape).to(v.dtype)

    def _value(self, v):
        return norm2(v.reshape(1, -1)).reshape(())

    _dual = _value

    def _project(self, z):
        return projections.l2_ball(z, self._value(z))


@dataclass(frozen=True)
class Lp(Norm):
    r"""K = s \|\|v\|\|_p with 1 < p < inf, s = numel^(1 - 1/p).

    u = s sign(v) \|v\|^(p-1) / \|\|v\|\|_p^(p-1). Weights end in the l_q ball, 1/p + 1/q = 1:
    (mean of \|x\|^q)^(1/q) <= t. Two passes.

    Parameters
    ----------
    p : float
        > 1. Near 1 it is the sign, 2 is :class:`L2`.
    scale : {"rms", "none"}

    Examples
    --------
    >>> Lp(2.0, scale="none").subgradient(torch.tensor([3.0, -4.0]))
    tensor([ 0.6000, -0.8000])
    """

    p: float
    scale: str = "rms"
    name = kernel = "lp"

    def _check(self):
        self._set("p", number(self, "p", self.p, above=1))
        check_scale(self)

    def scale_factor(self, shape):
        """Return s: the number of elements to the power 1 - 1/p."""
        return math.prod(shape) ** (1 - 1 / self.p) if self.scale == "rms" else 1.0

    def _subgradient(self, v):
        w, _ = unit(v.reshape(1, -1))
        norm = (w.abs() ** self.p).sum() ** (1 / self.p)
        w = w / torch.where(norm == 0, 1.0, norm)
        return (torch.sign(w) * w.abs() ** (self.p - 1)).reshape(v.shape).to(v.dtype)

    def _value(self, v):
        return projections.lq_norm(v, self.p)

    def _dual(self, z):
        return projections.lq_norm(z, self.p / (self.p - 1))

    def _project(self, z):
        return projections.lq_ball(z, self.p / (self.p - 1))


@dataclass(frozen=True)
class LInf(Norm):
    r"""One coordinate a step: K = s max \|v\|, s = numel.

    u = s sign(v_j) at the largest \|v_j\|, the one of lowest (row-major) index among equals; 0
    elsewhere. Weights end in the l1 ball: mean of \|x\| <= t. Two passes.

    Parameters
    ----------
    scale : {"rms", "none"}

    Examples
    --------
    >>> LInf().subgradient(torch.tensor([3.0, -4.0, 4.0]))
    tensor([ 0., -3.,  0.])
    """

    scale: str = "rms"
    name = kernel = "l_inf"

    def _check(self):
        check_scale(self)

    def scale_factor(self, shape):
        """Return s: the number of elements."""
        return float(math.prod(shape)) if self.scale == "rms" else 1.0

    def _subgradient(self, v):
        flat = v.reshape(-1)
        u = torch.zeros_like(flat)
        j = flat.abs().argmax().reshape(1)  # the first of several
        return u.scatter(0, j, torch.sign(flat.gather(0, j))).reshape(v.shape)

    def _value(self, v):
        return v.abs().max()

    def _dual(self, z):
        return z.abs().sum()

    def _project(self, z):
        return projections.l1_ball(z.reshape(1, -1)).reshape(z.shape)


@dataclass(frozen=True)
class SquaredL1(Kappa):
    r"""Sign scaled by the size of the momentum: K = \|\|v\|\|_1^2 / 2.

    u = \|\|v\|\|_1 sign(v). K* = max \|z\|^2 / 2: a soft penalty on the largest weight, no bound.
    Two passes.

    Examples
    --------
    >>> SquaredL1().subgradient(torch.tensor([-1.0, 0.0, 3.0]))
    tensor([-4.,  0.,  4.])
    """

    name = kernel = "squared_l1"

    def _subgradient(self, v):
        return torch.sign(v) * v.abs().double().sum().to(v.dtype)

    def _value(self, v):
        return v.abs().sum().square() / 2

    def _conjugate(self, z, tolerance):
        return z.abs().max().square() / 2
