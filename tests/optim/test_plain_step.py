# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Steps that take tensors without a look at each: when they do, and that it changes nothing."""

import copy
import pickle

import pytest
import torch

from largebatch.optim import LionK
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot
from tests.optim.plain_setting import SHAPES, family_after, forbid, looking


def kinds(data, device):
    """Return parameters of most layouts and dtypes that need no look at each."""
    params = leaves(data.to(device).params)
    params[1].data = params[1].data.bfloat16()
    params[5].data = params[5].data.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return params


def grads_like(params, grads):
    return [torch.empty_like(p).copy_(g) for p, g in zip(params, grads, strict=True)]


# ---- Taken, and the same -------------------------------------------------------------------------


@pytest.mark.parametrize("over", [{}, dict(maximize=True), dict(master_weights=False)], ids=str)
def test_tensors_are_looked_at_in_the_first_step_only(backend, family, over, monkeypatch):
    data = problem(SHAPES, steps=3)
    results = []
    for prepare in (lambda optimizer: optimizer, looking):
        params = kinds(data, backend.device)
        optimizer = prepare(family.make(params, **over))
        for step, grads in enumerate(data.grads):
            if step == 1 and prepare is not looking:
                forbid(monkeypatch, optimizer, "_collect")
            run(optimizer, params, [grads_like(params, grads)])
        results.append(snapshot(optimizer))
    assert same_bits(*results)


def test_autograd_notices_a_plain_step(family, monkeypatch):
    data, params, optimizer = family.start(SHAPES)
    run(optimizer, params, data.grads[:2])
    forbid(monkeypatch, optimizer, "_collect")
    before = [p._version for p in params]
    run(optimizer, params, [[None, *data.grads[2][1:]]])
    assert [p._version > version for p, version in zip(params, before, strict=True)] == [
        False,
        *[True] * (len(params) - 1),
    ]


def test_results_of_a_plain_step(limiting):
    found = []
    for prepare in (lambda optimizer: optimizer, looking):
        data, params, optimizer = limiting.start(SHAPES, steps=2, **limiting.limiting)
        run(prepare(optimizer), params, data.grads)
        found.append([optimizer.grad_norm, optimizer.nonfinite])
        optimizer.param_groups[0]["max_grad_norm"] = None
        run(optimizer, params, data.grads[:1])
        assert optimizer.grad_norm is None
    assert same_bits(*found)


@pytest.mark.parametrize("kappa", ["group_lasso", "l2", "l2_inf"])
def test_groups_of_whole_tensors_are_not_asked_one_by_one(kappa, monkeypatch):
    shapes = [(64, 128), (30, 200), *SHAPES]  # an int8 momentum that fits, one that does not
    data = problem(shapes, steps=3)
    results = []
    for prepare in (lambda optimizer: optimizer, looking):
        params = leaves(data.to().params)
        optimizer = prepare(LionK(params, kappa=kappa, state_dtype="int8"))
        asked, fits = set(), optimizer._fits_kernel

        def fits_kernel(batch, row, group, asked=asked, fits=fits):
            asked.add(row)
            return fits(batch, row, group)

        monkeypatch.setattr(optimizer, "_fits_kernel", fits_kernel)
        run(optimizer, params, data.grads)
        results.append(snapshot(optimizer))
        assert asked == {0, 1}
    assert same_bits(*results)


def test_momentum_that_is_missing_is_made_anew():
    results = []
    for prepare in (lambda optimizer: optimizer, looking):
        data = problem([(64, 128), *SHAPES], steps=3)
        params = leaves(data.params)
        optimizer = prepare(LionK(params, kappa="group_lasso", state_dtype="int8"))
        run(optimizer, params, data.grads[:2])
        del optimizer.state[params[0]]["exp_avg"]
        run(optimizer, params, data.grads[2:])
        results.append(snapshot(optimizer))
    assert same_bits(*results)


# ---- Whatever happens between two steps ----------------------------------------------------------


def _none(optimizer, params, grads):
    return [None, *grads[1:]]


def _data_swapped(optimizer, params, grads):
    params[0].data = params[0].data.clone()
    return grads


def _data_with_gaps(optimizer, params, grads):
    params[0].data = torch.zeros(20, 60)[:, ::2].copy_(params[0].data)
    return grads


def _data_of_another_layout(optimizer, params, grads):
    params[0].data = params[0].data.t().contiguous().t()
    for state in (optimizer.state[params[0]],):
        for name, value in state.items():
            state[name] = torch.empty_like(params[0]).copy_(value) if value.dim() else value
    return grads


def _gradient_of_another_layout(optimizer, params, grads):
    return [grads[0].t().contiguous().t(), *grads[1:]]


def _gradient_with_gaps(optimizer, params, grads):
    return [torch.zeros(20, 60)[:, ::2].copy_(grads[0]), *grads[1:]]


def _state_without_an_entry(optimizer, params, grads):
    del optimizer.state[params[1]]["step"]
    return grads


def _state_without_anything(optimizer, params, grads):
    optimizer.state[params[1]].clear()
    return grads


def _state_without_a_parameter(optimizer, params, grads):
    del optimizer.state[params[1]]
    return grads


def _state_replaced(optimizer, params, grads):
    state = optimizer.state[params[1]]
    optimizer.state[params[1]] = {name: value.clone() for name, value in state.items()}
    return grads


def _state_in_another_order(optimizer, params, grads):
    for param in (params[2], params[0]):
        optimizer.state[param] = optimizer.state.pop(param)
    return grads


def _state_of_a_stranger(optimizer, params, grads):
    optimizer.state[torch.nn.Parameter(torch.ones(3))] = {"step": torch.zeros(())}
    return grads


def _state_of_a_stranger_for_one_without(optimizer, params, grads):
    del optimizer.state[params[0]]
    return _state_of_a_stranger(optimizer, params, grads)


def _group_added(optimizer, params, grads):
    added = leaves([torch.ones(4, 4), torch.ones(2, dtype=torch.bfloat16)])
    optimizer.add_param_group(dict(params=added, lr=1e-2))
    assign(added, [torch.full((4, 4), 0.1), torch.full((2,), 0.1, dtype=torch.bfloat16)])
    return grads


def _complex_parameter_added(optimizer, params, grads):
    added = leaves([torch.ones(4, dtype=torch.complex64)])
    optimizer.add_param_group(dict(params=added))
    added[0].grad = torch.full((4,), 0.1 + 0.2j)
    return grads


def _parameter_exchanged(optimizer, params, grads):
    params[0] = optimizer.param_groups[0]["params"][0] = leaves([torch.ones(20, 30)])[0]
    return grads


def _loaded(optimizer, params, grads):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return grads


def _another_rate(optimizer, params, grads):
    optimizer.param_groups[0]["lr"] = 1e-4
    return grads


def _scaled(optimizer, params, grads):
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    return grads


def _skipped(optimizer, params, grads):
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    return grads


EVENTS = [
    _none,
    _data_swapped,
    _data_with_gaps,
    _data_of_another_layout,
    _gradient_of_another_layout,
    _gradient_with_gaps,
    _state_without_an_entry,
    _state_without_anything,
    _state_without_a_parameter,
    _state_replaced,
    _state_in_another_order,
    _state_of_a_stranger,
    _state_of_a_stranger_for_one_without,
    _group_added,
    _complex_parameter_added,
    _parameter_exchanged,
    _loaded,
    _another_rate,
    _scaled,
    _skipped,
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__[1:])
def test_same_bits_whatever_happens_between_two_steps(family, event):
    results = []
    for prepare in (lambda optimizer: optimizer, looking):
        data, params, optimizer = family.start(SHAPES, steps=5)
        prepare(optimizer)
        run(optimizer, params, data.grads[:2])
        assign(params, event(optimizer, params, data.grads[2]))
        optimizer.step()
        optimizer.step()
        optimizer.grad_scale = optimizer.found_inf = None
        run(optimizer, params, data.grads[3:])
        results.append(snapshot(optimizer))
    assert same_bits(*results)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_steps_its_own_tensors(family, copied):
    data, params, optimizer = family.start(SHAPES)
    run(optimizer, params, data.grads[:2])
    twin = copied(optimizer)
    own = twin.param_groups[0]["params"]
    run(twin, own, data.grads[2:])
    assert same_bits(params[0], family_after(family, data, 2)[0])
    run(optimizer, params, data.grads[2:])
    assert same_bits(snapshot(twin), snapshot(optimizer))


# ---- Tensors that need a look --------------------------------------------------------------------


def test_tensors_that_need_a_look_get_it_at_once(family, monkeypatch):
    data, params, optimizer = family.start(SHAPES, steps=6)

    def gapped(grads):
        return [torch.zeros(20, 60)[:, ::2].copy_(grads[0]), *grads[1:]]

    run(optimizer, params, [data.grads[0], gapped(data.grads[1])])
    with monkeypatch.context() as patch:
        forbid(patch, optimizer, "_collect_plain")  # in vain it would be, in every step
        run(optimizer, params, [gapped(data.grads[2]), data.grads[3]])
    forbid(monkeypatch, optimizer, "_collect")  # the last step saw that all are dense again
    run(optimizer, params, data.grads[4:])


def test_torch_operations_step_if_they_are_asked_to(family, monkeypatch):
    data, params, optimizer = family.start(SHAPES, fused=False)
    forbid(monkeypatch, optimizer, "_kernel")
    forbid(monkeypatch, optimizer, "_collect_plain")
    run(optimizer, params, data.grads)
