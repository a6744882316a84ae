# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The executor finds each planted bug and says where it is; mended, the same kernel passes."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.simt.schedules import under_each_seed

KERNELS = Path(__file__).parent / "kernels"
IN = [3 * i % 64 + 1 for i in range(64)]  # a permutation of 1 ... 64
ZEROS = [0] * 64

HEX = "0x[0-9a-f]+"
MALLOC = r"cudaMalloc \(256 bytes\)"  # of 64 numbers


@dataclass(frozen=True)
class Bug:
    """What is reported, and what the mended kernel returns."""

    problem: str  # a regular expression
    thread: str = "[0-9]+,0,0"  # those that may come upon it first
    block: str = "0,0,0"
    racecheck: bool = False  # found by the race detector alone
    mended: tuple = tuple(IN)


BUGS = {
    "store_past_end": Bug(f"writes 4 bytes at {HEX}, 0 bytes past the end of {MALLOC}", "63,0,0"),
    "load_past_end": Bug(f"reads 4 bytes at {HEX}, 0 bytes past the end of {MALLOC}", "63,0,0"),
    "load_before_start": Bug(f"reads 4 bytes at {HEX}, 4 bytes before {MALLOC}", "0,0,0"),
    "local_of_another": Bug(f"reads 4 bytes at {HEX}, which is no memory", mended=(IN[0],) * 64),
    "atomic_past_end": Bug(
        f"(reads|writes) 4 bytes at {HEX}, 0 bytes past the end of {MALLOC}", "63,0,0"
    ),
    "memcpy": Bug(f"reads 256 bytes at {HEX}, across the end of {MALLOC}", "0,0,0"),
    "memset": Bug(
        f"writes 256 bytes at {HEX}, 4 bytes before {MALLOC}",
        "0,0,0",
        mended=(0x01010101 * IN[0],) * 64,
    ),
    "large_copy": Bug(f"reads 256 bytes at {HEX}, across the end of {MALLOC}", "0,0,0"),
    "misaligned": Bug(f"misaligned: {HEX} for 'const struct float4', whose alignment is 16"),
    "misaligned_long": Bug(f"misaligned: {HEX} for 'const struct Fours', whose alignment is 16"),
    "unwritten_shared": Bug(
        "reads 4 bytes of shared memory that no thread of the block has written",
        "23,0,0",
        mended=tuple(IN[::-1]),
    ),
    "static_past_end": Bug("index 64 is outside its array", "63,0,0"),
    "shared_past_end": Bug(r"writes 4 bytes .*dynamic shared memory.*256", "63,0,0"),
    "shuffle_lane": Bug(
        "__shfl_sync from lane 32: expected 0 to 31",
        "(31|63),0,0",
        mended=tuple(IN[1:32] + IN[:1] + IN[33:] + IN[32:33]),
    ),
    "shuffle_outside_mask": Bug(
        "__shfl_sync from lane 16, which does not take part .*mask 0xffff",
        mended=(IN[16],) * 32 + (IN[48],) * 32,
    ),
    "shuffle_not_in_mask": Bug(
        "__shfl_sync by lane 0, which is not in its own mask 0xfffffffe",
        "(0|32),0,0",
        mended=(IN[1],) * 32 + (IN[33],) * 32,
    ),
    "different_calls": Bug(
        "lanes of a warp meet in different calls: .*__(shfl|any)_sync .*__(shfl|any)_sync",
        mended=(IN[0],) * 32 + (IN[32],) * 32,
    ),
    "divergent_barrier": Bug(
        r"barrier divergence: (?=.*threads 0-15 wait at __syncthreads \()"
        "(?=.*threads 16-31 have returned)",
        "",
        mended=tuple(IN[:32] + ZEROS[:32]),
    ),
    "divergent_warp": Bug(
        r"barrier divergence: (?=.*threads 5 wait at __syncthreads \()"
        r"(?=.*threads 0-4, 6-31 wait at __syncwarp \()",
        "",
        mended=tuple(IN[:32] + ZEROS[:32]),
    ),
    "grid_sync": Bug("grid sync in a grid that was not launched cooperatively"),
    "different_barriers": Bug("barrier divergence: __syncthreads(_or)? .*__syncthreads(_or)? "),
    "endless_spin": Bug("no thread gets further"),
    "missing_barrier": Bug(
        f"race: (reads|writes) 4 bytes of shared memory at {HEX}, which thread .*nothing orders",
        racecheck=True,
        mended=tuple(IN[::-1]),
    ),
    "missing_syncwarp": Bug(
        f"race: (reads|writes) 4 bytes of shared memory at {HEX}, which thread .*nothing orders",
        racecheck=True,
        mended=tuple(IN[i ^ 1] for i in range(64)),
    ),
    "racy_histogram": Bug(
        f"race: (reads|writes) 4 bytes of shared memory at {HEX}, which thread .*nothing orders",
        racecheck=True,
        mended=(16, 16, 16, 16, *ZEROS[4:]),
    ),
    "racy_blocks": Bug(
        f"race: (reads|writes) 4 bytes of global memory at {HEX}, "
        r"which thread \(0,0,0\) of block .*nothing orders",
        "0,0,0",
        "[01],0,0",
        racecheck=True,
        mended=(IN[0] + IN[1], *ZEROS[1:]),
    ),
    "missing_fence": Bug(
        f"race: reads 4 bytes of global memory at {HEX}, "
        r"which thread \(0,0,0\) of block [0-3] wrote at .*nothing orders",
        "0,0,0",
        "[0-3],0,0",
        racecheck=True,
        mended=(sum(IN), *(sum(IN[i : i + 16]) for i in (0, 16, 32, 48)), *ZEROS[5:63], 4),
    ),
}
RACES = [name for name, bug in BUGS.items() if bug.racecheck]


def place_of(name, file="planted.cu"):
    """Return a pattern for the line that carries the bug's comment."""
    lines = (KERNELS / file).read_text().splitlines()
    (number,) = (i for i, line in enumerate(lines, 1) if line.endswith(f"// BUG: {name}"))
    return rf"\b{file}:{number}\b"


def report_of(function, *arguments):
    """Return the error of a call, which must be one line."""
    with pytest.raises(RuntimeError) as caught:
        function(*arguments)
    report = str(caught.value)
    assert "\n" not in report
    return report


def test_all_planted_bugs_are_tested(kernels):
    assert sorted(BUGS) == sorted(kernels.planted())


def check_report(name, report):
    bug = BUGS[name]
    thread = rf" thread \({bug.thread}\)" if bug.thread else ""
    assert re.match(rf"simt: {name}_kernel: block \({bug.block}\){thread}: {bug.problem}", report)
    assert re.search(place_of(name), report)


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_found(kernels, monkeypatch, name):
    call = functools.partial(report_of, kernels.run_planted, name, False, IN)
    for report in under_each_seed(monkeypatch, call, racecheck=BUGS[name].racecheck):
        check_report(name, report)


# What is behind the bug in the stream is dropped: nobody is left to be told.
@pytest.mark.parametrize("name", ["store_past_end", "divergent_barrier", "different_calls"])
def test_bug_in_a_stream_is_told_to_who_waits_for_it(kernels, name):
    check_report(name, report_of(kernels.run_planted, name, False, IN, True))
    assert kernels.run_planted(name, True, IN, True) == list(BUGS[name].mended)


@pytest.mark.parametrize("name", BUGS)
def test_mended_kernel_passes(kernels, monkeypatch, name):
    results = under_each_seed(monkeypatch, kernels.run_planted, name, True, IN, racecheck=True)
    assert all(result == list(BUGS[name].mended) for result in results)


# A check that always runs would make the plain tests slow.
@pytest.mark.parametrize("name", RACES)
def test_races_are_looked_for_on_request(kernels, monkeypatch, name):
    under_each_seed(monkeypatch, kernels.run_planted, name, False, IN)  # raises nothing


@pytest.mark.parametrize("name", ["missing_barrier", "missing_syncwarp"])
def test_schedules_show_a_race(kernels, monkeypatch, name):
    results = under_each_seed(monkeypatch, kernels.run_planted, name, False, IN)
    assert any(result != list(BUGS[name].mended) for result in results)


def test_executor_is_usable_after_a_bug(kernels):
    report_of(kernels.run_planted, "divergent_barrier", False, IN)
    assert kernels.run_planted("missing_barrier", True, IN) == IN[::-1]


def test_use_after_free_is_found(kernels, monkeypatch):
    reports = under_each_seed(monkeypatch, report_of, kernels.use_after_free, False, IN)
    for report in reports:
        assert re.match(
            r"simt: copy_kernel: block \(0,0,0\) thread \(\d+,0,0\): "
            rf"reads 4 bytes at {HEX}, inside freed {MALLOC}.*, "
            rf"at {place_of('use_after_free', 'planted_host.cu')}$",
            report,
        )
    assert kernels.use_after_free(True, IN) == IN


# Memory that was freed long ago is used again: what is beside it now counts.
def test_bounds_are_those_of_live_memory(kernels):
    for i in range(4_000):
        kernels.copy_to_device(0, 97 * i % 5000)
    for _ in range(8):
        check_report("store_past_end", report_of(kernels.run_planted, "store_past_end", False, IN))


def test_missing_event_shows(kernels, monkeypatch):
    ordered = [2 * (x + 1) for x in IN]
    unordered = [2 * x + 1 for x in IN]
    results = under_each_seed(monkeypatch, kernels.missing_event, False, IN)
    assert ordered in results
    assert unordered in results
    assert results == under_each_seed(monkeypatch, kernels.missing_event, False, IN)
    mended = under_each_seed(monkeypatch, kernels.missing_event, True, IN, racecheck=True)
    assert all(result == ordered for result in mended)


# Each launch with its neighbour that is still allowed. The device has 4 multiprocessors of 2048
# threads, and the limits of compute capability 9.0.
ONE = (1, 1, 1)
KIB = 1024


@pytest.mark.parametrize(
    ("refused", "allowed", "error"),
    [
        ((ONE, (1025, 1, 1)), (ONE, (1024, 1, 1)), "cudaErrorInvalidConfiguration"),
        ((ONE, (32, 33, 1)), (ONE, (32, 32, 1)), "cudaErrorInvalidConfiguration"),
        ((ONE, (1, 1, 65)), (ONE, (1, 1, 64)), "cudaErrorInvalidConfiguration"),
        ((ONE, (32, 0, 1)), (ONE, (32, 1, 1)), "cudaErrorInvalidConfiguration"),
        (((1, 0, 1), ONE), (ONE, ONE), "cudaErrorInvalidConfiguration"),
        (((1, 65536, 1), ONE), ((1, 65535, 1), ONE), "cudaErrorInvalidConfiguration"),
        ((ONE, ONE, 227 * KIB + 1), (ONE, ONE, 227 * KIB), "cudaErrorInvalidValue"),
        (
            ((9, 1, 1), (1024, 1, 1), 0, True),
            ((8, 1, 1), (1024, 1, 1), 0, True),
            "cudaErrorCooperativeLaunchTooLarge",
        ),
        (
            ((5, 1, 1), ONE, 200 * KIB, True),
            ((4, 1, 1), ONE, 200 * KIB, True),
            "cudaErrorCooperativeLaunchTooLarge",
        ),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_launch_too_large_is_refused(kernels, refused, allowed, error):
    assert error in report_of(kernels.launch_empty, *refused)
    kernels.launch_empty(*allowed)  # nothing is left of the error


def test_copy_too_large_is_refused(kernels):
    assert "cudaErrorInvalidValue" in report_of(kernels.copy_to_device, 257, 256)
    kernels.copy_to_device(256, 256)
