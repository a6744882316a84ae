# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Learning rates that stand in for those of the parameter groups during a step."""

from contextlib import contextmanager

import torch

from ._multi_tensor import MultiTensorOptimizer


class Rates:
    """The factors of modules, and the products of rates and factors.

    A group's `lr` may be an object of a scheduler's, or one that a captured graph reads: it is
    never written. For the time of a step another object is in its place.
    """

    def __init__(self, modules):
        self.modules = modules
        self.factors = torch.ones(
            len(modules.names), dtype=torch.float64, device=modules.devices[0]
        )
        self._numbers = None  # the factors on the host, until they change
        self._tensors = {}  # position of a group -> the tensor that stands in for its lr

    def set(self, factors):
        """Change the factors, in place: a captured graph reads them there."""
        self.factors.copy_(factors)
        self._numbers = None

    @contextmanager
    def in_place_of(self, optimizer):
        """Let `lr` of every group be the product, and put it back."""
        groups = optimizer.param_groups
        before = [group["lr"] for group in groups]
        try:
            for position, group in enumerate(groups):
                group["lr"] = self._product(optimizer, position, group)
            yield
        finally:
            for group, lr in zip(groups, before, strict=True):
                group["lr"] = lr

    def _product(self, optimizer, position, group):
        lr, module = group["lr"], self.modules.of_group[position]
        if module == self.modules.anchor:
            return lr
        device = self.factors.device
        dtype = lr.dtype if torch.is_tensor(lr) else torch.float32
        if torch.is_tensor(lr):
            there = lr.device == device and device.type != "cpu"
            product = lr.double() * (self.factors[module] if there else self._number(module))
        elif device.type != "cpu" and self._takes_tensors(optimizer, group):
            product = self.factors[module] * lr
        else:
            return lr * self._number(module)
        # One tensor for good: a captured graph reads the rate where it was.
        rate = self._tensors.get(position)
        if rate is None or (rate.dtype, rate.device) != (dtype, product.device):
            rate = self._tensors[position] = torch.empty_like(product, dtype=dtype)
        return rate.copy_(product)

    def _takes_tensors(self, optimizer, group):
        """Tell whether a rate that is a number may be a tensor on the device instead."""
        if len(self.modules.devices) > 1:
            return False
        return isinstance(optimizer, MultiTensorOptimizer) or bool(
            group.get("fused") or group.get("capturable")
        )

    def _number(self, module):
        if self._numbers is None:
            self._numbers = self.factors.tolist()
        return self._numbers[module]
