# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import ctypes
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from largebatch import _C


def check(name, *, read=None, **lists):
    """Run a check on the lists given by argument name; the second one is what it compares to."""
    _C._check_arrays(name, "lamb", list(lists.items()), list((read or {}).items()))


def refusal(name, error=ValueError, **lists):
    with pytest.raises(error) as caught:
        check(name, **lists)
    return str(caught.value)


def accepts(name, **lists):
    try:
        check(name, **lists)
    except ValueError:
        return False
    return True


class OnCuda:
    """The description of a float32 scalar on a CUDA device; there is no memory behind it."""

    def __init__(self, index):
        self.index = index
        # DLTensor: data, device, ndim, dtype (code, bits, lanes), shape, strides, byte_offset.
        words = 4096, (index << 32) | 2, (2 | 32 << 8 | 1 << 16) << 32, 0, 0, 0, 0, 0
        self.managed = (ctypes.c_uint64 * 8)(*words)

    def __dlpack_device__(self):
        return 2, self.index

    def __dlpack__(self, *, stream=None):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        return new(ctypes.c_void_p(ctypes.addressof(self.managed)), b"dltensor", None)


def test_same_length():
    a, b = [torch.ones(2)] * 3, [torch.ones(2)] * 4
    check("same_length", grads=a, params=a)
    expected = "lamb: grads has 3 arrays, expected 4 like params."
    for name in "same_length", "same_dtype", "same_shape", "same_layout":
        assert refusal(name, grads=a, params=b) == expected


def test_dtype():
    allowed = [torch.ones(2), torch.ones(2).half(), torch.ones(2).bfloat16()]
    check("dtype", params=allowed)
    allowed.append(torch.ones(2).double())
    assert refusal("dtype", TypeError, params=allowed) == (
        "lamb: params[3] has dtype float64, expected float32, float16 or bfloat16."
    )


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_dtype_that_no_kernel_takes_is_named(dtype):
    array = torch.ones(2, dtype=getattr(torch, dtype))
    message = refusal("dtype", TypeError, params=[array])
    assert message.startswith(f"lamb: params[0] has dtype {dtype}, expected ")


def test_small_float_is_named_by_its_code():
    array = torch.ones(2).to(torch.float8_e5m2)
    message = refusal("dtype", TypeError, params=[array])
    assert message.startswith("lamb: params[0] has dtype a 8-bit type (DLPack code 12), expected ")


def test_same_dtype():
    f32, f64, i32 = torch.ones(2), torch.ones(2).double(), torch.ones(2, dtype=torch.int32)
    i64 = i32.long()
    check("same_dtype", grads=[f32, f64, i32], params=[f32, f64, i32])
    assert refusal("same_dtype", TypeError, grads=[f32, f64], params=[f32, f32]) == (
        "lamb: grads[1] has dtype float64, expected float32 like params[1]."
    )
    assert refusal("same_dtype", TypeError, grads=[i32], params=[i64]) == (
        "lamb: grads[0] has dtype int32, expected int64 like params[0]."
    )


def test_same_shape():
    a, b = torch.ones(3, 4), torch.ones(4, 3)
    check("same_shape", grads=[a, b], params=[a, b])
    assert refusal("same_shape", grads=[a, b], params=[a, a]) == (
        "lamb: grads[1] has shape [4, 3], expected [3, 4] like params[1]."
    )
    assert refusal("same_shape", grads=[torch.tensor(1.0)], params=[torch.ones(1)]) == (
        "lamb: grads[0] has shape [], expected [1] like params[0]."
    )


def test_same_device():
    cpu, cuda0, cuda1 = torch.tensor(1.0), OnCuda(0), OnCuda(1)
    check("same_device", grads=[cpu, cpu], params=[cpu])
    check("same_device", grads=[cuda1], params=[cuda1])
    check("same_device", grads=[cuda1], params=[])
    assert refusal("same_device", params=[cpu, cuda0]) == (
        "lamb: params[1] is on cuda:0, expected cpu like params[0]."
    )
    assert refusal("same_device", grads=[cuda0], params=[cuda1]) == (
        "lamb: grads[0] is on cuda:0, expected cuda:1 like params[0]."
    )


def test_scalar():
    cpu, params = torch.tensor(1.0), [torch.ones(3)]
    check("scalar", found_inf=cpu, params=params)
    check("scalar", found_inf=None, params=params)
    check("scalar", steps=[cpu, torch.ones(1, 1)], params=params)
    assert refusal("scalar", found_inf=torch.ones(2), params=params) == (
        "lamb: found_inf has shape [2], expected one element."
    )
    assert refusal("scalar", found_inf=OnCuda(0), params=params) == (
        "lamb: found_inf is on cuda:0, expected cpu like params[0]."
    )
    assert refusal("scalar", TypeError, steps=[cpu, cpu.double()], params=params) == (
        "lamb: steps[1] has dtype float64, expected float32."
    )


# ---- Layout --------------------------------------------------------------------------------------


BUFFER = np.zeros(200, np.float32)


@st.composite
def strided_arrays(draw):
    """Small arrays of any strides around the middle of BUFFER, and dense ones elsewhere."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    if draw(st.booleans()):
        return np.lib.stride_tricks.as_strided(
            BUFFER[100:], shape, [4 * draw(st.integers(-6, 6)) for _ in shape]
        )
    order = draw(st.permutations(range(len(shape))))
    array = np.zeros([shape[d] for d in order], np.float32).transpose(np.argsort(order))
    return with_free_strides(draw, array)


def with_free_strides(draw, array):
    """The same array: the stride of a dimension of size 1 may be anything."""
    strides = [
        4 * draw(st.integers(-6, 6)) if size == 1 else stride
        for size, stride in zip(array.shape, array.strides, strict=True)
    ]
    return np.lib.stride_tricks.as_strided(array, array.shape, strides)


def addresses(array):
    """The address of every element, in the order of the indices."""
    start = array.__array_interface__["data"][0]
    indices = itertools.product(*map(range, array.shape))
    return [
        start + sum(i * s for i, s in zip(index, array.strides, strict=True)) for index in indices
    ]


@given(strided_arrays())
def test_dense_means_one_block_from_the_first_element(array):
    start, size = array.__array_interface__["data"][0], array.size
    block = [start + 4 * k for k in range(size)]
    assert accepts("dense", params=[array]) == (sorted(addresses(array)) == block)


@given(strided_arrays(), st.data())
def test_same_layout_means_same_place_for_every_element(array, data):
    copies = [array, array.copy(order="C"), array.copy(order="F"), data.draw(strided_arrays())]
    other = with_free_strides(data.draw, data.draw(st.sampled_from(copies)))
    same = array.shape == other.shape
    if same and array.size:
        same = np.ptp(np.subtract(addresses(array), addresses(other))) == 0
    assert accepts("same_layout", grads=[other], params=[array]) == same


def test_dense_says_what_it_got():
    dense = torch.ones(3, 4)
    assert refusal("dense", params=[dense, dense[:, ::2]]) == (
        "lamb: params[1] is not dense: got shape [3, 2] with strides [4, 2], "
        "expected one block without gaps or overlaps. Pass x.contiguous()."
    )
    assert refusal("dense", params=[dense, dense[:1].expand(3, 4)]) == (
        "lamb: params[1] is expanded: got shape [3, 4] with strides [0, 1], "
        "expected one block without gaps or overlaps. Pass x.contiguous()."
    )


def test_same_layout_says_what_it_got():
    a = torch.ones(3, 4)
    assert refusal("same_layout", grads=[a.t().contiguous().t()], params=[a]) == (
        "lamb: grads[0] has strides [1, 3], expected [4, 1] like params[0]."
    )


# ---- Writes --------------------------------------------------------------------------------------


def test_read_only_array_may_be_read_but_not_written():
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    check("writes", params=[np.ones(3)], read={"grads": [frozen]})
    assert refusal("writes", params=[np.ones(3), frozen]) == (
        "lamb: params[1] is read-only, expected an array that may be written."
    )


def test_overlap_names_both_arrays():
    x, other = torch.ones(10), torch.ones(10)
    ending = "is written, expected memory of its own. Pass a clone of one of them."
    assert refusal("writes", params=[x[4:], other, x[:5]]) == (
        f"lamb: params[0] and params[2] share memory: params[0] {ending}"
    )
    assert refusal("writes", params=[other, x], exp_avgs=[x]) == (
        f"lamb: params[1] and exp_avgs[0] share memory: params[1] {ending}"
    )
    assert refusal("writes", params=[other, x], read={"grads": [x[3:4]]}) == (
        f"lamb: params[1] and grads[0] share memory: params[1] {ending}"
    )
    # The array in between ends before the one that is written begins.
    assert refusal("writes", params=[other, x[3:4]], read={"grads": [x, x[1:2]]}) == (
        f"lamb: params[1] and grads[0] share memory: params[1] {ending}"
    )


def test_arrays_that_are_read_may_overlap():
    x = torch.ones(10)
    check("writes", params=[torch.ones(10)], read={"grads": [x, x, x[2:5]]})


intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)), max_size=5)


@given(intervals, intervals, st.permutations(["float32", "float16", "float64"]))
def test_writes_are_apart_means_no_common_byte(written, read, dtypes):
    buffer = np.zeros(64)

    def arrays(pieces, dtype):
        whole = buffer.view(dtype)
        return [whole[start : start + length] for start, length in pieces]

    params, grads = arrays(written, dtypes[0]), arrays(read, dtypes[1])
    pairs = itertools.chain(itertools.combinations(params, 2), itertools.product(params, grads))
    apart = not any(np.may_share_memory(a, b) for a, b in pairs)
    assert accepts("writes", params=params, read={"grads": grads}) == apart


@given(strided_arrays(), st.integers(-40, 40))
def test_range_of_a_strided_array_reaches_its_ends(array, start):
    piece = BUFFER[100 + start : 101 + start]
    expected = not np.may_share_memory(array, piece)
    assert accepts("writes", params=[array], read={"grads": [piece]}) == expected
