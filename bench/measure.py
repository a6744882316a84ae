# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks measure beside time: the copy bandwidth of the moment, and memory."""

import re
import statistics
import time
from pathlib import Path

import torch


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device, nbytes=128 << 20, rounds=9):
    """Return the bytes per second, read and written, of a torch copy: the median.

    Of 128 MiB, which no cache of the machines in question holds.
    """
    source = torch.ones(nbytes // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * nbytes / statistics.median(times[2:])


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
