# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Four processes of which some are lost and join again, and checkpoints for other numbers."""

import pytest
import torch

from tests.compression import elastic_worker as worker
from tests.helpers import run_ranks, same_bits


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks("tests.compression.elastic_worker", worker.WORLD, folder)


def mean_of(states, name, role):
    return sum(state[name][role].double() for state in states) / len(states)


def assert_means(states):
    """Check that H is the mean of h, and the same bits on every rank."""
    for name, own in states[0].items():
        if "mean" not in own:
            continue
        assert all(same_bits(own["mean"], state[name]["mean"]) for state in states)
        expected = mean_of(states, name, "shift")
        assert torch.allclose(own["mean"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", worker.METHODS)
def test_four_ranks_have_the_same_parameters(results, name):
    begun = [result["ranks"][name][0] for result in results]
    assert all(same_bits(begun[0][0], other[0]) for other in begun)
    assert_means([own[1] for own in begun])


def test_three_hundred_steps_leave_parameters_the_same_on_every_rank(results):
    ends = [result["long"] for result in results]
    assert all(same_bits(ends[0][0], other[0]) for other in ends)
    losses = torch.tensor([own for _, own in ends])
    assert losses.shape == (worker.WORLD, 300)
    # Each rank has a target of its own of variance 1: the best for all of them is their mean.
    best = 1 - 1 / worker.WORLD
    assert losses[:, -100:].mean() < 1.1 * best < 0.9 * losses[:, :10].mean()


@pytest.mark.parametrize("name", worker.METHODS)
def test_ranks_that_are_left_go_on(results, name):
    left = [result["ranks"][name][0] for result in results[: worker.LEFT]]
    assert_means([own[2] for own in left])
    assert all(same_bits(left[0][3], other[3]) for other in left)
    assert_means([own[4] for own in left])
    for _, before, after, *_ in left:  # what a rank has of its own stays
        for parameter, own in before.items():
            for role in set(own) - {"mean"}:
                assert same_bits(own[role], after[parameter][role])


@pytest.mark.parametrize("name", worker.METHODS)
def test_a_new_rank_joins(results, name):
    joined = [result["ranks"][name][1] for result in results]
    assert_means(joined)
    for parameter, own in joined[-1].items():
        assert "error" not in own or not own["error"].any()
        if "shift" in own:
            assert same_bits(own["shift"], own["mean"])
        if "momentum" in own and name != "dgc":
            expected = mean_of(joined[: worker.LEFT], parameter, "momentum")
            assert torch.allclose(own["momentum"].double(), expected, rtol=1e-5, atol=1e-6)
    ends = [result["ranks"][name] for result in results]
    assert all(same_bits(ends[0][2], other[2]) for other in ends)
    assert_means([own[3] for own in ends])
    assert {own[4] for own in ends} == {11}


@pytest.mark.parametrize("name", worker.METHODS)
def test_a_checkpoint_for_another_number_of_ranks_keeps_the_means(results, name):
    fewer = [result["fewer"][0][name] for result in results]
    saved = [own[0] for own in fewer]
    for before, again, *_ in fewer:  # the same number, from a list in another order
        for parameter, own in before.items():
            assert same_bits(list(own.values()), [again[parameter][role] for role in own])
    parts = [own[2] for own in fewer[: worker.LEFT]]
    for parameter, own in saved[0].items():
        for role in own:
            for part in parts:
                expected = mean_of(saved, parameter, role)
                got = part[parameter][role].double()
                assert torch.allclose(got, expected, rtol=1e-5, atol=1e-6)
        if "shift" in own:
            assert same_bits(parts[0][parameter]["shift"], own["mean"])
    assert all(same_bits(fewer[0][3], other[3]) for other in fewer[: worker.LEFT])


REFUSED = {
    "world": "ValueError: load_state_dict: world: got 4, expected 3. Give a list of the state of "
    "all ranks to go on with another number of them.",
    "missing": "ValueError: load_state_dict: state_dict: got shards of ranks [1, 2, 3], expected "
    "one of each of the 4 ranks that have saved.",
    "method": "ValueError: load_state_dict: method: got 'EF21', expected 'DGC'.",
    "steps": "ValueError: load_state_dict: step: got [9, 5, 5, 5], expected one step on all ranks.",
    "name": "ValueError: load_state_dict: state: got 'x', not in the model.",
    "shape": "ValueError: load_state_dict: state['0.weight']: error has shape [3], expected "
    "[60, 20].",
    "kind": "TypeError: load_state_dict: state_dict: got str of ['str'], expected what "
    "state_dict() gave, or a list of that of all ranks.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_checkpoints_that_are_refused(results, name):
    assert results[1]["fewer"][1][name] == REFUSED[name]


def test_a_mean_that_differs_is_found_on_every_rank(results):
    said = "RuntimeError: hook: parameter '0.weight': its mean H differs between ranks. "
    assert all(result["sync"].startswith(said) for result in results)
