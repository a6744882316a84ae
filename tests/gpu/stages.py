# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The stages, in the order in which they run. A new family joins by having tests and benches."""

import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .pytest_run import pytest_rows, telling_line
from .report import FAILED, OK, TIMED_OUT, Row
from .sanitizers import sanitizers

GRAPHS, CUPY = "tests/optim/test_graph.py", "tests/ops/test_cupy.py"
# Not the tests of what no GPU is needed for, and not those that have a stage of their own.
NOT_TESTS = ("tests/gpu", "tests/simt", GRAPHS, CUPY)


@dataclass(frozen=True)
class Stage:
    """A part of the run."""

    name: str
    share: float  # percent of the time that is kept for it; more if those before leave some
    rows: Callable  # of a session; yields rows
    needs_gpu: bool = False


def build(session):
    """Build in place, for this GPU, with what is installed."""
    offline = ("--no-build-isolation", "--no-deps", "--no-index")
    architectures = os.environ.get("LARGEBATCH_CUDA_ARCHITECTURES") or (
        "native" if session.backend == "cuda" else ""
    )
    done = session.run(
        *(sys.executable, "-m", "pip", "install", *offline, "-e", "."),
        env={"LARGEBATCH_CUDA_ARCHITECTURES": architectures},
    )
    if done.code != 0:
        status = TIMED_OUT if done.code is None else FAILED
        yield Row("build", "pip install -e .", status, telling_line(done))
        return
    yield Row(
        "build", "pip install -e .", OK, f"in {done.seconds:.0f} s", {"seconds": done.seconds}
    )
    yield _extension(session)


def _extension(session):
    ask = "import json, largebatch; print(json.dumps(largebatch.build_info()))"
    done = session.run(sys.executable, "-c", ask)
    if done.code != 0:
        status = TIMED_OUT if done.code is None else FAILED
        return Row("build", "import largebatch", status, done.last_line)
    info = json.loads(done.last_line)
    session.machine["extension"] = info
    cuda = info["cuda"]
    if session.backend == "cuda" and not cuda["available"]:
        return Row("build", "CUDA", FAILED, cuda["reason"])
    text = (
        f"compiled with {cuda['version']} for {cuda['architectures']}" if cuda["compiled"] else ""
    )
    return Row("build", "import largebatch", OK, text)


def tests(session):
    """Run every test with the backend in question."""
    ignored = [f"--ignore={path}" for path in NOT_TESTS]
    yield from pytest_rows(
        session, "tests", "tests", *ignored, "--backend", session.backend, "-m", "not huge"
    )


def graphs(session):
    """Capture steps in CUDA graphs and replay them with other learning rates."""
    yield from pytest_rows(session, "graphs", GRAPHS)


def cupy(session):
    """Give CuPy's arrays to the operations."""
    yield from pytest_rows(session, "cupy", CUPY)


def huge(session):
    """Step through a tensor of more than 2^31 elements."""
    yield from pytest_rows(
        session, "huge", "tests", "--backend", session.backend, "-m", "huge", select="not cpu"
    )


def benches(session):
    """Time everything on the GPU; on the CPU only see that it runs."""
    if session.backend != "cuda":
        yield from pytest_rows(
            session, "benches", "bench", "--device", "cpu", "--benchmark-disable", select="tiny"
        )
        return
    file = session.folder / "bench.json"
    yield from pytest_rows(session, "benches", "bench", "--device", "cuda", f"--results={file}")
    if not file.exists():
        return
    found = json.loads(file.read_text())
    if found["rows"]:
        session.machine["bench"] = found  # as `largebatch bench --json` writes it, and reads it
        copy = statistics.median(row["copy_GBps"] for row in found["rows"])
        session.machine["copy_GBps"] = copy
        yield Row("benches", "copy", OK, f"{copy:.4g} GB/s, read and written", {"GBps": copy})
        yield from bench_rows(found["rows"])


def bench_rows(timings):
    """Yield a row for each of our operations and models, with its baselines beside it."""
    groups = {}
    for timing in timings:
        key = tuple(timing[name] for name in ("family", "operation", "case", "dtype"))
        groups.setdefault(key, []).append(timing)
    for key, members in groups.items():
        texts = []
        # Ours first; the others only by their times, for not all move the same bytes.
        for timing in sorted(members, key=lambda t: t["implementation"] != "largebatch"):
            name = timing["implementation"]
            text = f"{name} {timing['median_ms']:.3g} ms (wall {timing['wall_ms']:.3g})"
            if name == "largebatch" and timing["bytes"]:
                text += (
                    f", {timing['bytes'] / 1e6:.4g} MB, {timing['GBps']:.4g} GB/s, "
                    f"{timing['percent_of_copy']:.0f} % of copy"
                )
            texts.append(text)
        yield Row("benches", " ".join(key), OK, "; ".join(texts))


STAGES = (
    Stage("build", 25, build),
    Stage("tests", 25, tests),
    Stage("graphs", 5, graphs, needs_gpu=True),
    Stage("cupy", 5, cupy, needs_gpu=True),
    Stage("huge", 5, huge, needs_gpu=True),
    Stage("sanitizers", 15, sanitizers, needs_gpu=True),
    Stage("benches", 20, benches),
)
