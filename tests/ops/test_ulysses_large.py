# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What Ulysses sends where no cache holds it, and beyond what 32 bits can count."""

import pytest
import torch

import largebatch
from largebatch import _C, ops
from largebatch.reference import ulysses as reference
from tests.helpers import HUGE, Padded, need, same_bits
from tests.ops.ulysses_setting import flat, in_order, lengths, noise

F32 = torch.float32
# From so many bytes on, the CPU writes past the cache whatever is whole lines of it.
PAST_THE_CACHE = 32 << 20
LINE = 64


def cpu_only(backend):
    if not backend.name.startswith("cpu"):
        pytest.skip("the CPU only writes past its cache")


def large(heads, dims, layout, dtype=F32, batch=2):
    """Return tensors of one layout and random bits, PAST_THE_CACHE bytes or a few more."""
    size = batch * sum(n * d for n, d in zip(heads, dims, strict=True)) * dtype.itemsize
    tokens = -(-PAST_THE_CACHE // size)
    shapes = [(tokens, batch, n, d) for n, d in zip(heads, dims, strict=True)]
    return [in_order(noise(s, dtype, seed=i), layout) for i, s in enumerate(shapes)]


# name -> (dims of float32, elements that memory is off a multiple of 64 bytes by).
ALIGNMENTS = {
    "lines": ([128, 16, 64], 0),
    "lines of some tensors": ([128, 16, 20], 0),
    "no lines": ([127, 16, 17], 0),
    "lines that are off by 4 bytes": ([128, 16, 64], 1),
    "lines that are off by 32 bytes": ([128, 16, 64], 8),
}
# Two messages and three ranks; one of them has whole lines even if the last tensor has none.
HEADS, COUNTS = [6, 2, 2], [[[2, 1, 0], [1, 0, 1], [1, 1, 0]], [[1, 0, 1], [1, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("layout", ["sbhd", "bhsd"])
@pytest.mark.parametrize(("dims", "offset"), ALIGNMENTS.values(), ids=list(ALIGNMENTS))
def test_past_the_cache(backend, dims, offset, layout):
    """Every bit, and no byte around."""
    cpu_only(backend)
    tensors = large(HEADS, dims, layout)
    tokens, batch = tensors[0].shape[:2]
    sizes = lengths(tokens, batch, dims, COUNTS)
    assert 4 * sum(sizes) >= PAST_THE_CACHE
    wires = Padded([torch.zeros(n) for n in sizes], offset=offset)
    assert wires.tensors[0].data_ptr() % LINE == 4 * offset
    _C.ulysses_pack(tensors, wires.tensors, flat(COUNTS), [1, 1, 1])
    expected = reference.pack(tensors, COUNTS, [1, 1, 1])
    assert same_bits(wires.tensors, expected)
    assert wires.intact()

    outputs = Padded([torch.zeros(x.shape) for x in tensors], offset=offset)
    _C.ulysses_unpack(wires.tensors, outputs.tensors, flat(COUNTS), [1, 1, 1])
    assert same_bits(outputs.tensors, tensors)
    assert outputs.intact()


def test_past_the_cache_into_rows_that_end_within_a_line(backend):
    """Addresses and strides are whole lines, and rows are not: what lies between is not written."""
    cpu_only(backend)
    tokens = PAST_THE_CACHE // (4 * 24 * 8) + 1
    wire, room = noise((tokens * 8 * 24,), F32), torch.full((tokens + 1, 1, 8, 32), 7.0)
    wide = room.flatten()[-room.data_ptr() % LINE // 4 :][: tokens * 8 * 32].view(tokens, 1, 8, 32)
    assert wide.data_ptr() % LINE == 0
    _C.ulysses_unpack([wire], [wide[..., :24]], [8], [1])
    assert same_bits([wide[..., :24]], [wire.view(tokens, 1, 8, 24)])
    assert (wide[..., 24:] == 7).all()


@pytest.mark.parametrize("short", [0, 1])
def test_from_how_many_bytes_on_makes_no_difference(backend, short):
    cpu_only(backend)
    tokens = PAST_THE_CACHE // (2 * 4 * 64) - short
    x = noise((tokens, 1, 2, 64), F32)
    assert (x.numel() * 4 >= PAST_THE_CACHE) == (not short)
    counts = [[[1], [1]]]
    messages = ops.ulysses_pack([x], counts)
    assert same_bits(messages, reference.pack([x], counts, [1]))
    assert same_bits(ops.ulysses_unpack(messages, tokens, 1, [64], counts), [x])


def test_copies_past_the_cache(backend):
    """Written several times, read once; and added up beside what is moved."""
    cpu_only(backend)
    q, kv = large([4, 2], [64, 128], "bshd")
    tokens, batch = q.shape[:2]
    q, kv = torch.randn(q.shape), torch.randn(kv.shape)
    counts, replicas = [[[1, 2], [2, 1], [1, 1]]], [1, 2]
    messages = ops.ulysses_pack([q, kv], counts, replicas)
    assert same_bits(messages, reference.pack([q, kv], counts, replicas))
    found = ops.ulysses_unpack(messages, tokens, batch, [64, 128], counts, replicas, "bshd")
    assert same_bits(found, [q, 2 * kv])


@pytest.mark.parametrize("threads", [1, 3])
def test_past_the_cache_with_several_threads(threads):
    (x,) = large([4], [64], "bshd")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    (message,) = ops.ulysses_pack([x], [[[3], [1]]])
    torch.set_num_threads(before)
    assert same_bits([message], reference.pack([x], [[[3], [1]]], [1]))


def test_heads_that_lie_two_to_the_31_elements_apart(backend):
    """Few elements, at offsets that 32 bits cannot count; the memory between is never touched."""
    need(2, backend.device.type)
    far = torch.empty(HUGE + 64, dtype=torch.int16, device=backend.device)
    step = (HUGE - 1) // 2
    strides = {"tokens": (step, 32, 8, 1), "batch": (16, step, 8, 1), "heads": (32, 8, step, 1)}
    for apart in strides.values():
        shape = [3 if stride == step else 2 for stride in apart[:3]]
        x = far.as_strided((*shape, 5), apart)
        assert (x[-1, -1, -1].data_ptr() - far.data_ptr()) // 2 >= 2**31
        values = noise(x.shape, torch.int16, backend.device)
        x.copy_(values)
        heads = x.shape[2]
        counts = [[[1], [heads - 1]]]
        messages = ops.ulysses_pack([x], counts)
        assert same_bits(messages, reference.pack([values.cpu()], counts, [1]))
        x.zero_()
        _C.ulysses_unpack(messages, [x], flat(counts), [1])
        assert same_bits(x, values)
        # Sums, to the same places.
        y = far.view(torch.float16).as_strided(x.shape, apart)
        values = torch.randn(x.shape).half().to(backend.device)
        counts = [[[heads], [heads]]]
        messages = ops.ulysses_pack([values], counts, [2])
        _C.ulysses_unpack(messages, [y], flat(counts), [2])
        assert same_bits(y, 2 * values)


# On the CPU, in the best instruction set.
@pytest.mark.huge
@pytest.mark.parametrize("dim", [1024, 1023])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_more_than_two_to_the_31_elements(device, dim):
    if device == "cuda" and not (largebatch._C.cuda_available() and torch.cuda.is_available()):
        pytest.skip(f"no CUDA backend: {largebatch.build_info()}")
    need(4, device)
    tokens = -(-HUGE // (4 * dim))
    x = torch.empty(tokens, 1, 4, dim, dtype=torch.uint8, device=device)
    period = 65521  # a prime: no two heads of any two tokens near each other are alike
    whole = x.numel() // period * period
    pattern = noise((period,), torch.uint8, device)
    x.view(-1)[:whole].view(-1, period).copy_(pattern)
    x.view(-1)[whole:] = pattern[: x.numel() - whole]
    for counts in ([[[4]]], [[[3], [1]]]):
        (message,) = ops.ulysses_pack([x], counts)
        assert message.numel() == x.numel() > 2**31
        at = 0
        for first, (heads,) in zip((0, 3), counts[0], strict=False):
            block = message[at : at + tokens * heads * dim].view(tokens, heads, dim)
            assert torch.equal(block, x[:, 0, first : first + heads])
            at += block.numel()
        (back,) = ops.ulysses_unpack([message], tokens, 1, [dim], counts)
        assert torch.equal(back, x)
        del message, block, back


@pytest.mark.huge
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sums_of_more_than_two_to_the_31_elements(device):
    if device == "cuda" and not (largebatch._C.cuda_available() and torch.cuda.is_available()):
        pytest.skip(f"no CUDA backend: {largebatch.build_info()}")
    need(3, device)
    dim = 4096
    tokens = -(-HUGE // (2 * dim))
    values = (torch.arange(tokens, device=device) % 1021).half()[:, None]
    message = torch.empty(2 * tokens * dim, dtype=torch.float16, device=device)
    message.view(2, tokens, dim).copy_(values)
    assert message.numel() > 2**31
    (found,) = ops.ulysses_unpack([message], tokens, 1, [dim], [[[1], [1]]], [2])
    least, most = found.view(tokens, dim).aminmax(dim=1)
    assert torch.equal(least, 2 * values[:, 0])
    assert torch.equal(most, 2 * values[:, 0])
