# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels that are right give the right result under every schedule, and no race is reported."""

import functools
import operator

import numpy as np
import pytest

from tests.simt.schedules import under_each_seed

SIZES = [0, 1, 31, 32, 33, 255, 256, 257, 10_000]
BLOCK_SIZES = [1, 31, 32, 33, 48, 256]  # 48: half of the second warp is not there


@pytest.fixture(params=[False, True], ids=["", "racecheck"])
def schedules(request, monkeypatch):
    """Return the function that makes a call under each schedule and returns all results."""
    return functools.partial(under_each_seed, monkeypatch, racecheck=request.param)


@pytest.fixture
def run(schedules):
    """Return the function that makes a call and returns the result that all schedules give."""

    def call(function, *arguments):
        results = schedules(function, *arguments)
        assert all(result == results[0] for result in results)
        return results[0]

    return call


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def warps(x):
    return [x[i : i + 32] for i in range(0, len(x), 32)]


def mask(predicates):
    return sum(bool(p) << lane for lane, p in enumerate(predicates))


# ---- Blocks and grids ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_block_sum_twice(kernels, run, rng, n):
    x = rng.normal(size=n).astype(np.float32)
    total, spread = run(kernels.sum_and_spread, x)
    wide = x.astype(np.float64)
    assert total == pytest.approx(wide.sum(), rel=1e-12, abs=1e-12)
    assert spread == pytest.approx(((wide - wide.sum() / max(n, 1)) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("n", [*SIZES, 100_000])
def test_inclusive_scan(kernels, run, rng, n):
    x = rng.integers(-9, 10, n)
    assert run(kernels.inclusive_scan, x) == np.cumsum(x).tolist()


@pytest.mark.parametrize("n", SIZES)
def test_histogram(kernels, run, rng, n):
    x = rng.integers(0, 37, n)
    assert run(kernels.histogram, x, 37) == np.bincount(x, minlength=37).tolist()


@pytest.mark.parametrize(
    "shape", [(0, 0), (1, 1), (32, 32), (31, 33), (1, 257), (100, 70)], ids=str
)
def test_transpose(kernels, run, shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert run(kernels.transpose, x.ravel(), *shape) == x.T.ravel().tolist()


@pytest.mark.parametrize("n", SIZES)
def test_cooperative_grid_in_two_phases(kernels, run, rng, n):
    x = rng.uniform(1, 2, n).astype(np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(run(kernels.normalize, x, 6), wide / wide.sum(), rtol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_last_block_sum(kernels, run, rng, n):
    x = rng.uniform(1, 2, n).astype(np.float32)
    assert run(kernels.last_block_sum, x) == pytest.approx(x.astype(np.float64).sum(), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 31), (7, 48), (16, 256)], ids=str)
def test_blocks_that_wait_for_each_other(kernels, run, rng, shape):
    x = rng.integers(-9, 10, shape)
    assert run(kernels.column_scan, x.ravel(), shape[0]) == np.cumsum(x, axis=0).ravel().tolist()


@pytest.mark.parametrize("n", SIZES)
def test_vector_loads(kernels, run, rng, n):
    x = rng.normal(size=n).astype(np.float32)
    assert run(kernels.scale_by_fours, x, 3.0) == (x * np.float32(3)).tolist()


@pytest.mark.parametrize("n", SIZES)
def test_event_orders_streams(kernels, run, rng, n):
    x = rng.integers(-9, 10, n)
    assert run(kernels.two_streams, x) == (2 * (x + 1) + 3).tolist()


@pytest.mark.parametrize(
    ("blocks", "threads"), [((1, 1, 1), (1, 1, 1)), ((2, 3, 4), (5, 2, 3)), ((3, 1, 2), (1, 33, 2))]
)
def test_indices_run_x_fastest(kernels, run, blocks, threads):
    expected = np.indices((*blocks[::-1], *threads[::-1])).reshape(6, -1).T
    assert run(kernels.indices, blocks, threads) == expected.ravel().tolist()


# ---- Warps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", BLOCK_SIZES)
@pytest.mark.parametrize("bounds", [(0, 8), (2, 5), (6, 7)], ids=["mixed", "few", "equal"])
def test_votes(kernels, run, rng, n, bounds):
    x = rng.integers(*bounds, n).tolist()
    expected = []
    for warp in warps(x):
        odd, equal = mask(v % 2 for v in warp), len(set(warp)) == 1
        for v in warp:
            same = mask(w == v for w in warp)
            expected += [odd, max(warp) > 5, min(warp) > 1, same, same if equal else 0, equal]
    assert run(kernels.votes, x) == expected


@pytest.mark.parametrize("n", BLOCK_SIZES)
def test_warp_reductions(kernels, run, rng, n):
    x = rng.integers(-1000, 1000, n).tolist()
    expected = []
    for warp in warps(x):
        bitwise = [functools.reduce(op, warp) for op in (operator.and_, operator.or_, operator.xor)]
        expected += [sum(warp), min(warp), max(warp), *bitwise] * len(warp)
    assert run(kernels.warp_reductions, x) == expected


@pytest.mark.parametrize("type_", ["int", "float", "double"])
@pytest.mark.parametrize(("n", "width"), [(64, 32), (64, 8), (48, 16), (32, 4), (10, 2)])
def test_shuffles(kernels, run, rng, type_, n, width):
    dtype = {"int": np.int32, "float": np.float32, "double": np.float64}[type_]
    x = (1e6 * rng.normal(size=n)).astype(dtype).tolist()
    expected = []
    for t in range(n):
        first = t - t % width
        up = t - 1 if t - 1 >= first else t
        down = t + 2 if t + 2 < first + width else t
        expected += [x[first + (t + 3) % width], x[up], x[down], x[t ^ 1]]
    assert run(getattr(kernels, f"shuffles_{type_}"), x, width) == expected


@pytest.mark.parametrize("n", [16, 32, 48, 256])
def test_halves_of_a_warp_part(kernels, run, rng, n):
    x = rng.integers(-99, 100, n).tolist()
    expected = []
    for first in range(0, n, 16):
        half = x[first : first + 16]
        expected += [max(half) if first % 32 else sum(half)] * 16
    assert run(kernels.half_warps, x) == expected


# ---- Votes at a barrier, bits --------------------------------------------------------------------


@pytest.mark.parametrize("n", BLOCK_SIZES)
@pytest.mark.parametrize("odd", [0.0, 0.5, 1.0])
def test_votes_at_a_barrier(kernels, run, rng, n, odd):
    x = (rng.uniform(size=n) < odd).astype(int)
    assert run(kernels.barrier_votes, x) == [x.sum(), x.all(), x.any()] * n


def test_bits(kernels, run, rng):
    x = [0, 1, 2, 3, 1 << 31, (1 << 32) - 1, *rng.integers(0, 1 << 32, 58).tolist()]
    expected = []
    for v in x:
        lowest = (v & -v).bit_length()
        expected += [v.bit_count(), 32 - v.bit_length(), lowest, int(f"{v:032b}"[::-1], 2)]
    assert run(kernels.bits, x) == expected


# ---- Atomics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["int", "uint", "ulonglong", "float", "double"])
@pytest.mark.parametrize("n", [0, 1, 33, 257, 2_000])
def test_atomic_add(kernels, schedules, rng, type_, n):
    x = rng.integers(1, 9, n).tolist()
    for *found, total in schedules(getattr(kernels, f"atomic_add_{type_}"), x):
        # In the order in which they came, each found what the ones before had left.
        came = sorted(range(n), key=lambda i: found[i])
        assert [found[i] for i in came] == [0, *np.cumsum([x[i] for i in came])][:n]
        assert total == sum(x)


@pytest.mark.parametrize("type_", ["int", "uint", "ulonglong"])
@pytest.mark.parametrize("n", [0, 1, 33, 257, 2_000])
def test_other_atomics(kernels, schedules, rng, type_, n):
    dtype = {"int": np.int32, "uint": np.uint32, "ulonglong": np.uint64}[type_]
    limits = np.iinfo(dtype)
    low, high = (-(2**16), 2**16) if type_ == "int" else (limits.max // 2, limits.max)
    x = rng.integers(low, high, n, dtype=dtype).tolist()
    ones = int(np.array(-1).astype(dtype))
    for *found, left, largest, smallest, any_, all_, total in schedules(
        getattr(kernels, f"atomic_others_{type_}"), x
    ):
        assert sorted([*found, left]) == sorted([0, *x])
        assert (largest, smallest) == (max(x, default=limits.min), min(x, default=limits.max))
        assert any_ == functools.reduce(operator.or_, x, 0)
        assert all_ == functools.reduce(operator.and_, x, ones)
        assert total == (sum(x) if type_ == "int" else sum(x) % (limits.max + 1))


# ---- Schedules -----------------------------------------------------------------------------------


def test_seeds_are_different_schedules(kernels, schedules):
    # What threads find in a counter is their place in the order of all; blocks are of 64.
    one_block = schedules(kernels.atomic_add_int, [1] * 64)
    eight_blocks = schedules(kernels.atomic_add_int, [1] * 512)
    assert len({tuple(places) for places in one_block}) == 8
    assert len({places.index(0) for places in one_block}) >= 4
    assert len({places.index(0) // 64 for places in eight_blocks}) >= 4


def test_same_seed_is_the_same_schedule(kernels, schedules):
    first, second = (schedules(kernels.atomic_add_int, [1] * 256) for _ in range(2))
    assert first == second


def test_seed_is_a_whole_number(kernels, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_SIMT_SEED", "one")
    with pytest.raises(RuntimeError, match="LARGEBATCH_SIMT_SEED: got 'one', expected"):
        kernels.atomic_add_int([1])
