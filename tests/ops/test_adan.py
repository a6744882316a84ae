# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan as a function."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from largebatch.optim import Adan
from largebatch.reference import adan as reference
from tests.conftest import assert_close
from tests.helpers import ADAN_DEFAULTS, leaves, problem, run, same_bits

SHAPES = [(40, 30), (0,), (700,), (1,), (16385,)]
# Sizes of an element that may come out of a subtraction.
TYPICAL = {"params": 0.02, "exp_avg_diffs": 1e-3}
HYPER = ADAN_DEFAULTS | dict(lr=0.02, weight_decay=0.1, max_grad_norm=1.0)
STATES = ("exp_avgs", "exp_avg_diffs", "exp_avg_sqs", "neg_pre_grads")

VARIANTS = {
    "clip": {},
    "no clip": dict(max_grad_norm=None),
    "no prox": dict(no_prox=True, maximize=True),
    "betas": dict(betas=[0.5, 0.0, 0.9], eps=0.1),
}


def tensors(device="cpu", shapes=SHAPES, steps=3, dtype=torch.float32, grad_dtype=None):
    """Return the lists of a step in progress, by argument name."""
    data = problem(shapes, steps=2).to(device, dtype, grad_dtype or dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return dict(
        params=data.params,
        grads=data.grads[0],
        exp_avgs=[0.1 * g.to(state) for g in data.grads[1]],
        exp_avg_diffs=[0.01 * p.to(state) for p in data.params],
        exp_avg_sqs=[1e-4 + 0.01 * p.to(state).square() for p in data.params],
        neg_pre_grads=[-g.to(state) for g in data.grads[1]],
        steps=[torch.full((), float(steps), device=device) for _ in shapes],
    )


def as_doubles(lists):
    return {name: [t.cpu().double() for t in given] for name, given in lists.items()}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps", [0, 3])
def test_matches_float64_reference(backend, name, steps):
    hyper = HYPER | VARIANTS[name]
    lists = tensors(backend.device, steps=steps)
    exact = as_doubles(lists)
    reference.adan_step(**exact, **hyper)
    ops.adan_step(**lists, **hyper)
    for argument, given_ in lists.items():
        assert_close(given_, exact[argument], scale=TYPICAL.get(argument, 0.0))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_optimizer_step_bitwise(backend, name, dtype):
    hyper = HYPER | VARIANTS[name]
    data = problem(SHAPES, steps=4).to(backend.device, dtype, dtype)
    params = leaves(data.to().params)
    optimizer = Adan(params, **hyper)
    run(optimizer, params, data.grads)
    lists = {name: [torch.zeros_like(p) for p in data.params] for name in STATES}
    steps = [torch.zeros((), device=backend.device) for _ in params]
    for grads in data.grads:
        ops.adan_step(data.params, grads, steps=steps, **lists, **hyper)
    assert same_bits([p.detach() for p in params], data.params)
    assert same_bits([optimizer.state[p]["step"] for p in params], steps)
    for name, given_ in lists.items():
        assert same_bits([optimizer.state[p][name.removesuffix("s")] for p in params], given_)


def test_first_step_does_not_look_at_the_previous_gradient(backend):
    results = []
    for filling in (0.0, float("nan")):
        lists = tensors(backend.device, steps=0)
        for t in lists["neg_pre_grads"]:
            t.fill_(filling)
        ops.adan_step(**lists, **HYPER)
        results.append([t for given_ in lists.values() for t in given_])
    assert same_bits(*results)


def test_given_gradient_norm_takes_the_place_of_the_own(backend):
    lists = tensors(backend.device)
    exact = as_doubles(lists)
    total = 9 * ops.multi_tensor_sq_sum(lists["grads"]).sum()
    reference.adan_step(**exact, grad_sq_sum=total.cpu(), **HYPER)
    ops.adan_step(**lists, grad_sq_sum=total, **HYPER)
    assert_close(lists["exp_avgs"], exact["exp_avgs"])
    assert_close(lists["params"], exact["params"], scale=TYPICAL["params"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_and_copies_of_fp32_weights(backend, dtype):
    lists = tensors(backend.device, grad_dtype=dtype)
    exact = as_doubles(lists)
    reference.adan_step(**exact, **HYPER)
    copies = [torch.zeros_like(p, dtype=dtype) for p in lists["params"]]
    ops.adan_step(**lists, copies=copies, **HYPER)
    assert_close(lists["params"], exact["params"], scale=TYPICAL["params"])
    assert_close(lists["neg_pre_grads"], exact["neg_pre_grads"])
    assert same_bits(copies, [p.to(dtype) for p in lists["params"]])


@pytest.mark.parametrize("same", [False, True], ids=["fp32 gradients", "their own"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_rounded_once_at_the_end(backend, dtype, same):
    lists = tensors(backend.device, dtype=dtype, grad_dtype=dtype if same else torch.float32)
    wide = {name: [t.to(torch.float32, copy=True) for t in given] for name, given in lists.items()}
    ops.adan_step(**wide, **HYPER)
    ops.adan_step(**lists, **HYPER)
    assert same_bits(lists["params"], [p.to(dtype) for p in wide["params"]])
    for name in STATES:
        assert same_bits(lists[name], wide[name])


@pytest.mark.parametrize("steps", [0, 3])
def test_scaler_inputs(backend, steps):
    scale = torch.tensor(3.0, device=backend.device)
    lists = tensors(backend.device, steps=steps)
    exact = as_doubles(lists)
    reference.adan_step(**exact, grad_scale=scale.cpu().double(), **HYPER)
    ops.adan_step(**lists, grad_scale=scale, found_inf=torch.zeros_like(scale), **HYPER)
    for argument, given_ in lists.items():
        assert_close(given_, exact[argument], scale=TYPICAL.get(argument, 0.0))
    before = copy.deepcopy(lists)
    ops.adan_step(**lists, grad_scale=scale, found_inf=torch.ones_like(scale), **HYPER)
    lists["grads"][0][0, 0] = before["grads"][0][0, 0] = float("nan")
    ops.adan_step(**lists, grad_scale=scale, **HYPER)
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(1, 400), cuts=st.lists(st.integers(0, 400), max_size=3))
def test_a_tensor_may_be_cut_anywhere(backend, size, cuts):
    whole = tensors(backend.device, [(size,)])
    parts = copy.deepcopy(whole)
    total = ops.multi_tensor_sq_sum(whole["grads"]).sum()
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    for a, b in itertools.pairwise(edges):
        part = {
            name: [given_[0].clone() if name == "steps" else given_[0][a:b]]
            for name, given_ in parts.items()
        }
        ops.adan_step(**part, grad_sq_sum=total, **HYPER)
    ops.adan_step(**whole, grad_sq_sum=total, **HYPER)
    for name in ("params", *STATES):
        assert same_bits(parts[name], whole[name])


def test_opcheck():
    lists = tensors(shapes=[(3, 2), (5,)])
    step = torch.ops.largebatch.adan_step.default
    rest = HYPER | dict(grad_sq_sum=None, grad_scale=None, found_inf=None)
    torch.library.opcheck(step, (*lists.values(), []), rest)
    copies = [p.half() for p in lists["params"]]
    torch.library.opcheck(step, (*lists.values(), copies), rest | dict(max_grad_norm=None))


def test_arrays_of_numpy_are_shared():
    lists = tensors(shapes=[(3, 2), (5,)])
    arrays = {name: [t.numpy().copy() for t in given_] for name, given_ in lists.items()}
    ops.adan_step(**lists, **HYPER)
    ops.adan_step(**arrays, **HYPER)
    for name, given_ in arrays.items():
        assert same_bits([torch.from_numpy(np.asarray(a)) for a in given_], lists[name])


def test_nothing_to_do():
    ops.adan_step([], [], [], [], [], [], [], **HYPER)


# ---- What is refused -----------------------------------------------------------------------------


def replaced(argument, index, value):
    def change(lists):
        lists[argument][index] = value

    return change


def shared(lists):
    lists["neg_pre_grads"][1] = lists["exp_avgs"][1]


def gradient_as_state(lists):
    lists["neg_pre_grads"][1] = lists["grads"][1]


def one_less(lists):
    del lists["exp_avg_diffs"][1]


BAD = {
    "shape": (replaced("grads", 1, torch.ones(6)), ValueError, r"grads\[1\]"),
    "strides": (replaced("exp_avgs", 0, torch.ones(3, 2).t()), ValueError, r"exp_avgs\[0\]"),
    "gaps": (replaced("params", 1, torch.ones(10)[::2]), ValueError, r"params\[1\]"),
    "grad dtype": (replaced("grads", 1, torch.ones(5).double()), TypeError, r"grads\[1\]"),
    "state dtype": (
        replaced("neg_pre_grads", 1, torch.ones(5).half()),
        TypeError,
        r"neg_pre_grads\[1\]",
    ),
    "step size": (replaced("steps", 0, torch.ones(2)), ValueError, r"steps\[0\]"),
    "shared memory": (shared, ValueError, r"neg_pre_grads\[1\]"),
    "gradient as state": (gradient_as_state, ValueError, r"neg_pre_grads\[1\]"),
    "length": (one_less, ValueError, "exp_avg_diffs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensor_is_named_before_anything_is_written(name):
    change, error, pattern = BAD[name]
    lists = tensors(shapes=[(2, 3), (5,)])
    change(lists)
    before = {key: [x.clone() for x in given_] for key, given_ in lists.items()}
    with pytest.raises(error, match=pattern) as caught:
        ops.adan_step(**lists, **HYPER)
    assert "\n" not in str(caught.value)
    for key, given_ in lists.items():
        assert same_bits(given_, before[key])


def test_missing_and_unknown_hyper_parameters_are_named():
    lists = tensors(shapes=[(5,)])
    hyper = dict(HYPER)
    del hyper["no_prox"]
    with pytest.raises(TypeError, match="no_prox"):
        ops.adan_step(**lists, **hyper)
    with pytest.raises(TypeError, match="momentum"):
        ops.adan_step(**lists, momentum=0.9, **HYPER)
    with pytest.raises(ValueError, match="betas"):
        ops.adan_step(**lists, **HYPER | dict(betas=(0.9, 0.9)))
