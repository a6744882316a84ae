# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Takes the rows out of a run of pytest, whoever started it, and writes them as they come."""

from __future__ import annotations

from pathlib import Path

from .results import Results


class Collector:
    """A plugin of pytest that keeps results. Only one of them is registered in a run.

    Parameters
    ----------
    found : Results
        Where rows and problems go.
    path : path, optional
        A file that is written after each benchmark: what is there survives whatever comes.
    """

    __name__ = "largebatch-results"  # by which pytest knows it

    def __init__(self, found: Results, path: Path | None = None):
        self.found, self.path = found, path

    def pytest_collectreport(self, report):
        """Keep why a file could not be collected."""
        if report.failed:
            self.found.add(report)

    def pytest_runtest_logreport(self, report):
        """Keep a row, or why there is none."""
        self.found.add(report)

    def pytest_runtest_logfinish(self, nodeid, location):
        """Write what there is."""
        self._save()

    def pytest_sessionfinish(self, session, exitstatus):
        """Note whether all of it ran: it passed or failed, and was not interrupted."""
        self.found.finished = exitstatus in (0, 1)
        self._save()

    def _save(self):
        if self.path is not None:
            self.found.save(self.path)
