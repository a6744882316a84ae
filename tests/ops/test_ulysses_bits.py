# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What Ulysses sends: every bit of every dtype, at any address, and no byte around."""

import pytest
import torch

from largebatch import _C, ops
from largebatch.reference import ulysses as reference
from tests.helpers import Padded, same_bits
from tests.ops.ulysses_setting import (
    OTHERS,
    REALS,
    as_bits,
    assert_moved,
    deal_heads,
    flat,
    gaussian,
    lengths,
    noise,
    unpack_like,
)

# ---- Alignment, and what is written --------------------------------------------------------------


def assert_inside(tensors, counts, replicas, offset):
    """Pack and unpack between sentinels, `offset` elements off a multiple of 64 bytes."""
    device = tensors[0].device
    tokens, batch = tensors[0].shape[:2]
    sizes = lengths(tokens, batch, [x.shape[3] for x in tensors], counts)
    inputs = Padded(tensors, offset=offset)
    wires = Padded([tensors[0].new_zeros(n) for n in sizes], offset=offset)
    _C.ulysses_pack(inputs.tensors, wires.tensors, flat(counts), replicas)
    expected = reference.pack([x.cpu() for x in tensors], counts, replicas)
    assert same_bits(wires.tensors, expected)
    assert wires.intact()
    assert inputs.intact()
    assert same_bits(inputs.tensors, tensors)

    outputs = Padded([torch.zeros_like(x) for x in tensors], offset=offset)
    _C.ulysses_unpack(wires.tensors, outputs.tensors, flat(counts), replicas)
    dims = [x.shape[3] for x in tensors]
    back = reference.unpack(expected, tokens, batch, dims, counts, replicas)
    assert same_bits(outputs.tensors, back)
    assert outputs.intact()
    assert same_bits(wires.tensors, [m.to(device) for m in expected])
    assert wires.intact()


@pytest.mark.parametrize("width", [16, 8, 4, 2, 1])
@pytest.mark.parametrize("by", ["dim", "offset"])
def test_every_alignment(backend, width, by):
    """Sizes, or addresses, that are multiples of `width` bytes and of no more."""
    dim, offset = (3 * width, 0) if by == "dim" else (48, width % 16)
    shapes = [(5, 2, 3, dim), (5, 2, 2, 16)]
    tensors = [noise(s, torch.uint8, backend.device, i) for i, s in enumerate(shapes)]
    assert_inside(tensors, [[[1, 1], [2, 1]], [[0, 0], [0, 0]]], [1, 1], offset)


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize(("dim", "offset"), [(48, 0), (48, 1), (5, 0), (8, 3), (70, 0)])
def test_every_alignment_of_sums(backend, dtype, dim, offset):
    shapes = [(3, 2, 3, dim), (3, 2, 2, dim)]
    tensors = [gaussian(s, dtype, backend.device, i) for i, s in enumerate(shapes)]
    assert_inside(tensors, [[[2, 1], [1, 5]]], [1, 3], offset)


def test_only_the_heads_of_a_wider_tensor_are_written(backend):
    """Unpacked into views: what lies between rows of them stays as it is."""
    for dtype in (torch.int32, torch.float32):
        wide = torch.full((4, 2, 6, 9), 7, dtype=dtype, device=backend.device)
        before = wide.clone()
        view = wide[:, :, 1:4, 2:7]
        (message,) = reference.pack([torch.ones(4, 2, 3, 5, dtype=dtype)], [[[3], [3]]], [2])
        replicas, counts = ([2], [3, 3]) if dtype == torch.float32 else ([1], [1, 2])
        message = message[: len(message) * replicas[0] // 2].to(backend.device)
        _C.ulysses_unpack([message], [view], counts, replicas)
        before[:, :, 1:4, 2:7] = replicas[0]
        assert same_bits(wide, before)


# ---- Dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*REALS, *OTHERS], ids=str)
def test_every_bit_of_every_dtype(backend, dtype):
    tensors = [noise((5, 2, 3, 7), dtype, backend.device), noise((5, 2, 2, 8), dtype, seed=1)]
    tensors = [x.to(backend.device) for x in tensors]
    counts = [[[1, 1], [2, 1]], [[0, 0], [0, 0]]]
    assert_moved(tensors, counts)
    assert_moved(tensors, [[[4, 1], [2, 3]]], [2, 2])
    found = unpack_like(ops.ulysses_pack(tensors, counts), tensors, counts, None, layout="bhsd")
    assert same_bits([as_bits(x) for x in found], [as_bits(x) for x in tensors])


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_not_a_number_keeps_its_payload(backend, dtype):
    """Also beside a tensor that is summed."""
    bits, pattern = {
        torch.float32: (torch.int32, 0x7F812345),
        torch.float16: (torch.int16, 0x7C23),
        torch.bfloat16: (torch.int16, 0x7FA3),
        torch.float64: (torch.int64, 0x7FF0000012345678),
    }[dtype]
    x = torch.full((3, 1, 2, 4), pattern, dtype=bits).view(dtype).to(backend.device)
    assert x.isnan().all()
    kv = torch.ones(3, 1, 1, 4, dtype=dtype, device=backend.device)
    counts = [[[1, 1], [1, 1]]]
    found = unpack_like(ops.ulysses_pack([x, kv], counts, [1, 2]), [x, kv], counts, [1, 2])
    assert same_bits(found, [x, 2 * kv])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugates(backend, dtype):
    x = gaussian((3, 2, 2, 4), torch.float64, backend.device).to(dtype) * (1 + 2j)
    counts = [[[1], [1]]]
    expected = ops.ulysses_pack([x.conj().resolve_conj()], counts)
    assert same_bits(ops.ulysses_pack([x.conj()], counts), expected)
    negative = x.conj().imag[..., :1]
    expected = ops.ulysses_pack([negative.resolve_neg()], counts)
    assert same_bits(ops.ulysses_pack([negative], counts), expected)


def test_rows_of_one_number_with_a_stride(backend):
    """A stride of a dimension of one element means nothing."""
    for dtype in (torch.complex128, torch.float32):
        x = gaussian((3, 2, 2, 4), torch.float64, backend.device).to(dtype)
        assert_moved([x[..., 1:2], x.transpose(2, 3)[..., :1][:, :, :2]], [[[1, 1], [1, 1]]])


def test_same_bits_on_every_run(backend):
    tensors = [gaussian((9, 2, n, 40), torch.bfloat16, backend.device) for n in (4, 2)]
    counts = deal_heads([4, 2], [1, 2], 3)
    first = ops.ulysses_pack(tensors, counts, [1, 2])
    found = unpack_like(first, tensors, counts, [1, 2])
    for _ in range(3):
        assert same_bits(ops.ulysses_pack(tensors, counts, [1, 2]), first)
        assert same_bits(unpack_like(first, tensors, counts, [1, 2]), found)


def test_number_of_threads(backend):
    if backend.name == "cuda":
        pytest.skip("threads are those of the CPU")
    shapes = [(9, 1, 4, 8), (9, 1, 2, 8)]
    if backend.name != "simt":
        shapes = [(301, 2, 8, 64), (301, 2, 4, 64)]
    tensors = [gaussian(s, torch.float16) for s in shapes]
    counts = deal_heads([x.shape[2] for x in tensors], [1, 2], 4)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        messages = ops.ulysses_pack(tensors, counts, [1, 2])
        results.append([*messages, *unpack_like(messages, tensors, counts, [1, 2])])
    torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])
