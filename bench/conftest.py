# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark is run, and the table at the end."""

import gc
import time

import pytest
import torch
from measure import copy_bandwidth, extra_memory, synchronize
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, numel

SECONDS = 3  # for each implementation, but at least 5 steps and at most 50
_ROWS = pytest.StashKey[list]()


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")


@pytest.fixture
def device(request):
    torch.set_num_threads(request.config.getoption("threads"))
    return torch.device(request.config.getoption("device"))


@pytest.fixture
def bench_model(benchmark, device, request):
    """Time a call over the tensors of a model; note bytes and memory."""

    def run(family, implementation, shapes, prepare, bytes_per_param=None):
        torch.manual_seed(0)
        tensors = [0.02 * torch.randn(shape, device=device) for shape in SHAPES[shapes]]
        try:
            work = prepare(tensors)
        except ImportError as error:
            pytest.skip(str(error))

        def call():
            work()
            synchronize(device)

        call()
        start = time.perf_counter()
        call()
        rounds = round(min(max(SECONDS / (time.perf_counter() - start), 5), 50))
        gc.collect()
        extra = extra_memory(device, call)
        copy = copy_bandwidth(device)
        benchmark.group = f"{family} {shapes}"
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=3, iterations=1)
        row = {
            "family": family,
            "shapes": shapes,
            "tensors": len(tensors),
            "implementation": implementation,
            "copy_GBps": copy / 1e9,
            "extra_memory_percent": None if extra is None else 100 * extra / (4 * numel(shapes)),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        }
        if benchmark.stats is not None:  # None under --benchmark-disable
            row["median_ms"] = 1e3 * benchmark.stats.stats.median
            row["min_ms"] = 1e3 * benchmark.stats.stats.min
            if bytes_per_param is not None:
                speed = bytes_per_param * numel(shapes) / benchmark.stats.stats.median
                row["bytes_per_param"] = bytes_per_param
                row["GBps"] = speed / 1e9
                row["percent_of_copy"] = 100 * speed / copy
        benchmark.extra_info.update(row)
        request.config.stash.setdefault(_ROWS, []).append(row)

    return run


@pytest.fixture
def bench_optimizer(bench_model):
    """Time the steps of an optimizer over a model's shapes."""

    def run(family, implementation, shapes, make, bytes_per_param=None):
        def prepare(tensors):
            params = [torch.nn.Parameter(tensor) for tensor in tensors]
            for p in params:
                p.grad = 1e-3 * torch.randn_like(p)
            return make(params).step

        bench_model(family, implementation, shapes, prepare, bytes_per_param)

    return run


def pytest_configure(config):
    config.option.benchmark_quiet = True  # the table below says it in a form one can read


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(config):
    rows = [row for row in config.stash.get(_ROWS, []) if "median_ms" in row]
    if not rows:
        return
    table = Table(title="medians; ratios to ours, and to a copy measured just before each")
    for name in ("model", "call", "ms", "times ours", "B/param", "GB/s", "% of copy", "extra"):
        table.add_column(name, justify="left" if name in ("model", "call") else "right")
    ours = {
        (row["family"], row["shapes"]): row["median_ms"]
        for row in rows
        if row["implementation"] == "largebatch"
    }
    for row in rows:
        base = ours.get((row["family"], row["shapes"]))
        extra = row["extra_memory_percent"]
        table.add_row(
            f"{row['shapes']} ({row['tensors']})",
            f"{row['family']}: {row['implementation']}",
            f"{row['median_ms']:.2f}",
            f"{row['median_ms'] / base:.2f}" if base else "",
            str(row.get("bytes_per_param", "")),
            f"{row['GBps']:.1f}" if "GBps" in row else "",
            f"{row['percent_of_copy']:.0f}" if "GBps" in row else "",
            "" if extra is None else f"{extra:.1f} %",
        )
    Console(width=110).print(table)
