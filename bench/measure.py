# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks measure beside wall time: time on the GPU, copy bandwidth, and memory."""

import gc
import math
import re
import statistics
import time
from pathlib import Path

import torch

# Time for each implementation, but at least 5 calls and at most 50. On a GPU it is spent twice.
SECONDS = {"cpu": 3, "cuda": 1}
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU in question
MOST_FLUSHES = 100  # about 10 ms, and far from the number of launches that a GPU queues


def measure(benchmark, device, work):
    """Return times of a call, the copy bandwidth just before them, and the memory it takes.

    median_ms and min_ms are time on the GPU where there is one. wall_ms is the time from the call
    until the GPU is idle again: launches and waiting are in it. Both find the L2 cold.
    """

    def call():
        work()
        synchronize(device)

    def cool():
        flush()
        synchronize(device)

    call()
    (seconds,) = wall_seconds(device, call, 1)
    rounds = round(min(max(SECONDS[device.type] / seconds, 5), 50))
    gc.collect()
    extra = extra_memory(device, call)
    warm_up(device)
    copy = copy_bandwidth(device)
    flush = Flush(device)
    benchmark.pedantic(call, setup=cool, rounds=rounds, warmup_rounds=3, iterations=1)
    wall = benchmark.stats.stats.data
    times = gpu_seconds(device, work, rounds) if device.type == "cuda" else wall
    return {
        "median_ms": 1e3 * statistics.median(times),
        "min_ms": 1e3 * min(times),
        "wall_ms": 1e3 * statistics.median(wall),
        "copy_GBps": copy / 1e9,
        "extra_memory": extra,
    }


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device, rounds=9):
    """Return the bytes per second, read and written, of a torch copy: the median.

    Of 128 MiB on a CPU and 1 GiB on a GPU, which no cache of the machines in question holds.
    """
    nbytes = (1024 if device.type == "cuda" else 128) << 20
    source = torch.arange(nbytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)

    def copy():
        target.copy_(source)

    copy()
    seconds = gpu_seconds if device.type == "cuda" else wall_seconds
    return 2 * nbytes / statistics.median(seconds(device, copy, rounds))


def wall_seconds(device, call, rounds):
    """Return how long a call takes on the host, each time it is made."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


class Flush:
    """Empties a GPU's L2 by writing to more memory than it holds; on a CPU it does nothing."""

    def __init__(self, device):
        nbytes = FLUSH_BYTES if device.type == "cuda" else 0
        self.scratch = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def __call__(self):
        self.scratch.zero_()  # queued, not waited for


def gpu_seconds(device, call, rounds):
    """Return how long a call keeps the GPU busy, each time it is made: by events, the L2 cold.

    Before each call the GPU is given flushes enough to last until the host has launched all of it,
    so that between the events it waits for no launch, up to MOST_FLUSHES. A pair of events around
    nothing is a few microseconds, which are in the result.
    """
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
    (launching,) = wall_seconds(device, call, 1)
    synchronize(device)
    flushes = min(1 + math.ceil(launching / one_flush), MOST_FLUSHES)
    times = []
    for _ in range(rounds):
        for _ in range(flushes):
            flush()
        times.append(between(call))
    return times


def warm_up(device, seconds=0.2):
    """Keep a GPU busy until its clocks have risen from where they idle; a CPU is busy anyway."""
    flush = Flush(device)
    end = time.perf_counter() + seconds * (device.type == "cuda")
    while time.perf_counter() < end:
        flush()
        synchronize(device)


def extra_memory(device, run):
    """Return by how many bytes memory in use peaks above its level before, while `run` runs.

    None where the system cannot tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    status = Path("/proc/self/status")
    reset_peak = Path("/proc/self/clear_refs")
    if not status.exists():
        return None

    def kilobytes(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read_text()).group(1))

    try:
        reset_peak.write_text("5")
    except OSError:
        return None
    before = kilobytes("VmRSS")
    run()
    return max(0, kilobytes("VmHWM") - before) * 1024
