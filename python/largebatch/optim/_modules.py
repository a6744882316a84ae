# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Which module each parameter of an optimizer belongs to, one module to a parameter group."""

import torch


class Modules:
    """The modules of AGVM: their names, their parameters, and the groups that hold these."""

    def __init__(self, optimizer, modules, anchor):
        if not isinstance(modules, dict) or not modules:
            raise TypeError(
                f"AGVM: modules: got {type(modules).__name__}, expected a dict of names to modules "
                "or lists of parameters."
            )
        if anchor not in modules:
            raise ValueError(f"AGVM: anchor: got {anchor!r}, expected one of {list(modules)}.")
        self.names = list(modules)
        self.anchor = self.names.index(anchor)
        self._of_param = {}
        for index, (name, module) in enumerate(modules.items()):
            for param in _parameters(name, module):
                other = self._of_param.setdefault(param, index)
                if other != index:
                    what = _name_in(optimizer, param)
                    raise ValueError(
                        f"AGVM: {what} is in modules {self.names[other]!r} and {name!r}, expected "
                        "in one. Give one of them as a list of parameters without it."
                    )
        self.follow(optimizer)
        held = {self._of_param[p] for p, _ in self._owned}
        for index, name in enumerate(self.names):
            if index not in held:
                raise ValueError(
                    f"AGVM: module {name!r} has no parameter of the optimizer's. Leave it out, "
                    "or give its parameters to the optimizer."
                )
        self.devices = list(dict.fromkeys(param.device for param, _ in self._owned))

    def owned(self):
        """Return (parameter, module) of all that the optimizer has, module after module."""
        return self._owned

    def follow(self, optimizer):
        """Look at the groups again if there are other ones, and split those that span modules."""
        groups = optimizer.param_groups
        if [len(group["params"]) for group in groups] == getattr(self, "_sizes", None):
            return
        parts = [self._split(optimizer, position) for position in range(len(groups))]
        for position, group in enumerate(groups):
            if len(parts[position]) > 1 and "initial_lr" in group:
                raise ValueError(
                    f"AGVM: param_groups[{position}] spans modules and has a scheduler already, "
                    "which would not know of its parts. Make the scheduler after the AGVM."
                )
        groups[:] = [part for of_group in parts for _, part in of_group]
        self.of_group = [module for of_group in parts for module, _ in of_group]
        self._sizes = [len(group["params"]) for group in groups]
        owned = [
            (p, module)
            for group, module in zip(groups, self.of_group, strict=True)
            for p in group["params"]
        ]
        self._owned = sorted(owned, key=lambda pair: pair[1])

    def _split(self, optimizer, position):
        """Return [(module, group)]: the group itself if it is of one module, else its parts."""
        group = optimizer.param_groups[position]
        rows = {}  # module -> positions of its parameters
        for i, param in enumerate(group["params"]):
            module = self._of_param.get(param)
            if module is None:
                raise ValueError(
                    f"AGVM: {_name(position, group, i)} is in none of the modules {self.names}, "
                    "expected in one. Add it, or a module that has it."
                )
            rows.setdefault(module, []).append(i)
        if len(rows) < 2:
            return [(next(iter(rows), self.anchor), group)]
        return [(module, _part(group, own)) for module, own in rows.items()]


def _part(group, rows):
    part = dict(group)
    for name in ("params", "param_names"):
        if name in group:
            part[name] = [group[name][i] for i in rows]
    return part


def _parameters(name, module):
    if isinstance(module, torch.nn.Module):
        return list(module.parameters())
    params = None if torch.is_tensor(module) else list(module)
    if params is None or not all(torch.is_tensor(p) for p in params):
        raise TypeError(
            f"AGVM: modules[{name!r}]: got {type(module).__name__}, expected a torch.nn.Module or "
            "a list of parameters."
        )
    return params


def _name(position, group, i):
    """Return what a parameter is called: its name if the optimizer was told, else where it is."""
    if "param_names" in group:
        return f"parameter {group['param_names'][i]!r}"
    shape = list(group["params"][i].shape)
    return f"param_groups[{position}]['params'][{i}] of shape {shape}"


def _name_in(optimizer, param):
    for position, group in enumerate(optimizer.param_groups):
        for i, other in enumerate(group["params"]):
            if other is param:
                return _name(position, group, i)
    return f"a parameter of shape {list(param.shape)}"
