# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Tokens, positions, labels and the plan, as one process can see them."""

import tempfile

import pytest
import torch
import torch.distributed as dist

from largebatch.reference import ulysses as reference
from largebatch.sequence import (
    UlyssesAttention,
    UlyssesPlan,
    position_ids,
    qkv_to_heads,
    sequence_parallel_loss,
    shard_sequence,
    shift_labels,
    split_lengths,
)
from largebatch.sequence.plan import head_plan


def test_one_rank_has_its_inputs_back_or_copies_where_they_are_to_be_contiguous(plan):
    wide = torch.randn(2, 3, 8, 5)
    given = wide.split([4, 2, 2], dim=2)
    for x, y in zip(given, qkv_to_heads(*given, plan), strict=True):
        assert y is x
    for x, y in zip(given, qkv_to_heads(*given, plan, contiguous=True), strict=True):
        assert y.is_contiguous()
        assert torch.equal(x, y)

    def all_contiguous(q, k, v):
        return torch.tensor([x.is_contiguous() for x in (q, k, v)]).all()

    assert not UlyssesAttention(all_contiguous, plan)(*given)
    assert UlyssesAttention(all_contiguous, plan, contiguous=True)(*given)


@pytest.fixture
def plan():
    """Return the plan of one rank, which is all there are."""
    if not dist.is_available():
        pytest.skip("this torch has no torch.distributed")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield UlyssesPlan(None, 4, 2)
        dist.destroy_process_group()


def as_rank(plan, rank, seq_lens):
    """Make of it the plan of a rank among others."""
    plan.rank, plan.world, plan.seq_lens = rank, len(seq_lens), tuple(seq_lens)
    return plan


HEADS = [(q, q // g) for q in (*range(1, 33), 64, 96) for g in range(1, q + 1) if q % g == 0]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 7, 8, 16, 33])
def test_head_plans_are_those_of_the_oracle(ranks):
    for q_heads, kv_heads in HEADS:
        found, expected = (
            head_plan(ranks, q_heads, kv_heads),
            reference.head_plan(ranks, q_heads, kv_heads),
        )
        assert list(found.q_counts) == list(expected.q)
        assert list(found.q_starts) == list(expected.first_q)
        assert list(found.kv_counts) == list(expected.kv)
        assert found.group == expected.group


# ranks, q heads, kv heads: q heads of each rank, kv heads of each rank; written out by hand.
PUBLISHED = [
    (8, 32, 8, [4] * 8, [1] * 8),
    (8, 32, 2, [4] * 8, [1] * 8),
    (6, 24, 8, [4] * 6, [4] * 6),
    (8, 28, 4, [4] * 4 + [3] * 4, [4] * 4 + [3] * 4),
    (2, 9, 3, [6, 3], [2, 1]),
    (4, 2, 2, [1, 1, 0, 0], [1, 1, 0, 0]),
]


@pytest.mark.parametrize(("ranks", "q_heads", "kv_heads", "q", "kv"), PUBLISHED)
def test_head_plans_of_known_models(ranks, q_heads, kv_heads, q, kv):
    found = head_plan(ranks, q_heads, kv_heads)
    assert (list(found.q_counts), list(found.kv_counts)) == (q, kv)


def test_kv_heads_are_those_of_the_oracle(plan):
    for q_heads, kv_heads in HEADS:
        expected = reference.head_plan(5, q_heads, kv_heads)
        for rank in range(5):
            other = UlyssesPlan(None, q_heads, kv_heads)
            other.rank, other.heads = rank, head_plan(5, q_heads, kv_heads)
            assert other.kv_indices == list(expected.sources[rank])


def test_lengths_are_split_evenly():
    assert split_lengths(10, 4) == [3, 3, 2, 2]
    assert split_lengths(2, 4) == [1, 1, 0, 0]
    assert split_lengths(0, 3) == [0, 0, 0]


def test_shards_are_consecutive_and_whole(plan):
    x = torch.arange(24).view(2, 12)
    shards = [shard_sequence(x, as_rank(plan, r, [5, 0, 7])) for r in range(3)]
    assert torch.equal(torch.cat(shards, 1), x)
    assert [s.shape[1] for s in shards] == [5, 0, 7]
    assert shards[0].data_ptr() == x.data_ptr()


def test_shards_without_lengths_are_equal(plan):
    plan.rank, plan.world = 2, 3
    assert shard_sequence(torch.arange(12), plan, 0).tolist() == [8, 9, 10, 11]
    message = r"got 13 tokens, expected a multiple of the 3 ranks. Pass seq_lens=split_lengths\(13"
    with pytest.raises(ValueError, match=message):
        shard_sequence(torch.arange(13), plan, 0)


def test_a_sequence_of_another_length_is_refused(plan):
    with pytest.raises(ValueError, match="got 13 tokens, expected 12, the sum of seq_lens"):
        shard_sequence(torch.arange(13), as_rank(plan, 0, [5, 7]), 0)


def test_positions_are_those_of_the_whole_sequence(plan):
    found = [position_ids(as_rank(plan, r, [3, 0, 4])).tolist() for r in range(3)]
    assert found == [[0, 1, 2], [], [3, 4, 5, 6]]
    assert position_ids(UlyssesPlan(None, 4, 2), 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="position_ids: total: got None"):
        position_ids(UlyssesPlan(None, 4, 2))


def test_positions_begin_again_in_each_document(plan):
    documents = torch.tensor([0, 2, 2, 7])  # one of them empty, one on two ranks
    found = [position_ids(as_rank(plan, r, [3, 4]), cu_seqlens=documents).tolist() for r in (0, 1)]
    assert found == [[0, 1, 0], [1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"position_ids: cu_seqlens: got .* expected from 0 up to"):
        position_ids(plan, cu_seqlens=torch.tensor([0, 5]))


def test_labels_are_the_next_tokens():
    tokens = torch.tensor([[5, 6, 7], [8, 9, 1]])
    assert shift_labels(tokens).tolist() == [[6, 7, -100], [9, 1, -100]]
    assert shift_labels(tokens, dim=0, ignore_index=-1).tolist() == [[8, 9, 1], [-1, -1, -1]]
    assert shift_labels(torch.zeros(2, 0)).shape == (2, 0)


def test_labels_end_with_each_document():
    documents = torch.tensor([0, 2, 2, 5])
    found = shift_labels(torch.arange(5), cu_seqlens=documents)
    assert found.tolist() == [1, -100, 3, 4, -100]


def test_loss_of_one_rank_is_the_mean(plan):
    logits = torch.randn(2, 5, 7, requires_grad=True)
    labels = shift_labels(torch.randint(0, 7, (2, 5)))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    for reducer in ("sum", "mean", "deepspeed"):
        loss = sequence_parallel_loss(logits, labels, plan, reducer=reducer)
        torch.testing.assert_close(loss, expected)


def test_loss_without_labels_is_zero_and_has_gradients(plan):
    logits = torch.randn(2, 5, 7, requires_grad=True)
    loss = sequence_parallel_loss(logits, torch.full((2, 5), -100), plan, reducer="sum")
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_loss_takes_a_function(plan):
    logits, labels = torch.randn(5, 7), torch.tensor([1, -100, 2, 3, 4])

    def double(logits, labels):
        return 2 * torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

    loss = sequence_parallel_loss(logits, labels, plan, reducer="sum", loss_fn=double)
    expected = 2 * torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_bad_losses_are_refused(plan):
    logits, labels = torch.randn(5, 7), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match='reducer: got \'avg\', expected "sum", "mean" or "deeps'):
        sequence_parallel_loss(logits, labels, plan, reducer="avg")
    with pytest.raises(ValueError, match=r"labels: got \[4\], expected a label for each of logits"):
        sequence_parallel_loss(logits, labels[:4], plan, reducer="sum")
    plan.world = 2
    with pytest.raises(ValueError, match="group: got '1 ranks', expected a multiple of the 2 of"):
        sequence_parallel_loss(logits, labels, plan, reducer="sum")


def test_without_torch_distributed_the_plan_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"UlyssesPlan: group: .* Call init_process_group first"):
        UlyssesPlan(None, 4, 2)
