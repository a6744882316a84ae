# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, with random weights, over a sequence that processes share."""

import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from largebatch.sequence.hugging_face import register_attention
from tests.helpers import run_ranks

# float64, sums of a few dozen terms in another order; measured, below 1e-15.
TOLERANCE = 1e-12

LINES = {
    "padding": "attention_mask: got one of shape [2, 4], expected None",
    "local mask": "attention_mask: got one of shape [2, 1, 4, 4], expected None",
    "packed": "mask: got one that depends on more than the distance of tokens",
    "use_cache": "use_cache: got True, expected False",
    "generate": "use_cache: got True, expected False",
    "decode": "key: has 5 tokens for 4 of query, expected as many",
    "decode, its mask": "key: has 4 tokens for 1 of query, expected as many",
    "bias": "position_bias: got a tensor [1, 4, 4, 4], expected none but query",
    "name": "name: got 'sdpa', expected a name that transformers has no attention by",
    "name eager": "name: got 'eager', expected a name that transformers has no attention by",
    "name 5": "name: got 'int', expected a str",
    "attention": "attention: got 'fast', expected \"eager\" or one of ",
    "around itself": "attention: got 'ulysses', expected \"eager\" or one of ",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them found."""
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    folder = tmp_path_factory.mktemp("hugging_face")
    return run_ranks("tests.sequence.hugging_face_worker", 3, folder)


@pytest.mark.parametrize(
    "setting",
    [
        "kv heads divide",
        "no groups, in chunks",
        "one kv head",
        "eager",
        "sliding window",
        "sliding window, eager",
        "not causal",
        "mask of the whole sequence",
        "checkpoints",
        "groups are cut",
        "groups are cut, eager",
        "a rank without heads",
    ],
)
def test_logits_and_gradients_equal_one_process(results, setting):
    errors = [found["equal"][setting] for found in results if setting in found["equal"]]
    assert len(errors) in (2, 3)
    for of_rank in errors:
        worst = max(of_rank, key=of_rank.get)
        assert of_rank[worst] <= TOLERANCE, worst


def test_what_is_compared_depends_on_masks_and_positions(results):
    for found in results:
        assert all(distance > 0.1 for distance in found["differ"].values()), found["differ"]


@pytest.mark.parametrize("call", LINES)
def test_what_is_not_of_the_whole_sequence_is_refused_in_one_line(results, call):
    for found in results:
        kind, text = found["refused"][call]
        assert kind == ("TypeError" if call == "name 5" else "ValueError")
        assert text.startswith(f"register_attention: {LINES[call]}")
        assert "\n" not in text


def test_positions_from_0_on_each_rank_are_refused(results):
    start, *others = (found["refused"]["positions"] for found in results)
    assert start[0] == "ValueError"  # its own are right: it is told with debug, and hangs without
    assert "ranks [1, 2] have another call than rank 0" in start[1]
    for rank, (kind, text) in enumerate(others, 1):
        assert kind == "ValueError"
        expected = (
            f"position_ids: are not {4 * rank} to {4 * rank + 3}, those of this rank's tokens"
        )
        assert text.startswith(f"register_attention: {expected}")


def test_wrong_lengths_are_refused_when_registering(results):
    for found in results:
        kind, text = found["refused"]["seq_lens"]
        assert (kind, text.startswith("UlyssesPlan: seq_lens: got [1, 2]")) == ("ValueError", True)


def test_ranks_go_on_after_refusals(results):
    assert [found["refused"]["nothing"] for found in results] == [None] * 3


def test_plans_are_those_of_the_layers_and_of_one_registration(results):
    for found in results:
        assert found["plans"] == ([(4, 2), (8, 2)], [])


def test_implementations_see_all_tokens_and_the_groups_of_this_rank(results):
    names = ["dropout", "is_causal", "scaling", "use_cache"]  # and no position_ids
    for rank, found in enumerate(results):
        for heads, (q, kv, groups) in {
            (6, 3): (2, 1, 2),
            (8, 2): ([3, 3, 2][rank], [3, 3, 2][rank], 1),
            (2, 1): ([1, 1, 0][rank], [1, 1, 0][rank], 1),
        }.items():
            shapes = [[2, n, 12, 8] for n in (q, kv)]
            expected = [(*shapes, (groups, "probe", 0), 64, names)] if q else []
            assert found["seen"][heads] == expected


def test_missing_transformers_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transformers.masking_utils", raising=False)
    with pytest.raises(ImportError, match=r"^register_attention: needs transformers 5\.4 or later"):
        register_attention(None)


def test_older_transformers_is_one_line(monkeypatch):
    module = ModuleType("transformers")
    module.__version__, module.__path__ = "4.57.6", []
    module.ALL_ATTENTION_FUNCTIONS = {}
    module.ALL_MASK_ATTENTION_FUNCTIONS = {"sdpa": lambda cache_position: None}
    for name in ("transformers", "transformers.masking_utils", "transformers.modeling_utils"):
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError, match=r"5\.4 or later, got 4\.57\.6\. pip install -U"):
        register_attention(None)
