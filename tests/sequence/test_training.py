# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Data parallel times sequence parallel training is that of one process, for each reducer."""

import pytest
import torch

from tests.helpers import run_ranks
from tests.sequence import training_worker as worker


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    folder = tmp_path_factory.mktemp("training") / str(worker.WORLD)
    folder.mkdir()
    return run_ranks("tests.sequence.training_worker", worker.WORLD, folder)


@pytest.mark.parametrize("reducer", ["sum", "mean", "deepspeed"])
def test_three_steps_of_sgd_equal_one_process(results, reducer):
    for found in results:
        for one, all_ in zip(found["alone"], found[reducer], strict=True):
            for x, y in zip(one, all_, strict=True):
                torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


def test_the_wrong_reducer_is_seen(results):
    """With SGD, as here, a factor cannot hide: what the tests above would miss with Adam."""
    for found in results:
        one, wrong = found["alone"][0], found["wrong"][0]
        assert any((x - y).abs().max() > 1e-3 for x, y in zip(one, wrong, strict=True))


def test_groups_that_this_process_is_no_rank_of_are_refused(results):
    for rank, found in enumerate(results):
        mesh, other = found["groups"]
        assert mesh.startswith("UlyssesPlan: group: got a DeviceMesh of 2 dimensions, expected 1.")
        refused = "UlyssesPlan: group: this process is no member of it."
        assert other == (None if rank < 2 else refused)


def test_lengths_are_gathered_once(results):
    assert all(found["lengths"] == [3, 4, 5, 6] for found in results)
