# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What a run found: rows, the table of them and the JSON file."""

import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

OK, FAILED, SKIPPED, TIMED_OUT = STATUSES = ("ok", "failed", "skipped", "timed out")
STYLES = {OK: "green", FAILED: "bold red", SKIPPED: "yellow", TIMED_OUT: "bold red"}
ROWS_SHOWN = 20  # of one stage; an error that breaks every test must not bury the other stages
CHARACTERS_SHOWN = 300


@dataclass
class Row:
    """One line of the table: how one thing went, with a number or a reason."""

    stage: str
    what: str
    status: str
    text: str = ""
    numbers: dict = field(default_factory=dict)


class Report:
    """The rows of a run, written to its file each time that a stage ends."""

    def __init__(self, folder, machine, settings):
        """Take a file that is not there yet: results of the same day stand side by side."""
        self.machine, self.settings = machine, settings
        self.rows, self.stages, self.finished = [], [], False
        device = re.sub(r"[^a-z0-9]+", "-", (machine["device"] or "no-gpu").lower()).strip("-")
        self.path = _unused(folder, f"{device}-{machine['date'][:10]}")
        self.folder = self.path.with_suffix("")
        self.folder.mkdir(exist_ok=True)
        self.save()

    @property
    def exit_code(self):
        """1 if anything failed or ran out of time, else 0."""
        return int(any(row.status in (FAILED, TIMED_OUT) for row in self.rows))

    def count(self):
        """Return how many rows have each status, as one line."""
        counts = Counter(row.status for row in self.rows)
        return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])

    def save(self):
        """Write all that is known. The file is whole at any moment, also if the run is killed."""
        content = {
            **self.machine,
            "settings": self.settings,
            "finished": self.finished,
            "stages": self.stages,
            "rows": [asdict(row) for row in self.rows],
        }
        partial = self.folder / "result.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)

    def print(self, console=None):
        """Print the table; the file has all rows, and their texts in full."""
        console = console or Console(width=None if sys.stdout.isatty() else 130)
        names = ("device", "driver", "cuda", "torch", "commit")
        heading = ", ".join(f"{name} {self.machine[name] or 'none'}" for name in names)
        table = Table()
        for name in ("stage", "what", "status", "result"):
            table.add_column(name, overflow="fold", ratio=3 if name == "result" else None)
        shown = Counter()
        for row in self.rows:
            shown[row.stage] += 1
            if shown[row.stage] <= ROWS_SHOWN:
                status = f"[{STYLES[row.status]}]{row.status}[/]"
                table.add_row(row.stage, escape(row.what), status, escape(_short(row.text)))
        for stage, rows in shown.items():
            if rows > ROWS_SHOWN:
                table.add_row(stage, f"{rows - ROWS_SHOWN} more", "", "in the file of results")
        console.print(f"\n{escape(heading)}", soft_wrap=True, highlight=False)
        console.print(table)
        verdict = f"{self.count()}. Written to {self.path}"
        console.print(escape(verdict), soft_wrap=True, highlight=False)


def _unused(folder, name):
    """Return a new file in the folder: <name>.json, or <name>-2.json and so on if taken."""
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            number += 1


def _short(text):
    return text if len(text) <= CHARACTERS_SHOWN else f"{text[:CHARACTERS_SHOWN]} ..."
