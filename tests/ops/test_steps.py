# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps as operations: what is alike of all in the table of steps.py."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from tests.conftest import assert_close
from tests.helpers import leaves, problem, run, same_bits
from tests.ops.steps import SHAPES, STEPS

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    """Run the test on every step of the table."""
    return request.param


def variants():
    """Parametrise a test by `step` and the settings of it that switch its arithmetic."""
    pairs = [(step, step.hyper | over) for step in STEPS for over in step.variants.values()]
    names = [f"{step}-{name}" for step in STEPS for name in step.variants]
    return pytest.mark.parametrize(("step", "hyper"), pairs, ids=names)


def as_doubles(lists):
    return {name: [t.cpu().double() for t in given_] for name, given_ in lists.items()}


def assert_lists_close(step, lists, exact):
    for argument, given_ in lists.items():
        assert_close(given_, exact[argument], scale=step.typical.get(argument, 0.0))


@variants()
@pytest.mark.parametrize("steps", [0, 3])
def test_matches_float64_reference(backend, step, hyper, steps):
    lists = step.used(step.tensors(backend.device, steps=steps), hyper)
    exact = as_doubles(lists)
    expected = step(step.reference, exact, hyper)
    sums = step(ops, lists, hyper)
    if sums is not None:  # of two phases
        assert_close(sums, expected)
    assert_lists_close(step, lists, exact)


@variants()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_optimizer_step_bitwise(backend, step, hyper, dtype):
    data = problem(SHAPES, steps=3).to(backend.device, dtype, dtype)
    params = leaves(data.to().params)
    optimizer = step.optimizer(params, **hyper)
    run(optimizer, params, data.grads)
    states = {name: [torch.zeros_like(p) for p in data.params] for name in step.states}
    steps = [torch.zeros((), device=backend.device) for _ in data.params]
    for grads in data.grads:
        lists = step.used(dict(params=data.params, grads=grads, **states, steps=steps), hyper)
        step(ops, lists, hyper)
    assert same_bits([p.detach() for p in params], data.params)
    for argument in lists.keys() - {"params", "grads"}:
        name = argument.removesuffix("s")
        for p, value in zip(params, lists[argument], strict=bool(lists[argument])):
            assert same_bits(optimizer.state[p][name], value)


def test_given_gradient_norm_takes_the_place_of_the_own(backend, step):
    if not step.limits:
        pytest.skip(f"{step} has no limit on the gradient norm")
    lists = step.tensors(backend.device)
    exact = as_doubles(lists)
    total = 9 * ops.multi_tensor_sq_sum(lists["grads"]).sum()
    step(step.reference, exact, step.hyper, grad_sq_sum=total.cpu())
    step(ops, lists, step.hyper, grad_sq_sum=total)
    assert_lists_close(step, lists, exact)


@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_gradients_and_copies_of_fp32_weights(backend, step, dtype):
    lists = step.tensors(backend.device, grad_dtype=dtype)
    exact = as_doubles(lists)
    step(step.reference, exact, step.hyper)
    copies = [torch.zeros_like(p, dtype=dtype) for p in lists["params"]]
    step(ops, lists, step.hyper, copies=copies)
    assert_lists_close(step, lists, exact)
    assert same_bits(copies, [p.to(dtype) for p in lists["params"]])


@pytest.mark.parametrize("same", [False, True], ids=["fp32 gradients", "their own"])
@pytest.mark.parametrize("dtype", HALF)
def test_sixteen_bit_weights_are_rounded_once_at_the_end(backend, step, dtype, same):
    lists = step.tensors(backend.device, dtype=dtype, grad_dtype=dtype if same else torch.float32)
    wide = {
        name: [t.to(torch.float32, copy=True) for t in given_] for name, given_ in lists.items()
    }
    step(ops, wide, step.hyper)
    step(ops, lists, step.hyper)
    assert same_bits(lists["params"], [p.to(dtype) for p in wide["params"]])
    for name in step.states:
        assert same_bits(lists[name], wide[name])


@pytest.mark.parametrize("steps", [0, 3])
def test_scaler_inputs(backend, step, steps):
    scale = torch.tensor(3.0, device=backend.device)
    lists = step.tensors(backend.device, steps=steps)
    exact = as_doubles(lists)
    needed = step.under_scaler(lists)
    exact_needed = {name: value.cpu() for name, value in needed.items()}
    step(step.reference, exact, step.hyper, grad_scale=scale.cpu().double(), **exact_needed)
    off, on = torch.zeros_like(scale), torch.ones_like(scale)
    step(ops, lists, step.hyper, grad_scale=scale, found_inf=off, **needed)
    assert_lists_close(step, lists, exact)
    before = copy.deepcopy(lists)
    step(ops, lists, step.hyper, grad_scale=scale, found_inf=on, **needed)
    if step.limits:  # with a limit on it the norm is looked at, and a bad one stops the step
        nan = dict(grad_sq_sum=torch.tensor(float("nan"), dtype=torch.float64, device=scale.device))
        step(ops, lists, step.hyper, grad_scale=scale, found_inf=off, **needed | nan)
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(1, 400), cuts=st.lists(st.integers(0, 400), max_size=3))
def test_a_tensor_may_be_cut_anywhere(backend, step, size, cuts):
    # As over ranks, in one process: every part through the first phase, sums added, the second.
    whole = step.tensors(backend.device, [(size,)])
    exact = as_doubles(whole)
    step(step.reference, exact, step.hyper)
    total = ops.multi_tensor_sq_sum(whole["grads"]).sum()
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    parts = [
        {
            name: [given_[0].clone() if name == "steps" else given_[0][a:b]]
            for name, given_ in whole.items()
        }
        for a, b in itertools.pairwise(edges)
    ]
    step.over_ranks(parts, **dict(grad_sq_sum=total) if step.limits else {})
    assert_close(whole["params"], exact["params"], scale=0.05)


def test_numpy_arrays_are_written_in_place(step):
    lists = step.tensors(shapes=[(30,), (5, 4)])
    arrays = {name: [t.numpy().copy() for t in given_] for name, given_ in lists.items()}
    sums = step(ops, lists, step.hyper)
    assert torch.is_tensor(step(ops, arrays, step.hyper)) == torch.is_tensor(sums)
    for argument, given_ in arrays.items():
        assert all(isinstance(a, np.ndarray) for a in given_)
        assert same_bits([torch.from_numpy(np.asarray(a)) for a in given_], lists[argument])


def test_empty_lists(step):
    empty = {name: [] for name in step.tensors(shapes=[])}
    sums = step(ops, empty, step.hyper)
    assert sums is None or sums.shape == (0, 2)


def test_autograd_notices_what_is_written(step):
    lists = step.tensors(shapes=[(30,)])
    copies = [torch.zeros(30, dtype=torch.bfloat16)]
    versions = {name: given_[0]._version for name, given_ in lists.items()}
    step(ops, lists, step.hyper, copies=copies)
    moved = {name for name, given_ in lists.items() if given_[0]._version > versions[name]}
    assert moved == lists.keys() - {"grads"}
    assert copies[0]._version > 0


def test_opcheck(step):
    lists = step.tensors(shapes=[(3, 2), (5,)])
    for copies in ([], [p.half() for p in lists["params"]]):
        for name, positional, keyword in step.calls(lists, copies):
            operation = getattr(torch.ops.largebatch, name).default
            torch.library.opcheck(operation, positional, keyword)


# ---- What is refused -----------------------------------------------------------------------------


def replaced(argument, index, value):
    def change(lists):
        lists[argument][index] = value

    return change


def shared(lists):
    lists["state"][1] = lists["params"][1]


def gradient_as_state(lists):
    lists["state"][1] = lists["grads"][1]


def gradient_is_weight(lists):
    lists["grads"][1] = lists["params"][1]


def too_few(lists):
    lists["state"].pop()


BAD = {  # "state": the last of the states
    "shape": (replaced("grads", 1, torch.ones(6)), ValueError, r"grads\[1\]"),
    "strides": (replaced("state", 0, torch.ones(3, 2).t()), ValueError, r"state\[0\]"),
    "gaps": (replaced("params", 1, torch.ones(10)[::2]), ValueError, r"params\[1\]"),
    "expanded": (replaced("state", 1, torch.ones(1).expand(5)), ValueError, r"state\[1\]"),
    "device": (replaced("grads", 1, torch.ones(5, device="meta")), ValueError, r"grads\[1\]"),
    "kind": (replaced("grads", 1, 3.0), TypeError, r"grads\[1\]"),
    "grad dtype": (replaced("grads", 1, torch.ones(5).double()), TypeError, r"grads\[1\]"),
    "integers": (replaced("params", 1, torch.ones(5).int()), TypeError, r"params\[1\]"),
    "state dtype": (replaced("state", 1, torch.ones(5).half()), TypeError, r"state\[1\]"),
    "step dtype": (replaced("steps", 1, torch.tensor(1)), TypeError, r"steps\[1\]"),
    "step size": (replaced("steps", 0, torch.ones(2)), ValueError, r"steps\[0\]"),
    "shared memory": (shared, ValueError, r"(params|state)\[1\]"),
    "gradient as state": (gradient_as_state, ValueError, r"(grads|state)\[1\]"),
    "gradient is weight": (gradient_is_weight, ValueError, r"(params|grads)\[1\]"),
    "too few": (too_few, ValueError, "state"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensor_is_named_before_anything_is_written(step, name):
    change, error, pattern = BAD[name]
    lists = step.tensors(shapes=[(2, 3), (5,)])
    state = list(step.states)[-1]
    change(lists | dict(state=lists[state]))
    before = {key: [copied(x) for x in given_] for key, given_ in lists.items()}
    with pytest.raises(error, match=pattern.replace("state", state)) as caught:
        step.refuse(lists, step.hyper)
    assert "\n" not in str(caught.value)
    for key, given_ in lists.items():
        for now, then in zip(given_, before[key], strict=True):
            if torch.is_tensor(now) and now.device.type == "cpu":
                assert same_bits(now, then)


def copied(x):
    return x.clone() if torch.is_tensor(x) else x


def test_copies_need_fp32_masters(step):
    lists = step.tensors(shapes=[(5,)], dtype=torch.float64)
    with pytest.raises(TypeError, match=r"params\[0\]"):
        step(ops, lists, step.hyper, copies=[torch.ones(5).half()])
    with pytest.raises(TypeError, match=r"copies\[0\]"):
        step(ops, lists, step.hyper, copies=[torch.ones(5)])


def test_hyper_parameters_are_all_needed_and_checked(step):
    lists = step.tensors(shapes=[(5,)])
    before = copy.deepcopy(lists)
    for name in step.hyper:
        without = {k: v for k, v in step.hyper.items() if k != name}
        with pytest.raises(TypeError, match=name):
            step.refuse(lists, without)
    with pytest.raises(TypeError, match="epsilon"):
        step.refuse(lists, step.hyper | dict(epsilon=1e-8))
    with pytest.raises(ValueError, match="weight_decay"):
        step.refuse(lists, step.hyper | dict(weight_decay=-1.0))
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])
