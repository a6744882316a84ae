# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LAMB: every switch and preset against float64, on every backend."""

import copy

import numpy as np
import pytest
import torch

from largebatch.optim import LAMB
from tests.conftest import assert_close, assert_matches
from tests.helpers import LambOracle, assign, leaves, problem, run
from tests.reference import originals

SHAPES = [(40, 25), (1700,), (8, 4, 9, 3)]

SWITCHES = {
    "defaults": {},
    "no clip": dict(max_grad_norm=None),
    "clip 0 is off": dict(max_grad_norm=0.0),
    "clip inf is off": dict(max_grad_norm=float("inf")),
    "tight clip": dict(max_grad_norm=0.01),
    "clip far above": dict(max_grad_norm=1e4),
    "no bias correction": dict(bias_correction=False),
    "correction outside": dict(bias_correction="outside"),
    "no averaging": dict(grad_averaging=False),
    "l2": dict(decay="l2"),
    "decay outside": dict(decay="outside"),
    "decay outside, always": dict(decay="outside", adapt="always", weight_decay=0.5),
    "no decay": dict(weight_decay=0.0),
    "no decay, always": dict(weight_decay=0.0, adapt="always"),
    "never": dict(adapt="never"),
    "bound above": dict(trust_clip=0.04),
    "bounds": dict(trust_clip=(0.06, 0.2)),
    "phi above": dict(weight_norm_clip=(0.0, 1.5)),
    "phi below": dict(weight_norm_clip=(1.8, 10.0)),
    "phi and bounds": dict(weight_norm_clip=(0.0, 1.5), trust_clip=(0.001, 0.03)),
    "other betas": dict(betas=(0.5, 0.9)),
    "betas 0": dict(betas=(0.0, 0.0)),
    "large eps": dict(eps=0.1),
    "large decay": dict(weight_decay=2.0),
    "maximize": dict(maximize=True),
    "all at once": dict(
        maximize=True, decay="l2", grad_averaging=False, bias_correction="outside", trust_clip=0.05
    ),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_matches_float64_reference(backend, name):
    hyper = {"lr": 5e-3, "weight_decay": 0.02, **SWITCHES[name]}
    data = problem(SHAPES, grad_scale=0.03)  # of norm 2.6: the default clip acts
    oracle = LambOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LAMB(params, **hyper)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("name", originals.PRESETS)
@pytest.mark.parametrize("scale", [0.05, 50.0])
def test_preset_is_the_published_formula(backend, name, scale):
    data = problem(SHAPES, scale=scale, grad_scale=0.3)
    ps = [p.double().numpy() for p in data.params]
    ms, vs = [np.zeros_like(p) for p in ps], [np.zeros_like(p) for p in ps]
    for t, grads in enumerate(data.grads, start=1):
        gs = [g.double().numpy() for g in grads]
        ps, ms, vs = originals.PRESETS[name](ps, gs, ms, vs, t, lr=0.01)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LAMB.preset(name, params, lr=0.01)
    run(optimizer, params, data.grads)
    assert_close(params, [torch.from_numpy(p) for p in ps])
    assert_close([optimizer.state[p]["exp_avg"] for p in params], [torch.from_numpy(m) for m in ms])
    assert_close(
        [optimizer.state[p]["exp_avg_sq"] for p in params], [torch.from_numpy(v) for v in vs]
    )


def test_preset_can_be_overridden():
    optimizer = LAMB.preset("deepspeed", [torch.nn.Parameter(torch.ones(2))], trust_clip=3.0)
    assert optimizer.defaults["trust_clip"] == 3.0
    assert optimizer.defaults["bias_correction"] == "outside"


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match="nvlam"):
        LAMB.preset("nvlam", [torch.nn.Parameter(torch.ones(2))])


def test_error_stays_small_over_a_hundred_steps(backend):
    data = problem([(150, 130)], steps=100)
    oracle = LambOracle(data.params, lr=5e-3)
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LAMB(params, lr=5e-3)
    run(optimizer, params, data.grads)
    assert_close(params, oracle.params, "fp32, 100 steps")
    assert_close(
        optimizer.state[params[0]]["exp_avg_sq"], oracle.state[0]["exp_avg_sq"], "fp32, 100 steps"
    )


def test_groups_differ_in_everything(backend):
    data = problem([(30, 20), (500,), (64,), (33, 3), (20,)], grad_scale=0.3)
    settings = [
        (0, 2, dict(lr=2e-3, weight_decay=0.1)),
        (2, 3, dict(eps=1e-3, adapt="never", betas=(0.5, 0.99))),
        (3, 4, dict(adapt="always", weight_decay=0.0, trust_clip=0.02, max_grad_norm=0.5)),
        (4, 5, dict(decay="outside", bias_correction=False, max_grad_norm=None)),
    ]
    oracle = LambOracle([dict(params=data.params[a:b], **s) for a, b, s in settings])
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = LAMB([dict(params=params[a:b], **s) for a, b, s in settings])
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)  # one gradient norm, of all groups


def test_grad_norm_is_that_of_all_groups(backend):
    data = problem([(70, 30), (17,), (0,), (20000,)], steps=1).to(backend.device)
    params = leaves(data.params)
    optimizer = LAMB([dict(params=params[:2]), dict(params=params[2:], lr=0.1)], max_grad_norm=3.0)
    run(optimizer, params, data.grads)
    expected = sum(g.double().square().sum().item() for g in data.grads[0]) ** 0.5
    assert optimizer.grad_norm.dtype == torch.float64
    assert optimizer.grad_norm.shape == ()
    assert optimizer.grad_norm.device.type == backend.device.type
    assert optimizer.grad_norm.item() == pytest.approx(expected, rel=1e-6)


def test_grad_norm_is_none_when_none_was_taken(backend):
    params = leaves([torch.ones(5, device=backend.device)])
    optimizer = LAMB(params, max_grad_norm=None)
    run(optimizer, params, [[torch.ones_like(params[0])]])
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("decay", ["in_update", "l2"])
def test_relative_step_is_the_learning_rate(backend, decay):
    data = problem([(60, 50), (7,)], steps=1).to(backend.device)
    params = leaves(data.params)
    before = [p.detach().double() for p in params]
    params = leaves([b.float() for b in before])
    run(LAMB(params, lr=0.25, decay=decay), params, data.grads)
    for p, b in zip(params, before, strict=True):
        assert ((p.detach().double() - b).norm() / b.norm()).item() == pytest.approx(0.25, rel=1e-6)


def test_without_decay_gradients_may_be_scaled(backend):
    # Powers of two leave every rounding as it is: with eps = 0, invariance is bitwise.
    data = problem([(60, 50), (9,)], steps=5).to(backend.device)
    hyper = dict(weight_decay=0.0, eps=0.0, adapt="always", max_grad_norm=None)
    results = []
    for factor in (1.0, 1024.0):
        params = leaves([p.clone() for p in data.params])
        run(LAMB(params, **hyper), params, [[factor * g for g in grads] for grads in data.grads])
        results.append([p.detach().clone() for p in params])
    assert_close(results[1], results[0])


def test_zero_initialised_tensor_leaves_zero(backend):
    p = torch.nn.Parameter(torch.zeros(1000, device=backend.device))
    optimizer = LAMB([p], lr=0.1, max_grad_norm=None)
    assign([p], [torch.full_like(p, 0.01)])
    optimizer.step()
    first = p.detach().norm().item()
    assert first == pytest.approx(0.1 * 1000**0.5, rel=1e-3)
    assign([p], [torch.full_like(p, 0.01)])
    optimizer.step()
    assert first < p.detach().norm().item() <= 1.1 * first * (1 + 1e-6)


def test_one_element_keeps_its_sign(backend):
    p = torch.nn.Parameter(torch.tensor([2.0], device=backend.device))
    optimizer = LAMB([p], lr=0.5, weight_decay=0.0, adapt="always", max_grad_norm=None)
    run(optimizer, [p], [[torch.full_like(p, 3.0)]] * 4)
    assert p.item() == pytest.approx(2.0 * 0.5**4, rel=1e-5)


def test_apex_checkpoint_with_a_step_per_group(backend):
    # apex and timm: exp_avg and exp_avg_sq per parameter, an int or a tensor `step` per group.
    data = problem([(40, 30), (1000,)], steps=6)
    oracle = LambOracle(data.params, lr=0.01)
    for grads in data.grads[:3]:
        oracle.step(grads)
    for step in (3, torch.tensor(3.0)):
        checkpoint = {
            "state": {
                i: {k: v.float() for k, v in s.items() if k != "step"}
                for i, s in enumerate(oracle.state)
            },
            "param_groups": [
                dict(
                    params=[0, 1], step=step, lr=0.01, betas=(0.9, 0.999), eps=1e-6,
                    weight_decay=0.01, bias_correction=True, grad_averaging=True, max_grad_norm=1.0,
                )
            ],
        }  # fmt: skip
        params = leaves([p.to(backend.device, torch.float32) for p in oracle.params])
        optimizer = LAMB(params)
        optimizer.load_state_dict(checkpoint)
        assert [optimizer.state[p]["step"].item() for p in params] == [3, 3]
        rest = copy.deepcopy(oracle)
        for grads in data.grads[3:]:
            rest.step(grads)
            run(optimizer, params, [[g.to(backend.device) for g in grads]])
        assert_matches(optimizer, params, rest)
