# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""State: dtypes, masters of 16-bit parameters, checkpoints of ours and of others."""

import copy
import io

import pytest
import torch

from tests.conftest import assert_close, assert_holds, assert_matches
from tests.helpers import leaves, problem, run, same_bits, snapshot, ulp_distance, values

SHAPES = [(40, 30), (1000,), (17,), (0,), (16385,)]
HALF = [torch.bfloat16, torch.float16]


def test_names_and_dtypes_of_state(backend, family):
    data, params, optimizer = family.start(SHAPES, steps=1, device=backend.device)
    run(optimizer, params, data.grads)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", *family.oracle.buffers}
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
        for name in family.oracle.buffers:
            assert state[name].dtype == torch.float32
            assert state[name].shape == p.shape


# ---- Other dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_parameters_have_a_master(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, 10, backend.device, dtype)
    run(optimizer, params, data.grads)
    masters = [optimizer.state[p]["master_param"] for p in params]
    for p, master in zip(params, masters, strict=True):
        assert master.dtype == torch.float32
        assert p.dtype == dtype
        assert same_bits(p.detach(), master.to(dtype))
        for name in family.oracle.buffers:
            assert optimizer.state[p][name].dtype == torch.float32
    assert_holds(masters, [optimizer.state[p] for p in params], family.solve(data))


def test_rounding_of_the_copy_is_to_nearest_even(backend, family):
    # Gradients of zero leave the master as it is, and the step rounds it: on ties, just off them,
    # and at the ends of the range of bf16.
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 3.3e38, 0.0, -1.0], dtype=torch.bfloat16)
    results = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20, 2 - 2**-8, 3.4e38,
         2.0**-133, -1 - 2**-8]
    )  # fmt: skip
    p = torch.nn.Parameter(weights.to(backend.device))
    p.grad = torch.zeros_like(p)
    optimizer = family.make([p], weight_decay=0.0)
    optimizer.step()
    optimizer.state[p]["master_param"].copy_(results)
    optimizer.step()
    assert same_bits(p.detach().cpu(), results.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_parameters_without_master(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, 1, backend.device, dtype, master_weights=False)
    run(optimizer, params, data.grads)
    oracle = family.solve(data)
    for p, expected in zip(params, oracle.params, strict=True):
        assert "master_param" not in optimizer.state[p]
        distance = ulp_distance(p.detach(), expected.to(dtype))
        assert p.numel() == 0 or distance.max() <= 1
        for name in family.oracle.buffers:
            assert optimizer.state[p][name].dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_gradients_of_fp32_parameters(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, steps=10, device=backend.device)
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("this torch has no gradients in a dtype other than the parameter's")
    for p in params:
        p.grad_dtype = dtype
    data = data.to(grad_dtype=dtype)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, family.solve(data))


def test_double_parameters_stay_double(backend, family):
    data, params, optimizer = family.start(SHAPES, 10, backend.device, torch.float64)
    run(optimizer, params, data.grads)
    for p in params:
        assert all(
            optimizer.state[p][name].dtype == torch.float64 for name in family.oracle.buffers
        )
    assert_matches(optimizer, params, family.solve(data), "fp64")


def test_dtypes_side_by_side(backend, family):
    data = problem([(300,), (300,), (300,), (300,)], steps=3)
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    data.params = [p.to(backend.device, d) for p, d in zip(data.params, dtypes, strict=True)]
    data.grads = [
        [g.to(backend.device, d) for g, d in zip(grads, dtypes, strict=True)]
        for grads in data.grads
    ]
    params = leaves([p.clone() for p in data.params])
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    oracle = family.solve(data)
    exact = [optimizer.state[p].get("master_param", p.detach()) for p in params]
    assert_close(exact, oracle.params)


# ---- Saving and loading --------------------------------------------------------------------------


def through_file(value):
    """Return what a machine without the device reads from a checkpoint."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_resume_is_bitwise(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, 6, backend.device, dtype)
    run(optimizer, params, data.grads[:3])
    saved = through_file([optimizer.state_dict(), [p.detach() for p in params]])
    run(optimizer, params, data.grads[3:])
    resumed = leaves([p.to(backend.device) for p in saved[1]])
    again = family.make(resumed)
    again.load_state_dict(saved[0])
    run(again, resumed, data.grads[3:])
    assert same_bits(snapshot(again), snapshot(optimizer))


@pytest.mark.parametrize("dtype", HALF)
def test_loading_keeps_the_bits_of_fp32_state(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, 6, backend.device, dtype)
    run(optimizer, params, data.grads)
    other = family.make(leaves([p.detach().clone() for p in params]))
    other.load_state_dict(optimizer.state_dict())
    assert same_bits(snapshot(other), snapshot(optimizer))


@pytest.mark.parametrize("dtype", HALF)
def test_loading_rounds_the_master_into_the_parameter(backend, family, dtype):
    data, params, optimizer = family.start(SHAPES, 6, backend.device, dtype)
    run(optimizer, params, data.grads)
    blank = leaves([torch.zeros_like(p) for p in params])
    other = family.make(blank)
    other.load_state_dict(optimizer.state_dict())
    assert same_bits([p.detach() for p in blank], [p.detach() for p in params])


def test_loading_does_not_share_memory(backend, family):
    data, params, optimizer = family.start(SHAPES, 6, backend.device)
    run(optimizer, params, data.grads[:2])
    saved = optimizer.state_dict()
    other_params = leaves([p.detach().clone() for p in params])
    other = family.make(other_params)
    other.load_state_dict(copy.deepcopy(saved))
    before = snapshot(optimizer)
    run(other, other_params, data.grads[2:])
    assert same_bits(snapshot(optimizer), before)


def test_loading_into_a_channels_last_model(backend, family):
    data = problem([(6, 5, 7, 3)], steps=4).to(backend.device)
    params = leaves(data.to().params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads[:2])
    moved = leaves([params[0].detach().clone(memory_format=torch.channels_last)])
    other = family.make(moved)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, data.grads[2:])
    run(other, moved, data.grads[2:])
    assert_close(moved, [p.detach() for p in params])


@pytest.mark.parametrize("fused", [False, None])
def test_loading_from_the_pure_torch_path_and_into_it(backend, family, fused):
    data, params, optimizer = family.start(SHAPES, 6, backend.device, fused=fused)
    run(optimizer, params, data.grads[:2])
    other_params = leaves(values(params))
    other = family.make(other_params, fused=None if fused is False else False)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["fused"]
    other.load_state_dict(saved)
    run(other, other_params, data.grads[2:])
    assert_matches(other, other_params, family.solve(data))
