# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""An optimizer around another: for schedulers, loss scalers and loops the two are one."""

from contextlib import contextmanager

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
