# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Deep gradient compression: momentum of what is not sent."""

import dataclasses
import math

import torch

from .._checks import check_number, check_whole, refuse
from ..ops.norm import multi_tensor_sq_sum
from .compressors import TopK
from .methods import Method


class DGC(Method):
    r"""Momentum before selection, and factor masking: deep gradient compression.

    .. math:: m \leftarrow \mu m + g, \quad v \leftarrow v + m, \quad \Delta = C(v), \quad
              v \leftarrow v - \Delta, \quad m \leftarrow 0 \text{ where sent}, \quad
              u = \text{mean}\, \Delta

    Lin, Han, Mao, Wang, Dally 2018, arXiv:1712.01887, Algorithm 4. The momentum is in here: the
    optimizer that gets u must have none of its own. Its weight decay is added to u, and is not
    compressed. Tensors that are sent whole have m as their key.

    Parameters
    ----------
    compressor : compressor
        One that keeps some elements.
    momentum : float
        mu, in [0, 1).
    nesterov : bool
        m <- mu (m + g), v <- v + m + g.
    masking : bool
    clip : float, optional
        Largest norm of the gradients of all ranks together: each scales its own to clip W^(-1/2),
        before they are taken in. A hook sees one bucket at a time: each has its share, by its
        number of elements, of the square of that.
    warmup : sequence of float
        Densities of the first epochs, as (0.25, 0.063, 0.015, 0.004): the `ratio` of a compressor
        that has one. Call :meth:`set_epoch` on all ranks.
    min_numel : int
        Smaller tensors are sent whole.

    Raises
    ------
    ValueError, TypeError
        For what is out of range.

    Examples
    --------
    >>> method = DGC(TopK(ratio=0.001), warmup=(0.25, 0.063, 0.015, 0.004))
    >>> method.set_epoch(1)
    >>> method.compressor.ratio
    0.063
    """

    name = "dgc"

    def __init__(
        self,
        compressor,
        *,
        momentum=0.9,
        nesterov=False,
        masking=True,
        clip=None,
        warmup=(),
        min_numel=4096,
    ):
        super().__init__(compressor, min_numel=min_numel)
        check_number(self, "momentum", momentum, "a number in [0, 1)", lambda m: 0 <= m < 1)
        if clip is not None:
            expected = "a number above 0"
            check_number(self, "clip", clip, expected, lambda c: c > 0 and math.isfinite(c))
        if compressor.record([1])["select"] == "dense":
            refuse(self, "compressor", compressor, f"one that keeps some elements, as {TopK(k=1)}")
        if not isinstance(warmup, list | tuple):
            refuse(self, "warmup", warmup, "a tuple of densities, one an epoch", TypeError)
        for density in warmup:
            check_number(self, "warmup", density, "densities in (0, 1]", lambda d: 0 < d <= 1)
        if warmup and getattr(compressor, "ratio", None) is None:
            refuse(self, "compressor", compressor, "one with a ratio, which warmup replaces")
        self.mu, self.nesterov, self.masking = momentum, bool(nesterov), bool(masking)
        self.clip, self.warmup = clip, tuple(warmup)
        self._final = compressor
        self.set_epoch(0)

    def set_epoch(self, epoch):
        """Keep as many elements as is right for an epoch, counted from 0; on all ranks alike."""
        check_whole(self, "epoch", epoch, "an integer of at least 0", lambda e: e >= 0)
        self.compressor = self._final
        if epoch < len(self.warmup):
            self.compressor = dataclasses.replace(self._final, ratio=self.warmup[epoch])

    @property
    def settings(self):
        """The keyword arguments that it was made with."""
        own = {"momentum": self.mu, "nesterov": self.nesterov, "masking": self.masking}
        return own | {"clip": self.clip, "warmup": self.warmup, "min_numel": self.min_numel}

    def rule(self, numels):
        """Return the constants of the update, for the engine."""
        own = {"mu": self.mu, "nesterov": self.nesterov, "masking": self.masking}
        return super().rule(numels) | own

    def factor(self, grads, inv_scale, world, share=1.0):
        """Return the scale that clips the gradients. What is not finite is left to the guard."""
        if self.clip is None or not grads:
            return inv_scale
        norm = multi_tensor_sq_sum(grads).sum().sqrt()
        unscale = 1.0 if inv_scale is None else inv_scale.double().reshape(())
        limit = self.clip * math.sqrt(share / world)
        factor = (limit / (norm * unscale)).clamp(max=1.0)
        return (torch.where(norm.isfinite(), factor, 1.0) * unscale).float().reshape(1)

    def begin(self, momentum, grad):
        """Leave the momentum at 0 where it is forgotten of what is sent: all was."""
        if not self.masking:
            momentum.copy_(grad)
