# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as they are run: what a row says, which there are in a grid, and that all begin."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from largebatch.cli.bench.results import Results

ROOT = Path(__file__).parents[2]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    file = tmp_path_factory.mktemp("bench") / "rows.json"
    run("bench/ops/bench_norm.py", "-k", "tiny", "--threads", "1", f"--results={file}")
    return Results.load(file)  # which checks that every value is there


def test_a_row_for_each_implementation_and_a_reason_for_what_is_not_here(found):
    assert [row["implementation"] for row in found.rows] == ["largebatch", "torch foreach"]
    assert [row["role"] for row in found.rows] == ["ours", "peer"]
    assert found.finished
    assert "CuPy" in found.skipped[0]["problem"]
    assert not found.failed


def test_what_a_row_says_agrees_with_itself(found):
    for row in found.rows:
        assert row["bytes"] == 4 * row["elements"] == 4 * 252_500
        assert row["bytes_from"] == "formula"
        assert row["GBps"] == pytest.approx(row["bytes"] / row["median_ms"] / 1e6)
        assert row["min_ms"] <= row["q1_ms"] <= row["median_ms"] <= row["q3_ms"]
        assert row["wall_ms"] == row["median_ms"]
        assert 3 <= row["rounds"] <= 25
        assert row["threads"] == 1
        # Within a round and of medians: the same but for how the machine moved in between.
        assert row["percent_of_copy"] == pytest.approx(100 * row["GBps"] / row["copy_GBps"], rel=1)
    ours, peer = found.rows
    assert ours["backend"] == found.machine["backend"]
    assert peer["backend"] is None
    assert ours["times_ours"] == 1
    assert peer["times_ours"] == pytest.approx(peer["median_ms"] / ours["median_ms"], rel=1)


def collected(*arguments):
    listed = run("bench", "--collect-only", "-q", *arguments)
    return re.findall(r"::(\w+)\[(.*)\]", listed)


def test_the_quick_grid_is_part_of_the_full_one():
    quick, full = (collected("--grid", grid) for grid in ("quick", "full"))
    assert set(quick) < set(full)
    assert len(set(full)) == len(full)
    assert {name for name, _ in quick} == {name for name, _ in full}


def test_only_ours_is_measured_on_other_instruction_sets():
    others = [given for _, given in collected("--grid", "full") if "cpu-base" in given]
    assert others
    assert all(re.search(r"cpu-base-(.*-)?largebatch$", given) for given in others)


def test_the_grid_of_a_gpu_is_made_without_one():
    given = [given for _, given in collected("--device", "cuda", "--grid", "full")]
    assert any("decoder-1b-bfloat16-cuda-largebatch" in g for g in given)
    assert not any("cpu" in g for g in given)
