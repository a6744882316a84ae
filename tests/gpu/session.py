# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How stages run their commands: in time, with everything they print kept in one log."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5  # seconds for a stopped pytest to write the results it has


@dataclass(frozen=True)
class Finished:
    """A command that has ended: by itself, or stopped when its time was over (code None)."""

    code: int | None
    output: str
    seconds: float

    @property
    def last_line(self):
        """The last line that says anything."""
        lines = (line.strip() for line in reversed(self.output.splitlines()))
        return next(filter(None, lines), "no output")


@dataclass
class Session:
    """What all stages are given: how the run was asked for, and a way to run commands."""

    backend: str
    folder: Path  # for logs and pytest's results
    select: str | None = None  # an expression for pytest -k
    machine: dict = field(default_factory=dict)  # stages may add what they learn
    deadline: float = float("inf")  # of the stage that runs now, by time.monotonic

    def left(self):
        """Return the seconds that the present stage still has."""
        return max(0.0, self.deadline - time.monotonic())

    def run(self, *command, share=1.0, env=None):
        """Run a command in the repository's root; stop it when that share of left() is over."""
        command = [str(word) for word in command]
        with open(self.folder / "log.txt", "ab+") as log:
            log.write(f"\n==== {shlex.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            began = time.monotonic()
            code, problem = _wait(command, share * self.left(), log, env)
            log.seek(start)
            output = log.read().decode(errors="replace") + problem
        return Finished(code, output, time.monotonic() - began)


def _wait(command, seconds, log, env):
    """Return (exit status or None, why it could not start)."""
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            # Unbuffered, so that the log of a command that must be killed is not cut.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return 127, str(error)
    grace = min(GRACE, seconds / 4)
    try:
        return process.wait(seconds - grace), ""
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        return None, ""
    finally:
        _signal(process, signal.SIGKILL)  # what it left behind, too: nothing may hold the GPU
        process.wait()


def _signal(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
