# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle of Ulysses: its head plan, its wire, and that both together are attention."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.reference import ulysses
from largebatch.reference.ulysses import attention, head_plan, pack, unpack
from tests.conftest import assert_close
from tests.helpers import same_bits

F64 = torch.float64


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# ---- Heads ---------------------------------------------------------------------------------------

# (ranks, q heads, kv heads) -> (c, kv heads of each rank), and why.
PLANS = {
    (8, 32, 8): (4, [1] * 8),  # a plain split
    (8, 32, 2): (4, [1] * 8),  # each kv head goes to four ranks
    (6, 24, 8): (1, [4] * 6),  # groups straddle ranks
    (8, 28, 4): (1, [4] * 4 + [3] * 4),  # uneven
    (2, 9, 3): (3, [2, 1]),  # whole groups, uneven
    (4, 2, 2): (1, [1, 1, 0, 0]),  # ranks without heads
    (1, 7, 1): (7, [1]),
    (3, 8, 1): (1, [3, 3, 2]),
}


@pytest.mark.parametrize(("ranks", "q", "kv"), PLANS)
def test_head_plans_of_the_models_there_are(ranks, q, kv):
    plan = head_plan(ranks, q, kv)
    assert (plan.group, plan.kv) == PLANS[ranks, q, kv]


@given(ranks=st.integers(1, 17), kv=st.integers(1, 12), share=st.integers(1, 12))
def test_every_q_head_has_one_place_with_its_kv_head(ranks, kv, share):
    plan = head_plan(ranks, kv * share, kv)
    heads = []
    for p in range(ranks):
        assert plan.kv[p] * plan.group == plan.q[p]
        assert len(plan.sources[p]) == plan.kv[p]
        for j in range(plan.q[p]):
            heads.append(plan.first_q[p] + j)
            assert plan.sources[p][j // plan.group] == heads[-1] // share
    assert heads == list(range(kv * share))


@given(ranks=st.integers(1, 17), kv=st.integers(1, 12), share=st.integers(1, 12))
def test_kv_heads_are_sent_to_as_many_places_each_in_order(ranks, kv, share):
    """What lets a wire say with one number how many copies of every head there are."""
    plan = head_plan(ranks, kv * share, kv)
    copies = share // plan.group
    assert [s for p in plan.sources for s in p] == [h for h in range(kv) for _ in range(copies)]


@given(ranks=st.integers(1, 17), kv=st.integers(1, 12), share=st.integers(1, 12))
def test_no_larger_group_fits_every_rank(ranks, kv, share):
    plan = head_plan(ranks, kv * share, kv)
    for c in range(plan.group + 1, share + 1):
        numbers = [share, *plan.q, *plan.first_q]
        assert any(n % c for n in numbers)


@given(ranks=st.integers(1, 17), kv=st.integers(1, 12), share=st.integers(1, 12))
def test_ranks_have_as_equal_a_number_of_heads_as_there_can_be(ranks, kv, share):
    plan = head_plan(ranks, kv * share, kv)
    whole_groups = kv >= ranks and kv * share % ranks != 0
    assert max(plan.q) - min(plan.q) <= (share if whole_groups else 1)
    assert plan.q == sorted(plan.q, reverse=True)


# ---- The wire ------------------------------------------------------------------------------------


def test_pack_of_one_rank_and_tensor_is_the_tensor():
    x = gaussian(3, 2, 4, 5)
    assert same_bits(pack([x], [[[4]]], [1]), [x.flatten()])


def test_a_small_wire_by_hand():
    """Two tokens, two kv heads that go to two places each, two messages."""
    q = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]).view(2, 1, 4, 1)
    kv = torch.tensor([[[10, 11], [20, 21]], [[30, 31], [40, 41]]]).view(2, 1, 2, 2)
    counts = [[[1, 1], [1, 2]], [[2, 1], [0, 0]]]
    first = [1, 10, 11, 5, 30, 31, 4, 20, 21, 20, 21, 8, 40, 41, 40, 41]
    second = [2, 3, 10, 11, 6, 7, 30, 31]
    messages = pack([q, kv], counts, [1, 2])
    assert [m.tolist() for m in messages] == [first, second]
    back = unpack([m.double() for m in messages], 2, 1, [1, 2], counts, [1, 2])
    assert same_bits(back, [q.double(), 2 * kv.double()])


def test_batches_lie_inside_tokens():
    x = torch.arange(8).view(2, 2, 2, 1)
    (message,) = pack([x], [[[1], [1]]], [1])
    assert message.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


@settings(deadline=None)
@given(data=st.data())
def test_unpack_is_the_adjoint_and_the_inverse(data):
    def whole(least, most):
        return data.draw(st.integers(least, most))

    tensors, ranks, messages = whole(1, 3), whole(1, 4), whole(1, 3)
    tokens, batch = whole(0, 3), whole(0, 2)
    heads, dims = [whole(0, 3) for _ in range(tensors)], [whole(0, 3) for _ in range(tensors)]
    replicas = [whole(1, 3) for _ in range(tensors)]
    counts = [[[0] * tensors for _ in range(ranks)] for _ in range(messages)]
    for i in range(tensors):
        for _ in range(heads[i] * replicas[i]):
            counts[whole(0, messages - 1)][whole(0, ranks - 1)][i] += 1
    xs = [
        torch.randint(-9, 9, (tokens, batch, n, d)).double()
        for n, d in zip(heads, dims, strict=True)
    ]
    sent = pack(xs, counts, replicas)
    back = unpack(sent, tokens, batch, dims, counts, replicas)
    assert same_bits(back, [n * x for x, n in zip(xs, replicas, strict=True)])
    ys = [torch.randint_like(m, -9, 9) for m in sent]
    left = sum((a * b).sum() for a, b in zip(sent, ys, strict=True))
    found = unpack(ys, tokens, batch, dims, counts, replicas)
    assert left == sum((a * b).sum() for a, b in zip(xs, found, strict=True))


def test_one_copy_keeps_the_bits_of_any_dtype():
    x = torch.tensor([0x7F812345, 1], dtype=torch.int32).view(torch.float32).view(1, 1, 2, 1)
    assert same_bits(unpack(pack([x], [[[2]]], [1]), 1, 1, [1], [[[2]]], [1]), [x])
    x = torch.arange(4).view(1, 1, 4, 1)
    assert same_bits(unpack(pack([x], [[[4]]], [1]), 1, 1, [1], [[[4]]], [1]), [x])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_are_rounded_once(dtype):
    half = torch.finfo(dtype).eps / 2
    (x,) = unpack([torch.tensor([1, half, half], dtype=dtype)], 1, 1, [1], [[[1]] * 3], [3])
    assert x.item() == 1 + 2 * half


# ---- Attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("dims", [(8, 8), (5, 3)], ids=str)
def test_attention_is_that_of_torch(causal, q_heads, kv_heads, dims):
    q = gaussian(2, 7, q_heads, dims[0])
    k, v = gaussian(2, 7, kv_heads, dims[0], seed=1), gaussian(2, 7, kv_heads, dims[1], seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal, enable_gqa=True
    )
    assert_close(attention(q, k, v, causal), expected.transpose(1, 2), "formula")


def test_attention_of_one_token_is_its_value():
    q, k, v = gaussian(2, 1, 4, 3), gaussian(2, 1, 2, 3), gaussian(2, 1, 2, 5)
    assert torch.equal(attention(q, k, v), v.repeat_interleave(2, dim=2))


def test_attention_by_hand():
    """Scores of 0 and 4 log(3) / 2, over the root of four: weights of 1/4 and 3/4."""
    q = torch.ones(1, 2, 1, 4, dtype=F64)
    k = torch.tensor([0.0, math.log(3) / 2], dtype=F64).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    v = torch.tensor([0.0, 4.0], dtype=F64).view(1, 2, 1, 1)
    assert attention(q, k, v).flatten().tolist() == pytest.approx([3, 3], rel=1e-14)
    assert attention(q, k, v, causal=True).flatten().tolist() == pytest.approx([0, 3], rel=1e-14)


def exchange(tensors, lengths, counts, replicas):
    """Return, for each rank, what the others send it: [all tokens, batch, its elements]."""
    parts = zip(*(x.split(lengths) for x in tensors), strict=True)
    blocks = []
    for part in parts:
        (message,) = pack(list(part), counts, replicas)
        widths = [sum(n * x.shape[3] for n, x in zip(row, part, strict=True)) for row in counts[0]]
        tokens, batch = part[0].shape[:2]
        blocks.append(message.split([tokens * batch * width for width in widths]))
    tokens, batch = tensors[0].shape[:2]
    return [torch.cat(mine).view(tokens, batch, -1) for mine in zip(*blocks, strict=True)]


def exchanged_attention(q, k, v, lengths):
    """Attend with the heads of each rank, on [tokens, batch, heads, dim], and go back."""
    (tokens, batch, heads, dim), v_dim = q.shape, v.shape[3]
    plan = head_plan(len(lengths), heads, k.shape[2])
    rows = zip(plan.q, plan.kv, plan.kv, strict=True)
    counts, copies = [[list(row) for row in rows]], heads // k.shape[2] // plan.group
    received = exchange([q, k, v], lengths, counts, [1, copies, copies])
    sent = []
    for x, n, m in zip(received, plan.q, plan.kv, strict=True):
        if n == 0:
            sent.append(x.new_zeros(tokens, batch, 0).split(lengths))
            continue
        heads_of = x.split([n * dim, m * dim, m * v_dim], dim=2)
        mine = [y.unflatten(2, (c, -1)) for y, c in zip(heads_of, (n, m, m), strict=True)]
        out = attention(*(y.transpose(0, 1) for y in mine), causal=True).transpose(0, 1)
        sent.append(out.flatten(2).split(lengths))
    own = []
    for r, length in enumerate(lengths):
        message = torch.cat([blocks[r].flatten() for blocks in sent])
        (out,) = unpack([message], length, batch, [v_dim], [[[n] for n in plan.q]], [1])
        own.append(out)
    return torch.cat(own)


@pytest.mark.parametrize("lengths", [[8], [4, 4], [5, 0, 3], [2, 1, 4, 1]], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1), (9, 3), (2, 2)])
def test_plan_and_wire_together_are_attention(lengths, heads, kv_heads):
    """Of values and of gradients, where copies of kv heads add up."""
    q, k, v = (
        gaussian(8, 2, n, d, seed=i).requires_grad_()
        for i, (n, d) in enumerate([(heads, 4), (kv_heads, 4), (kv_heads, 3)])
    )
    expected = attention(*(x.transpose(0, 1) for x in (q, k, v)), causal=True).transpose(0, 1)
    found = exchanged_attention(q, k, v, lengths)
    assert_close(found, expected, "formula")
    weights = gaussian(*expected.shape, seed=9)
    assert_close(
        torch.autograd.grad(found, (q, k, v), weights),
        torch.autograd.grad(expected, (q, k, v), weights),
        "formula",
    )


def test_examples():
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(ulysses, extraglobs={"torch": torch}):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 0
