# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The two phases of LARS as functions."""

import copy
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from largebatch.optim import LARS
from largebatch.reference import lars as reference
from tests.conftest import assert_close
from tests.helpers import LARS_DEFAULTS, leaves, problem, run, same_bits

SHAPES = [(40, 30), (0,), (700,), (1,), (16385,)]
HYPER = LARS_DEFAULTS | dict(lr=0.5, weight_decay=0.1, trust_coefficient=0.02)

VARIANTS = {
    "defaults": {},
    "dampening": dict(dampening=0.3),
    "nesterov": dict(nesterov=True),
    "paper": dict(lr_in_momentum=True),
    "larc": dict(clip=True, lr=0.01),
    "no momentum": dict(momentum=0.0),
    "plain": dict(adapt=False, maximize=True, lr=0.05),
}


def tensors(device="cpu", shapes=SHAPES, steps=3, dtype=torch.float32, grad_dtype=None):
    """Return the lists of a step in progress, by argument name."""
    data = problem(shapes, steps=1).to(device, dtype, grad_dtype or dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return dict(
        params=data.params,
        grads=data.grads[0],
        momentum_buffers=[0.1 * p.to(state) for p in data.params],
        steps=[torch.full((), float(steps), device=device) for _ in shapes],
    )


def as_doubles(lists):
    return {name: [t.cpu().double() for t in given] for name, given in lists.items()}


def both(module, lists, hyper, grad_scale=None, **rest):
    sums = module.lars_norms(lists["params"], lists["grads"], grad_scale=grad_scale)
    module.lars_apply(**lists, sums=sums, grad_scale=grad_scale, **hyper, **rest)
    return sums


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("steps", [0, 3])
def test_matches_float64_reference(backend, name, steps):
    hyper = HYPER | VARIANTS[name]
    lists = tensors(backend.device, steps=steps)
    if hyper["momentum"] == 0:
        lists["momentum_buffers"] = []
    exact = as_doubles(lists)
    expected = both(reference, exact, hyper)
    sums = both(ops, lists, hyper)
    assert_close(sums, expected)
    for argument, given_ in lists.items():
        assert_close(given_, exact[argument])


def test_first_phase_writes_nothing(backend):
    lists = tensors(backend.device)
    before = copy.deepcopy(lists)
    ops.lars_norms(lists["params"], lists["grads"])
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_phases_are_the_optimizer_step_bitwise(backend, name, dtype):
    hyper = HYPER | VARIANTS[name]
    data = problem(SHAPES, steps=4).to(backend.device, dtype, dtype)
    params = leaves(data.to().params)
    optimizer = LARS(params, **hyper)
    run(optimizer, params, data.grads)
    steps = [torch.zeros((), device=backend.device) for _ in params]
    buffers = [torch.zeros_like(p) for p in data.params] if hyper["momentum"] else []
    for grads in data.grads:
        lists = dict(params=data.params, grads=grads, momentum_buffers=buffers, steps=steps)
        both(ops, lists, hyper)
    assert same_bits([p.detach() for p in params], data.params)
    assert same_bits([optimizer.state[p]["step"] for p in params], steps)
    if buffers:
        assert same_bits([optimizer.state[p]["momentum_buffer"] for p in params], buffers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_gradients_and_copies_of_fp32_weights(backend, dtype):
    lists = tensors(backend.device, grad_dtype=dtype)
    exact = as_doubles(lists)
    both(reference, exact, HYPER)
    copies = [torch.zeros_like(p, dtype=dtype) for p in lists["params"]]
    both(ops, lists, HYPER, copies=copies)
    assert_close(lists["params"], exact["params"])
    assert same_bits(copies, [p.to(dtype) for p in lists["params"]])


@pytest.mark.parametrize("same", [False, True], ids=["fp32 gradients", "their own"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_rounded_once_at_the_end(backend, dtype, same):
    lists = tensors(backend.device, dtype=dtype, grad_dtype=dtype if same else torch.float32)
    wide = {name: [t.to(torch.float32, copy=True) for t in given] for name, given in lists.items()}
    both(ops, wide, HYPER)
    both(ops, lists, HYPER)
    assert same_bits(lists["params"], [p.to(dtype) for p in wide["params"]])
    assert same_bits(lists["momentum_buffers"], wide["momentum_buffers"])


@pytest.mark.parametrize("steps", [0, 3])
def test_scaler_inputs(backend, steps):
    scale = torch.tensor(3.0, device=backend.device)
    lists = tensors(backend.device, steps=steps)
    exact = as_doubles(lists)
    expected = both(reference, exact, HYPER, grad_scale=scale.cpu().double())
    sums = both(ops, lists, HYPER, grad_scale=scale, found_inf=torch.zeros_like(scale))
    assert_close(sums, expected)
    assert_close(lists["params"], exact["params"])
    assert_close(lists["momentum_buffers"], exact["momentum_buffers"])
    before = copy.deepcopy(lists)
    both(ops, lists, HYPER, grad_scale=scale, found_inf=torch.ones_like(scale))
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(1, 400), cuts=st.lists(st.integers(0, 400), max_size=3))
def test_a_tensor_may_be_cut_anywhere(backend, size, cuts):
    whole = tensors(backend.device, [(size,)])
    exact = as_doubles(whole)
    both(reference, exact, HYPER)
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    ranks = [
        {
            name: [given_[0].clone() if name == "steps" else given_[0][a:b]]
            for name, given_ in whole.items()
        }
        for a, b in itertools.pairwise(edges)
    ]
    sums = sum(ops.lars_norms(part["params"], part["grads"]) for part in ranks)
    for part in ranks:
        ops.lars_apply(**part, sums=sums, **HYPER)
    assert_close(whole["params"], exact["params"], scale=0.05)


def test_opcheck():
    lists = tensors(shapes=[(3, 2), (5,)])
    norms = torch.ops.largebatch.lars_norms.default
    torch.library.opcheck(norms, (lists["params"], lists["grads"], None))
    sums = ops.lars_norms(lists["params"], lists["grads"])
    rest = HYPER | dict(grad_scale=None, found_inf=None)
    apply = torch.ops.largebatch.lars_apply.default
    torch.library.opcheck(apply, (*lists.values(), sums, []), rest)
    copies = [p.half() for p in lists["params"]]
    torch.library.opcheck(apply, (*lists.values(), sums, copies), rest)


# ---- What is refused -----------------------------------------------------------------------------


def replaced(argument, index, value):
    def change(lists):
        lists[argument][index] = value

    return change


def shared(lists):
    lists["momentum_buffers"][1] = lists["params"][1]


def no_buffers(lists):
    lists["momentum_buffers"] = []


BAD = {
    "shape": (replaced("grads", 1, torch.ones(6)), ValueError, r"grads\[1\]"),
    "strides": (
        replaced("momentum_buffers", 0, torch.ones(3, 2).t()),
        ValueError,
        r"momentum_buffers\[0\]",
    ),
    "gaps": (replaced("params", 1, torch.ones(10)[::2]), ValueError, r"params\[1\]"),
    "grad dtype": (replaced("grads", 1, torch.ones(5).double()), TypeError, r"grads\[1\]"),
    "state dtype": (
        replaced("momentum_buffers", 1, torch.ones(5).half()),
        TypeError,
        r"momentum_buffers\[1\]",
    ),
    "step size": (replaced("steps", 0, torch.ones(2)), ValueError, r"steps\[0\]"),
    "shared memory": (shared, ValueError, r"momentum_buffers\[1\]"),
    "no buffers": (no_buffers, ValueError, "momentum_buffers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensor_is_named_before_anything_is_written(name):
    change, error, pattern = BAD[name]
    lists = tensors(shapes=[(2, 3), (5,)])
    change(lists)
    before = {key: [x.clone() for x in given_] for key, given_ in lists.items()}
    sums = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(error, match=pattern) as caught:
        ops.lars_apply(**lists, sums=sums, **HYPER)
    assert "\n" not in str(caught.value)
    for key, given_ in lists.items():
        assert same_bits(given_, before[key])


def test_dampening_with_lr_in_momentum_is_refused():
    lists = tensors(shapes=[(5,)])
    with pytest.raises(ValueError, match="dampening"):
        both(ops, lists, HYPER | dict(dampening=0.5, lr_in_momentum=True))
