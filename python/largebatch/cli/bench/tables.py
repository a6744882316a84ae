# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Results as tables in a terminal."""

from __future__ import annotations

import math
import sys

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .compare import IMPROVED, REGRESSED, Comparison
from .results import OURS, Results

WIDTH = 130  # where no terminal says how wide it is
STYLES = {"ours": "bold", "peer": "", "floor": "dim"}
VERDICTS = {REGRESSED: "bold red", IMPROVED: "green", "": ""}
NONE = "-"


def show(results: Results, console: Console | None = None) -> None:
    """Print all rows, what went wrong, and the summary last."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    say = lambda text, style="": console.print(  # noqa: E731
        escape(text), style=style, highlight=False, soft_wrap=True
    )
    say(heading(results.machine))
    for table in details(results):
        console.print(table)
    skipped, failed = results.skipped, results.failed
    for reason, count in _reasons(skipped).items():
        say(f"{reason} ({count})", "dim")
    for problem in failed:
        say(f"failed: {problem['benchmark']}: {problem['problem']}", "red")
    if results.rows:
        console.print(summary(results))
    if not results.finished:
        say("Not all of it ran: this is what there was when it was stopped.", "yellow")


def _reasons(skipped):
    """Say once for a family what its benchmarks were skipped for."""
    counts: dict[str, int] = {}
    for problem in skipped:
        family = problem["benchmark"].partition("::")[0].rpartition("/")[2]
        family = family.removeprefix("bench_").removesuffix(".py")
        text = f"{family}: {problem['problem']}"
        counts[text] = counts.get(text, 0) + 1
    return counts


def heading(machine: dict) -> str:
    """Return the machine in one line."""
    copy = machine.get("copy_GBps")
    parts = [
        machine["device"],
        f"{machine['backend']}, {machine['threads']} thread{'s' * (machine['threads'] != 1)}",
        f"copy {copy:.3g} GB/s" if copy else "",
        f"torch {machine['torch']}",
        f"largebatch {machine['largebatch']} ({machine['commit'][:10]}"
        f"{'-dirty' * machine['commit'].endswith('-dirty')})",
    ]
    return "; ".join(filter(None, parts))


# ---- Tables --------------------------------------------------------------------------------------


def summary(results: Results) -> Table:
    """Return one line for each operation, on its first case: ours and the best of the others."""
    table = _table("Summary: the first case of each", "operation", "case")
    _numbers(table, "ours, ms", "% of copy")
    table.add_column("best of the others", overflow="fold")
    _numbers(table, "its ms", "ours is")
    table.add_column("less work", style="dim", overflow="fold")
    _numbers(table, "its ms")
    for line in first_cases(results):
        row, best, floor = line["ours"], line["best"], line["floor"]
        times = best and best["times_ours"]
        table.add_row(
            *_escaped(_named(line), f"{line['case']}, {line['dtype']}"),
            ms(row and row["median_ms"]),
            percent(row and row["percent_of_copy"]),
            escape(best["implementation"]) if best else NONE,
            ms(best and best["median_ms"]),
            f"[{'green' if times > 1 else 'red'}]{faster(times)}[/]" if times else NONE,
            escape(floor["implementation"]) if floor else NONE,
            ms(floor and floor["median_ms"]),
        )
    return table


def first_cases(results: Results) -> list[dict]:
    """Return for each operation what its first case says: ours, the fastest peer and floor."""
    lines, seen = [], set()
    for (family, operation, case, dtype, _), rows in results.groups().items():
        if (family, operation) in seen:
            continue
        seen.add((family, operation))
        line = {"family": family, "operation": operation, "case": case, "dtype": dtype}
        line["ours"] = results.base(rows)
        for name, role in (("best", "peer"), ("floor", "floor")):
            others = [row for row in rows if row["role"] == role]
            line[name] = min(others, key=_slowness, default=None)
        lines.append(line)
    return lines


def _slowness(row):
    """Return what the best is best in: the ratio to ours, as it was measured beside it."""
    return row["median_ms"] if row["times_ours"] is None else row["times_ours"]


def details(results: Results) -> list[Table]:
    """Return a table of all rows for each family, ours first in each group."""
    of_family: dict[str, list] = {}
    for (family, *_), rows in results.groups().items():
        of_family.setdefault(family, []).append(rows)
    tables = []
    for family, groups in of_family.items():
        table = _table(family, "call")
        _numbers(table, "ms", "spread", "warm ms", "x ours")
        _numbers(table, "MB", "GB/s", "% of copy", "launches", "extra MB")
        for rows in groups:
            what = ", ".join(rows[0][name] for name in ("operation", "case", "dtype"))
            table.add_row(f"[cyan]{escape(what)}[/]")
            for row in sorted(rows, key=lambda row: row["role"] != "ours"):
                table.add_row(*_cells(row, results.machine), style=STYLES[row["role"]])
        tables.append(table)
    return tables


def _cells(row, machine):
    name = row["implementation"]
    if row["backend"] not in (None, machine["backend"]):
        name += f" ({row['backend']})"
    measured = "" if row["bytes_from"] == "formula" else "~"  # what its arguments say
    return (
        f"  {escape(name)}",
        ms(row["median_ms"]),
        f"{100 * (row['q3_ms'] - row['q1_ms']) / row['median_ms']:.0f} %",
        ms(row["warm_ms"]),
        NONE if row["times_ours"] is None else f"{row['times_ours']:.2f}",
        NONE if row["bytes"] is None else f"{measured}{_short(row['bytes'] / 1e6)}",
        NONE if row["GBps"] is None else _short(row["GBps"]),
        percent(row["percent_of_copy"]),
        NONE if row["launches"] is None else f"{row['launches']:,}",
        NONE if row["extra_memory"] is None else _short(row["extra_memory"] / 1e6),
    )


def comparison(found: Comparison) -> Table:
    """Return a table of the rows that two files share: ours, then the others, dim."""
    table = _table("Times, before and after", "family", "operation", "case", "dtype", "call")
    _numbers(table, "before, ms", "after, ms", "time", "in copies")
    table.add_column("")
    for change in sorted(found.changes, key=lambda change: change.after["role"] != "ours"):
        row = change.after
        call = row["implementation"] + (f" ({row['backend']})" if row["backend"] else "")
        table.add_row(
            *_escaped(row["family"], row["operation"], row["case"], row["dtype"], call),
            ms(change.before["median_ms"]),
            ms(row["median_ms"]),
            _change(change.time_ratio),
            _change(change.copy_ratio),
            change.verdict,
            style=VERDICTS[change.verdict] if row["role"] == "ours" else "dim",
        )
    return table


def show_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print what has changed, what is in one file only, and how much the machine itself moved."""
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    say = lambda text: console.print(escape(text), highlight=False, soft_wrap=True)  # noqa: E731
    console.print(comparison(found))
    for where, rows in (("before", found.only_before), ("after", found.only_after)):
        for row in rows:
            names = ("family", "operation", "case", "dtype", "implementation")
            say(f"only in the file {where}: {', '.join(row[name] for name in names)}")
    if found.others is not None:
        time, copies = found.others
        say(
            f"The others, which have not changed here: {_change(time)} in time, "
            f"{_change(copies)} in copies (median)."
        )
    ours = sum(change.after["role"] == "ours" for change in found.changes)
    say(
        f"{len(found.regressions)} slower and {len(found.improvements)} faster by more than "
        f"{100 * found.threshold:g} % beside others in the case, of {ours} of {OURS}."
    )


# ---- Parts of them -------------------------------------------------------------------------------


def _table(title, *names):
    table = Table(
        title=escape(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _numbers(table, *names):
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _escaped(*texts):
    return tuple(map(escape, texts))


def _named(row):
    family, operation = row["family"], row["operation"]
    return family if operation == family else f"{family}: {operation}"


def _short(number):
    """Return three digits, and never a power of ten."""
    if number == 0:
        return "0"
    if number < 0.001:
        return "<0.001"
    return f"{number:,.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def ms(value: float | None) -> str:
    """Return milliseconds in three digits."""
    return NONE if value is None else _short(value)


def percent(value: float | None) -> str:
    """Return a whole percentage."""
    return NONE if value is None else f"{value:.0f} %"


def faster(times: float) -> str:
    """Say how ours compares with one that takes this many times as long."""
    return f"{times:.2f}x faster" if times >= 1 else f"{1 / times:.2f}x slower"


def _change(ratio):
    return f"{100 * (ratio - 1):+.1f} %"
