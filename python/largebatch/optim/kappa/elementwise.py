# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Convex functions that are sums over elements: one pass over memory.

With a threshold that is `relative`, a multiple of the root mean square of v, they need a second
pass. Then what they are depends on v and no single K exists, but u keeps its bounds and with it
the box. In the docstrings t = 1 / weight_decay.
"""

from dataclasses import dataclass

import torch

from ._base import Kappa, Relative, number, one_of


class _Box(Kappa):
    """The subgradient is in [-1, 1], so the conjugate is infinite outside that box."""

    def _conjugate(self, z, tolerance):
        if not z.abs().max() <= 1 + tolerance:
            return z.new_tensor(torch.inf)
        return self._in_box(z.clamp(-1, 1))

    def _in_box(self, z):
        raise NotImplementedError

    def _project(self, z):
        return z.clamp(-1, 1)


class _Threshold(Relative, _Box):
    """A box with a threshold."""

    def _check(self):
        name = self._threshold
        self._set(name, number(self, name, getattr(self, name), above=0))
        one_of(self, "relative", self.relative, (False, True))


@dataclass(frozen=True)
class L1(_Box):
    r"""Lion: K = sum of \|v\|.

    u = sign(v), 0 at 0 and for NaN. K* = 0 on the box max \|z\| <= 1. Weights end in the box
    \|x\| <= t. One pass.

    Examples
    --------
    >>> L1().subgradient(torch.tensor([-2.0, 0.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """

    name = kernel = "l1"
    elementwise = True

    def _subgradient(self, v):
        return torch.sign(v)

    def _value(self, v):
        return v.abs().sum()

    def _in_box(self, z):
        return z.new_zeros(())


@dataclass(frozen=True)
class TruncatedL1(_Threshold):
    r"""Sign with a dead zone: K = sum of max(\|v\| - e, 0).

    u = sign(v) where \|v\| > e, else 0 (also at the kink). K* = e times the sum of \|z\|, on the
    box. Weights end in the box \|x\| <= t under a penalty e times their l1 norm: sparse. One pass.

    Parameters
    ----------
    e : float
        > 0, in units of the momentum; times RMS(v) if `relative`.
    relative : bool

    Examples
    --------
    >>> TruncatedL1(1.0).subgradient(torch.tensor([-2.0, 1.0, 3.0]))
    tensor([-1.,  0.,  1.])
    """

    e: float
    relative: bool = False
    name = kernel = "truncated_l1"

    def _subgradient(self, v):
        return torch.where(v.abs() > self._level(v), torch.sign(v), 0.0)

    def _value(self, v):
        return (v.abs() - self.e).clamp(min=0).sum()

    def _in_box(self, z):
        return self.e * z.abs().sum()


@dataclass(frozen=True)
class Huber(_Threshold):
    r"""Clipped momentum: K = sum of v^2 / (2e) where \|v\| <= e, \|v\| - e/2 elsewhere.

    u = v/e clipped to [-1, 1]. K* = (e/2) times the sum of z^2, on the box. Weights end in the box
    \|x\| <= t under a penalty of (e weight_decay / 2) times their squared l2 norm. One pass.

    Parameters
    ----------
    e : float
        > 0, in units of the momentum; times RMS(v) if `relative`.
    relative : bool

    Examples
    --------
    >>> Huber(2.0).subgradient(torch.tensor([-3.0, 1.0]))
    tensor([-1.0000,  0.5000])
    """

    e: float
    relative: bool = False
    name = kernel = "huber"

    def _subgradient(self, v):
        e = self._level(v)
        return torch.where(v.abs() >= e, torch.sign(v), v / e)  # e may be 0: RMS(0)

    def _value(self, v):
        a = v.abs()
        return torch.where(a <= self.e, a * (a / (2 * self.e)), a - self.e / 2).sum()

    def _in_box(self, z):
        return self.e / 2 * z.square().sum()


@dataclass(frozen=True)
class SoftSign(_Threshold):
    r"""K = sum of sqrt(v^2 + e^2) - e.

    u = v / sqrt(v^2 + e^2). K* = sum of e - e sqrt(1 - z^2), on the box. Weights end in the box
    \|x\| <= t, whose wall is smooth. One pass.

    Parameters
    ----------
    e : float
        > 0, in units of the momentum; times RMS(v) if `relative`.
    relative : bool

    Notes
    -----
    Evaluated as (v/h) / sqrt(1 + r^2), h and r h the larger and the smaller of \|v\| and e: nothing
    overflows.

    Examples
    --------
    >>> SoftSign(4.0).subgradient(torch.tensor([3.0]))
    tensor([0.6000])
    """

    e: float
    relative: bool = False
    name = kernel = "soft_sign"

    def _subgradient(self, v):
        e = torch.as_tensor(self._level(v), dtype=v.dtype, device=v.device)
        a = v.abs()
        high, low = torch.maximum(a, e), torch.minimum(a, e)
        r = low / high
        root = (1 + r * r).double().sqrt().to(v.dtype)  # torch's float32 one is not always nearest
        return torch.where(v == 0, 0.0, (v / high) / root)

    def _value(self, v):
        # v^2 / (sqrt(v^2 + e^2) + e), the same number without its cancellation
        root = torch.hypot(v, torch.tensor(self.e, dtype=v.dtype, device=v.device))
        return (v.abs() * (v.abs() / (root + self.e))).sum()

    def _in_box(self, z):
        return (self.e * (z * z / (1 + (1 - z * z).sqrt()))).sum()


@dataclass(frozen=True)
class LogCosh(_Threshold):
    r"""K = T times the sum of log cosh(v/T).

    u = tanh(v/T). K* = (T/2) times the sum of (1+z) log(1+z) + (1-z) log(1-z), on the box. Weights
    end in the box \|x\| <= t under this two-sided entropy. One pass.

    Parameters
    ----------
    T : float
        > 0, in units of the momentum; times RMS(v) if `relative`.
    relative : bool

    Examples
    --------
    >>> LogCosh(1.0).subgradient(torch.tensor([0.5, 100.0]))
    tensor([0.4621, 1.0000])
    """

    T: float
    relative: bool = False
    name = kernel = "log_cosh"
    _threshold = "T"

    def _subgradient(self, v):
        return torch.where(v == 0, 0.0, torch.tanh(v / self._level(v)))

    def _value(self, v):
        # T log cosh a = T (a - log 2 + log(1 + exp(-2a))); by sinh where that cancels
        a = v.abs() / self.T
        large = v.abs() + self.T * (torch.log1p(torch.exp(-2 * a)) - torch.log(a.new_tensor(2.0)))
        small = self.T * torch.log1p(2 * torch.sinh(a.clamp(max=1) / 2).square())
        return torch.where(a > 1, large, small).sum()

    def _in_box(self, z):
        return self.T / 2 * (torch.xlogy(1 + z, 1 + z) + torch.xlogy(1 - z, 1 - z)).sum()


@dataclass(frozen=True)
class Power(Kappa):
    r"""K = sum of \|v\|^p / p.

    u = sign(v) \|v\|^(p-1). K* = sum of \|z\|^q / q with 1/p + 1/q = 1. A soft l_q penalty on the
    weights, no bound; u grows with the gradients (float32 overflows where the power does). One
    pass.

    Parameters
    ----------
    p : float
        > 1. Near 1 it is the sign, 2 is :class:`Quadratic`.

    Examples
    --------
    >>> Power(3.0).subgradient(torch.tensor([-2.0]))
    tensor([-4.])
    """

    p: float
    name = kernel = "power"
    elementwise = True

    def _check(self):
        self._set("p", number(self, "p", self.p, above=1))

    def _subgradient(self, v):
        return torch.sign(v) * v.abs() ** (self.p - 1)

    def _value(self, v):
        return (v.abs() ** self.p / self.p).sum()

    def _conjugate(self, z, tolerance):
        q = self.p / (self.p - 1)
        return (z.abs() ** q / q).sum()


@dataclass(frozen=True)
class Quadratic(Kappa):
    r"""Momentum SGD: K = sum of v^2 / 2.

    u = v. K* = sum of z^2 / 2: a penalty of (weight_decay / 2) times the squared l2 norm of the
    weights, no bound. One pass.

    Examples
    --------
    >>> Quadratic().subgradient(torch.tensor([-2.0, 0.5]))
    tensor([-2.0000,  0.5000])
    """

    name = kernel = "quadratic"
    elementwise = True

    def _subgradient(self, v):
        return v.clone()

    def _value(self, v):
        return v.square().sum() / 2

    def _conjugate(self, z, tolerance):
        return z.square().sum() / 2
