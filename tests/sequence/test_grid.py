# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Attention of 1 to 4 processes is that of one: every kind of heads, lengths, batch and layout.

LARGEBATCH_FULL_GRID=1 has them all in every combination, some thousand for each number of
processes: minutes.
"""

import os

import pytest

from tests.helpers import run_ranks
from tests.sequence import setting

# float64: softmax and sums of a few dozen terms in another order; measured, below 1e-14.
TOLERANCE = 1e-12


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids=lambda world: f"{world} ranks")
def results(request, tmp_path_factory):
    """Run the processes once; return what each of them found."""
    folder = tmp_path_factory.mktemp("grid") / str(request.param)
    folder.mkdir()
    timeout = 1200 if "LARGEBATCH_FULL_GRID" in os.environ else 120
    return run_ranks("tests.sequence.grid_worker", request.param, folder, timeout)


def test_each_element_goes_where_it_belongs(results):
    wrong = {case for found in results for case, (placed, _) in found.items() if not placed}
    assert wrong == set()
    assert set(results[0]) == set(setting.cases())


def test_outputs_and_gradients_equal_one_process(results):
    errors = {case: max(found[case][1] for found in results) for case in results[0]}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= TOLERANCE, worst


def test_the_grid_has_every_value():
    for at, values in enumerate((setting.HEADS, setting.BATCHES, setting.LENGTHS)):
        assert {case[at] for case in setting.cases()} == set(values)
    assert {case[3] for case in setting.cases()} == set(setting.LAYOUTS)
    assert {case[4] for case in setting.cases()} == set(setting.DIMS)
