# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Functions of the magnitudes in order, of which the largest are selected."""

from dataclasses import dataclass

import torch

from ...ops.topk import topk_select
from . import _projections as projections
from ._base import Kappa, integer, number, refuse


def _largest(magnitudes, count):
    """Return the indices of the largest, from the largest on, of equals the lowest index first."""
    values, indices = topk_select(magnitudes, min(count, magnitudes.numel()))
    return indices[values.argsort(descending=True, stable=True)]


class _Ordered(Kappa):
    """Weights by rank: ``_weights(v)`` for magnitudes from the largest to the smallest.

    ``_ranks`` is how many of them are not 0.
    """

    def _weights(self, v):
        raise NotImplementedError

    def _subgradient(self, v):
        flat = v.reshape(-1)
        order = _largest(flat.abs(), self._ranks)
        u = torch.zeros_like(flat).scatter(0, order, self._weights(flat)[: order.numel()])
        return (u * torch.sign(flat)).reshape(v.shape)

    def _value(self, v):
        flat = v.reshape(-1)
        return (flat.abs().sort(descending=True).values * self._weights(flat)).sum()

    def _conjugate(self, z, tolerance):
        flat = z.reshape(-1)
        largest = flat.abs().sort(descending=True).values.cumsum(0)
        inside = (largest <= (1 + tolerance) * self._weights(flat).cumsum(0)).all()
        return z.new_tensor(0.0 if inside else torch.inf)


@dataclass(frozen=True)
class TopK(_Ordered):
    r"""The k largest magnitudes: K = the sum of the k largest \|v\|.

    u = sign(v) on those k (of equals the lowest row-major indices), else 0. K* = 0 where max \|z\|
    <= 1 and the sum of \|z\| is at most k: weights end in the box \|x\| <= t and their l1 norm at
    k t or less, t = 1 / weight_decay.

    Parameters
    ----------
    k : int
        >= 1. A tensor with k elements or less has :class:`L1`.

    Examples
    --------
    >>> TopK(2).subgradient(torch.tensor([1.0, -3.0, 2.0, 2.0]))
    tensor([ 0., -1.,  1.,  0.])
    """

    k: int
    name = "top_k"

    def _check(self):
        integer(self, "k", self.k)

    @property
    def _ranks(self):
        return self.k

    def _weights(self, v):
        return (torch.arange(v.numel(), device=v.device) < self.k).to(v.dtype)

    def _project(self, z):
        return projections.capped_l1_ball(z, self.k)


@dataclass(frozen=True)
class SortedL1(_Ordered):
    r"""Ordered weighted l1 (OWL): K = the sum of w_i times the i-th largest \|v\|.

    u = sign(v) w_rank (of equals the lowest row-major index first). K* = 0 where the j largest
    \|z\| sum to at most w_1 + .. + w_j for every j, the signed permutahedron of w: weights end in t
    times that, t = 1 / weight_decay. Bogdan et al. 2015, "SLOPE", arXiv 1407.3824.

    Parameters
    ----------
    weights : sequence of float
        w_1 >= w_2 >= .. >= 0, w_1 > 0. A longer tensor goes on with zeros, a shorter one uses the
        first of them.

    Examples
    --------
    >>> SortedL1((1.0, 0.5)).subgradient(torch.tensor([1.0, -3.0, 2.0]))
    tensor([ 0.0000, -1.0000,  0.5000])
    """

    weights: tuple
    name = "sorted_l1"

    def _check(self):
        given = self.weights
        expected = "a sequence of numbers, the first > 0, none larger than the one before or < 0"
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            refuse(self, "weights", given, expected)
        weights = tuple(number(self, "weights", w, least=0) for w in given)
        if not weights or weights[0] == 0 or list(weights) != sorted(weights, reverse=True):
            refuse(self, "weights", given, expected)
        self._set("weights", weights)

    @property
    def _ranks(self):
        return len(self.weights)

    def _weights(self, v):
        w = torch.zeros_like(v)
        own = v.new_tensor(self.weights[: v.numel()])
        w[: own.numel()] = own
        return w

    def _project(self, z):
        flat = z.reshape(-1)
        return projections.signed_permutahedron(flat, self._weights(flat)).reshape(z.shape)
