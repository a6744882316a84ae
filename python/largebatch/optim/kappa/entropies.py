# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Log-partition functions, whose conjugates are entropies; by groups that sum to a constant."""

from dataclasses import dataclass

import torch

from . import _projections as projections
from ._base import Kappa, check_axis, from_groups, number, to_groups


class _Partition(Kappa):
    """K is a sum over rows, columns or the whole tensor."""

    def _check(self):
        self._set("T", number(self, "T", self.T, above=0))
        check_axis(self, whole=True)

    def _rows(self, v):
        return to_groups(self, v)


@dataclass(frozen=True)
class Entropy(_Partition):
    r"""K = T log sum exp(v/T), by groups: weights that are probabilities.

    The gradient is softmax(v/T). K is not even, so the step is u = -softmax(-c/T) of the direction
    c. K* = T times the sum of z log z on the simplex z >= 0, sum z = 1, infinite elsewhere: every
    group of weights ends in t times the simplex, t = 1 / weight_decay, under this entropy. One pass
    over memory where a group fits a block, else two.

    Parameters
    ----------
    T : float
        > 0, in units of the momentum.
    axis : {"row", "column"}, int or None
        What sums to t, see :class:`GroupLasso`; None: the whole tensor.

    Notes
    -----
    softmax(0) is uniform, not 0: without any gradient the weights still go to the middle of the
    simplex.

    Examples
    --------
    >>> Entropy(1.0).subgradient(torch.tensor([0.0, 0.0, 1000.0]))
    tensor([0., 0., 1.])
    """

    T: float
    axis: str | int | None = "row"
    name = kernel = "entropy"
    even = False

    def _subgradient(self, v):
        rows = self._rows(v)
        # The largest goes first: v/T might overflow, differences to it only downwards.
        shifted = (rows - rows.amax(dim=1, keepdim=True)) / self.T
        return from_groups(self, torch.softmax(shifted, dim=1), v.shape)

    def _value(self, v):
        rows = self._rows(v)
        largest = rows.amax(dim=1)
        shifted = (rows - largest.unsqueeze(1)) / self.T
        return (largest + self.T * torch.logsumexp(shifted, dim=1)).sum()

    def _conjugate(self, z, tolerance):
        rows = self._rows(z)
        off = torch.maximum((rows.sum(dim=1) - 1).abs().max(), -rows.min())
        if not off <= tolerance:
            return z.new_tensor(torch.inf)
        rows = rows.clamp(min=0)
        return self.T * torch.xlogy(rows, rows).sum()

    def _project(self, z):
        return from_groups(self, projections.simplex(self._rows(z)), z.shape)


@dataclass(frozen=True)
class SignedEntropy(_Partition):
    r"""K = T log sum 2 cosh(v/T), by groups: a smooth bound on the l1 norm.

    u = sinh(v_i/T) / sum cosh(v/T). K*, by lifting z = a - b with a, b >= 0 and sum a + b = 1, is
    the least T times the sum of a log a + b log b: finite on the l1 ball, so that the l1 norm of
    every group of weights ends at t or less, t = 1 / weight_decay. One pass over memory where a
    group fits a block, else two.

    Parameters
    ----------
    T : float
        > 0, in units of the momentum.
    axis : {"row", "column"}, int or None
        As in :class:`Entropy`.

    Examples
    --------
    >>> SignedEntropy(1.0).subgradient(torch.tensor([0.0, -1000.0]))
    tensor([ 0., -1.])
    """

    T: float
    axis: str | int | None = "row"
    name = kernel = "signed_entropy"

    def _subgradient(self, v):
        rows = self._rows(v)
        a = rows.abs()
        # exp(|v|/T - largest/T) is a factor of every sinh and cosh; 1 - exp(-2|v|/T) keeps the
        # digits of small v.
        common = torch.exp((a - a.amax(dim=1, keepdim=True)) / self.T)
        rest = torch.expm1(-2 * (a / self.T))
        u = torch.sign(rows) * (common * -rest) / (common * (2 + rest)).sum(dim=1, keepdim=True)
        return from_groups(self, u, v.shape)

    def _value(self, v):
        a = self._rows(v).abs()
        largest = a.amax(dim=1)
        shifted = (a - largest.unsqueeze(1)) / self.T
        terms = shifted + torch.log1p(torch.exp(-2 * (a / self.T)))
        return (largest + self.T * torch.logsumexp(terms, dim=1)).sum()

    def _conjugate(self, z, tolerance):
        rows = self._rows(z)
        sums = rows.abs().sum(dim=1, keepdim=True)
        if not sums.max() <= 1 + tolerance:
            return z.new_tensor(torch.inf)
        rows = rows / sums.clamp(min=1)
        # At the optimum a b is the same number d^2 / 4 everywhere, so a + b = sqrt(z^2 + d^2).
        low, high = torch.zeros_like(sums), torch.full_like(sums, 1 / rows.shape[1])
        for _ in range(100):
            d = (low + high) / 2
            above = torch.hypot(rows, d).sum(dim=1, keepdim=True) > 1
            low, high = torch.where(above, low, d), torch.where(above, d, high)
        total = torch.hypot(rows, low)
        a, b = (total + rows).clamp(min=0) / 2, (total - rows).clamp(min=0) / 2
        return self.T * (torch.xlogy(a, a) + torch.xlogy(b, b)).sum()

    def _project(self, z):
        return from_groups(self, projections.l1_ball(self._rows(z)), z.shape)
