# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What benchmarks found: rows, the machine they are from, and the file that holds both.

The benchmarks themselves write through this module too, so it imports no more than torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

import torch

from ... import __version__, build_info

FORMAT = "largebatch bench 1"
OURS = "largebatch"  # the implementation that others of its group are compared with
ROLES = ("ours", "peer", "floor")
SKIPPED = "skipped: "  # how the problem of a benchmark begins that was not to run

_TEXTS = ("family", "operation", "case", "dtype", "implementation", "role", "device")
_COUNTS = ("threads", "tensors", "elements", "rounds")
_TIMES = ("median_ms", "q1_ms", "q3_ms", "min_ms", "wall_ms", "copy_GBps")
_NUMBERS_OR_NULL = (
    "warm_ms", "bytes", "GBps", "percent_of_copy", "times_ours", "times_ours_q1", "times_ours_q3",
    "launches", "extra_memory",
)  # fmt: skip
_TEXTS_OR_NULL = ("backend", "bytes_from")
_OF_MACHINE = ("device", "backend", "threads", "torch", "largebatch", "commit", "date")


@dataclass
class Results:
    """The rows of one run of the benchmarks on one machine.

    Attributes
    ----------
    machine : dict
        What `describe` returns; ``copy_GBps`` follows the rows.
    settings : dict
        What was asked for, such as the grid.
    rows : list of dict
        One for each benchmark that was measured.
    problems : list of dict
        ``{"benchmark": id, "problem": one line}`` for each that failed or was skipped.
    finished : bool
        Whether all that was asked for has run.
    """

    machine: dict
    settings: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    problems: list[dict] = field(default_factory=list)
    finished: bool = False

    def add(self, report) -> None:
        """Take what one report of pytest says, of any phase: a row, a problem or nothing."""
        row = dict(getattr(report, "user_properties", ())).get("row")
        if report.skipped:
            self._has_problem(report, SKIPPED + _skip_reason(report))
        elif report.failed:
            self._has_problem(report, _last_line_of_error(report))
        elif row is not None and report.when == "call":
            self.rows.append(row)
            copies = [row["copy_GBps"] for row in self.rows]
            self.machine["copy_GBps"] = statistics.median(copies)

    def _has_problem(self, report, text):
        self.problems.append({"benchmark": report.nodeid, "problem": text})

    @property
    def failed(self) -> list[dict]:
        """The problems that are no skips."""
        return [p for p in self.problems if not p["problem"].startswith(SKIPPED)]

    @property
    def skipped(self) -> list[dict]:
        """The problems of benchmarks that were not to run here."""
        return [p for p in self.problems if p["problem"].startswith(SKIPPED)]

    def groups(self) -> dict[tuple, list[dict]]:
        """Return the rows by what they do and on what: those of a group compare with each other."""
        groups: dict[tuple, list[dict]] = {}
        for row in self.rows:
            groups.setdefault(group_of(row), []).append(row)
        return groups

    def base(self, rows: Iterable[dict]) -> dict | None:
        """Return the row of a group that the others are compared with, if it is there."""
        backend = self.machine["backend"]
        ours = (r for r in rows if r["implementation"] == OURS and r["backend"] == backend)
        return next(ours, None)

    def save(self, path) -> None:
        """Write the file: it is whole at any moment, also if the run is killed."""
        path = Path(path)
        content = {
            "format": FORMAT,
            "machine": self.machine,
            "settings": self.settings,
            "finished": self.finished,
            "rows": self.rows,
            "problems": self.problems,
        }
        text = json.dumps(content, indent=1) + "\n"
        if path.exists() and not (path.is_file() and os.access(path.parent, os.W_OK)):
            path.write_text(text, encoding="utf-8")  # a device, or in a folder that is read-only
            return
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path) -> Results:
        """Read a file that `save` wrote, or one with such an object under the key "bench".

        Raises
        ------
        ValueError
            In one line, if there is no such file, or if it is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # that it is not UTF-8 is one too
            raise ValueError(f"{path} is not JSON: {error}.") from error
        content = content.get("bench", content) if isinstance(content, dict) else {}
        form = content.get("format") if isinstance(content, dict) else None
        if not isinstance(form, str) or not form.startswith(FORMAT.rstrip("1")):
            raise ValueError(
                f"{path} is not a file of results: write one with largebatch bench --json FILE."
            )
        if form != FORMAT:
            raise ValueError(f"{path} is in the format {form!r}; this version reads {FORMAT!r}.")
        _check(path, content)
        return cls(**{name: content[name] for name in cls.__dataclass_fields__})


def group_of(row: dict) -> tuple:
    """Return what a row shares with those that it can be compared with."""
    return tuple(row[name] for name in ("family", "operation", "case", "dtype", "device"))


# ---- Reading: what other code relies on is checked once ------------------------------------------


def _check(path, content):
    kinds = {"machine": dict, "settings": dict, "rows": list, "problems": list, "finished": bool}
    for name, kind in kinds.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{path}: {name!r} is missing or no {kind.__name__}.")
    for name in _OF_MACHINE:
        if name not in content["machine"]:
            raise ValueError(f"{path}: the machine lacks {name!r}.")
    for number, row in enumerate(content["rows"]):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: rows[{number}] is no object.")
        wrong = _wrong_in(row)
        if wrong is not None:
            raise ValueError(f"{path}: rows[{number}]: {wrong!r} is missing or no such value.")
    for number, problem in enumerate(content["problems"]):
        texts = problem if isinstance(problem, dict) else {}
        if not all(isinstance(texts.get(name), str) for name in ("benchmark", "problem")):
            raise ValueError(f"{path}: problems[{number}] lacks 'benchmark' or 'problem'.")


def _wrong_in(row):
    """Return the name of the first value of a row that is not what it should be, or None."""

    def number(value):
        return type(value) in (int, float) and math.isfinite(value)

    checks = (
        (_TEXTS, lambda v: isinstance(v, str)),
        (_COUNTS, lambda v: type(v) is int),
        (_TIMES, lambda v: number(v) and v > 0),
        (_NUMBERS_OR_NULL, lambda v: v is None or (number(v) and v >= 0)),
        (_TEXTS_OR_NULL, lambda v: v is None or isinstance(v, str)),
    )
    for names, good in checks:
        for name in names:
            if name not in row or not good(row[name]):
                return name
    return None if row["role"] in ROLES else "role"


# ---- The machine ---------------------------------------------------------------------------------


def describe(device: torch.device, threads: int, folder=None) -> dict:
    """Return what a result depends on: the device, its driver, the versions and the commit.

    Parameters
    ----------
    device : torch.device
        What is measured.
    threads : int
        CPU threads.
    folder : path, optional
        Where the benchmarks are: their commit is asked there. Without one it is "unknown".
    """
    info, cuda = build_info(), device.type == "cuda"
    return {
        "device": device_name(device),
        "backend": "cuda" if cuda else f"cpu-{info['cpu']['isa']}",
        "threads": threads,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "largebatch": __version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if cuda else None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else None,
        "commit": _commit(folder),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "copy_GBps": None,
    }


@cache
def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import cpuinfo  # pytest-benchmark brings it; whoever only reads results needs none

    return cpuinfo.get_cpu_info().get("brand_raw") or platform.machine()


def _commit(folder):
    """Return the commit of the clone that the benchmarks are in, "-dirty" if it was changed."""
    if folder is None:
        return "unknown"
    git = ("git", "-C", str(folder))
    # Benchmarks in an installed package can lie inside a clone of something else.
    if not _first_line(*git, "ls-files", "--", "*conftest.py"):
        return "unknown"
    commit = _first_line(*git, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    changes = _first_line(*git, "status", "--porcelain", "--untracked-files=no")
    return commit + "-dirty" * bool(changes)


def _first_line(*command):
    """Return the first line that a command prints; None if it fails, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    return lines[0] if lines else None


# ---- Reports of pytest ---------------------------------------------------------------------------


def _skip_reason(report):
    where = report.longrepr
    text = where[2] if isinstance(where, tuple) else str(where)
    return _one_line(text.removeprefix("Skipped: "))


def _last_line_of_error(report):
    """Return the error itself, without the way to it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return _one_line(crash.message)
    lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]
    return _one_line((errors or lines or ["failed"])[-1])


def _one_line(text, characters=300):
    line = " ".join(text.split("\n\n")[0].split())
    return line if len(line) <= characters else f"{line[:characters]} ..."
