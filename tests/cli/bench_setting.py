# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Results as a run gives them, and a small suite of benchmarks that only says numbers."""

import copy
import json
import sys
from pathlib import Path

import pytest

from largebatch.cli.bench.results import Results

COPY = 20.0  # GB/s
MACHINE = {
    "device": "Example CPU 9000 @ 2.1 GHz",
    "backend": "cpu-avx512",
    "threads": 2,
    "cores": 8,
    "torch": "2.13.0",
    "largebatch": "0.1.0",
    "python": "3.11.2",
    "cuda": None,
    "driver": None,
    "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
    "date": "2026-11-26T12:00:00+00:00",
    "copy_GBps": COPY,
}
MODELS = (("bert-35m", 33_900_000, 77), ("tiny-5000", 1_757_000, 5000))
# implementation, role, bytes and nanoseconds for each element, launches
OPTIMIZERS = {
    "lamb": (
        ("largebatch", "ours", 36, 2.0, 1),
        ("timm", "peer", 120, 6.9, 40),
        ("pytorch_optimizer", "peer", 140, 8.4, 44),
        ("torch AdamW fused", "floor", 28, 1.55, 1),
    ),
    "lion": (
        ("largebatch", "ours", 20, 1.08, 1),
        ("largebatch, int8 momentum", "ours", 14.1, 0.95, 1),
        ("timm", "peer", 52, 3.0, 9),
        ("lion-pytorch Triton", "peer", 20, 1.0, 1),
        ("torch SGD fused", "floor", 20, 1.06, 1),
    ),
}
OPERATIONS = (
    ("wire", "pack int8", (("largebatch", "ours", 5, 0.31, 1), ("torch", "peer", 34, 2.2, 6))),
    ("wire", "mean of 4 sign", (("largebatch", "ours", 4.5, 0.27, 1),)),
    ("topk", "top 0.1%", (("largebatch", "ours", 4, 0.26, 1), ("torch", "peer", None, 6.0, 1))),
    ("ulysses", "q, k, v to heads", (("largebatch", "ours", 4, 0.17, 1),
                                     ("torch, chunks", "peer", 8, 0.45, 12))),
)  # fmt: skip


def row(family, operation, case, dtype, elements, tensors, entries, number):
    """Return the row of an entry: in bf16 all move less, and many tensors cost others more."""
    implementation, role, bytes_each, _, launches = entries[number]
    part = 0.6 if dtype == "bfloat16" else 1.0

    def seconds_of(entry):
        return (
            part * entry[3] * elements / 1e9 * (3 if tensors > 1000 and entry[1] == "peer" else 1)
        )

    seconds = seconds_of(entries[number])
    times = seconds / seconds_of(entries[0])
    ours = implementation == "largebatch"
    nbytes = None if bytes_each is None else round(part * bytes_each * elements)
    return {
        "family": family,
        "operation": operation,
        "case": case,
        "dtype": dtype,
        "implementation": implementation,
        "role": role,
        "backend": "cpu-avx512" if role == "ours" else None,
        "device": MACHINE["device"],
        "threads": 2,
        "tensors": tensors,
        "elements": elements,
        "rounds": 20,
        "median_ms": 1e3 * seconds,
        "q1_ms": 0.98e3 * seconds,
        "q3_ms": 1.03e3 * seconds,
        "min_ms": 0.96e3 * seconds,
        "wall_ms": 1e3 * seconds,
        "warm_ms": 800 * seconds,
        "bytes": nbytes,
        "bytes_from": nbytes and ("formula" if role != "peer" else "arguments"),
        "GBps": nbytes and nbytes / seconds / 1e9,
        "copy_GBps": COPY,
        "percent_of_copy": nbytes and 100 * nbytes / seconds / 1e9 / COPY,
        "times_ours": 1.0 if ours else times,
        "times_ours_q1": 1.0 if ours else 0.9 * times,
        "times_ours_q3": 1.0 if ours else 1.15 * times,
        "launches": launches,
        "extra_memory": 0 if role != "peer" else 4 * elements,
    }


def slower(row, times):
    """Return what changes in a row if the call takes this many times as long."""
    longer = {name: times * row[name] for name in row if name.endswith("_ms")}
    return {**longer, **{name: row[name] / times for name in ("GBps", "percent_of_copy")}}


def make():
    """Return results with wins, a loss, floors, variants, rows without bytes, and problems."""
    rows = []
    for family, entries in OPTIMIZERS.items():
        for case, elements, tensors in MODELS:
            for dtype in ("float32", "bfloat16"):
                given = (family, "step", case, dtype, elements, tensors, entries)
                rows += [row(*given, number) for number in range(len(entries))]
    for family, operation, entries in OPERATIONS:
        given = (family, operation, "2^25 elements", "float32", 2**25, 1, entries)
        rows += [row(*given, number) for number in range(len(entries))]
    rows.append({**rows[0], "backend": "cpu-base", **slower(rows[0], 1.6)})
    skipped = {"benchmark": "optim/bench_lamb.py::bench_lamb[apex]", "problem": "skipped: no apex"}
    failed = {"benchmark": "ops/bench_kron.py::bench_kron[a]", "problem": "MemoryError: 9 GB"}
    return Results(
        copy.deepcopy(MACHINE), {"grid": "quick", "select": None}, rows, [skipped, failed], True
    )


# ---- A suite that says these numbers at once -----------------------------------------------------

CONFTEST = """
import json
from pathlib import Path
import pytest

ROWS = json.loads((Path(__file__).parent / "rows.json").read_text())

def pytest_addoption(parser):
    parser.addoption("--device")
    parser.addoption("--threads", type=int)
    parser.addoption("--grid")

@pytest.fixture
def say(request):
    def say(family):
        option = request.config.getoption
        row = {**ROWS[family], "threads": option("threads"), "case": option("grid")}
        request.node.user_properties.append(("row", row))
    return say
"""
BENCHES = {
    "optim/bench_lamb.py": "def bench_lamb(say, benchmark):\n    say('lamb')\n",
    "ops/bench_wire.py": (
        "import sys\n\ndef bench_pack(say, benchmark):\n    say('wire')\n"
        "    print('said by a benchmark')\n    sys.stderr.write('and by its warnings')\n"
    ),
}


@pytest.fixture
def fake_suite(tmp_path, monkeypatch):
    """Return a function that writes a suite: files of benchmarks over those of BENCHES."""
    folder = tmp_path / "suite"

    def write(files=(), conftest=CONFTEST):
        for name, text in {**BENCHES, "conftest.py": conftest, **dict(files)}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        rows = {r["family"]: r for r in reversed(make().rows)}
        (folder / "rows.json").write_text(json.dumps(rows))
        return folder

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:  # the next suite has modules of the same names
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(Path(folder))):
            del sys.modules[name]
