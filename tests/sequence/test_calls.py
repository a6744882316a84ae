# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The exchanges in every way they can be called, in two and three processes."""

import pytest
import torch

from tests.helpers import run_ranks
from tests.sequence import calls_worker as worker


@pytest.fixture(scope="module", params=sorted(worker.LENGTHS), ids=lambda world: f"{world} ranks")
def results(request, tmp_path_factory):
    """Run the processes once; return what each of them found."""
    folder = tmp_path_factory.mktemp("calls") / str(request.param)
    folder.mkdir()
    return run_ranks("tests.sequence.calls_worker", request.param, folder, timeout=180)


def of(results, name):
    """Return what each rank found in one of the runs."""
    return [found[name] for found in results]


def assert_near(found, expected):
    """Two evaluations in float64 of sums of a few dozen terms."""
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", worker.DTYPES, ids=str)
def test_every_bit_comes_through(results, dtype):
    assert all(found[str(dtype)] for found in of(results, "dtypes"))


def test_second_derivatives_equal_one_process(results):
    for found, expected in of(results, "second_derivatives"):
        assert_near(found, expected)


def test_gradients_may_have_any_strides(results):
    assert all(of(results, "gradients_of_any_strides"))


def test_backward_is_one_message_each_way_whatever_needs_a_gradient(results):
    for same, messages in of(results, "some_need_gradients"):
        assert same
        assert messages == [4, 4, 4]


def test_results_that_nobody_uses_have_zero_gradients(results):
    assert all(all(found) for found in of(results, "results_that_nobody_uses"))


def test_queries_alone_go_to_keys_that_all_ranks_have(results):
    for error, none in of(results, "only_queries"):
        assert error <= 1e-14
        assert none


def test_what_is_given_for_each_head_is_cut(results):
    assert all(all(found) for found in of(results, "per_head"))


def test_every_way_of_calling_has_the_same_bits(results):
    assert of(results, "ways") == [[]] * len(results)


def test_chunks_of_heads_have_the_same_results(results):
    for one, *more in of(results, "chunks"):
        for found in more:
            assert_near(found, one)


def test_what_stands_in_for_all_to_all_has_the_same_bits(results):
    for (same, kind, told), (same_too, last, warned) in of(results, "backends_without_all_to_all"):
        assert same
        assert same_too
        assert (kind, last) == ("send_recv", "all_gather")
        assert told == []
        assert len(warned) == 1
        assert f"moves {len(results)} times the bytes" in warned[0]


def test_compiles_whole_and_once_for_all_batches_above_one(results):
    for same, counts in of(results, "compiled"):
        assert same
        assert counts == [2, 2]  # a batch of 1 is a graph of its own


def test_bytes_and_messages_are_those_of_the_formulas(results):
    """Section 3.2 of arXiv 2309.14509, for any heads and lengths; float64 has 8 bytes."""
    for rank, (forward, backward, buffers, told) in enumerate(of(results, "traffic")):
        world = len(results)
        lengths, total = worker.LENGTHS[world], sum(worker.LENGTHS[world])
        assert (len(forward), len(backward)) == (2, 2)
        assert sum(forward) == 8 * told["forward"]
        assert sum(backward) == 8 * told["backward"]
        assert buffers == [8 * told["buffer_in"], 8 * told["buffer_out"]]
        if world == 2:  # four q heads and one kv head each, written out
            width = 4 * worker.DIM + worker.DIM + worker.V_DIM
            own, other = lengths[rank], total - lengths[rank]
            assert sum(forward) == 8 * worker.BATCH * (own * width + 4 * worker.V_DIM * other)
            assert sum(backward) == 8 * worker.BATCH * (other * width + 4 * worker.V_DIM * own)


def test_copies_are_one_on_the_way_there_and_one_on_the_way_back(results):
    """The target row of the table in docs/ulysses.md: and one more for o with batches outermost."""
    for found in of(results, "copies"):
        for (_, batch, seq_major), (there, back, payload, result, o) in found.items():
            assert there == ({"ulysses_pack": payload} if payload else {})
            expected = {"ulysses_unpack": result} if result else {}
            if batch > 1 and not seq_major and o:
                expected["ulysses_pack"] = o
            assert back == expected


def test_checkpoints_exchange_again_unless_told_to_keep(results):
    for plain, again, kept in of(results, "recomputation"):
        assert plain == 4
        assert again > 4
        assert kept == 4


REFUSED = {
    "q is no tensor": "TypeError: qkv_to_heads: q: got 'list', expected a torch tensor.",
    "three dimensions": "expected 4 dimensions, [B s H D].",
    "layout": 'ValueError: qkv_to_heads: layout: got \'hbsd\', expected "bshd", "sbhd", "bhsd" or',
    "dtype of k": "TypeError: qkv_to_heads: k: has dtype torch.float32, expected torch.float64",
    "device of v": "ValueError: qkv_to_heads: v: is on meta, expected cpu like q.",
    "strides": "expected 1 in the last dimension. Pass x.contiguous().",
    "heads of q": "ValueError: qkv_to_heads: q: has 6 heads",
    "heads of v": "ValueError: qkv_to_heads: v: has 1 heads",
    "head dim of k": "ValueError: qkv_to_heads: k: has head dim 4, expected 8 like q.",
    "tokens of k": "expected the tokens and batch of q",
    "tokens of all": "ValueError: qkv_to_heads: q: has 9 tokens, expected ",
    "k alone": "ValueError: qkv_to_heads: v: got None, expected a tensor, or None for both",
    "plan": "TypeError: qkv_to_heads: plan: got 'int', expected a UlyssesPlan.",
    "heads of o": "ValueError: heads_to_seq: o: has ",
    "tokens of o": "ValueError: heads_to_seq: o: has 7 tokens, expected 8, the sum of seq_lens.",
    "q_heads": "ValueError: UlyssesPlan: q_heads: got 8, expected a multiple of the 3 kv_heads.",
    "kv_heads": "ValueError: UlyssesPlan: kv_heads: got 0, expected an integer of 1 or more.",
    "seq_lens": "ValueError: UlyssesPlan: seq_lens: got [4], expected ",
    "a length": "ValueError: UlyssesPlan: seq_lens[1]: got -1, expected an integer of 0 or more.",
    "head_chunks": "ValueError: UlyssesPlan: head_chunks: got 5, expected 1 to the ",
    "transport": "ValueError: UlyssesPlan: transport: got 'pigeon', expected \"auto\", ",
    "group": "TypeError: UlyssesPlan: group: got a int, expected a ProcessGroup or a DeviceMesh.",
    "attn_fn": "TypeError: UlyssesAttention: attn_fn: got 'NoneType', expected a callable.",
    "what attn_fn returns": "ValueError: UlyssesAttention: attn_fn returned [2, 8, ",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_calls_are_refused_on_every_rank_before_anything_is_sent(results, name):
    for messages, works in of(results, "refusals"):
        assert set(messages) == set(REFUSED)
        assert REFUSED[name] in messages[name]
        assert "\n" not in messages[name]
        assert works


def test_plans_that_will_be_slow_say_so_to_who_makes_them(results):
    world = len(results)
    for found in of(results, "warned_of"):
        assert found["quick"] == found["unknown"] == []
        said = {name: found[name][0][0] for name in ("idle", "split", "machines")}
        assert said["idle"].startswith(f"UlyssesPlan: {world - 1} of {world} ranks attend with no")
        times = {2: 2, 3: 3}[world]
        assert said["split"].startswith(f"UlyssesPlan: each kv head is sent {times} times, as 12 q")
        assert f"the {world} ranks are on several machines" in said["machines"]
        assert all(found[name][0][1].endswith("calls_refused.py") for name in said)
        assert all(len(found[name]) == 1 for name in said)


def test_debug_makes_a_disagreement_an_error_on_every_rank(results):
    for found in of(results, "disagreements"):
        assert "another plan" in found["plan"]
        assert "another call" in found["dtype"]
        assert found["one is refused"] is not None
        assert found["fits"] is None
    said = [found["one is refused"] for found in of(results, "disagreements")]
    assert "rank 1 has another call than rank 0" in said[0]
    assert "q: has 6 heads" in said[1]
