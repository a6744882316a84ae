# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Sums of the copies of a head that several ranks have worked with: bit for bit the oracle's."""

import math

import pytest
import torch

from largebatch import ops
from largebatch.reference import ulysses as reference
from tests.helpers import same_bits
from tests.ops.ulysses_setting import REALS, deal_heads, gaussian, lengths, noise

# The last number whose successor is two away: 1 is lost on it.
LARGE = {torch.float32: 2.0**24, torch.float64: 2.0**53}


def messages_of(tokens, batch, heads, dims, counts, dtype, device, seed=0):
    """Return messages in which every copy has other numbers."""
    sizes = lengths(tokens, batch, dims, counts)
    return [gaussian((n,), dtype, device, seed + k) for k, n in enumerate(sizes)]


def assert_sums(messages, tokens, batch, dims, counts, replicas):
    found = ops.ulysses_unpack(messages, tokens, batch, dims, counts, replicas)
    host = [m.cpu() for m in messages]
    expected = reference.unpack(host, tokens, batch, dims, counts, replicas)
    assert same_bits(found, expected)
    return found


def sum_of(copies, dtype, device, dim=3):
    """Return what copies of one number add up to, each in a block of its own."""
    ranks, shape = len(copies), (2, 1, 1, dim)
    message = torch.cat([torch.full((2 * dim,), x, dtype=dtype) for x in copies])
    counts = [[[1]] * ranks]
    (found,) = ops.ulysses_unpack([message.to(device)], 2, 1, [dim], counts, [ranks])
    assert found.shape == shape
    assert (found == found[0, 0, 0, 0]).all() or found.isnan().all()
    return found[0, 0, 0, 0].item()


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 8, 40, 63, 64, 65, 128])
def test_sums_of_every_size(backend, dtype, dim):
    heads, dims, replicas = [3, 2, 2], [dim, dim, dim + 1], [2, 3, 3]
    for seed in range(1 if backend.name == "simt" else 4):
        counts = deal_heads(heads, replicas, 4, 2, seed)
        messages = messages_of(3, 2, heads, dims, counts, dtype, backend.device, seed)
        assert_sums(messages, 3, 2, dims, counts, replicas)


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 7, 9, 33])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_sums_of_tokens_and_batch(backend, dtype, tokens, batch):
    counts = [[[1, 2], [1, 1], [1, 3]]]
    messages = messages_of(tokens, batch, [3, 2], [5, 4], counts, dtype, backend.device)
    assert_sums(messages, tokens, batch, [5, 4], counts, [1, 3])


@pytest.mark.parametrize("dtype", REALS, ids=str)
def test_sums_of_copies_on_one_rank_and_on_many(backend, dtype):
    """All copies of all heads in one block, in blocks of their own, and across blocks."""
    for counts in ([[[8]]], [[[1]] * 8], [[[3]], [[5]]], [[[0], [3], [0], [2], [3], [0]]]):
        messages = messages_of(2, 2, [2], [4], counts, dtype, backend.device)
        assert_sums(messages, 2, 2, [4], counts, [4])


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("dim", [1, 8])
def test_numbers_of_any_bits_are_added(backend, dtype, dim):
    """Subnormals, infinities, NaN. Of NaN no payload is promised."""
    counts, messages = [[[1], [3], [2]]], []
    size = lengths(9, 2, [dim], counts)[0]
    messages = [noise((size,), dtype, backend.device)]
    (found,) = ops.ulysses_unpack(messages, 9, 2, [dim], counts, [3])
    (expected,) = reference.unpack([m.cpu() for m in messages], 9, 2, [dim], counts, [3])
    found = found.cpu()
    assert torch.equal(found.isnan(), expected.isnan())
    assert found.isfinite().any()
    assert same_bits(
        found.nan_to_num(0, math.inf, -math.inf), expected.nan_to_num(0, math.inf, -math.inf)
    )


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("dim", [3, 16])
def test_non_finite_numbers(backend, dtype, dim):
    def total(*copies):
        return sum_of(copies, dtype, backend.device, dim)

    assert total(1.0, math.inf) == math.inf
    assert total(-math.inf, 1.0, 2.0) == -math.inf
    assert math.isnan(total(math.inf, 0.0, -math.inf))
    assert math.isnan(total(math.nan, 1.0))
    assert math.isnan(total(1.0, 2.0, math.nan))
    largest = torch.finfo(dtype).max
    assert total(largest, largest) == math.inf
    assert total(-largest, -largest) == -math.inf


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("dim", [3, 16])
def test_the_first_copy_is_not_added_to_zero(backend, dtype, dim):
    """-0 plus -0 is -0; 0 plus that would be 0."""
    assert math.copysign(1, sum_of([-0.0, -0.0, -0.0], dtype, backend.device, dim)) == -1
    assert math.copysign(1, sum_of([-0.0, 0.0], dtype, backend.device, dim)) == 1


@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("dim", [3, 16])
def test_copies_are_added_in_ascending_order(backend, dtype, dim):
    large = LARGE[dtype]

    def total(*copies):
        return sum_of(copies, dtype, backend.device, dim)

    assert total(1.0, 1.0, large) == large + 2
    assert total(large, 1.0, 1.0) == large
    assert total(large, 1.0, -large) == 0
    assert total(large, -large, 1.0) == 1


@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_the_order_is_that_of_ranks_and_not_of_messages(backend, dtype):
    """Rank 0 has copies in both messages, before the copy of rank 1 in the first."""
    large = LARGE[dtype]
    counts = [[[1], [1]], [[1], [0]]]
    first = torch.tensor([large, 1.0], dtype=dtype, device=backend.device)
    second = torch.tensor([-large], dtype=dtype, device=backend.device)
    (found,) = ops.ulysses_unpack([first, second], 1, 1, [1], counts, [3])
    assert found.item() == 1
    first = torch.tensor([large, -large], dtype=dtype, device=backend.device)
    (found,) = ops.ulysses_unpack([first, torch.ones_like(second)], 1, 1, [1], counts, [3])
    assert found.item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [3, 16])
def test_narrow_numbers_are_added_wide_and_rounded_once(backend, dtype, dim):
    def total(*copies):
        return sum_of(copies, dtype, backend.device, dim)

    half = torch.finfo(dtype).eps / 2  # of the distance of 1 and its successor
    assert total(1.0, half, half) == 1 + 2 * half
    assert total(1.0, half, half / 4) == 1 + 2 * half
    assert total(1.0, half) == 1  # a tie, to even
    assert total(1 + 2 * half, half) == 1 + 4 * half
    largest = torch.finfo(dtype).max
    assert total(largest, largest, -largest) == (largest if dtype == torch.float16 else math.inf)


def test_many_copies_and_no_more(backend):
    ranks = 500  # what one launch takes
    for n, dtype in ((ranks, torch.float32), (ranks - 100, torch.float64)):
        counts = [[[1]] * n]
        messages = messages_of(1, 1, [n // 2], [2], counts, dtype, backend.device)
        assert_sums(messages, 1, 1, [2], counts, [2])
    counts = [[[1, 1]] * (ranks + 2)]
    messages = messages_of(1, 1, [], [1, 2], counts, torch.float32, backend.device)
    problem = r"^ulysses_unpack: tensors\[1\] .* in 502 blocks, expected at most 500\.$"
    with pytest.raises(ValueError, match=problem):
        ops.ulysses_unpack(messages, 1, 1, [1, 2], counts, [1, 2])
    # Without a second copy of any of them there is no such limit.
    x, y = ops.ulysses_unpack(messages, 1, 1, [1, 2], counts)
    assert same_bits(ops.ulysses_pack([x, y], counts), messages)


@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("layout", ["sbhd", "bshd", "bhsd"])
def test_sums_in_every_layout(backend, dtype, layout):
    counts = deal_heads([3, 2], [1, 2], 3, 2, seed=3)
    messages = messages_of(4, 3, [3, 2], [4, 9], counts, dtype, backend.device)
    found = ops.ulysses_unpack(messages, 4, 3, [4, 9], counts, [1, 2], layout)
    host = [m.cpu() for m in messages]
    assert same_bits(found, reference.unpack(host, 4, 3, [4, 9], counts, [1, 2]))


def test_same_bits_of_every_backend_of_the_cpu(backend):
    """Nothing is contracted or reordered: a sum in NumPy's float64 says the same."""
    if backend.device.type != "cpu":
        pytest.skip("compares with NumPy on the CPU")
    messages = messages_of(5, 1, [], [32], [[[1]] * 7], torch.float64, backend.device)
    (found,) = ops.ulysses_unpack(messages, 5, 1, [32], [[[1]] * 7], [7])
    copies = messages[0].view(7, 5, 32).numpy()
    expected = copies[0]
    for copy in copies[1:]:
        expected = expected + copy
    assert found.flatten(1).numpy().tobytes() == expected.tobytes()
