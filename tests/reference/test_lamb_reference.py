# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The LAMB oracle against other people's formulas, and against what follows from the paper."""

import numpy as np
import pytest
import torch

from largebatch.reference import lamb
from tests.conftest import assert_close
from tests.helpers import LambOracle, everything, leaves, problem, run, same_bits, timm_optimizer
from tests.reference import originals

SHAPES = [(7, 5), (64,), (3, 3, 2), (1,)]
ADAPTED = dict(adapt="always", max_grad_norm=None)


def oracle_run(data, **hyper):
    oracle = LambOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    return oracle


def moments(oracle, name):
    return [s[name] for s in oracle.state]


# ---- Other implementations -----------------------------------------------------------------------

TIMM = {
    "defaults": ({}, {}),
    "no clip": (dict(max_grad_norm=None), dict(max_grad_norm=None)),
    "clip far above": (dict(max_grad_norm=100.0), dict(max_grad_norm=100.0)),
    "always adapt": (dict(always_adapt=True), dict(adapt="always")),
    "no decay": (dict(weight_decay=0.0), dict(weight_decay=0.0)),
    "no decay, always": (
        dict(weight_decay=0.0, always_adapt=True),
        dict(weight_decay=0.0, adapt="always"),
    ),
    "decoupled": (dict(decoupled_decay=True), dict(decay="outside")),
    "no bias correction": (dict(bias_correction=False), dict(bias_correction=False)),
    "no averaging": (dict(grad_averaging=False), dict(grad_averaging=False)),
    "trust clip": (dict(trust_clip=True), dict(trust_clip=1.0)),
}


@pytest.mark.parametrize("name", TIMM)
def test_matches_timm(name):
    peer = timm_optimizer("lamb", "Lamb")
    theirs, ours = TIMM[name]
    common = dict(lr=0.02, weight_decay=0.03)
    data = problem(SHAPES, steps=6, scale=1.0).to(dtype=torch.float64, grad_dtype=torch.double)
    params = leaves(data.to().params)
    run(peer(params, foreach=False, **{**common, **theirs}), params, data.grads)
    assert_close(params, oracle_run(data, **{**common, **ours}).params, "formula")


ORIGINALS = {
    "paper": (originals.paper, ADAPTED),
    "paper_v3": (originals.paper_v3, dict(bias_correction=False, **ADAPTED)),
    "nvlamb": (originals.nvlamb, dict(adapt="always")),
    "lambc": (originals.lambc, dict(trust_clip=1.0)),
    "deepspeed": (
        originals.deepspeed,
        dict(
            bias_correction="outside",
            trust_clip=(0.01, 10.0),
            eps=1e-8,
            weight_decay=0.0,
            **ADAPTED,
        ),
    ),
}


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("scale", [0.05, 50.0])  # the bounds on the ratio act at neither, at both
def test_matches_published_formula(name, scale):
    update, hyper = ORIGINALS[name]
    data = problem(SHAPES, steps=6, scale=scale, grad_scale=0.3)
    oracle = LambOracle(data.params, lr=0.02, **hyper)
    ps = [p.double().numpy() for p in data.params]
    ms, vs = [np.zeros_like(p) for p in ps], [np.zeros_like(p) for p in ps]
    for t, grads in enumerate(data.grads, start=1):
        oracle.step(grads)
        ps, ms, vs = update(ps, [g.double().numpy() for g in grads], ms, vs, t, lr=0.02)
    assert_close(oracle.params, [torch.from_numpy(p) for p in ps], "formula")
    assert_close(moments(oracle, "exp_avg"), [torch.from_numpy(m) for m in ms], "formula")
    assert_close(moments(oracle, "exp_avg_sq"), [torch.from_numpy(v) for v in vs], "formula")


def test_l2_decay_is_decay_of_the_gradient():
    data = problem(SHAPES, steps=4)
    oracle = LambOracle(data.params, decay="l2", weight_decay=0.1, **ADAPTED)
    plain = LambOracle(data.params, weight_decay=0.0, **ADAPTED)
    for grads in data.grads:
        decayed = [g + 0.1 * p for g, p in zip(grads, plain.params, strict=True)]
        oracle.step(grads)
        plain.step(decayed)
    assert_close(oracle.params, plain.params, "formula")


# ---- What follows from the formula ---------------------------------------------------------------


@pytest.mark.parametrize("decay", ["in_update", "l2"])
def test_relative_step_is_the_learning_rate(decay):
    data = problem(SHAPES, steps=1)
    oracle = oracle_run(data, lr=0.02, decay=decay, adapt="always")
    for before, after in zip(data.params, oracle.params, strict=True):
        before = before.double()
        assert (after - before).norm().item() == pytest.approx(0.02 * before.norm().item(), 1e-12)


def test_bias_correction_and_averaging_cancel_without_decay():
    data = problem(SHAPES, steps=5)
    hyper = dict(weight_decay=0.0, eps=0.0, **ADAPTED)
    expected = oracle_run(data, **hyper).params
    for switch in (dict(bias_correction=False), dict(grad_averaging=False)):
        assert_close(oracle_run(data, **hyper, **switch).params, expected, "formula")


def test_bias_correction_matters_with_decay():
    data = problem(SHAPES, steps=3)
    hyper = dict(lr=0.1, weight_decay=5.0, **ADAPTED)
    corrected = oracle_run(data, **hyper).params[0]
    raw = oracle_run(data, bias_correction=False, **hyper).params[0]
    assert (corrected - raw).norm() > 1e-3 * corrected.norm()


def test_invariant_to_gradient_scale_and_equivariant_to_weight_scale():
    data = problem(SHAPES, steps=5)
    hyper = dict(weight_decay=0.0, eps=0.0, **ADAPTED)
    expected = oracle_run(data, **hyper).params
    data.grads = [[1000 * g for g in grads] for grads in data.grads]
    data.params = [8 * p for p in data.params]
    actual = oracle_run(data, **hyper).params
    # 1000 g is rounded to fp32 before the oracle sees it
    assert_close(actual, [8 * e for e in expected], "fp32")


def test_one_element_moves_by_its_own_size():
    oracle = LambOracle([torch.tensor([-2.0])], lr=0.1, weight_decay=0.0, **ADAPTED)
    oracle.step([torch.tensor([3.0])])
    assert oracle.params[0].item() == pytest.approx(-2.2, 1e-12)


def test_zero_weights_take_an_unscaled_first_step():
    n = 100
    oracle = LambOracle([torch.zeros(n)], lr=0.1, **ADAPTED)
    oracle.step([torch.full((n,), 1e-2)])
    first = oracle.params[0].norm().item()
    assert first == pytest.approx(0.1 * n**0.5, 1e-3)  # eps takes 1e-4 of it
    oracle.step([torch.full((n,), 1e-2)])
    assert oracle.params[0].norm().item() <= 1.1 * first * (1 + 1e-12)


def test_zero_update_keeps_weights():
    oracle = LambOracle([torch.ones(4)], weight_decay=0.0, **ADAPTED)
    oracle.step([torch.zeros(4)])
    assert torch.equal(oracle.params[0], torch.ones(4).double())


def test_deepspeed_correction_is_a_warm_up():
    # The relative step that lr * sqrt(b2) / b1 leaves of lr, at t = 1, 10, 50.
    oracle = LambOracle(
        [torch.ones(1000)], lr=1e-4, weight_decay=0.0, eps=0.0, bias_correction="outside", **ADAPTED
    )
    generator = torch.Generator().manual_seed(0)
    seen = {}
    for t in range(1, 51):
        before = oracle.params[0].clone()
        oracle.step([torch.randn(1000, generator=generator)])
        seen[t] = ((oracle.params[0] - before).norm() / before.norm() / 1e-4).item()
    assert [round(seen[t], 3) for t in (1, 10, 50)] == [0.316, 0.153, 0.222]


def test_adapt_may_be_a_bool():
    data = problem(SHAPES, steps=3)
    for boolean, name in ((True, "always"), (False, "never")):
        by_bool = oracle_run(data, weight_decay=0.0, adapt=boolean).params
        assert same_bits(by_bool, oracle_run(data, weight_decay=0.0, adapt=name).params)


def test_phi_comes_before_the_ratio_and_its_bounds_after():
    sums = torch.tensor([[100.0**2, 2.0**2], [0.0, 1.0], [1.0, 0.0], [100.0**2, 1e-6]]).double()
    assert lamb.trust_ratio(sums).tolist() == pytest.approx([50, 1, 1, 1e5])
    assert lamb.trust_ratio(sums, 40.0).tolist() == [40, 1, 1, 40]
    assert lamb.trust_ratio(sums, (2.0, 4.0), (0.0, 10.0)).tolist() == [4, 1, 1, 4]
    assert lamb.trust_ratio(sums, None, (0.0, 10.0)).tolist() == pytest.approx([5, 1, 1, 1e4])
    assert lamb.trust_ratio(sums * float("nan")).isnan().all()


# ---- Clipping, scaling, skipping -----------------------------------------------------------------


def test_clip_uses_the_norm_of_everything():
    data = problem(SHAPES, steps=3, grad_scale=10.0)
    total = sum(g.double().square().sum() for g in data.grads[0]).sqrt()
    assert total > 1
    clipped = LambOracle(data.params, max_grad_norm=1.0)
    clipped.step(data.grads[0])
    by_hand = LambOracle(data.params, max_grad_norm=None)
    by_hand.step([g.double() / total for g in data.grads[0]])
    assert_close(moments(clipped, "exp_avg_sq"), moments(by_hand, "exp_avg_sq"), "formula")


@pytest.mark.parametrize("off", [None, 0.0, -1.0, float("inf")])
def test_clip_off_keeps_large_gradients(off):
    oracle = LambOracle([torch.ones(4)], max_grad_norm=off)
    oracle.step([torch.full((4,), 100.0)])
    assert_close(oracle.state[0]["exp_avg"], torch.full((4,), 10.0), "formula")


def test_scaled_gradients_give_the_same_step():
    data = problem(SHAPES, steps=3, grad_scale=1.0)
    scale = torch.tensor(1024.0)
    plain, scaled = LambOracle(data.params), LambOracle(data.params)
    for grads in data.grads:
        plain.step(grads)
        scaled.step([1024 * g for g in grads], grad_scale=scale, found_inf=torch.tensor(0.0))
    assert_close(scaled.params, plain.params, "formula")


@pytest.mark.parametrize(
    ("bad", "scaler"),
    [
        (float("nan"), dict(grad_scale=torch.tensor(2.0))),
        (float("inf"), dict(found_inf=torch.tensor(0.0))),
        (1.0, dict(found_inf=torch.tensor(1.0))),
        (1.0, dict(found_inf=torch.tensor([2.0]))),
    ],
)
def test_skipped_step_changes_nothing(bad, scaler):
    data = problem(SHAPES, steps=2)
    oracle = LambOracle(data.params)
    oracle.step(data.grads[0])
    before = [t.clone() for t in everything(oracle)]
    data.grads[1][1][3] = bad
    oracle.step(data.grads[1], **scaler)
    assert same_bits(everything(oracle), before)


def test_non_finite_gradient_propagates_without_a_scaler():
    oracle = LambOracle([torch.ones(4), torch.ones(4)], max_grad_norm=None)
    oracle.step([torch.tensor([1.0, float("nan"), 1.0, 1.0]), torch.ones(4)])
    assert oracle.params[0].isnan().all()  # through the ratio
    assert oracle.params[1].isfinite().all()


def test_maximize_is_descent_on_the_negative():
    data = problem(SHAPES, steps=3)
    up = oracle_run(data, maximize=True)
    data.grads = [[-g for g in grads] for grads in data.grads]
    assert same_bits(up.params, oracle_run(data).params)


@pytest.mark.parametrize("switch", [{"decay": "L2"}, {"adapt": "layer"}, {"bias_correction": "on"}])
def test_unknown_switch_is_named(switch):
    (name,) = switch
    with pytest.raises(ValueError, match=name):
        LambOracle([torch.ones(2)], **switch).step([torch.ones(2)])
