# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The Adan oracle against other people's formulas, and against what follows from the paper."""

import itertools

import pytest
import torch

from largebatch.reference import adan
from tests.conftest import assert_close
from tests.helpers import AdanOracle, everything, leaves, problem, run, same_bits, timm_optimizer

SHAPES = [(7, 5), (64,), (3, 3, 2), (1,)]
HYPER = dict(lr=0.02, betas=(0.9, 0.8, 0.95), eps=1e-3, weight_decay=0.3)


def oracle_run(data, **hyper):
    oracle = AdanOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    return oracle


# ---- Other implementations -----------------------------------------------------------------------


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("no_prox", [False, True])
def test_matches_timm(no_prox, foreach):
    peer = timm_optimizer("adan", "Adan")
    data = problem(SHAPES, steps=6).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    run(peer(params, no_prox=no_prox, foreach=foreach, **HYPER), params, data.grads)
    assert_close(params, oracle_run(data, no_prox=no_prox, **HYPER).params, "formula")


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decouple", [False, True])
def test_matches_pytorch_optimizer(decouple, foreach):
    peers = pytest.importorskip("pytorch_optimizer")
    data = problem(SHAPES, steps=6).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    peer = peers.Adan(params, weight_decouple=decouple, foreach=foreach, **HYPER)
    run(peer, params, data.to().grads)
    assert_close(params, oracle_run(data, no_prox=decouple, **HYPER).params, "formula")


def test_clip_is_that_of_pytorch_optimizer_whose_norm_is_fp32():
    peers = pytest.importorskip("pytorch_optimizer")
    data = problem(SHAPES, steps=6).to(dtype=torch.float64, grad_dtype=torch.float64)
    params = leaves(data.to().params)
    run(peers.Adan(params, max_grad_norm=0.2, **HYPER), params, data.to().grads)
    assert_close(params, oracle_run(data, max_grad_norm=0.2, **HYPER).params, "fp32")


def test_pytorch_optimizer_starts_maximizing_with_twice_the_gradient():
    # The first difference is that of the negated and the plain gradient: not followed.
    peers = pytest.importorskip("pytorch_optimizer")
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    peer = peers.Adan([p], maximize=True)
    run(peer, [p], [[torch.ones(3, dtype=torch.float64)]])
    assert_close(peer.state[p]["exp_avg_diff"], torch.full((3,), 0.08 * -2.0))
    oracle = AdanOracle([torch.ones(3)], maximize=True)
    oracle.step([torch.ones(3)])
    assert not oracle.state[0]["exp_avg_diff"].any()


def paper(x, gs, alphas, lr, decay, eps):
    """Algorithm 1 of the paper as sums over the past, with its betas, started as the code is."""
    a1, a2, a3 = alphas
    ds = [torch.zeros_like(gs[0])] + [b - a for a, b in itertools.pairwise(gs)]
    for k in range(1, len(gs) + 1):
        past = range(k)
        m = sum(a1 * (1 - a1) ** (k - 1 - i) * gs[i] for i in past)
        v = sum(a2 * (1 - a2) ** (k - 1 - i) * ds[i] for i in past)
        n = sum(a3 * (1 - a3) ** (k - 1 - i) * (gs[i] + (1 - a2) * ds[i]) ** 2 for i in past)
        m, v, n = (s / (1 - (1 - a) ** k) for s, a in zip((m, v, n), alphas, strict=True))
        rate = lr / (n.sqrt() + eps)
        x = (x - rate * (m + (1 - a2) * v)) / (1 + lr * decay)
    return x


def test_matches_the_paper():
    data = problem([(40, 3)], steps=7)
    oracle = oracle_run(data, lr=0.05, weight_decay=0.1)
    gs = [grads[0].double() for grads in data.grads]
    expected = paper(data.params[0].double(), gs, (0.02, 0.08, 0.01), 0.05, 0.1, 1e-8)
    assert_close(oracle.params[0], expected, "formula")


# ---- What follows from the formula ---------------------------------------------------------------


def test_difference_average_is_that_of_gradient_and_its_own_average():
    # v_k = (1 - beta2)(g_k - r_{k-1}), r the beta2-average of g seeded with the first gradient.
    data = problem([(500,)], steps=9)
    oracle = AdanOracle(data.params)
    r = None
    for grads in data.grads:
        oracle.step(grads)
        g = grads[0].double()
        r = g if r is None else r
        assert_close(oracle.state[0]["exp_avg_diff"], 0.08 * (g - r), "formula", scale=0.02)
        r = 0.92 * r + 0.08 * g


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.1])
def test_first_step_is_that_of_sign_descent(eps):
    data = problem(SHAPES, steps=1)
    oracle = oracle_run(data, lr=0.01, eps=eps)
    for x, start, g in zip(oracle.params, data.params, data.grads[0], strict=True):
        g = g.double()
        assert_close(x, start.double() - 0.01 * g / (g.abs() + eps), "formula")


def test_clipped_gradients_may_be_of_any_size():
    data = problem(SHAPES, steps=5).to(dtype=torch.float64, grad_dtype=torch.float64)
    hyper = dict(max_grad_norm=0.1, eps=0.0)
    small, large = AdanOracle(data.params, **hyper), AdanOracle(data.params, **hyper)
    for grads in data.grads:
        small.step(grads)
        large.step([1000 * g for g in grads])
    assert_close(everything(large), everything(small), "formula")


def test_prox_and_no_prox_differ_by_the_place_of_the_decay():
    for no_prox, expected in ((False, (2 - 0.5) / 1.2), (True, 2 * 0.8 - 0.5)):
        oracle = AdanOracle(
            [torch.full((1,), 2.0)], lr=0.5, eps=0.0, weight_decay=0.4, no_prox=no_prox
        )
        oracle.step([torch.ones(1)])
        assert oracle.params[0].item() == pytest.approx(expected, rel=1e-14)


def test_clip_factor():
    square = torch.tensor(16.0)
    assert adan.clip_factor(square, 2.0, 0.0).item() == 0.5
    assert adan.clip_factor(square, 2.0, 1.0).item() == pytest.approx(0.4)
    assert adan.clip_factor(square, 4.0, 0.0).item() == 1
    assert adan.clip_factor(square, 5.0, 0.0).item() == 1
    assert adan.clip_factor(torch.tensor(float("nan")), 1.0, 0.0).isnan()
    assert adan.clip_factor(torch.tensor(float("inf")), 1.0, 0.0).item() == 0


def test_scaled_gradients_give_the_same_step():
    data = problem(SHAPES, steps=3)
    hyper = dict(lr=0.1, max_grad_norm=0.1)
    plain, scaled = AdanOracle(data.params, **hyper), AdanOracle(data.params, **hyper)
    for grads in data.grads:
        plain.step(grads)
        scaled.step([512 * g for g in grads], grad_scale=torch.tensor(512.0))
    assert_close(everything(scaled), everything(plain), "formula")


@pytest.mark.parametrize("steps", [0, 1])
def test_skipped_step_changes_nothing(steps):
    data = problem(SHAPES, steps=2)
    oracle = AdanOracle(data.params, max_grad_norm=1.0)
    for grads in data.grads[:steps]:
        oracle.step(grads)
    before = [t.clone() for t in everything(oracle)]
    oracle.step(data.grads[1], found_inf=torch.tensor(1.0))
    bad = [torch.full_like(g, float("inf")) for g in data.grads[1]]
    oracle.step(bad, grad_scale=torch.tensor(2.0))
    assert same_bits(everything(oracle), before)
    oracle.step(data.grads[1], found_inf=torch.tensor(0.0))
    assert not same_bits(oracle.params[0], before[0])


def test_first_step_does_not_look_at_the_previous_gradient():
    data = problem(SHAPES, steps=2)
    results = []
    for filling in (0.0, float("nan")):
        oracle = AdanOracle(data.params)
        for state in oracle.state:
            state["neg_pre_grad"].fill_(filling)
        for grads in data.grads:
            oracle.step(grads)
        results.append(everything(oracle))
    assert same_bits(*results)


def test_counts_what_is_not_finite():
    data = problem(SHAPES, steps=1).to(dtype=torch.float64, grad_dtype=torch.float64)
    data.grads[0][1][[3, 5]] = float("nan")
    data.grads[0][3][0] = float("inf")
    states = [[torch.zeros_like(p) for p in data.params] for _ in range(4)]
    steps = [torch.zeros(()) for _ in data.params]
    hyper = HYPER | dict(max_grad_norm=None, no_prox=False, maximize=False)
    count = adan.adan_step(data.params, data.grads[0], *states, steps, **hyper)
    assert count.tolist() == [0, 2, 0, 1]
