# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Exchange by region owners, in four processes."""

import pytest
import torch

from largebatch.compression import traffic
from tests.compression import regions_worker as worker
from tests.compression.hook_setting import network
from tests.helpers import run_ranks, same_bits

LARGE = ("0.weight", "2.weight")  # what is compressed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    return run_ranks("tests.compression.regions_worker", worker.WORLD, folder)


def sent_by(method, name, grads, before, after):
    """Return what a rank has sent of a parameter, from its state."""
    old, new = before[name], after[name]
    if method.startswith("feedback") or method == "skipped":
        return old["error"] + grads[name] - new["error"]
    if method == "dgc":
        return old["error"] + (0.9 * old["momentum"] + grads[name]) - new["error"]
    return new["shift"] - old["shift"]


@pytest.mark.parametrize("name", worker.METHODS)
def test_what_was_sent_is_what_all_get_and_the_rest_is_kept(results, name):
    runs = [result[name] for result in results]
    for parameter in runs[0][0]:
        if name == "dgc" and parameter not in LARGE:
            continue
        sent = [sent_by(name, parameter, run[0], run[2], run[3]) for run in runs]
        mean = sum(s.double() for s in sent) / worker.WORLD
        update = runs[0][1][parameter].double()
        if "mean" in runs[0][2][parameter]:
            assert same_bits(runs[0][1][parameter], runs[0][3][parameter]["mean"])
            update = update - runs[0][2][parameter]["mean"].double()
        assert torch.allclose(update, mean, rtol=1e-4, atol=1e-6)
    assert all(same_bits(run[1][p], runs[0][1][p]) for run in runs for p in run[1])
    assert all(same_bits(run[4], runs[0][4]) for run in runs)


@pytest.mark.parametrize("name", ["feedback", "feedback bucket", "dgc"])
def test_owners_keep_the_largest_sums(results, name):
    """As many as one rank may select at most; the momentum of what is sent is forgotten."""
    runs = [result[name] for result in results]
    update = torch.cat([runs[0][1][p].flatten() for p in LARGE])
    selected = 0.05 * update.numel()
    assert selected / 2 < (update != 0).sum() <= selected + 2
    for run in runs if name == "dgc" else ():
        for p in LARGE:
            sent = sent_by(name, p, run[0], run[2], run[3]).abs() > 1e-6
            assert not run[3][p]["momentum"][sent].any()


def test_elements_that_there_is_no_room_for_are_kept(results):
    """Twice K/W go from a rank to an owner, K/W on to all; K = 40, W = 4."""
    runs = [result["concentrated"] for result in results]
    update = runs[0][1]
    assert all(same_bits(update, other) for _, other, _ in runs)
    # The first 20 of each rank had room. Of these the last ten are the largest, and only ranks 1
    # and 3 have sent them: 0 and 2 have them too, but no room.
    assert update.nonzero()[:, 0].tolist() == [4 * j + i for j in range(25, 30) for i in (0, 1)]
    assert torch.equal(sum(grad - error for grad, _, error in runs) / worker.WORLD, update)


@pytest.mark.parametrize("name", worker.METHODS)
def test_volume_is_bounded_whatever_the_number_of_ranks(results, name):
    method = worker.METHODS[name]()
    slots = sum(
        method.compressor.record([n])["k"] * (n // 64 if name == "ef21" else 1)
        for n in (1200, 2400)
    )
    received = sum(results[0][name][5].values())
    bound = 4 * 6 * slots * (worker.WORLD - 1) / worker.WORLD
    small = 8 * worker.WORLD * (worker.WORLD - 1)  # the check of settings, of a first step
    assert 0.5 * bound < received <= bound + small
    told = [traffic(method, network().parameters(), w, exchange="regions") for w in (4, 400)]
    gathered = [traffic(method, network().parameters(), w) for w in (4, 400)]
    assert gathered[1].compressed > 100 * gathered[0].compressed
    assert told[1].compressed - told[0].compressed < 2 * 33 * 8 * 400 + told[0].compressed


def test_a_gradient_that_is_not_finite_stops_all(results):
    runs = [result["skipped"] for result in results]
    for grads, _, before, after, params, later, counts in runs:
        assert torch.equal(params, later)
        assert counts[0] == 0 and counts[1] > 0
        for parameter, own in after.items():
            gradient = grads[parameter]
            expected = before[parameter]["error"] + torch.where(gradient.isfinite(), gradient, 0)
            assert torch.allclose(own["error"], expected, atol=1e-6)


def test_it_learns_as_well_as_with_an_all_gather(results):
    gathered, regions = (sum(r["losses"][i] for r in results) for i in range(2))
    assert regions < 1.05 * gathered


def test_one_rank_alone_does_what_it_does_with_an_all_gather(results):
    for result in results:
        for regions, gathered in result["alone"]:
            assert same_bits(regions, gathered)


def test_refusals(results):
    first, second = results[0]["refused"]
    assert first == (
        'ValueError: hook: checksum: got True, expected False with exchange="regions".'
    )
    assert second == (
        'ValueError: hook: exchange: got \'ring\', expected "all_gather" or "regions".'
    )
