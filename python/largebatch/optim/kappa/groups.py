# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Norms over groups of elements of equal length: rows, columns, attention heads.

Scale, bound and precision as in ``norms``; t = 1 / weight_decay.
"""

from dataclasses import dataclass

import torch

from . import _projections as projections
from ._base import (
    check_axis,
    check_scale,
    from_groups,
    group_shape,
    integer,
    norm2,
    normalised,
    to_groups,
)
from .norms import Norm


class _Groups(Norm):
    """What the two have in common."""

    def _check(self):
        check_axis(self)
        integer(self, "size", self.size)
        check_scale(self)

    def _rows(self, v):
        return to_groups(self, v, self.size)

    def _norms(self, v):
        return norm2(self._rows(v))


@dataclass(frozen=True)
class GroupLasso(_Groups):
    r"""Every group normalised by itself: K = s times the sum of \|\|v_g\|\|_2, s = sqrt(length).

    u_g = s v_g / \|\|v_g\|\|. Weights end where RMS(x_g) <= t in every group. One pass over memory
    where a group fits a block.

    Parameters
    ----------
    axis : {"row", "column"} or int
        The dimension along which groups are counted: 0, 1 or that one. A row of a weight
        ``[out, in]`` or ``[out, in, h, w]`` is all that one output sees. Tensors of less than two
        dimensions, or without this one, are one group.
    size : int
        So many consecutive rows (columns) form a group; must divide their number.
    scale : {"rms", "none"}

    Examples
    --------
    >>> GroupLasso(scale="none").subgradient(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    axis: str | int = "row"
    size: int = 1
    scale: str = "rms"
    name = kernel = "group_lasso"

    @classmethod
    def heads(cls, head_dim, axis="row", scale="rms"):
        """Return the norm with attention heads as groups.

        Parameters
        ----------
        head_dim : int
            Rows per head of a query, key or value projection ``[heads * head_dim, model]``.
        axis : {"row", "column"}
            "column" for the output projection ``[model, heads * head_dim]``.
        scale : {"rms", "none"}
        """
        return cls(axis=axis, size=head_dim, scale=scale)

    def scale_factor(self, shape):
        """Return s: the root of the number of elements of a group."""
        length = group_shape(self, shape, self.size)[1]
        return length**0.5 if self.scale == "rms" else 1.0

    def _subgradient(self, v):
        return from_groups(self, normalised(self._rows(v)), v.shape).to(v.dtype)

    def _value(self, v):
        return self._norms(v).sum()

    def _dual(self, z):
        return self._norms(z).max()

    def _project(self, z):
        rows = projections.l2_ball(self._rows(z), self._norms(z))
        return from_groups(self, rows, z.shape)


@dataclass(frozen=True)
class L2Inf(_Groups):
    r"""One group a step: K = s times the largest \|\|v_g\|\|_2, s = groups sqrt(length).

    u_g = s v_g / \|\|v_g\|\| for the group of the largest norm (lowest index among equals), 0 for
    the others. Weights end where the mean over groups of RMS(x_g) is at most t: few groups. Two
    passes.

    Parameters
    ----------
    axis, size, scale
        As in :class:`GroupLasso`.

    Examples
    --------
    >>> L2Inf(scale="none").subgradient(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """

    axis: str | int = "row"
    size: int = 1
    scale: str = "rms"
    name = kernel = "l2_inf"

    def scale_factor(self, shape):
        """Return s: the number of groups times the root of the number of elements of one."""
        groups, length = group_shape(self, shape, self.size)
        return groups * length**0.5 if self.scale == "rms" else 1.0

    def _subgradient(self, v):
        rows = self._rows(v)
        chosen = self._norms(v).argmax()  # the first of several
        only = torch.arange(rows.shape[0], device=v.device).unsqueeze(1) == chosen
        u = torch.where(only, normalised(rows), 0.0)
        return from_groups(self, u, v.shape).to(v.dtype)

    def _value(self, v):
        return self._norms(v).max()

    def _dual(self, z):
        return self._norms(z).sum()

    def _project(self, z):
        rows, norms = self._rows(z), self._norms(z)
        shrunk = projections.l1_ball(norms.T).T
        rows = rows * (shrunk / torch.where(norms == 0, 1.0, norms))
        return from_groups(self, rows, z.shape)
