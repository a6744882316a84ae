# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The LARS oracle against other people's formulas, and against what follows from the paper."""

import pytest
import torch

from largebatch.reference import lars
from tests.conftest import assert_close
from tests.helpers import LarsOracle, everything, leaves, problem, run, same_bits, timm_optimizer

SHAPES = [(7, 5), (64,), (3, 3, 2), (1,)]


def oracle_run(data, **hyper):
    oracle = LarsOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    return oracle


# ---- Other implementations -----------------------------------------------------------------------

TIMM = {
    "decay": (dict(weight_decay=0.1), {}),
    "no momentum": (dict(weight_decay=0.1, momentum=0.0), {}),
    "dampening": (dict(weight_decay=0.1, dampening=0.3), {}),
    "nesterov": (dict(weight_decay=0.1, nesterov=True), {}),
    "always adapt": (dict(weight_decay=0.0), dict(always_adapt=True)),
    "larc": (dict(weight_decay=0.1, trust_clip=True, lr=0.01), {}),
}


@pytest.mark.parametrize("name", TIMM)
def test_matches_timm(name):
    peer = timm_optimizer("lars", "Lars")
    shared, only_timm = TIMM[name]
    hyper = {"lr": 2.0, "momentum": 0.9, **shared}
    data = problem(SHAPES, steps=6).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    run(peer(params, foreach=False, **hyper, **only_timm), params, data.grads)
    ours = {"trust_clip": "clip"}
    hyper = {ours.get(k, k): v for k, v in hyper.items()}
    assert_close(params, oracle_run(data, **hyper).params, "formula")


def test_timm_without_decay_is_adapt_off():
    peer = timm_optimizer("lars", "Lars")
    data = problem(SHAPES, steps=4).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    run(peer(params, lr=0.1, momentum=0.9, foreach=False), params, data.grads)
    assert_close(params, oracle_run(data, lr=0.1, adapt=False).params, "formula")


@pytest.mark.parametrize(("nesterov", "dampening"), [(False, 0.0), (False, 0.4), (True, 0.0)])
def test_without_adaptation_it_is_sgd(nesterov, dampening):
    hyper = dict(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=nesterov, dampening=dampening)
    data = problem(SHAPES, steps=5).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    run(torch.optim.SGD(params, **hyper), params, data.grads)
    assert_close(params, oracle_run(data, adapt=False, **hyper).params, "formula")


def paper(w, v, g, lr, momentum, decay, trust):
    """Algorithm 1 of the paper, with its own names: local rate, then velocity, then weights."""
    local = trust * w.norm() / (g.norm() + decay * w.norm())
    v = momentum * v + lr * local * (g + decay * w)
    return w - v, v


def test_matches_the_paper_while_the_rate_warms_up():
    data = problem([(40, 3)], steps=6)
    oracle = LarsOracle(
        data.params, lr_in_momentum=True, weight_decay=0.1, eps=0.0, trust_coefficient=0.02
    )
    w = data.params[0].double()
    v = torch.zeros_like(w)
    for t, grads in enumerate(data.grads, start=1):
        oracle.groups[0][1]["lr"] = 0.5 * t
        oracle.step(grads)
        w, v = paper(w, v, grads[0].double(), 0.5 * t, 0.9, 0.1, 0.02)
    assert_close(oracle.params[0], w, "formula")
    assert_close(oracle.state[0]["momentum_buffer"], v, "formula")


def test_matches_the_paper_with_nesterov():
    data = problem([(40, 3)], steps=5)
    hyper = dict(weight_decay=0.1, eps=0.0, nesterov=True, lr=0.7)
    oracle = LarsOracle(data.params, lr_in_momentum=True, **hyper)
    w = data.params[0].double()
    v = torch.zeros_like(w)
    for grads in data.grads:
        oracle.step(grads)
        g = grads[0].double()
        d = 0.001 * w.norm() / (g.norm() + 0.1 * w.norm()) * (g + 0.1 * w)
        v = 0.9 * v + 0.7 * d
        w = w - (0.9 * v + 0.7 * d)
    assert_close(oracle.params[0], w, "formula")


# ---- What follows from the formula ---------------------------------------------------------------


@pytest.mark.parametrize("nesterov", [False, True])
def test_conventions_agree_at_a_constant_rate(nesterov):
    data = problem(SHAPES, steps=6)
    hyper = dict(lr=3.0, weight_decay=0.1, nesterov=nesterov)
    a, b = oracle_run(data, lr_in_momentum=True, **hyper), oracle_run(data, **hyper)
    assert_close(a.params, b.params, "formula")
    for x, y in zip(a.state, b.state, strict=True):
        assert_close(x["momentum_buffer"], 3.0 * y["momentum_buffer"], "formula")


def test_conventions_differ_while_the_rate_changes():
    data = problem([(30,)], steps=3)
    results = []
    for lr_in_momentum in (False, True):
        oracle = LarsOracle(data.params, lr_in_momentum=lr_in_momentum)
        for t, grads in enumerate(data.grads, start=1):
            oracle.groups[0][1]["lr"] = float(t)
            oracle.step(grads)
        results.append(oracle.params[0])
    assert (results[0] - results[1]).norm() > 1e-4 * results[0].norm()


def test_step_without_decay_is_trust_times_weights():
    data = problem(SHAPES, steps=1)
    oracle = oracle_run(data, lr=2.0, eps=0.0, momentum=0.0, trust_coefficient=0.003)
    for before, after in zip(data.params, oracle.params, strict=True):
        before = before.double()
        assert (after - before).norm().item() == pytest.approx(0.006 * before.norm().item(), 1e-12)


def test_first_step_is_not_dampened():
    oracle = LarsOracle([torch.ones(4)], dampening=0.9, adapt=False)
    for expected in (2.0, 0.9 * 2.0 + 0.1 * 2.0):
        oracle.step([torch.full((4,), 2.0)])
        assert_close(oracle.state[0]["momentum_buffer"], torch.full((4,), expected), "fp32")


def test_zero_norms_give_rate_one_with_decay_applied():
    oracle = LarsOracle([torch.zeros(3), torch.ones(3)], lr=0.5, momentum=0.0, weight_decay=0.1)
    oracle.step([torch.ones(3), torch.zeros(3)])
    assert_close(oracle.params, [torch.full((3,), -0.5), torch.full((3,), 0.95)], "fp32")


def test_local_rate_and_its_clip():
    sums = torch.tensor([[4.0, 1.0], [0.0, 1.0], [4.0, 0.0], [float("nan"), 1.0]])
    for lr, clip, expected in (
        (0.5, False, [0.1 * 2 / 1.6, 1, 1]),
        (0.5, True, [0.2 / 1.6 / 0.5, 1, 1]),
        (0.1, True, [1, 1, 1]),
        (4.0, True, [0.2 / 1.6 / 4, 0.25, 0.25]),
        (0.0, True, [1, 1, 1]),
    ):
        rate = lars.local_rate(sums, lr, 0.25, 0.1, 0.1, clip)
        assert rate[:3].tolist() == pytest.approx(expected)
        assert rate[3].isnan()


def test_adapt_off_leaves_clip_without_effect():
    data = problem(SHAPES, steps=3)
    off = dict(lr=4.0, adapt=False, weight_decay=0.1)
    assert same_bits(oracle_run(data, clip=True, **off).params, oracle_run(data, **off).params)


def test_scaled_gradients_give_the_same_step():
    data = problem(SHAPES, steps=3)
    plain, scaled = LarsOracle(data.params, lr=1.0), LarsOracle(data.params, lr=1.0)
    for grads in data.grads:
        plain.step(grads)
        scaled.step([512 * g for g in grads], grad_scale=torch.tensor(512.0))
    assert_close(scaled.params, plain.params, "formula")
    buffers = [[s["momentum_buffer"] for s in o.state] for o in (scaled, plain)]
    assert_close(*buffers, "formula")  # the first buffer too is of the unscaled gradient


def test_skipped_step_changes_nothing():
    data = problem(SHAPES, steps=2)
    oracle = LarsOracle(data.params)
    oracle.step(data.grads[0])
    before = [t.clone() for t in everything(oracle)]
    oracle.step(data.grads[1], found_inf=torch.tensor(1.0))
    assert same_bits(everything(oracle), before)
    oracle.step(data.grads[1], found_inf=torch.tensor(0.0))
    assert not same_bits(oracle.params[0], before[0])


def test_dampening_has_no_place_in_the_papers_momentum():
    with pytest.raises(ValueError, match="dampening"):
        LarsOracle([torch.ones(2)], dampening=0.5, lr_in_momentum=True).step([torch.ones(2)])
