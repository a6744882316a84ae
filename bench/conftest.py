# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How every benchmark is run: on what, by which of ours, and the row that comes out of it."""

from pathlib import Path

import pytest
import torch
from counting import count
from measure import measure
from shapes import DTYPES, GRID

import largebatch
from largebatch.cli.bench import collect, results, tables

OURS = "largebatch"


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.addoption("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.addoption("--grid", choices=("quick", "full"), default="quick")
    parser.addoption("--results", type=Path, help="write rows to this file as they come")


def pytest_generate_tests(metafunc):
    """Give the names of the grid their values, and run ours on every backend in the full one."""
    kind = torch.device(metafunc.config.getoption("device")).type
    full = metafunc.config.getoption("grid") == "full"
    for name, (quick, more) in {**GRID[kind], "dtype": DTYPES}.items():
        if name in metafunc.fixturenames:
            values = quick + more if full else quick
            metafunc.parametrize(name, values, ids=[getattr(v, "name", v) for v in values])
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(kind) if full else _backends(kind)[:1])


def _backends(kind):
    if kind == "cuda":
        return ["cuda"]
    best = largebatch._C.cpu_isa()
    return [f"cpu-{best}", *(f"cpu-{isa}" for isa in largebatch._C.cpu_isas() if isa != best)]


def pytest_collection_modifyitems(config, items):
    """Leave out what would be measured twice: only ours differs by backend, and that in fp32."""
    best = _backends(torch.device(config.getoption("device")).type)[0]

    def wanted(item):
        given = getattr(item, "callspec", None)
        if given is None or given.params.get("backend", best) == best:
            return True
        return given.params["implementation"] == OURS and given.params.get("dtype") != "bfloat16"

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = filter(wanted, items)


@pytest.fixture
def device(request):
    torch.set_num_threads(request.config.getoption("threads"))
    return torch.device(request.config.getoption("device"))


@pytest.fixture
def on_backend(backend, device):
    """Let ours run by this backend."""
    before = largebatch._C.cpu_isa()
    if device.type == "cpu":
        largebatch._C.set_cpu_isa(backend.removeprefix("cpu-"))
    yield backend
    largebatch._C.set_cpu_isa(before)


@pytest.fixture
def bench_op(request, benchmark, device, on_backend):
    """Time one entry of a family on the tensors of a case, and ours beside it."""
    grid = request.config.getoption("grid")

    def prepare(entry, case):
        torch.manual_seed(0)
        return entry.make([0.02 * torch.randn(shape, device=device) for shape in case.shapes])

    def run(operation, case, family, implementation, dtype="float32", prepare=prepare):
        entry = family[implementation]
        try:
            work = prepare(entry, case)
        except ImportError as error:
            pytest.skip(str(error))
        benchmark.group = f"{request.node.path.stem} {operation} {case.name} {dtype}"
        if benchmark.disabled:  # then all that is asked is whether it runs
            benchmark.pedantic(work)
            return
        launches, by_arguments = count(device, work)
        compared = implementation != OURS and OURS in family
        base = prepare(family[OURS], case) if compared else None
        if base is not None:
            base()
        found = measure(benchmark, device, work, base, grid)
        nbytes = entry.bytes(getattr(torch, dtype)) if callable(entry.bytes) else entry.bytes
        stated = nbytes is not None
        if stated:
            nbytes *= case.numel
        elif entry.role != "ours":  # what our extension moves is no argument of torch's
            nbytes = by_arguments
        meanwhile = found.pop("copied_meanwhile")
        itself = implementation == OURS
        row = {
            "family": request.node.path.stem.removeprefix("bench_"),
            "operation": operation,
            "case": case.name,
            "dtype": dtype,
            "implementation": implementation,
            "role": entry.role,
            "backend": on_backend if entry.role == "ours" else None,
            "device": results.device_name(device),
            "threads": torch.get_num_threads(),
            "tensors": len(case.shapes),
            "elements": case.numel,
            **{f"times_ours{part}": 1.0 if itself else None for part in ("", "_q1", "_q3")},
            **found,
            "bytes": nbytes,
            "bytes_from": "formula" if stated else nbytes and "arguments",
            "GBps": nbytes and nbytes / found["median_ms"] / 1e6,
            "percent_of_copy": nbytes and 100 * nbytes / meanwhile,
            "launches": launches,
        }
        benchmark.extra_info.update(row)
        request.node.user_properties.append(("row", row))

    return run


def normal(shapes, device, dtype):
    """Return tensors of normal numbers. There are a million different ones: more take too long."""
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    made = []
    for shape in shapes:
        tensor = torch.empty(shape, device=device, dtype=dtype)
        for part in tensor.view(-1).split(len(numbers)):
            part.copy_(numbers[: len(part)])
        made.append(tensor)
    return made


@pytest.fixture
def bench_optimizer(bench_op, device):
    """Time the steps of an optimizer over a model's parameters, and those of ours beside it."""

    def run(model, dtype, family, implementation):
        def prepare(entry, case):
            weights, grads = (normal(case.shapes, device, getattr(torch, dtype)) for _ in range(2))
            params = [torch.nn.Parameter(weight.mul_(0.02)) for weight in weights]
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad.mul_(1e-3)
            optimizer = entry.make(params)
            optimizer.step()  # state and plans are made: what is left is what every step takes
            return optimizer.step

        bench_op("step", model, family, implementation, dtype, prepare)

    return run


# ---- Results -------------------------------------------------------------------------------------


class Shown(collect.Collector):
    """For a run of pytest itself: the tables come last."""

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self):
        if self.found.rows:
            tables.show(self.found)


def pytest_configure(config):
    config.option.benchmark_quiet = True  # the tables say it in a form one can read


def pytest_runtestloop(session):
    """Keep the results, unless `largebatch bench` runs this and does."""
    config = session.config
    if config.option.collectonly or config.pluginmanager.hasplugin(collect.Collector.__name__):
        return
    device, threads = torch.device(config.getoption("device")), config.getoption("threads")
    found = results.Results(
        machine=results.describe(device, threads, config.rootpath),
        settings={"grid": config.getoption("grid"), "select": config.getoption("keyword")},
    )
    config.pluginmanager.register(
        Shown(found, config.getoption("results")), collect.Collector.__name__
    )
