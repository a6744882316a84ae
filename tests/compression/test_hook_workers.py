# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""DistributedDataParallel with a compression hook, in two processes."""

import pytest
import torch

from largebatch.compression import EF21, TopK
from tests.compression import hook_worker as worker
from tests.helpers import run_ranks, same_bits


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks("tests.compression.hook_worker", worker.WORLD, folder)


@pytest.mark.parametrize("name", worker.METHODS)
def test_parameters_stay_the_same_on_every_rank_and_it_learns(results, name):
    """Through the buckets that DDP builds anew after the first step; 300 steps of one method."""
    (mine, means, losses), (other, other_means, _) = (result[name] for result in results)
    assert same_bits([mine, *means], [other, *other_means])
    assert losses[-1] < losses[0]


def test_a_checkpoint_resumes_bit_for_bit(results):
    for result in results:
        straight, resumed = result["resumed"]
        assert same_bits([straight], [resumed])
        assert result["wrong state"].startswith(
            "ValueError: load_state_dict: rank: got 5, expected"
        )


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(results):
    for before, after, finite, counts in (result["skipped"] for result in results):
        assert torch.equal(before, after)
        assert finite
        assert counts[0] == 0 and counts[1] > 0


def test_or_raises_on_all(results):
    for result in results:
        assert "gradients are not finite, by rank: [0, " in result["raised"]


def test_ranks_with_different_settings_are_found_on_all(results):
    for result in results:
        assert (
            "ranks [1] have another method, compressor, option or parameter" in result["different"]
        )


def test_ranks_that_are_left_go_on(results):
    assert all(torch.equal(mean, shift) for mean, shift in results[0]["rebuilt"])
    assert results[0]["after"].isfinite().all()


def test_options_that_are_refused():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="hook: nonfinite: got 'stop', expected one of"):
        EF21(TopK(k=1)).hook(model, nonfinite="stop")
    with pytest.raises(ValueError, match="hook: start_step: got 0, expected an integer"):
        EF21(TopK(k=1)).hook(model, start_step=0)
