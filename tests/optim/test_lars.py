# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LARS: every switch against float64, on every backend."""

import copy

import pytest
import torch

from largebatch.optim import LARS
from tests.conftest import assert_close, assert_matches
from tests.helpers import LarsOracle, leaves, problem, run, same_bits

SHAPES = [(40, 25), (1700,), (8, 4, 9, 3)]

SWITCHES = {
    "defaults": {},
    "decay": dict(weight_decay=0.1),
    "no momentum": dict(momentum=0.0, weight_decay=0.1),
    "dampening": dict(dampening=0.3, weight_decay=0.1),
    "nesterov": dict(nesterov=True, weight_decay=0.1),
    "lr in momentum": dict(lr_in_momentum=True, weight_decay=0.1),
    "lr in momentum, nesterov": dict(lr_in_momentum=True, nesterov=True, weight_decay=0.1),
    "lr in momentum, no momentum": dict(lr_in_momentum=True, momentum=0.0, weight_decay=0.1),
    "clip acts": dict(clip=True, lr=0.01, weight_decay=0.1),
    "clip does not act": dict(clip=True, lr=2.0, weight_decay=0.1),
    "not adapted": dict(adapt=False, lr=0.1, weight_decay=0.1),
    "not adapted, clip": dict(adapt=False, lr=0.1, weight_decay=0.1, clip=True),
    "large eps": dict(eps=3.0),
    "eps 0": dict(eps=0.0, weight_decay=1e-4),
    "large trust": dict(trust_coefficient=0.05),
    "maximize": dict(maximize=True, weight_decay=0.1),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_matches_float64_reference(backend, name):
    hyper = {"trust_coefficient": 0.02, **SWITCHES[name]}
    data = problem(SHAPES)
    oracle = LarsOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LARS(params, **hyper)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("lr_in_momentum", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_follows_a_warm_up(backend, lr_in_momentum, nesterov):
    data = problem(SHAPES)
    hyper = dict(
        lr_in_momentum=lr_in_momentum, nesterov=nesterov, weight_decay=0.1, trust_coefficient=0.02
    )
    oracle = LarsOracle(data.params, **hyper)
    data_here = data.to(backend.device)
    params = leaves(data_here.params)
    optimizer = LARS(params, **hyper)
    for t, (grads, grads_here) in enumerate(zip(data.grads, data_here.grads, strict=True), start=1):
        oracle.groups[0][1]["lr"] = optimizer.param_groups[0]["lr"] = 0.25 * t
        oracle.step(grads)
        run(optimizer, params, [grads_here])
    assert_matches(optimizer, params, oracle)


def test_groups_differ_in_everything(backend):
    data = problem([(30, 20), (500,), (64,), (33, 3), (20,)])
    settings = [
        (0, 2, dict(lr=2.0, weight_decay=0.1)),
        (2, 3, dict(adapt=False, lr=0.05, momentum=0.5, dampening=0.2)),
        (3, 4, dict(eps=1.0, trust_coefficient=0.1, nesterov=True)),
        (4, 5, dict(lr_in_momentum=True, clip=True, lr=0.01, weight_decay=0.01)),
    ]
    oracle = LarsOracle([dict(params=data.params[a:b], **s) for a, b, s in settings])
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LARS([dict(params=params[a:b], **s) for a, b, s in settings])
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


def test_groups_with_and_without_momentum(backend):
    data = problem([(30, 20), (500,)], steps=4)
    oracle = LarsOracle([dict(params=data.params[:1], momentum=0.0), dict(params=data.params[1:])])
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LARS([dict(params=params[:1], momentum=0.0), dict(params=params[1:])])
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)
    assert "momentum_buffer" not in optimizer.state[params[0]]


def test_zero_norms_give_rate_one_with_decay_applied(backend):
    params = leaves(
        [torch.zeros(300, device=backend.device), torch.ones(300, device=backend.device)]
    )
    optimizer = LARS(params, lr=0.5, momentum=0.0, weight_decay=0.25)
    run(optimizer, params, [[torch.ones_like(params[0]), torch.zeros_like(params[1])]])
    assert torch.equal(params[0].detach(), torch.full_like(params[0], -0.5))
    assert torch.equal(params[1].detach(), torch.full_like(params[1], 0.875))


def test_gradients_below_the_root_of_the_smallest_number_have_a_norm(backend):
    # Their squares are 1e-60: zero in fp32. The step is lr * trust of the weights all the same.
    p = torch.nn.Parameter(torch.ones(1000, device=backend.device))
    optimizer = LARS([p], lr=0.5, momentum=0.0, eps=0.0, trust_coefficient=0.5)
    run(optimizer, [p], [[torch.full_like(p, 1e-30)]])
    assert_close(p, torch.full((1000,), 0.75))


def test_same_as_sgd_without_adaptation(backend):
    data = problem(SHAPES, steps=5).to(backend.device)
    hyper = dict(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True)
    ours, theirs = leaves(data.to().params), leaves(data.to().params)
    run(LARS(ours, adapt=False, **hyper), ours, data.grads)
    run(torch.optim.SGD(theirs, **hyper), theirs, data.grads)
    assert_close(ours, [p.detach() for p in theirs])


def test_adapt_off_leaves_clip_without_effect(backend):
    data = problem(SHAPES, steps=3).to(backend.device)
    results = []
    for clip in (False, True):
        params = leaves(data.to().params)
        run(LARS(params, lr=4.0, adapt=False, clip=clip), params, data.grads)
        results.append([p.detach() for p in params])
    assert same_bits(*results)


def test_dampening_with_lr_in_momentum_is_refused():
    with pytest.raises(ValueError, match="dampening"):
        LARS([torch.nn.Parameter(torch.ones(2))], dampening=0.5, lr_in_momentum=True)


def test_nesterov_needs_momentum_and_no_dampening():
    for bad in (dict(momentum=0.0), dict(dampening=0.1)):
        with pytest.raises(ValueError, match="nesterov"):
            LARS([torch.nn.Parameter(torch.ones(2))], nesterov=True, **bad)


def test_no_momentum_buffer_without_momentum(backend):
    p = torch.nn.Parameter(torch.ones(5, device=backend.device))
    optimizer = LARS([p], momentum=0.0)
    run(optimizer, [p], [[torch.ones_like(p)]])
    assert set(optimizer.state[p]) == {"step"}


def test_sgd_checkpoint_continues_its_momentum(backend):
    # torch.optim.SGD and timm's Lars keep a momentum_buffer and no step: it is not a first step.
    data = problem([(40, 30), (1000,)], steps=4)
    theirs = leaves(data.to().params)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, dampening=0.2)
    run(sgd, theirs, data.grads[:2])
    options = dict(lr=0.1, momentum=0.9, dampening=0.2, adapt=False)
    oracle = LarsOracle([p.detach() for p in theirs], **options)
    for p, state in zip(theirs, oracle.state, strict=True):
        state["step"].fill_(2)
        state["momentum_buffer"].copy_(sgd.state[p]["momentum_buffer"])
    params = leaves([p.detach().to(backend.device, copy=True) for p in theirs])
    optimizer = LARS(params, **options)
    checkpoint = copy.deepcopy(sgd.state_dict())
    checkpoint["param_groups"][0]["adapt"] = False
    optimizer.load_state_dict(checkpoint)
    for grads in data.grads[2:]:
        oracle.step(grads)
        run(optimizer, params, [[g.to(backend.device) for g in grads]])
    assert_close(params, oracle.params)
