# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Scaled gradients, skipped steps, and gradients that are not finite."""

import pytest
import torch

from tests.conftest import assert_matches
from tests.helpers import assign, leaves, problem, run, same_bits, snapshot

SHAPES = [(40, 30), (1000,), (17,), (0,)]


def scalar(value, backend):
    return torch.tensor(value, device=backend.device)


@pytest.mark.parametrize("scale", [1024.0, 3.0])
def test_scaled_gradients_give_the_unscaled_step(backend, family, scale):
    data, params, optimizer = family.start(SHAPES, device=backend.device)
    oracle = family.reference([p.detach().cpu() for p in params])
    optimizer.grad_scale, optimizer.found_inf = scalar(scale, backend), scalar(0.0, backend)
    for grads in data.grads:
        scaled = [scale * g for g in grads]
        oracle.step([g.cpu() for g in scaled], grad_scale=torch.tensor(scale, dtype=torch.double))
        run(optimizer, params, [scaled])
    assert_matches(optimizer, params, oracle)


def test_limit_is_of_unscaled_gradients(backend, limiting):
    data = problem([(300,)], steps=1).to(backend.device)
    norm = data.grads[0][0].double().norm().item()
    limit = {name: 2 * norm for name in limiting.limiting}  # scaled ones are far above it
    oracle = limiting.solve(data, **limit)
    params = leaves(data.params)
    optimizer = limiting.make(params, **limit)
    optimizer.grad_scale, optimizer.found_inf = scalar(4096.0, backend), scalar(0.0, backend)
    run(optimizer, params, [[4096 * data.grads[0][0]]])
    assert optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("found", [1.0, 2.0])
@pytest.mark.parametrize("fused", [None, False])
def test_found_inf_leaves_every_bit(backend, family, found, fused):
    data, params, optimizer = family.start(SHAPES, device=backend.device, fused=fused)
    run(optimizer, params, data.grads[:2])
    before = snapshot(optimizer)
    optimizer.found_inf = scalar(found, backend)
    run(optimizer, params, data.grads[2:])
    assert same_bits(snapshot(optimizer), before)
    optimizer.found_inf = scalar(0.0, backend)
    run(optimizer, params, data.grads[2:3])
    assert not any(
        same_bits(a, b) for a, b in zip(snapshot(optimizer), before, strict=True) if a.numel()
    )


def test_found_inf_in_the_first_step(backend, family):
    data, params, optimizer = family.start(SHAPES, device=backend.device)
    given = [p.detach().clone() for p in params]
    optimizer.found_inf = scalar(1.0, backend)
    run(optimizer, params, data.grads[:1])
    assert same_bits([p.detach() for p in params], given)
    for p in params:
        assert all(not value.any() for value in optimizer.state[p].values())
    # and the step after it is a first step
    optimizer.found_inf = scalar(0.0, backend)
    oracle = family.reference([p.cpu() for p in given])
    oracle.step([g.cpu() for g in data.grads[0]])
    run(optimizer, params, data.grads[:1])
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_bad_gradient_norm_skips_the_step(backend, limiting, bad):
    # A scaler that was told to unscale elsewhere, or that looked at other tensors only.
    data, params, optimizer = limiting.start(
        SHAPES, steps=2, device=backend.device, **limiting.limiting
    )
    run(optimizer, params, data.grads[:1])
    before = snapshot(optimizer)
    data.grads[1][1][500] = bad
    optimizer.grad_scale, optimizer.found_inf = scalar(2.0, backend), scalar(0.0, backend)
    run(optimizer, params, data.grads[1:])
    assert same_bits(snapshot(optimizer), before)


def test_skip_covers_groups_without_a_limit(backend, limiting):
    data = problem(SHAPES, steps=2).to(backend.device)
    params = leaves(data.params)
    without = dict.fromkeys(limiting.limiting)
    optimizer = limiting.make(
        [dict(params=params[:2], **without), dict(params=params[2:], **limiting.limiting)]
    )
    run(optimizer, params, data.grads[:1])
    before = snapshot(optimizer)
    data.grads[1][2][3] = float("nan")
    optimizer.grad_scale = scalar(2.0, backend)
    run(optimizer, params, data.grads[1:])
    assert same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("unscale_first", [False, True])
@pytest.mark.parametrize("fused", [None, False])
def test_grad_scaler_end_to_end(backend, family, fused, unscale_first):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3))
    model = model.to(backend.device)
    params = list(model.parameters())
    optimizer = family.make(params, fused=fused)
    oracle = family.reference([p.detach().cpu() for p in params])
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=256.0, growth_interval=1000)
    inputs = torch.randn(5, 16, 9, device=backend.device)

    def step(batch, spoil):
        optimizer.zero_grad()
        scaler.scale(model(batch).square().mean()).backward()
        scale = scaler.get_scale()
        if spoil:
            params[1].grad[7] = float("inf")
        grads = [p.grad.cpu().double() / scale for p in params]
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return grads

    for i, batch in enumerate(inputs):
        before = snapshot(optimizer)
        grads = step(batch, spoil=i == 2)
        if i == 2:
            assert same_bits(snapshot(optimizer), before)
            assert scaler.get_scale() == 128.0
        else:
            oracle.step(grads)
    assert_matches(optimizer, params, oracle)
    assert getattr(optimizer, "grad_scale", None) is None  # the scaler takes its marks away


def test_scale_set_by_hand_multiplies_that_of_the_scaler(backend, family):
    data, params, optimizer = family.start(SHAPES, steps=1, device=backend.device)
    oracle = family.solve(data)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=256.0)
    scaler.scale(scalar(1.0, backend))  # makes its tensors, as the loss of a model would
    optimizer.grad_scale = scalar(8.0, backend)
    assign(params, [8 * 256 * g for g in data.grads[0]])
    scaler.step(optimizer)
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_without_a_scaler_bad_gradients_propagate_and_are_counted(backend, family, bad):
    data, params, optimizer = family.start(SHAPES, device=backend.device, **family.independent)
    clean_params = leaves([p.detach().clone() for p in params])
    clean = family.make(clean_params, **family.independent)
    run(clean, clean_params, data.grads[:1])
    assert clean.nonfinite.item() == 0
    for tensor, position in ((0, (3, 4)), (2, (16,))):
        data.grads[0][tensor][position] = bad
    run(optimizer, params, data.grads[:1])
    assert optimizer.nonfinite.item() == 2
    assert optimizer.nonfinite.dtype == torch.int32
    assert optimizer.nonfinite.device.type == backend.device.type
    for tensor, position in ((0, (3, 4)), (2, (16,))):
        state = optimizer.state[params[tensor]]
        assert params[tensor][position].isfinite() == family.bounded
        assert not state[family.oracle.buffers[0]][position].isfinite()
        assert state["step"].item() == 1
    for i in (1, 3):
        assert same_bits(params[i].detach(), clean_params[i].detach())


def test_bad_norm_reaches_every_parameter_where_it_is_limited(backend, limiting):
    data, params, optimizer = limiting.start(
        SHAPES[:3], steps=1, device=backend.device, **limiting.limiting
    )
    data.grads[0][1][0] = float("nan")
    run(optimizer, params, data.grads)
    assert all(p.isnan().all() for p in params)
    assert optimizer.nonfinite.item() >= len(params)
    assert optimizer.grad_norm.isnan()


def test_nonfinite_is_of_the_last_step(backend, family):
    params = leaves([torch.ones(10, device=backend.device), torch.ones(20, device=backend.device)])
    optimizer = family.make(params, **family.independent)
    bad = [torch.ones_like(p) for p in params]
    bad[0][3] = float("nan")
    run(optimizer, params, [bad])
    assert optimizer.nonfinite.item() == 1
    assign(params, [None, torch.ones_like(params[1])])
    optimizer.step()
    assert optimizer.nonfinite.item() == 0
