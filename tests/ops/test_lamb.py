# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The two phases of LAMB as functions."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from largebatch.optim import LAMB
from largebatch.reference import lamb as reference
from tests.conftest import assert_close
from tests.helpers import LAMB_DEFAULTS, leaves, problem, run, same_bits

SHAPES = [(40, 30), (0,), (700,), (1,), (16385,)]
HYPER = LAMB_DEFAULTS | dict(lr=0.02, weight_decay=0.1)

VARIANTS = {
    "defaults": {},
    "l2": dict(decay="l2"),
    "outside": dict(decay="outside", adapt="always"),
    "deepspeed": dict(bias_correction="outside", trust_clip=(0.01, 10.0), max_grad_norm=None),
    "bounds": dict(trust_clip=0.1, weight_norm_clip=(0.1, 2.0), adapt=True),
    "never": dict(adapt=False, bias_correction=False, maximize=True),
}


def tensors(device="cpu", shapes=SHAPES, steps=3, dtype=torch.float32, grad_dtype=None, seed=0):
    """Return the lists of a step in progress, by argument name."""
    data = problem(shapes, steps=1, seed=seed).to(device, dtype, grad_dtype or dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return dict(
        params=data.params,
        grads=data.grads[0],
        exp_avgs=[0.01 * p.to(state) for p in data.params],
        exp_avg_sqs=[0.001 * p.to(state).square() for p in data.params],
        steps=[torch.full((), float(steps), device=device) for _ in shapes],
    )


def as_doubles(lists):
    return {name: [t.cpu().double() for t in given] for name, given in lists.items()}


def second(lists):
    return {name: given for name, given in lists.items() if name != "grads"}


def both(module, lists, hyper, copies=(), **scaler):
    sums = module.lamb_moments(**lists, **hyper, **scaler)
    module.lamb_apply(**second(lists), sums=sums, copies=copies, **hyper, **scaler)
    return sums


@pytest.mark.parametrize("name", VARIANTS)
def test_matches_float64_reference(backend, name):
    hyper = HYPER | VARIANTS[name]
    lists = tensors(backend.device)
    exact = as_doubles(lists)
    expected = both(reference, exact, hyper)
    sums = both(ops, lists, hyper)
    assert_close(sums, expected)
    for argument, given_ in lists.items():
        assert_close(given_, exact[argument])


def test_first_phase_does_not_touch_weights(backend):
    lists = tensors(backend.device)
    before = copy.deepcopy(lists)
    ops.lamb_moments(**lists, **HYPER)
    assert same_bits(lists["params"], before["params"])
    assert same_bits(lists["grads"], before["grads"])
    assert [t.item() for t in lists["steps"]] == [4.0] * len(SHAPES)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_phases_are_the_optimizer_step_bitwise(backend, name, dtype):
    hyper = HYPER | VARIANTS[name]
    data = problem(SHAPES, steps=4).to(backend.device, dtype, dtype)
    params = leaves(data.to().params)
    optimizer = LAMB(params, **hyper)
    run(optimizer, params, data.grads)
    lists = dict(
        params=data.params,
        exp_avgs=[torch.zeros_like(p) for p in data.params],
        exp_avg_sqs=[torch.zeros_like(p) for p in data.params],
        steps=[torch.zeros((), device=backend.device) for _ in data.params],
    )
    for grads in data.grads:
        both(ops, {**lists, "grads": grads}, hyper)
    for i, p in enumerate(params):
        state = optimizer.state[p]
        assert same_bits(p.detach(), lists["params"][i])
        assert same_bits(state["exp_avg"], lists["exp_avgs"][i])
        assert same_bits(state["exp_avg_sq"], lists["exp_avg_sqs"][i])
        assert same_bits(state["step"], lists["steps"][i])


def test_given_gradient_norm_takes_the_place_of_the_own(backend):
    lists = tensors(backend.device)
    exact = as_doubles(lists)
    total = 9 * ops.multi_tensor_sq_sum(lists["grads"]).sum()
    both(reference, exact, HYPER, grad_sq_sum=total.cpu())
    both(ops, lists, HYPER, grad_sq_sum=total)
    assert_close(lists["exp_avgs"], exact["exp_avgs"])
    assert_close(lists["params"], exact["params"])


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
    assert same_bits(lists["exp_avg_sqs"], wide["exp_avg_sqs"])


def test_scaler_inputs(backend):
    scale = torch.tensor(3.0, device=backend.device)
    on, off = torch.ones_like(scale), torch.zeros_like(scale)
    lists = tensors(backend.device)
    exact = as_doubles(lists)
    total = ops.multi_tensor_sq_sum(lists["grads"]).sum()
    both(reference, exact, HYPER, grad_sq_sum=total.cpu(), grad_scale=scale.cpu().double())
    both(ops, lists, HYPER, grad_sq_sum=total, grad_scale=scale, found_inf=off)
    assert_close(lists["params"], exact["params"])
    before = copy.deepcopy(lists)
    both(ops, lists, HYPER, grad_sq_sum=total, grad_scale=scale, found_inf=on)
    nan = total * float("nan")
    both(ops, lists, HYPER, grad_sq_sum=nan, grad_scale=scale, found_inf=off)
    for argument, given_ in lists.items():
        assert same_bits(given_, before[argument])


def test_second_phase_under_a_scaler_needs_the_gradient_norm():
    lists = tensors()
    sums = torch.ones(len(SHAPES), 2, dtype=torch.float64)
    before = copy.deepcopy(lists)
    for module in (ops, reference):
        with pytest.raises(ValueError, match="grad_sq_sum"):
            module.lamb_apply(**second(lists), sums=sums, **HYPER, grad_scale=torch.tensor(2.0))
    assert same_bits(lists["params"], before["params"])


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(size=st.integers(1, 400), cuts=st.lists(st.integers(0, 400), max_size=3))
def test_a_tensor_may_be_cut_anywhere(backend, size, cuts):
    # As over ranks, in one process: parts through the first phase, sums added, the second phase.
    whole = tensors(backend.device, [(size,)])
    exact = as_doubles(whole)
    both(reference, exact, HYPER)
    total = ops.multi_tensor_sq_sum(whole["grads"]).sum()
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    ranks = [
        {
            name: [given_[0].clone() if name == "steps" else given_[0][a:b]]
            for name, given_ in whole.items()
        }
        for a, b in itertools.pairwise(edges)
    ]
    sums = sum(ops.lamb_moments(**part, **HYPER, grad_sq_sum=total) for part in ranks)
    for part in ranks:
        ops.lamb_apply(**second(part), sums=sums, **HYPER, grad_sq_sum=total)
    assert_close(whole["params"], exact["params"], scale=0.05)


def test_numpy_arrays_are_written_in_place():
    lists = tensors(shapes=[(30,), (5, 4)])
    exact = as_doubles(lists)
    arrays = {name: [t.numpy() for t in given_] for name, given_ in lists.items()}
    both(reference, exact, HYPER)
    sums = both(ops, arrays, HYPER)
    assert torch.is_tensor(sums)
    for argument, given_ in arrays.items():
        assert all(isinstance(a, np.ndarray) for a in given_)
        assert_close([torch.from_numpy(a) for a in given_], exact[argument], scale=0.01)


def test_empty_lists():
    empty = {name: [] for name in tensors(shapes=[])}
    assert both(ops, empty, HYPER).shape == (0, 2)


def test_autograd_notices_what_is_written():
    lists = tensors(shapes=[(30,)])
    versions = {name: given_[0]._version for name, given_ in lists.items()}
    sums = ops.lamb_moments(**lists, **HYPER)
    moved = {name for name, given_ in lists.items() if given_[0]._version > versions[name]}
    assert moved == {"exp_avgs", "exp_avg_sqs", "steps"}
    ops.lamb_apply(**second(lists), sums=sums, **HYPER)
    assert lists["params"][0]._version > versions["params"]
    assert lists["grads"][0]._version == versions["grads"]


def flat(hyper):
    """Return the hyper-parameters as the operator's schema has them: no unions of types."""
    return {**hyper, "bias_correction": "on", "betas": list(hyper["betas"])}


def test_opcheck():
    lists = tensors(shapes=[(3, 2), (5,)])
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "steps")
    nothing = dict(grad_sq_sum=None, grad_scale=None, found_inf=None)
    rest = flat(HYPER) | nothing
    first = tuple(lists[name] for name in names)
    torch.library.opcheck(torch.ops.largebatch.lamb_moments.default, first, rest)
    sums = ops.lamb_moments(**lists, **HYPER)
    again = (*(lists[name] for name in names if name != "grads"), sums, [])
    torch.library.opcheck(torch.ops.largebatch.lamb_apply.default, again, rest)
    copies = [p.bfloat16() for p in lists["params"]]
    torch.library.opcheck(torch.ops.largebatch.lamb_apply.default, (*again[:-1], copies), rest)


# ---- What is refused -----------------------------------------------------------------------------


def replaced(argument, index, value):
    def change(lists):
        lists[argument][index] = value

    return change


def shared(lists):
    lists["exp_avg_sqs"][1] = lists["exp_avgs"][1]


def gradient_is_weight(lists):
    lists["grads"][1] = lists["params"][1]


def too_few(lists):
    lists["exp_avgs"].pop()


BAD = {
    "shape": (replaced("grads", 1, torch.ones(6)), ValueError, r"grads\[1\]"),
    "strides": (replaced("exp_avgs", 0, torch.ones(3, 2).t()), ValueError, r"exp_avgs\[0\]"),
    "gaps": (replaced("params", 1, torch.ones(10)[::2]), ValueError, r"params\[1\]"),
    "expanded": (replaced("exp_avgs", 1, torch.ones(1).expand(5)), ValueError, r"exp_avgs\[1\]"),
    "device": (replaced("grads", 1, torch.ones(5, device="meta")), ValueError, r"grads\[1\]"),
    "kind": (replaced("grads", 1, 3.0), TypeError, r"grads\[1\]"),
    "grad dtype": (replaced("grads", 1, torch.ones(5).double()), TypeError, r"grads\[1\]"),
    "integers": (replaced("params", 1, torch.ones(5).int()), TypeError, r"params\[1\]"),
    "state dtype": (
        replaced("exp_avg_sqs", 1, torch.ones(5).half()),
        TypeError,
        r"exp_avg_sqs\[1\]",
    ),
    "step dtype": (
        replaced("steps", 1, torch.ones((), dtype=torch.int64)),
        TypeError,
        r"steps\[1\]",
    ),
    "step size": (replaced("steps", 0, torch.ones(2)), ValueError, r"steps\[0\]"),
    "shared memory": (shared, ValueError, r"exp_avg_sqs\[1\]"),
    "too few": (too_few, ValueError, "exp_avgs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tensor_is_named_before_anything_is_written(name):
    change, error, pattern = BAD[name]
    lists = tensors(shapes=[(2, 3), (5,)])
    change(lists)
    before = {key: [copied(x) for x in given_] for key, given_ in lists.items()}
    with pytest.raises(error, match=pattern) as caught:
        ops.lamb_moments(**lists, **HYPER)
    assert "\n" not in str(caught.value)
    for key, given_ in lists.items():
        for now, then in zip(given_, before[key], strict=True):
            if torch.is_tensor(now) and now.device.type == "cpu":
                assert same_bits(now, then)


def copied(x):
    return x.clone() if torch.is_tensor(x) else x


@pytest.mark.parametrize(
    "sums",
    [torch.ones(2, 2), torch.ones(3, 2).double(), torch.ones(4).double(), None],
    ids=["fp32", "rows", "flat", "None"],
)
def test_bad_sums_are_named(sums):
    lists = tensors(shapes=[(2, 3), (5,)])
    before = copy.deepcopy(lists)
    with pytest.raises((TypeError, ValueError), match="sums"):
        ops.lamb_apply(**second(lists), sums=sums, **HYPER)
    assert same_bits(lists["params"], before["params"])


def test_copies_need_fp32_masters():
    lists = tensors(shapes=[(5,)], dtype=torch.float64)
    sums = ops.lamb_moments(**lists, **HYPER)
    with pytest.raises(TypeError, match=r"params\[0\]"):
        ops.lamb_apply(**second(lists), sums=sums, copies=[torch.ones(5).half()], **HYPER)
    with pytest.raises(TypeError, match=r"copies\[0\]"):
        ops.lamb_apply(**second(lists), sums=sums, copies=[torch.ones(5)], **HYPER)


def test_hyper_parameters_are_all_needed_and_checked():
    lists = tensors(shapes=[(5,)])
    missing = {name: value for name, value in HYPER.items() if name != "eps"}
    with pytest.raises(TypeError, match="eps"):
        ops.lamb_moments(**lists, **missing)
    with pytest.raises(TypeError, match="epsilon"):
        ops.lamb_moments(**lists, **HYPER, epsilon=1e-8)
    with pytest.raises(ValueError, match="eps"):
        ops.lamb_moments(**lists, **HYPER | dict(eps=-1.0))
    with pytest.raises(ValueError, match="decay"):
        ops.lamb_moments(**lists, **HYPER | dict(decay="none"))
