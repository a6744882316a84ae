# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan: every switch against float64, on every backend, and the errors other people made."""

import pytest
import torch

import largebatch
from largebatch.optim import Adan
from tests.conftest import assert_close, assert_matches
from tests.helpers import AdanOracle, assign, leaves, problem, run, same_bits, snapshot

SHAPES = [(40, 25), (1700,), (8, 4, 9, 3)]

SWITCHES = {
    "defaults": {},
    "decay": dict(weight_decay=0.2),
    "no prox": dict(weight_decay=0.2, no_prox=True),
    "large decay": dict(weight_decay=20.0),
    "large decay, no prox": dict(weight_decay=20.0, no_prox=True),
    "clip": dict(max_grad_norm=2.5),  # of norms of 2.5 to 2.8
    "tight clip": dict(max_grad_norm=0.01),
    "clip far above": dict(max_grad_norm=1e4),
    "clip 0 is off": dict(max_grad_norm=0.0),
    "clip inf is off": dict(max_grad_norm=float("inf")),
    "maximize": dict(maximize=True, weight_decay=0.2),
    "other betas": dict(betas=(0.9, 0.7, 0.95)),
    "betas 0": dict(betas=(0.0, 0.0, 0.0)),
    "large eps": dict(eps=0.1, max_grad_norm=1.0),
    "lr 0": dict(lr=0.0, weight_decay=0.2),
    "all at once": dict(maximize=True, no_prox=True, weight_decay=0.5, max_grad_norm=1.0),
}


def solved(data, **hyper):
    oracle = AdanOracle(data.params, **hyper)
    for grads in data.grads:
        oracle.step(grads)
    return oracle


@pytest.mark.parametrize("name", SWITCHES)
def test_matches_float64_reference(backend, name):
    hyper = {"lr": 5e-3, **SWITCHES[name]}
    data = problem(SHAPES, grad_scale=0.03)
    oracle = solved(data, **hyper)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = Adan(params, **hyper)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


def test_error_stays_small_over_a_hundred_steps(backend):
    data = problem([(150, 130)], steps=100)
    hyper = dict(lr=5e-3, weight_decay=0.1)
    oracle = solved(data, **hyper)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = Adan(params, **hyper)
    run(optimizer, params, data.grads)
    assert_close(params, oracle.params, "fp32, 100 steps")
    for name in oracle.buffers:
        expected = oracle.state[0][name]
        assert_close(optimizer.state[params[0]][name], expected, "fp32, 100 steps")


def test_groups_differ_in_everything(backend):
    data = problem([(30, 20), (500,), (64,), (33, 3), (20,)], grad_scale=0.3)
    settings = [
        (0, 2, dict(lr=2e-3, weight_decay=0.1, max_grad_norm=1.0, eps=0.5)),
        (2, 3, dict(betas=(0.5, 0.6, 0.7))),
        (3, 4, dict(weight_decay=0.3, no_prox=True, max_grad_norm=0.5)),
        (4, 5, dict(maximize=True)),
    ]
    oracle = AdanOracle([dict(params=data.params[a:b], **s) for a, b, s in settings])
    for grads in data.grads:
        oracle.step(grads)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = Adan([dict(params=params[a:b], **s) for a, b, s in settings])
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)  # one gradient norm, of all groups


# ---- Oracles that share nothing with the reference -----------------------------------------------


def test_difference_average_is_that_of_gradient_and_its_own_average(backend):
    # v_k = (1 - beta2)(g_k - r_{k-1}), r the beta2-average of g seeded with the first gradient.
    data = problem(SHAPES)
    beta2 = 0.92
    averages = [g.double() for g in data.grads[0]]
    params = leaves([p.to(backend.device) for p in data.params])
    optimizer = Adan(params)
    for k, grads in enumerate(data.grads):
        run(optimizer, params, [[g.to(backend.device) for g in grads]])
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            expected = (1 - beta2) * (g.double() - averages[i]) if k else torch.zeros(g.shape)
            assert_close(optimizer.state[p]["exp_avg_diff"], expected)
            averages[i] = beta2 * averages[i] + (1 - beta2) * g.double()


def test_first_step_is_that_of_sign_descent(backend):
    data = problem(SHAPES, steps=1)
    here = data.to(backend.device)
    params = leaves(here.params)
    run(Adan(params, lr=0.01, eps=0.02), params, here.grads)
    for p, start, g in zip(params, data.params, data.grads[0], strict=True):
        g = g.double()
        assert_close(p, start.double() - 0.01 * g / (g.abs() + 0.02))


def test_second_step_weighs_the_difference_with_beta2(backend):
    # optax scales it by 1 - beta2. One element, betas (0.5, 0.75, 0.5), gradients 1 then 3:
    # m = 1.75 of 0.75, v = 0.5 of 0.4375, n = (0.25 + 0.5 (3 + 1.5)^2) of 0.75.
    p = torch.nn.Parameter(torch.zeros(1, device=backend.device))
    optimizer = Adan([p], lr=1.0, betas=(0.5, 0.75, 0.5), eps=0.0)
    run(optimizer, [p], [[torch.full_like(p, 1.0)], [torch.full_like(p, 3.0)]])
    second = (1.75 / 0.75 + 0.75 * 0.5 / 0.4375) / ((0.25 + 0.5 * 4.5**2) / 0.75) ** 0.5
    assert p.item() == pytest.approx(-1 - second, rel=1e-6)


def test_clipped_gradients_may_be_of_any_size(backend):
    data = problem(SHAPES, steps=6).to(backend.device)
    results = []
    for factor in (1.0, 1000.0):
        params = leaves([p.clone() for p in data.params])
        optimizer = Adan(params, lr=5e-3, max_grad_norm=0.1)
        run(optimizer, params, [[factor * g for g in grads] for grads in data.grads])
        results.append(snapshot(optimizer))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_zero_gradient_after_another_is_a_difference(backend):
    p = torch.nn.Parameter(torch.ones(5, device=backend.device))
    optimizer = Adan([p])
    run(optimizer, [p], [[torch.full_like(p, 2.0)], [torch.zeros_like(p)]])
    assert_close(optimizer.state[p]["exp_avg_diff"], torch.full((5,), -0.08 * 2.0))


def test_difference_spans_the_steps_without_a_gradient(backend):
    p = torch.nn.Parameter(torch.ones(5, device=backend.device))
    optimizer = Adan([p])
    run(optimizer, [p], [[torch.full_like(p, 2.0)], [None], [None], [torch.full_like(p, 7.0)]])
    assert optimizer.state[p]["step"].item() == 2
    assert_close(optimizer.state[p]["exp_avg_diff"], torch.full((5,), 0.08 * 5.0))


# ---- Restart -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
def test_restart_is_a_new_optimizer(backend, fused):
    data = problem(SHAPES, steps=8).to(backend.device)
    hyper = dict(lr=5e-3, weight_decay=0.2, max_grad_norm=1.0, fused=fused)
    params = leaves(data.params)
    optimizer = Adan(params, **hyper)
    run(optimizer, params, data.grads[:4])
    places = [t.data_ptr() for p in params for t in optimizer.state[p].values()]
    given = [p.detach().clone() for p in params]
    optimizer.restart()
    assert same_bits([p.detach() for p in params], given)
    for p in params:
        state = optimizer.state[p]
        assert not any(state[name].any() for name in state if name != "neg_pre_grad")
    fresh_params = leaves(given)
    fresh = Adan(fresh_params, **hyper)
    run(optimizer, params, data.grads[4:])
    run(fresh, fresh_params, data.grads[4:])
    assert same_bits(snapshot(optimizer), snapshot(fresh))
    assert places == [t.data_ptr() for p in params for t in optimizer.state[p].values()]


def test_restart_keeps_masters_and_empty_state(backend):
    p = torch.nn.Parameter(torch.full((9,), 0.3, device=backend.device, dtype=torch.bfloat16))
    optimizer = Adan([p])
    optimizer.restart()
    assert len(optimizer.state) == 0
    run(optimizer, [p], [[torch.ones_like(p)]])
    master = optimizer.state[p]["master_param"].clone()
    optimizer.restart()
    assert same_bits(optimizer.state[p]["master_param"], master)


def test_skipped_step_after_a_restart_leaves_it_to_the_next(backend):
    data = problem(SHAPES, steps=3).to(backend.device)
    params = leaves(data.params)
    optimizer = Adan(params)
    run(optimizer, params, data.grads[:1])
    optimizer.restart()
    before = snapshot(optimizer)
    optimizer.found_inf = torch.ones((), device=backend.device)
    run(optimizer, params, data.grads[1:2])
    assert same_bits(snapshot(optimizer), before)
    optimizer.found_inf.zero_()
    run(optimizer, params, data.grads[2:])
    for p, g in zip(params, data.grads[2], strict=True):
        assert not optimizer.state[p]["exp_avg_diff"].any()
        assert torch.equal(optimizer.state[p]["neg_pre_grad"], -g)


@pytest.mark.skipif(
    not (largebatch._C.cuda_available() and torch.cuda.is_available()),
    reason=f"CUDA graphs need the CUDA backend: {largebatch.build_info()}",
)
def test_restart_between_replays_of_a_graph():
    data = problem(SHAPES, steps=6).to("cuda")
    params = leaves(data.to().params)
    optimizer = Adan(params, capturable=True)
    assign(params, [torch.zeros_like(p) for p in params])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()

    def replay(grads):
        for p, g in zip(params, grads, strict=True):
            p.grad.copy_(g)
        graph.replay()

    replay(data.grads[0])
    optimizer.restart()
    with torch.no_grad():
        for p, start in zip(params, data.params, strict=True):
            p.copy_(start)
    for grads in data.grads:
        replay(grads)
    fresh_params = leaves(data.to().params)
    fresh = Adan(fresh_params, capturable=True)
    run(fresh, fresh_params, data.grads)
    assert same_bits(snapshot(optimizer), snapshot(fresh))


# ---- What is not finite --------------------------------------------------------------------------


def test_nonfinite_counts_elements(backend):
    data = problem([(20000,), (70,), (3,)], steps=1).to(backend.device)
    bad = data.grads[0]
    bad[0][[0, 17, 16383, 16384, 19999]] = float("nan")
    bad[1][69] = float("inf")
    params = leaves(data.params)
    optimizer = Adan(params)
    assert optimizer.nonfinite is None
    run(optimizer, params, data.grads)
    assert optimizer.nonfinite.item() == 6
    assert sum((~p.isfinite()).sum().item() for p in params) == 6


@pytest.mark.parametrize("fused", [None, False])
def test_nonfinite_counts_all_when_the_norm_is(backend, fused):
    data = problem([(20000,), (70,), (0,)], steps=1).to(backend.device)
    data.grads[0][1][3] = float("nan")
    params = leaves(data.params)
    optimizer = Adan(params, max_grad_norm=1.0, fused=fused)
    run(optimizer, params, data.grads)
    assert optimizer.nonfinite.item() == 20070
    assert optimizer.grad_norm.isnan()


def test_skipped_step_counts_nothing(backend):
    data = problem([(20000,), (70,)], steps=1).to(backend.device)
    data.grads[0][1][3] = float("nan")
    for fused in (None, False):
        params = leaves(data.params)
        optimizer = Adan(params, max_grad_norm=1.0, fused=fused)
        optimizer.grad_scale = torch.ones((), device=backend.device)
        run(optimizer, params, data.grads)
        assert optimizer.nonfinite.item() == 0


def test_elements_past_the_end_are_not_counted_without_eps(backend):
    p = torch.nn.Parameter(torch.ones(16385, device=backend.device))
    optimizer = Adan([p], eps=0.0)
    run(optimizer, [p], [[torch.ones_like(p)]])
    assert optimizer.nonfinite.item() == 0


# ---- Defects of peers ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_element_of_5001_moves_with_bias_correction_unlike_fused_adan(backend, dtype):
    # Its foreach=False: 4096 of 5000 elements, a quarter of them in fp64, reads past the end unless
    # the number is a multiple of 4, and sqrt(n - v^2 / beta2) without correction below.
    p = torch.nn.Parameter(torch.zeros(5001, device=backend.device, dtype=dtype))
    optimizer = Adan([p], lr=0.5)
    run(optimizer, [p], [[torch.linspace(1, 2, 5001).to(p)]])
    assert_close(p, torch.full((5001,), -0.5))


@pytest.mark.parametrize("fused", [None, False])
def test_maximize_starts_without_a_difference_unlike_pytorch_optimizer(backend, fused):
    # There the first difference is -2 g, and one of its paths leaves p.grad negated.
    p = torch.nn.Parameter(torch.ones(7, device=backend.device))
    optimizer = Adan([p], maximize=True, fused=fused)
    grad = torch.full_like(p, 2.0)
    assign([p], [grad])
    optimizer.step()
    assert not optimizer.state[p]["exp_avg_diff"].any()
    assert (optimizer.state[p]["neg_pre_grad"] == 2).all()
    assert (grad == 2).all()


EVERY_ARGUMENT = {
    "lr": dict(lr=0.02),
    "beta1": dict(betas=(0.5, 0.92, 0.99)),
    "beta2": dict(betas=(0.98, 0.5, 0.99)),
    "beta3": dict(betas=(0.98, 0.92, 0.5)),
    "eps": dict(eps=0.1),
    "weight_decay": dict(weight_decay=1.0),
    "max_grad_norm": dict(max_grad_norm=0.01, eps=1e-3),
    "no_prox": dict(no_prox=True),
    "maximize": dict(maximize=True),
}


@pytest.mark.parametrize("fused", [None, False])
def test_every_argument_reaches_the_update_unlike_adam_wd_of_optimi(backend, fused):
    data = problem([(100,)], steps=3).to(backend.device)
    base = dict(lr=0.01, weight_decay=0.5, eps=1e-3, fused=fused)
    results = []
    for change in ({}, *EVERY_ARGUMENT.values()):
        params = leaves(data.to().params)
        run(Adan(params, **{**base, **change}), params, data.grads)
        results.append(params[0].detach())
    for name, result in zip(EVERY_ARGUMENT, results[1:], strict=True):
        change = (result - results[0]).norm() / results[0].norm()
        assert change > 1e-5, name
