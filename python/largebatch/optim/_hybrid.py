# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""When MKOR-H goes over to its first-order optimizer alone."""

import math

import torch
import torch.distributed as dist

DEFAULTS = {"beta": 0.1, "interval": 20, "patience": 3, "min_steps": 100, "momentum": 0.95}


class Hybrid:
    r"""Decides, from the rate at which a moving average of the loss falls.

    The rule is that of ``largebatch.reference.mkor.Hybrid``. The average is kept where the losses
    are; it is read, and rank 0's is sent to all, every `interval` steps.
    """

    def __init__(self, given):
        settings = {} if given is True else given
        if not isinstance(settings, dict) or not set(settings) <= set(DEFAULTS):
            raise ValueError(
                f"MKOR: hybrid: got {given!r}, expected None, True or a dict of {list(DEFAULTS)}."
            )
        self.settings = DEFAULTS | settings
        ranges = {"beta": 0, "interval": 1, "patience": 1, "min_steps": 0, "momentum": 0}
        for name, low in ranges.items():
            value = self.settings[name]
            whole = name not in ("beta", "momentum")
            if not (isinstance(value, int) or (isinstance(value, float) and not whole)) or not (
                low <= value and (name != "momentum" or value < 1)
            ):
                raise ValueError(
                    f"MKOR: hybrid[{name!r}]: got {value!r}, expected "
                    f"{'an integer' if whole else 'a number'} >= {low}"
                    f"{' and < 1' if name == 'momentum' else ''}."
                )
        nan = torch.tensor(torch.nan, dtype=torch.float64)
        self.average = nan  # on the device of the losses
        self.before = nan  # the average at the last check; at first, the first loss
        self.observed = False
        self.fastest = -math.inf
        self.slow = 0  # checks in a row

    @torch.no_grad()
    def observe(self, loss):
        """Take the loss of a step into the average; one that is not finite is left out."""
        loss = torch.as_tensor(loss).detach().double().reshape(())
        average, before = self.average.to(loss.device), self.before.to(loss.device)
        known = torch.where(average.isnan(), loss, average)
        moved = torch.lerp(loss, known, self.settings["momentum"])
        self.average = torch.where(loss.isfinite(), moved, average)
        self.before = torch.where(before.isnan() & loss.isfinite(), loss, before)
        self.observed = True

    def due(self, step):
        """Tell whether there is a check at the end of this step, the first one being 0."""
        return step > 0 and step % self.settings["interval"] == 0

    def check(self, step, group, device):
        """Return whether to switch, the same on all ranks."""
        pair = torch.stack([self.before, self.average])
        if group is not None:
            pair = pair.to(device)
            dist.broadcast(pair, src=dist.get_global_rank(group, 0), group=group)
        before, average = pair.tolist()
        self.before = pair[1]
        rate = (before - average) / self.settings["interval"]
        self.fastest = max(self.fastest, rate)
        slow = self.fastest > 0 and rate < self.settings["beta"] * self.fastest
        self.slow = self.slow + 1 if slow and step >= self.settings["min_steps"] else 0
        return self.slow >= self.settings["patience"]

    def state_dict(self):
        """Return what decides, as numbers."""
        return {
            "average": self.average.item(),
            "before": self.before.item(),
            "fastest": self.fastest,
            "slow": self.slow,
        }

    def load_state_dict(self, state):
        """Load what :meth:`state_dict` returned."""
        self.average, self.before = (
            torch.tensor(state[name], dtype=torch.float64) for name in ("average", "before")
        )
        self.observed = not math.isnan(state["average"])
        self.fastest, self.slow = state["fastest"], state["slow"]
