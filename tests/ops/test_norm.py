# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Norms and sums of squares of many tensors: values, gradients, kinds of input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from largebatch.reference import norm as reference
from tests.helpers import Padded, problem, same_bits

SHAPES = [
    (0,),
    (1,),
    (3,),
    (),
    (31,),
    (511, 2),
    (16383,),
    (16384,),
    (16385,),
    (2, 3, 0),
    (65537,),
    (0,),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def tensors_on(device, shapes=SHAPES, dtype=torch.float32, seed=0):
    return problem(shapes, steps=0, seed=seed, scale=1.0).to(device, dtype).params


@pytest.mark.parametrize("dtype", DTYPES)
def test_matches_float64(backend, dtype):
    padded = Padded(tensors_on(backend.device, dtype=dtype), offset=1)
    expected = reference.squared_sums(padded.tensors).cpu()
    total, norms = ops.multi_tensor_norm(padded.tensors)
    sums = ops.multi_tensor_sq_sum(padded.tensors)
    for result in (total, norms, sums):
        assert result.dtype == torch.float64
        assert result.device.type == backend.device.type
    assert total.shape == ()
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(norms.cpu(), expected.sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(total.cpu(), expected.sum().sqrt(), rtol=1e-6, atol=0)
    assert padded.intact()


def test_dtypes_side_by_side(backend):
    tensors = [tensors_on(backend.device, [(1000,)], dtype)[0] for dtype in DTYPES]
    expected = reference.squared_sums(tensors)
    torch.testing.assert_close(ops.multi_tensor_sq_sum(tensors), expected, rtol=1e-6, atol=0)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), seed=st.integers(0, 9))
def test_any_list_of_sizes(backend, sizes, seed):
    tensors = tensors_on(backend.device, [(n,) for n in sizes], seed=seed)
    expected = reference.squared_sums(tensors)
    torch.testing.assert_close(
        ops.multi_tensor_sq_sum(tensors), expected, rtol=1e-6, atol=0, check_device=False
    )


@pytest.mark.parametrize("value", [1e-30, 1e20, 3e38])
def test_squares_neither_vanish_nor_overflow(backend, value):
    x = torch.full((1000,), value, device=backend.device)
    total, _ = ops.multi_tensor_norm([x])
    assert total.item() == pytest.approx(x[0].item() * 1000**0.5, rel=1e-6)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_non_finite_values_stay_in_their_tensor(backend, value):
    tensors = tensors_on(backend.device, [(300,), (20000,), (5,)])
    tensors[1][17000] = value
    sums = ops.multi_tensor_sq_sum(tensors)
    assert sums.isfinite().tolist() == [True, False, True]
    assert sums[1].isnan() == math.isnan(value)


def test_same_bits_on_every_run_and_in_any_company(backend):
    tensors = tensors_on(backend.device)
    first = ops.multi_tensor_sq_sum(tensors)
    assert same_bits(ops.multi_tensor_sq_sum(tensors), first)
    alone = torch.cat([ops.multi_tensor_sq_sum([x]) for x in tensors])
    assert same_bits(alone, first)


def test_number_of_threads(backend):
    if backend.device.type != "cpu":
        pytest.skip("threads are those of the CPU")
    tensors = [*tensors_on("cpu"), *tensors_on("cpu", [(400000,)])]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(ops.multi_tensor_sq_sum(tensors))
    torch.set_num_threads(before)
    assert same_bits(*results)


def test_strided_input(backend):
    x = tensors_on(backend.device, [(40, 30)])[0]
    views = [x.t(), x[:, ::2], x[3], x[:, 5], x[:1].expand(7, 30), x[::2, 1::3]]
    expected = reference.squared_sums(views)
    torch.testing.assert_close(ops.multi_tensor_sq_sum(views), expected, rtol=1e-6, atol=0)


def test_empty_list():
    total, norms = ops.multi_tensor_norm([])
    assert (total.item(), norms.shape) == (0.0, (0,))
    assert ops.multi_tensor_sq_sum([]).shape == (0,)


def test_numpy_arrays():
    arrays = [np.array([3.0, 4.0], dtype=np.float32), np.array([[12.0]]), np.zeros(0, np.float16)]
    total, norms = ops.multi_tensor_norm(arrays)
    assert total.item() == pytest.approx(13.0, rel=1e-12)
    assert norms.tolist() == [5.0, 12.0, 0.0]


# ---- Gradients -----------------------------------------------------------------------------------


def doubles(shapes=((3, 2), (4,), (), (0,))):
    return [x.requires_grad_() for x in tensors_on("cpu", shapes, torch.float64)]


def test_gradients():
    tensors = doubles()
    assert torch.autograd.gradcheck(lambda *xs: ops.multi_tensor_norm(xs), tensors)
    assert torch.autograd.gradcheck(lambda *xs: ops.multi_tensor_sq_sum(xs), tensors)


def test_second_gradients():
    tensors = doubles()
    assert torch.autograd.gradgradcheck(lambda *xs: ops.multi_tensor_norm(xs), tensors)
    assert torch.autograd.gradgradcheck(lambda *xs: ops.multi_tensor_sq_sum(xs), tensors)


def test_subgradient_of_a_zero_norm_is_zero():
    tensors = [torch.zeros(3, requires_grad=True), torch.ones(4, requires_grad=True)]
    total, norms = ops.multi_tensor_norm(tensors)
    (total + norms.sum()).backward()
    assert torch.equal(tensors[0].grad, torch.zeros(3))
    torch.testing.assert_close(tensors[1].grad, torch.ones(4))
    zeros = [torch.zeros(3, requires_grad=True)]
    ops.multi_tensor_norm(zeros)[0].backward()
    assert torch.equal(zeros[0].grad, torch.zeros(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_of_their_tensor(backend, dtype):
    (x,) = tensors_on(backend.device, [(50,)], dtype)
    x.requires_grad_()
    ops.multi_tensor_sq_sum([x])[0].backward()
    assert x.grad.dtype == dtype
    assert same_bits(x.grad, 2 * x.detach())


def test_gradients_of_some():
    a, b = tensors_on("cpu", [(5,), (6,)])
    a.requires_grad_()
    ops.multi_tensor_norm([a, b])[1].sum().backward()
    torch.testing.assert_close(a.grad, a.detach() / a.detach().norm())
    assert b.grad is None


@pytest.mark.parametrize("op", [ops.multi_tensor_norm, ops.multi_tensor_sq_sum])
def test_one_graph_holds_it(op):
    tensors = tensors_on("cpu", [(3, 2), (4,)])
    compiled = torch.compile(lambda *xs: op(xs), fullgraph=True, backend="aot_eager")
    found, expected = compiled(*tensors), op(tensors)
    assert same_bits(list(found), list(expected))


@pytest.mark.parametrize("name", ["multi_tensor_norm", "multi_tensor_sq_sum"])
def test_opcheck(name):
    op = getattr(torch.ops.largebatch, name).default
    torch.library.opcheck(op, (tensors_on("cpu", [(3, 2), (4,)]),))
    torch.library.opcheck(op, (doubles(),))


# ---- What is refused -----------------------------------------------------------------------------


def test_a_bare_tensor_is_refused():
    with pytest.raises(TypeError, match=r"multi_tensor_norm: tensors .* expected a list"):
        ops.multi_tensor_norm(torch.ones(3))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (torch.ones(3, dtype=torch.int64), TypeError),
        (torch.ones(3, dtype=torch.complex64), TypeError),
        (torch.ones(3, device="meta"), ValueError),
        ("three", TypeError),
        (None, TypeError),
    ],
    ids=["int64", "complex64", "meta", "str", "None"],
)
def test_bad_element_is_named(bad, error):
    with pytest.raises(error, match=r"tensors\[1\]") as caught:
        ops.multi_tensor_sq_sum([torch.ones(2), bad])
    assert "\n" not in str(caught.value)
