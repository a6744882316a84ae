# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Which module of AGVM each parameter of an optimizer belongs to."""

from itertools import groupby
from operator import is_

import torch


class Modules:
    """The modules of AGVM: their names, and which of them each parameter is in."""

    def __init__(self, optimizer, modules, anchor):
        if not isinstance(modules, dict) or not modules:
            raise TypeError(
                f"AGVM: modules: got {type(modules).__name__}, expected a dict of names to modules "
                "or lists of parameters. Begin with {'backbone': model.backbone, ...}."
            )
        if anchor not in modules:
            raise ValueError(
                f"AGVM: anchor: got {anchor!r}, expected one of {list(modules)}. Name the module "
                "that the others are compared with."
            )
        self.names = list(modules)
        self.anchor = self.names.index(anchor)
        self._of_param = {}
        for index, (name, module) in enumerate(modules.items()):
            for param in _parameters(name, module):
                other = self._of_param.setdefault(param, index)
                if other != index:
                    raise ValueError(
                        f"AGVM: modules[{name!r}]: got a parameter of shape {list(param.shape)} "
                        f"that is in {self.names[other]!r} too, expected in one of them. Give one "
                        "of the two as a list of parameters without it."
                    )
        self._params, self._runs = [], []  # of the groups as they were last looked at
        held = {module for runs in self.runs(optimizer.param_groups) for module, _ in runs}
        for index, name in enumerate(self.names):
            if index not in held:
                raise ValueError(
                    f"AGVM: modules[{name!r}] has no parameter of the optimizer's, expected one or "
                    "more. Leave it out, or give its parameters to the optimizer."
                )

    def runs(self, groups):
        """Return [[(module, slice)]]: the neighbours of one module in each of the groups.

        Raises
        ------
        ValueError
            For a parameter in no module.
        """
        if not self._same(groups):
            self._runs = [self._runs_of(position, group) for position, group in enumerate(groups)]
            self._params = [list(group["params"]) for group in groups]
        return self._runs

    def owned(self, groups):
        """Return [(parameter, module)] of all that the groups have."""
        return [
            (param, module)
            for group, runs in zip(groups, self.runs(groups), strict=True)
            for module, part in runs
            for param in group["params"][part]
        ]

    def _same(self, groups):
        return len(groups) == len(self._params) and all(
            len(group["params"]) == len(known) and all(map(is_, group["params"], known))
            for group, known in zip(groups, self._params, strict=True)
        )

    def _runs_of(self, position, group):
        modules = [self._of_param.get(param) for param in group["params"]]
        if None in modules:
            raise ValueError(
                f"AGVM: {_name(position, group, modules.index(None))} is in none of the modules, "
                f"expected in one of {self.names}. Add it to one, or a module that has it."
            )
        runs, start = [], 0
        for module, same in groupby(modules):
            stop = start + len(list(same))
            runs.append((module, slice(start, stop)))
            start = stop
        return runs


def _parameters(name, module):
    if isinstance(module, torch.nn.Module):
        return list(module.parameters())
    params = list(module) if isinstance(module, list | tuple) else [None]
    if not all(torch.is_tensor(p) for p in params):
        raise TypeError(
            f"AGVM: modules[{name!r}]: got {type(module).__name__}, expected a torch.nn.Module or "
            "a list of parameters. Pass list(...) of an iterator."
        )
    return params


def _name(position, group, i):
    """Return what a parameter is called: its name if the optimizer was told, else where it is."""
    if "param_names" in group:
        return f"parameter {group['param_names'][i]!r}"
    return f"param_groups[{position}]['params'][{i}] of shape {list(group['params'][i].shape)}"
