# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.gpu.report import Report
from tests.gpu.session import Session


@pytest.fixture
def machine():
    return {
        "device": "NVIDIA H200",
        "no_gpu": None,
        "driver": "580.1",
        "cuda": "13.0",
        "torch": "2.11.0",
        "commit": "abc-dirty",
        "date": "2026-11-20T10:00:00+00:00",
        "copy_GBps": None,
    }


@pytest.fixture
def report(tmp_path, machine):
    return Report(tmp_path, machine, {"backend": "cuda"})


@pytest.fixture
def session(report, machine):
    return Session("cuda", report.folder, machine=machine)


class Scripted(Session):
    """A session whose commands are not run: they end as it was told."""

    def run(self, *command, share=1.0, env=None):
        self.commands.append(([str(word) for word in command], env or {}))
        return self.ends.pop(0)


@pytest.fixture
def scripted(session):
    """Return a function that makes a session of the ends of its commands."""

    def make(*ends, backend="cuda"):
        made = Scripted(backend, session.folder, machine=session.machine)
        made.ends, made.commands = list(ends), []
        return made

    return make
