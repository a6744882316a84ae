# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the extension gathers of an optimizer's parameters, against the same by plain lookups."""

import sys
from collections import defaultdict
from itertools import chain

import pytest
import torch
from torch.nn import Parameter

from largebatch import _C

PLAIN = Parameter, torch.Tensor
NAMES = ["exp_avg", "step", "master_param", "absent"]


def setting(count=40, without=(), masters=(), groups=2):
    """Return groups and states of parameters, some of them without a gradient or with a master."""
    params = [Parameter(torch.full((2,), float(i))) for i in range(count)]
    states = defaultdict(dict)
    for i, param in enumerate(params):
        if i in without:
            continue
        param.grad = torch.full((2,), -float(i))
        states[param] = {"step": torch.zeros(()), "exp_avg": torch.zeros(2)}
        if i in masters:
            states[param]["master_param"] = param.detach().clone()
    return [dict(params=params[g::groups], lr=g) for g in range(groups)], states


def collect(groups, states):
    return _C.collect(groups, states, NAMES, PLAIN)


def looked_up(groups, states):
    """The same as `collect`, one parameter at a time."""
    params = list(chain.from_iterable(group["params"] for group in groups))
    used = [param for param in params if param.grad is not None]
    of = {param: g for g, group in enumerate(groups) for param in group["params"]}
    columns = {name: tuple(states[param].get(name) for param in used) for name in NAMES}
    return (
        tuple(used),
        tuple(param.grad for param in used),
        tuple(states[param] for param in used),
        tuple(of[param] for param in used),
        {name: column if any(e is not None for e in column) else None
         for name, column in columns.items()},
    )  # fmt: skip


def same(a, b):
    """Tell whether two results are made of the same objects."""
    if isinstance(a, dict) and a.keys() == b.keys() == set(NAMES):
        return all(same(a[name], b[name]) for name in NAMES)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_everything_in_the_order_of_the_groups(count, groups):
    given = setting(count, groups=groups)
    assert same(collect(*given), looked_up(*given))


@pytest.mark.parametrize("without", [{0}, {39}, {3, 4, 5}, set(range(40))], ids=str)
@pytest.mark.parametrize("masters", [set(), {0}, {7, 8}, set(range(40))], ids=str)
def test_parameters_without_a_gradient_are_left_out(without, masters):
    given = setting(without=without, masters=masters)
    assert same(collect(*given), looked_up(*given))


def _stale(groups, states):
    groups[0]["params"][0].grad = None


def _reversed(groups, states):
    for param, state in reversed(list(states.items())):
        del states[param]
        states[param] = state


def _first_to_the_end(groups, states):
    param = next(iter(states))
    states[param] = states.pop(param)


def _stranger_first(groups, states):
    ours = dict(states)
    states.clear()
    states[Parameter(torch.zeros(1))] = {}
    states.update(ours)


def _removed_in_the_middle(groups, states):
    param = groups[1]["params"][3]
    states[param] = states.pop(param)
    del groups[1]["params"][3]


def _entries_missing(groups, states):
    del states[groups[0]["params"][2]]["exp_avg"]
    states[groups[1]["params"][0]].clear()


def _own_strings(groups, states, params=slice(None)):
    """Give the states keys that are equal to the names and not the same, as a checkpoint does."""
    keys = {}
    for state in list(states.values())[params]:
        entries = dict(state)
        state.clear()
        state.update({keys.setdefault(k, (k + " ")[:-1]): entry for k, entry in entries.items()})


def _own_strings_in_some(groups, states):
    _own_strings(groups, states, slice(3, None, 5))


def _entries_in_another_order(groups, states):
    for state in list(states.values())[::3]:
        state["step"] = state.pop("step")
        state["exp_avg"] = state.pop("exp_avg")


def _other_entries(groups, states):
    for i, state in enumerate(states.values()):
        entries = dict(state)
        state.clear()
        state.update({("other", i): 1, "exp": entries["step"], **entries, i: None})


@pytest.mark.parametrize(
    "change",
    [_stale, _reversed, _first_to_the_end, _stranger_first, _removed_in_the_middle,
     _entries_missing, _own_strings, _own_strings_in_some, _entries_in_another_order,
     _other_entries],
)  # fmt: skip
def test_states_are_found_wherever_they_lie(change):
    groups, states = setting()
    change(groups, states)
    assert same(collect(groups, states), looked_up(groups, states))


def _parameter_of_a_subclass(groups, states):
    class Special(Parameter):
        pass

    groups[0]["params"][1] = Special(torch.zeros(2))


def _gradient_of_a_subclass(groups, states):
    class Special(torch.Tensor):
        pass

    groups[0]["params"][1].grad = torch.zeros(2).as_subclass(Special)


def _no_tensor(groups, states):
    groups[0]["params"][1] = 3


def _without_a_state(groups, states):
    del states[groups[0]["params"][1]]


def _state_that_is_no_dict(groups, states):
    states[groups[0]["params"][1]] = [1]


def _parameters_in_a_tuple(groups, states):
    groups[1]["params"] = tuple(groups[1]["params"])


def _no_parameters(groups, states):
    del groups[1]["params"]


@pytest.mark.parametrize(
    "change",
    [_parameter_of_a_subclass, _gradient_of_a_subclass, _no_tensor, _without_a_state,
     _state_that_is_no_dict, _parameters_in_a_tuple, _no_parameters],
)  # fmt: skip
def test_none_where_each_has_to_be_looked_at(change):
    groups, states = setting()
    change(groups, states)
    assert collect(groups, states) is None


def test_no_reference_is_kept_or_lost():
    groups, states = setting(masters={1, 2}, without={5})
    objects = [*states, *(p.grad for p in states), *states.values(), *groups]
    objects += [entry for state in states.values() for entry in state.values()]
    before = [sys.getrefcount(x) for x in objects]
    for _ in range(3):
        collect(groups, states)
    groups[1]["params"].append(3)
    collect(groups, states)
    assert [sys.getrefcount(x) for x in objects] == before


def test_states_do_not_grow():
    groups, states = setting()
    states.pop(groups[1]["params"][3])
    assert collect(groups, states) is None
    assert len(states) == 39  # a defaultdict, which makes what is asked for in Python
