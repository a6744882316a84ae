# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark is run, and the table at the end."""

import pytest
import torch
from measure import measure
from rich.console import Console
from rich.table import Table
from shapes import SHAPES, numel

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

    def run(family, implementation, shapes, prepare, bytes_per_param=None, models=SHAPES):
        torch.manual_seed(0)
        tensors = [0.02 * torch.randn(shape, device=device) for shape in models[shapes]]
        elements = numel(models[shapes])
        try:
            work = prepare(tensors)
        except ImportError as error:
            pytest.skip(str(error))
        benchmark.group = f"{family} {shapes}"
        if benchmark.disabled:  # then all that is asked is whether it runs
            benchmark.pedantic(work)
            return
        times = measure(benchmark, device, work)
        row = {
            "family": family,
            "shapes": shapes,
            "tensors": len(tensors),
            "implementation": implementation,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            **times,
        }
        extra = row.pop("extra_memory")
        row["extra_memory_percent"] = None if extra is None else 100 * extra / (4 * elements)
        if bytes_per_param is not None:
            row["bytes_per_param"] = bytes_per_param
            row["bytes"] = bytes_per_param * elements
            row["GBps"] = row["bytes"] / row["median_ms"] / 1e6
            row["percent_of_copy"] = 100 * row["GBps"] / row["copy_GBps"]
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
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    on_gpu = rows[0]["device"] != "cpu"
    digits = 4 if on_gpu else 2  # of milliseconds
    where = " on the GPU, L2 cold; wall: from the call until the GPU is idle" if on_gpu else ""
    table = Table(title=f"medians{where}; ratios to ours, and to a copy measured just before each")
    numbers = ("ms", "wall ms", "times ours", "B/param", "GB/s", "% of copy", "extra")
    for name in ("model", "call", *(n for n in numbers if on_gpu or n != "wall ms")):
        table.add_column(name, justify="right" if name in numbers else "left")
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
            f"{row['median_ms']:.{digits}f}",
            *([f"{row['wall_ms']:.{digits}f}"] if on_gpu else []),
            f"{row['median_ms'] / base:.2f}" if base else "",
            str(row.get("bytes_per_param", "")),
            f"{row['GBps']:.1f}" if "GBps" in row else "",
            f"{row['percent_of_copy']:.0f}" if "GBps" in row else "",
            "" if extra is None else f"{extra:.1f} %",
        )
    Console(width=110).print(table)
