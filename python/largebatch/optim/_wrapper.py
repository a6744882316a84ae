# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""An optimizer around another: for schedulers, loss scalers and loops the two are one."""

from contextlib import contextmanager, nullcontext

import torch
from torch.optim import Optimizer


class Wrapper(Optimizer):
    """Shares groups and state with the optimizer it wraps, and passes on what it is told."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, optimizer.defaults)

    # The base class sets both, to what is the inner optimizer's already.
    param_groups = property(lambda self: self.optimizer.param_groups, lambda self, _: None)
    state = property(lambda self: self.optimizer.state, lambda self, _: None)

    def _look_at(self, groups):
        """Raise ValueError if there is a group that does not fit."""

    def add_param_group(self, param_group):
        """Add a group to the optimizer, unless it does not fit."""
        groups = self.param_groups
        if any(param_group is group for group in groups):
            return  # the base class goes through those there are
        self.optimizer.add_param_group(param_group)
        try:
            self._look_at(groups)
        except ValueError:
            groups.pop()
            raise

    def zero_grad(self, set_to_none=True):
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @property
    def _step_supports_amp_scaling(self):  # GradScaler sets grad_scale and found_inf if it is True
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    def _mark(self, name):
        """Return `grad_scale` or `found_inf` as set for this step, or None."""
        return getattr(self, name, getattr(self.optimizer, name, None))

    @contextmanager
    def _marked(self):
        """Pass on what a GradScaler has set for this step."""
        marks = [name for name in ("grad_scale", "found_inf") if hasattr(self, name)]
        for name in marks:
            setattr(self.optimizer, name, getattr(self, name))
        try:
            yield
        finally:
            for name in marks:
                delattr(self.optimizer, name)

    def __getstate__(self):
        """Return all there is, to be copied: the base class knows of groups and state only."""
        return self.__dict__.copy()


class UnscalingWrapper(Wrapper):
    """One that knows the scale of a GradScaler whatever the optimizer it wraps does with it.

    For an optimizer that knows none it does what the scaler would have done: leave out the step, or
    unscale the gradients.
    """

    @property
    def _step_supports_amp_scaling(self):
        return True

    @property
    def _does_the_rest(self):
        return not super()._step_supports_amp_scaling

    def _is_skipped(self):
        """Tell whether the step is to be left out here: the optimizer would not know."""
        found_inf = self._mark("found_inf")
        return self._does_the_rest and found_inf is not None and bool(found_inf.item())

    def _add_unscaled(self, given):
        """Unscale {parameter: gradient for the step}, with those that are not in it, if need be."""
        scale = self._mark("grad_scale")
        if not self._does_the_rest or scale is None:
            return
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p not in given:
                    given[p] = p.grad.clone()
        torch._foreach_mul_(list(given.values()), scale.double().reciprocal().float())

    def _marked(self):
        return nullcontext() if self._does_the_rest else super()._marked()
