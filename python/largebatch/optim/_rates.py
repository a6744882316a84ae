# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups that stand in for an optimizer's during a step, with other learning rates."""

from contextlib import contextmanager

import torch


class Rates:
    r"""The factors of modules, and the groups that carry rate times factor.

    A group's `lr` may be an object that a scheduler computes from or that a captured graph reads,
    and users look at it. So no group is ever written: for the time of a step `param_groups` is
    another list, of copies that have the parameters of one module each, in the same order.
    """

    def __init__(self, modules, device):
        self.modules = modules
        self.factors = torch.ones(len(modules.names), dtype=torch.float64, device=device)
        self._numbers = None  # the factors on the host, until they change
        self._tensors = {}  # (position of a group, module) -> the tensor that stands in for its lr

    def set(self, factors):
        """Change the factors, in place: a captured graph reads them there."""
        self.factors.copy_(factors)
        self._numbers = None

    @contextmanager
    def standing_in(self, optimizer):
        """Let the optimizer have the other groups, and put its own back."""
        groups = optimizer.param_groups
        pairs = []
        for position, (group, runs) in enumerate(
            zip(groups, self.modules.runs(groups), strict=True)
        ):
            pairs += [(group, self._part(group, position, *run)) for run in runs]
        optimizer.param_groups = [part for _, part in pairs]
        try:
            yield
        finally:
            optimizer.param_groups = groups
            for group, part in pairs:
                _keep(group, part)

    def _part(self, group, position, module, of_params):
        part = {**group, "lr": self._rate(group["lr"], position, module)}
        for name in ("params", "param_names"):
            if name in group:
                part[name] = group[name][of_params]
        return part

    def _rate(self, lr, position, module):
        if module == self.modules.anchor:
            return lr
        if not torch.is_tensor(lr):
            return lr * self._number(module)
        there = lr.device == self.factors.device
        product = lr.double() * (self.factors[module] if there else self._number(module))
        # One tensor for good: a captured graph, and the plan of a kernel, have its address.
        rate = self._tensors.get((position, module))
        if rate is None or (rate.dtype, rate.device) != (lr.dtype, lr.device):
            rate = self._tensors[position, module] = torch.empty_like(lr, requires_grad=False)
        return rate.copy_(product)

    def _number(self, module):
        if self._numbers is None:
            self._numbers = self.factors.tolist()
        return self._numbers[module]


def _keep(group, part):
    """Keep what an optimizer wrote into its group: some count their steps there."""
    for name, value in part.items():
        if name not in ("params", "param_names", "lr") and value is not group.get(name):
            group[name] = value
