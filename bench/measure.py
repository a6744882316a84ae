# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks measure: time, and beside each time that of a copy and of our own call.

A machine that others use too is faster in one second than in the next. So nothing is compared with
what was measured at another time: before each round the copy is timed, and ours where a rival is,
and what is reported are medians over rounds of the ratios within each.
"""

import gc
import math
import re
import statistics
import time
from functools import cache
from pathlib import Path

import torch

# Time for the rounds of a benchmark, with all that is timed in them, and how many there are.
SECONDS = {"quick": {"cpu": 0.5, "cuda": 0.3}, "full": {"cpu": 5, "cuda": 2}}
ROUNDS = {"quick": (3, 25), "full": (7, 50)}
LONG = 0.05  # seconds of a call, from which on it matters little what is in the caches
WARM_SECONDS, WARM_CALLS = 0.15, (5, 25)  # the same for calls right after each other
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}  # no cache of the machines in question holds it
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU in question
MOST_FLUSHES = 100  # about 10 ms, and far from the number of launches that a GPU queues


def measure(benchmark, device, work, base=None, grid="quick"):
    """Return the times of a call, of a copy and of `base`, a call to compare with, beside it.

    Both have been called before: what they make once and keep is there.

    median_ms, its quartiles and min_ms are time on the GPU where there is one; wall_ms is the time
    from the call until the GPU is idle again: launches and waiting are in it. No call finds what it
    reads in a GPU's L2, or in the caches next to a CPU's core: the copy was there before. warm_ms
    is of calls right after each other on a CPU; None for those too long for caches to matter.
    """
    extra, seconds = extra_memory(device, work)
    gc.collect()
    warm_up(device)
    copy = copy_of(device)
    beside = {"copy": clock(device, copy)}
    if base is not None:
        beside["base"] = clock(device, base)
    if device.type == "cuda":
        beside["work"] = clock(device, work)
    flush = Flush(device)
    a_round = seconds + sum(seconds_of() for seconds_of in beside.values())
    rounds = how_many(SECONDS[grid][device.type] / a_round, *ROUNDS[grid])
    seen = []

    def before():
        seen.append({name: seconds_of() for name, seconds_of in beside.items()})
        flush()
        synchronize(device)

    def call():
        work()
        synchronize(device)

    benchmark.pedantic(call, setup=before, rounds=rounds, warmup_rounds=int(seconds < LONG))
    wall = benchmark.stats.stats.data
    seen = seen[-rounds:]
    warm = None
    if device.type == "cpu" and seconds < LONG:
        warm = wall_seconds(device, work, how_many(WARM_SECONDS / seconds, *WARM_CALLS))
    times = [beside["work"] for beside in seen] if device.type == "cuda" else wall
    q1, median, q3 = quartiles(times)
    found = {
        "rounds": rounds,
        "median_ms": 1e3 * median,
        "q1_ms": 1e3 * q1,
        "q3_ms": 1e3 * q3,
        "min_ms": 1e3 * min(times),
        "wall_ms": 1e3 * statistics.median(wall),
        "warm_ms": 1e3 * statistics.median(warm) if warm else None,
        "extra_memory": extra,
        "copy_GBps": 2 * copy.nbytes / statistics.median(s["copy"] for s in seen) / 1e9,
        # Bytes of a copy that take as long, as a median over rounds.
        "copied_meanwhile": 2 * copy.nbytes * statistics.median(
            t / s["copy"] for t, s in zip(times, seen, strict=True)
        ),
    }  # fmt: skip
    if base is not None:
        q1, median, q3 = quartiles([t / s["base"] for t, s in zip(times, seen, strict=True)])
        found |= {"times_ours": median, "times_ours_q1": q1, "times_ours_q3": q3}
    return found


def how_many(affordable, fewest, most):
    """Return a whole number within limits."""
    return round(min(max(affordable, fewest), most))


def quartiles(values):
    """Return the first quartile, the median and the third."""
    return statistics.quantiles(values, n=4, method="inclusive")


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def copy_of(device):
    """Return the copy of a device: its memory is kept, as making it takes longer than copying."""
    return Copy(device)


class Copy:
    """A copy by torch, of bytes that no cache holds."""

    def __init__(self, device):
        self.nbytes = COPY_BYTES[device.type]
        self.source = torch.arange(self.nbytes // 4, dtype=torch.float32, device=device)
        self.target = torch.empty_like(self.source)
        self()

    def __call__(self):
        self.target.copy_(self.source)


def wall_seconds(device, call, rounds):
    """Return how long a call takes on the host, each time it is made."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return times


def clock(device, call):
    """Return a function that makes the call and says how many seconds it took.

    On a GPU those that it kept the GPU busy, by events, the L2 cold. Before each call the GPU is
    given flushes enough to last until the host has launched all of it, so that between the events
    it waits for no launch, up to MOST_FLUSHES. A pair of events around nothing is a few
    microseconds, which are in the result.
    """
    if device.type != "cuda":
        return lambda: wall_seconds(device, call, 1)[0]
    flush = Flush(device)
    flush()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def between(work):
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    one_flush = between(flush)
    synchronize(device)
    began = time.perf_counter()
    call()
    launching = time.perf_counter() - began
    synchronize(device)
    flushes = min(1 + math.ceil(launching / one_flush), MOST_FLUSHES)

    def timed():
        for _ in range(flushes):
            flush()
        return between(call)

    return timed


class Flush:
    """Empties a GPU's L2 by writing to more memory than it holds; on a CPU it does nothing."""

    def __init__(self, device):
        nbytes = FLUSH_BYTES if device.type == "cuda" else 0
        self.scratch = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def __call__(self):
        self.scratch.zero_()  # queued, not waited for


def warm_up(device, seconds=0.2):
    """Keep a GPU busy until its clocks have risen from where they idle; a CPU is busy anyway."""
    flush = Flush(device)
    end = time.perf_counter() + seconds * (device.type == "cuda")
    while time.perf_counter() < end:
        flush()
        synchronize(device)


def extra_memory(device, run):
    """Return by how many bytes memory in use peaks above its level before, and the seconds it took.

    None for the bytes where the system cannot tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        (seconds,) = wall_seconds(device, run, 1)
        return torch.cuda.max_memory_allocated(device) - before, seconds
    status = Path("/proc/self/status")

    def kilobytes(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text()).group(1))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is the level of now
        before = kilobytes("VmRSS")
    except OSError:
        before = None
    (seconds,) = wall_seconds(device, run, 1)
    return None if before is None else max(0, kilobytes("VmHWM") - before) * 1024, seconds
