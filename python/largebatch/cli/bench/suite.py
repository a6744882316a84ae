# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the benchmarks and runs them by pytest, under a progress bar."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from .collect import Collector
from .results import Results, describe

PACKAGE = Path(__file__).parents[2]
PREFIX = "bench_"


class SuiteError(Exception):
    """There is nothing to run, or pytest could not run it. In one line; `log` has the rest."""

    def __init__(self, message, log=""):
        super().__init__(message)
        self.log = log


class Unknown(SuiteError):
    """What was asked for is not there."""


@dataclass(frozen=True)
class Asked:
    """What to run, and on what."""

    device: torch.device
    threads: int
    families: tuple[str, ...] = ()  # none: all
    full: bool = False
    select: str | None = None  # of pytest's -k

    @property
    def grid(self) -> str:
        """How much of the cases there are."""
        return "full" if self.full else "quick"


def find(folder: Path | None = None) -> Path:
    """Return the folder of the benchmarks: the one asked for, the wheel's or the clone's."""
    if folder is not None:
        if not families(folder):
            raise Unknown(f"{folder} has no benchmarks: no file bench_*.py is in it.")
        return folder.resolve()
    for place in (PACKAGE / "_bench", PACKAGE.parents[1] / "bench"):
        if families(place):
            return place
    raise SuiteError("no benchmarks are installed; in a clone of the repository: --suite bench")


def families(folder: Path) -> dict[str, Path]:
    """Return the files of benchmarks in a folder and in its rooms, by family."""
    files = sorted(folder.rglob(f"{PREFIX}*.py"), key=lambda file: file.stem)
    return {file.stem.removeprefix(PREFIX): file for file in files}


def run(
    folder: Path, asked: Asked, console: Console | None = None, file: Path | None = None
) -> Results:
    """Run benchmarks and return what they say; if interrupted, what there is by then.

    Parameters
    ----------
    folder : path
        What `find` returned.
    asked : Asked
        Which, and on what.
    console : rich.console.Console, optional
        Where the progress is shown if it is a terminal; without one it is not.
    file : path, optional
        Where the results are written, after each benchmark.

    Raises
    ------
    SuiteError
        If a family is unknown, nothing was selected, or pytest failed.
    """
    known = families(folder)
    for name in asked.families:
        if name not in known:
            raise Unknown(f"unknown family {name!r}; there are {', '.join(known)}.")
    found = Results(
        machine=describe(asked.device, asked.threads, folder),
        settings={"grid": asked.grid, "families": list(asked.families), "select": asked.select},
    )
    files = [known[name] for name in asked.families] or [folder]
    said = io.StringIO()
    with _display(console) as display, _alone(), _quiet(said):
        status = pytest.main(
            [*_options(folder, asked), *map(str, files)], plugins=[_Watch(found, file, display)]
        )
    # All others of its codes are about pytest, not about a benchmark.
    codes = pytest.ExitCode
    if status == codes.NO_TESTS_COLLECTED:
        selected = f" that -k {asked.select!r} selects" if asked.select else ""
        raise Unknown(f"there is no benchmark{selected} for {asked.device.type}.")
    if status not in (codes.OK, codes.TESTS_FAILED, codes.INTERRUPTED):
        raise SuiteError(_why(said.getvalue(), status), said.getvalue())
    return found


def _options(folder, asked):
    options = [
        "-c", os.devnull,  # no settings of the project that one happens to stand in
        f"--rootdir={folder}",
        "-o", f"pythonpath={folder}",
        "-o", f"python_files={PREFIX}*.py",
        "-o", f"python_functions={PREFIX}*",
        "--import-mode=importlib",
        "--continue-on-collection-errors",  # a family that cannot start stops no other
        "-p", "no:cacheprovider",
        "-p", "benchmark",
        # In one word: before pytest 8 has read the suite's conftest, it takes a second for a file.
        f"--grid={asked.grid}",
        f"--device={asked.device}",
        f"--threads={asked.threads}",
    ]  # fmt: skip
    return options if asked.select is None else [*options, "-k", asked.select]


def _why(said, status):
    """Return pytest's own word for why it did not run."""
    lines = [line for line in said.splitlines() if line.startswith("ERROR: ")]
    reason = lines[0].removeprefix("ERROR: ") if lines else f"it ended with status {int(status)}"
    return f"pytest did not run the benchmarks: {reason.rstrip('.')}."


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep out plugins and options that the user has for other tests."""
    names = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet(said: io.StringIO) -> Iterator[None]:
    """Keep what pytest and its plugins say: their reporters take the streams that they find."""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


# ---- Progress ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _display(console):
    """Give a progress bar where there is a terminal to draw it on."""
    if console is None or not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        auto_refresh=False,  # a thread that draws would take time from what is measured
        redirect_stdout=False,  # pytest has both streams
        redirect_stderr=False,
    ) as progress:
        yield progress


class _Watch(Collector):
    """A plugin of pytest: collects rows and problems, and moves the bar.

    It draws between the benchmarks only, when pytest does not capture what is written.
    """

    def __init__(self, found, file, progress):
        super().__init__(found, file)
        self.progress = progress
        self.bar = progress and progress.add_task("collecting", total=None)

    def _show(self, **changes):
        if self.progress:
            self.progress.update(self.bar, refresh=True, **changes)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session):
        self._show(total=len(session.items))

    def pytest_runtest_logstart(self, nodeid, location):
        name = nodeid.rpartition("/")[2].replace(f".py::{PREFIX}", " ").removeprefix(PREFIX)
        self._show(description=name[:44].ljust(44))

    def pytest_runtest_logfinish(self, nodeid, location):
        super().pytest_runtest_logfinish(nodeid, location)
        self._show(advance=1)


def default_console() -> Console:
    """Return where progress goes: tables and files are all that is on the standard output."""
    return Console(file=sys.stderr)
