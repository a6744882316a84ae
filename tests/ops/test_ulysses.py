# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What Ulysses sends: every element in its place, of every shape and layout."""

import numpy as np
import pytest
import torch

from largebatch import ops
from largebatch.reference import ulysses as reference
from tests.helpers import same_bits
from tests.ops.ulysses_setting import (
    ORDERS,
    assert_moved,
    deal_heads,
    gaussian,
    in_order,
    lengths,
    lies_in,
    unpack_like,
)


def coded(tokens, batch, heads, dim, number=0):
    """Return [tokens, batch, heads, dim] int64 whose elements say which they are."""
    index = torch.arange(tokens * batch * heads * dim).view(tokens, batch, heads, dim)
    return 1000000 * number + index


# ---- Places --------------------------------------------------------------------------------------


def test_every_element_is_where_the_wire_format_says(backend):
    """With no oracle: the formula of the format, for one element after the other."""
    tokens, batch, heads, dims = 3, 2, [4, 2, 2], [3, 3, 2]
    counts, replicas = [[[2, 1, 1], [1, 2, 3]], [[1, 0, 0], [0, 1, 0]]], [1, 2, 2]
    tensors = [
        coded(tokens, batch, n, d, i).to(backend.device)
        for i, (n, d) in enumerate(zip(heads, dims, strict=True))
    ]
    messages = [m.tolist() for m in ops.ulysses_pack(tensors, counts, replicas)]
    given = [0, 0, 0]
    at = [0, 0]
    for p in (0, 1):
        for k in (0, 1):
            row = counts[k][p]
            width = sum(n * d for n, d in zip(row, dims, strict=True))
            column = 0
            for i in (0, 1, 2):
                for j in range(row[i]):
                    h = (given[i] + j) // replicas[i]
                    for t, b, d in np.ndindex(tokens, batch, dims[i]):
                        sent = messages[k][at[k] + (t * batch + b) * width + column + d]
                        assert sent == tensors[i][t, b, h, d]
                    column += dims[i]
                given[i] += row[i]
            at[k] += tokens * batch * width
    assert given == [4, 4, 4]
    assert at == [len(m) for m in messages]


@pytest.mark.parametrize("dim", [1, 3, 8, 40, 64, 128])
def test_head_dims(backend, dim):
    tensors = [coded(3, 2, 4, dim), coded(3, 2, 2, dim, 1), coded(3, 2, 2, dim + 5, 2)]
    assert_moved(
        [x.to(backend.device) for x in tensors], [[[1, 1, 0], [2, 0, 2], [1, 1, 0]]], [1, 1, 1]
    )


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 31, 32, 33])
@pytest.mark.parametrize("batch", [0, 1, 2, 3])
def test_tokens_and_batch(backend, tokens, batch):
    tensors = [coded(tokens, batch, 3, 4), coded(tokens, batch, 1, 4, 1)]
    assert_moved([x.to(backend.device) for x in tensors], [[[1, 1], [2, 2]]], [1, 3])


@pytest.mark.parametrize("messages", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("replicas", [[1, 1, 1], [1, 2, 2], [3, 1, 4]], ids=str)
def test_heads_of_ranks_and_messages(backend, ranks, messages, replicas):
    heads = [5, 3, 2]
    tensors = [coded(2, 2, n, d, i) for i, (n, d) in enumerate(zip(heads, [4, 4, 6], strict=True))]
    tensors = [x.to(backend.device) for x in tensors]
    for seed in range(2 if backend.name == "simt" else 10):
        assert_moved(tensors, deal_heads(heads, replicas, ranks, messages, seed), replicas)


def test_ranks_and_tensors_without_heads(backend):
    x, none = coded(2, 2, 2, 4).to(backend.device), coded(2, 2, 0, 4).to(backend.device)
    assert_moved([none, x, none], [[[0, 0, 0], [0, 2, 0], [0, 0, 0]]], [1, 1, 3])
    assert_moved([none], [[[0], [0]], [[0], [0]]])


def test_head_dims_of_none(backend):
    """Rows of no elements: nothing is sent of them, and they come back as they were."""
    x, none = coded(2, 2, 2, 4).to(backend.device), coded(2, 2, 2, 0).to(backend.device)
    assert_moved([x, none], [[[1, 2], [1, 0]]])


def test_more_blocks_than_one_launch_takes(backend):
    ranks = 230
    tensors = [coded(2, 1, ranks, 2), coded(2, 1, ranks, 3, 1)]
    tensors = [x.to(backend.device) for x in tensors]
    assert_moved(tensors, [[[1, 1]] * ranks])
    for seed in range(2):
        assert_moved(tensors, deal_heads([ranks, ranks], [1, 2], ranks, 1, seed), [1, 2])


def test_messages_are_those_that_each_rank_sends_of_its_tokens(backend):
    """What one rank receives, end to end, is all tokens in order."""
    x = coded(7, 2, 4, 3).to(backend.device)
    counts = [[[3], [1]]]
    sent = [ops.ulysses_pack([part], counts)[0] for part in x.split([2, 0, 5])]
    blocks = [m.split(lengths(len(m) // 24, 2, [3], [[[3]], [[1]]])) for m in sent]
    for p, heads in enumerate((slice(0, 3), slice(3, 4))):
        received = torch.cat([block[p] for block in blocks])
        assert torch.equal(received.view(7, 2, -1, 3), x[:, :, heads])


# ---- Layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ORDERS)
def test_layouts_of_tensors(backend, layout):
    tensors = [coded(5, 3, 4, 8), coded(5, 3, 2, 6, 1)]
    tensors = [in_order(x, layout).to(backend.device) for x in tensors]
    assert all(lies_in(x, layout) for x in tensors)
    assert_moved(tensors, [[[3, 0], [1, 2]]])


@pytest.mark.parametrize("layout", ORDERS)
def test_views_of_one_fused_tensor(backend, layout):
    fused = in_order(coded(5, 2, 8, 6), layout).to(backend.device)
    q, k, v = fused.split([4, 2, 2], dim=2)
    assert k.storage_offset() > 0
    assert_moved([q, k, v], [[[3, 1, 2], [1, 1, 0]]])
    assert_moved([q[1:, :1], k[:-1, 1:], v[1:, 1:]], [[[3, 1, 2], [1, 3, 2]]], [1, 2, 2])
    assert_moved([q[..., 1:4], k[..., 2:], v[..., :5]], [[[3, 1, 2], [1, 1, 0]]])
    assert_moved([q[::2, :, 1::2], k[::2], v[1::1][:3]], [[[2, 1, 2], [0, 1, 0]]])


def test_strides_that_have_to_be_copied(backend):
    x = coded(4, 3, 2, 5).to(backend.device)
    assert_moved([x.permute(3, 2, 1, 0)], [[[1], [2]]])
    assert_moved([x[..., ::2], x.flip(3)[..., 1:3]], [[[1, 2], [1, 0]]])


def test_expanded_tensors(backend):
    x = coded(1, 1, 3, 4).to(backend.device).expand(5, 2, 3, 4)
    head = coded(5, 2, 1, 1, 1).to(backend.device).expand(5, 2, 3, 4)
    assert_moved([x, head], [[[1, 2], [2, 1]]])


@pytest.mark.parametrize("layout", ORDERS)
@pytest.mark.parametrize("replicas", [[1, 1], [1, 2]], ids=str)
def test_unpacked_tensors_lie_in_memory_as_asked(backend, layout, replicas):
    tensors = [gaussian(s, torch.float32, backend.device) for s in [(5, 3, 4, 8), (5, 3, 2, 6)]]
    counts = deal_heads([4, 2], replicas, 3, 2)
    messages = ops.ulysses_pack(tensors, counts, replicas)
    found = unpack_like(messages, tensors, counts, replicas, layout=layout)
    assert all(lies_in(x, layout) for x in found)
    host = [m.cpu() for m in messages]
    assert same_bits(found, reference.unpack(host, 5, 3, [8, 6], counts, replicas))


def test_messages_need_not_be_in_one_piece(backend):
    x = coded(3, 2, 2, 4).to(backend.device)
    counts = [[[1], [1]]]
    (message,) = ops.ulysses_pack([x], counts)
    spread = torch.stack([message, -message], dim=1)[:, 0]
    assert spread.stride() == (2,)
    assert same_bits(unpack_like([spread], [x], counts, [1]), [x])


def test_numpy_arrays():
    q, kv = coded(3, 2, 4, 5), coded(3, 2, 2, 6, 1)
    counts = [[[1, 1], [3, 1]]]
    expected = ops.ulysses_pack([q, kv], counts)
    messages = ops.ulysses_pack([q.numpy(), kv.numpy()], counts)
    assert same_bits(messages, expected)
    found = ops.ulysses_unpack([m.numpy() for m in messages], 3, 2, [5, 6], counts)
    assert same_bits(found, [q, kv])


def test_counts_and_replicas_of_other_kinds_of_sequence(backend):
    x = coded(3, 1, 2, 2).to(backend.device)
    expected = ops.ulysses_pack([x], [[[1], [3]]], [2])
    counts = np.array([[[1], [3]]])
    assert same_bits(ops.ulysses_pack([x], counts, (2,)), expected)
    assert same_bits(ops.ulysses_pack((x,), (((1,), (3,)),), (2,)), expected)
    (wire,) = expected
    expected = ops.ulysses_unpack([wire.float()], 3, 1, [2], [[[1], [3]]], [2])
    assert same_bits(ops.ulysses_unpack((wire.float(),), 3, 1, (2,), counts, (2,)), expected)
