# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Error feedback as it was first."""

import torch

from .._checks import check_number
from .methods import Method


class ErrorFeedback(Method):
    r"""What could not be sent is added to the next gradient.

    .. math:: p = \text{decay}\, e + g, \quad \Delta = C(p), \quad e \leftarrow p - \Delta,
              \quad u = \text{mean}\, \Delta

    Seide et al. 2014; Karimireddy, Rebjock, Stich, Jaggi 2019, arXiv:1901.09847, Algorithm 2. There
    the residual holds the learning rate; here it is in units of the gradient, so that another
    learning rate is that of old residuals too, unless `scale_residual_by_lr_ratio`.

    Parameters
    ----------
    compressor : compressor
    decay : float
        In [0, 1]; below 1 for pseudo-gradients (SparseLoCo). 0 is compression without feedback,
        which diverges.
    momentum : float, optional
        As for :class:`EF21`.
    scale_residual_by_lr_ratio : bool
        Multiply e by the learning rate before over the one now: what was held back is applied at
        the rate of its own step. Give the rate as ``encode(..., lr=)`` or ``hook(..., lr=)``.
    min_numel : int
        Smaller tensors are sent whole.

    Raises
    ------
    ValueError, TypeError
        For what is out of range.

    Examples
    --------
    >>> method = ErrorFeedback(TopK(k=1), min_numel=0)
    >>> state = method.init([torch.zeros(2)])
    >>> method.decode(state, [method.encode(state, [torch.tensor([3.0, 1.0])])])
    [tensor([3., 0.])]
    """

    name = "feedback"

    def __init__(
        self,
        compressor,
        *,
        decay=1.0,
        momentum=None,
        scale_residual_by_lr_ratio=False,
        min_numel=4096,
    ):
        super().__init__(compressor, momentum=momentum, min_numel=min_numel)
        check_number(self, "decay", decay, "a number in [0, 1]", lambda d: 0 <= d <= 1)
        self.decay, self.scale_residual_by_lr_ratio = decay, bool(scale_residual_by_lr_ratio)

    @property
    def settings(self):
        """The keyword arguments that it was made with."""
        own = {"decay": self.decay, "scale_residual_by_lr_ratio": self.scale_residual_by_lr_ratio}
        return own | super().settings

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        return super().rule(numels) | {"decay": self.decay}

    def adapt_to_rate(self, errors, before, lr):
        """Scale residuals if they are to be; a rate of 0 is passed over."""
        if not self.scale_residual_by_lr_ratio:
            return lr
        expected = "the learning rate of the step, at least 0: scale_residual_by_lr_ratio needs it"
        check_number(self, "lr", lr, expected, lambda rate: rate >= 0)
        if lr == 0:
            return before
        if before not in (None, lr) and errors:
            torch._foreach_mul_(errors, before / lr)
        return lr
