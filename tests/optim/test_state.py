# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""State: dtypes, masters of 16-bit parameters, checkpoints of ours and of others."""

import copy
import io

import pytest
import torch

from largebatch.optim import LAMB, LARS
from tests.conftest import assert_close, assert_matches
from tests.helpers import (
    LambOracle,
    LarsOracle,
    leaves,
    problem,
    run,
    same_bits,
    snapshot,
    ulp_distance,
)

SHAPES = [(40, 30), (1000,), (17,), (0,), (16385,)]
HALF = [torch.bfloat16, torch.float16]


def start(family, backend, dtype=torch.float32, steps=6, **over):
    data = problem(SHAPES, steps).to(backend.device, dtype, dtype)
    params = leaves(data.to().params)
    return data, params, family.make(params, **over)


def stepped_oracle(family, data, steps=None, **over):
    oracle = family.reference([p.cpu() for p in data.params], **over)
    for grads in data.grads[:steps]:
        oracle.step([g.cpu() for g in grads])
    return oracle


def test_names_and_dtypes_of_state(backend, family):
    data, params, optimizer = start(family, backend, steps=1)
    run(optimizer, params, data.grads)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", *family.oracle.buffers}
        assert state["step"].dtype == torch.float32
        assert state["step"].shape == ()
        for name in family.oracle.buffers:
            assert state[name].dtype == torch.float32
            assert state[name].shape == p.shape


def test_no_momentum_buffer_without_momentum(backend):
    p = torch.nn.Parameter(torch.ones(5, device=backend.device))
    optimizer = LARS([p], momentum=0.0)
    run(optimizer, [p], [[torch.ones_like(p)]])
    assert set(optimizer.state[p]) == {"step"}


# ---- Other dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_parameters_have_a_master(backend, family, dtype):
    data, params, optimizer = start(family, backend, dtype, steps=10)
    run(optimizer, params, data.grads)
    masters = [optimizer.state[p]["master_param"] for p in params]
    for p, master in zip(params, masters, strict=True):
        assert master.dtype == torch.float32
        assert p.dtype == dtype
        assert same_bits(p.detach(), master.to(dtype))
        for name in family.oracle.buffers:
            assert optimizer.state[p][name].dtype == torch.float32
    oracle = stepped_oracle(family, data)
    for p, master in zip(params, masters, strict=True):
        optimizer.state[master] = optimizer.state[p]
    assert_matches(optimizer, masters, oracle)


def test_rounding_of_the_copy_is_to_nearest_even(backend):
    # Without momentum and adaptation LARS subtracts the gradient: w - g is exact in fp32 here, and
    # chosen to lie on ties, just off them, and at the ends of the range of bf16.
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 3.3e38, 0.0, -1.0], dtype=torch.bfloat16)
    results = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1 + 2**-8 - 2**-20, 2 - 2**-8, 3.4e38,
         2.0**-133, -1 - 2**-8]
    )  # fmt: skip
    p = torch.nn.Parameter(weights.to(backend.device))
    p.grad = torch.zeros_like(p)
    optimizer = LARS([p], lr=1.0, momentum=0.0, adapt=False)
    optimizer.step()
    optimizer.state[p]["master_param"].copy_(results)
    optimizer.step()
    assert same_bits(p.detach().cpu(), results.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_parameters_without_master(backend, family, dtype):
    data, params, optimizer = start(family, backend, dtype, steps=1, master_weights=False)
    run(optimizer, params, data.grads)
    oracle = stepped_oracle(family, data)
    for p, expected in zip(params, oracle.params, strict=True):
        assert "master_param" not in optimizer.state[p]
        distance = ulp_distance(p.detach(), expected.to(dtype))
        assert p.numel() == 0 or distance.max() <= 1
        for name in family.oracle.buffers:
            assert optimizer.state[p][name].dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_gradients_of_fp32_parameters(backend, family, dtype):
    data, params, optimizer = start(family, backend, steps=10)
    if not hasattr(params[0], "grad_dtype"):
        pytest.skip("this torch has no gradients in a dtype other than the parameter's")
    for p in params:
        p.grad_dtype = dtype
    data = data.to(grad_dtype=dtype)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, stepped_oracle(family, data))


def test_double_parameters_stay_double(backend, family):
    data, params, optimizer = start(family, backend, torch.float64, steps=10)
    run(optimizer, params, data.grads)
    for p in params:
        assert all(
            optimizer.state[p][name].dtype == torch.float64 for name in family.oracle.buffers
        )
    assert_matches(optimizer, params, stepped_oracle(family, data), "fp64")


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
    oracle = stepped_oracle(family, data)
    exact = [optimizer.state[p].get("master_param", p.detach()) for p in params]
    assert_close(exact, oracle.params)


# ---- Saving and loading --------------------------------------------------------------------------


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_copy(value):
    return copy.deepcopy(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
@pytest.mark.parametrize("carrier", [through_file, through_copy])
def test_resume_is_bitwise(backend, family, dtype, carrier):
    data, params, optimizer = start(family, backend, dtype)
    run(optimizer, params, data.grads[:3])
    saved = carrier([optimizer.state_dict(), [p.detach() for p in params]])
    run(optimizer, params, data.grads[3:])
    resumed = leaves(saved[1])
    again = family.make(resumed)
    again.load_state_dict(saved[0])
    run(again, resumed, data.grads[3:])
    assert same_bits(snapshot(again), snapshot(optimizer))


@pytest.mark.parametrize("dtype", HALF)
def test_loading_keeps_the_bits_of_fp32_state(backend, family, dtype):
    data, params, optimizer = start(family, backend, dtype)
    run(optimizer, params, data.grads)
    other = family.make(leaves([p.detach().clone() for p in params]))
    other.load_state_dict(optimizer.state_dict())
    assert same_bits(snapshot(other), snapshot(optimizer))


@pytest.mark.parametrize("dtype", HALF)
def test_loading_rounds_the_master_into_the_parameter(backend, family, dtype):
    data, params, optimizer = start(family, backend, dtype)
    run(optimizer, params, data.grads)
    blank = leaves([torch.zeros_like(p) for p in params])
    other = family.make(blank)
    other.load_state_dict(optimizer.state_dict())
    assert same_bits([p.detach() for p in blank], [p.detach() for p in params])


def test_loading_does_not_share_memory(backend, family):
    data, params, optimizer = start(family, backend)
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


def test_loading_from_the_pure_torch_path_and_back(backend, family):
    data, params, optimizer = start(family, backend, fused=False)
    run(optimizer, params, data.grads[:2])
    other_params = leaves([p.detach().clone() for p in params])
    other = family.make(other_params, fused=None)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["fused"] = None
    other.load_state_dict(saved)
    run(other, other_params, data.grads[2:])
    assert_matches(other, other_params, stepped_oracle(family, data))


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


def test_checkpoint_of_an_older_version_gets_the_missing_settings(family):
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = family.make([p])
    saved = copy.deepcopy(optimizer.state_dict())
    for name in ("maximize", "capturable", "fused", "master_weights"):
        del saved["param_groups"][0][name]
    optimizer.load_state_dict(saved)
    run(optimizer, [p], [[torch.ones(4)]])
    assert optimizer.param_groups[0]["maximize"] is False
