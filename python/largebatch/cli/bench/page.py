# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Results as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from . import figures
from .results import Results
from .tables import faster, first_cases, ms, percent


def render(runs: list[Results]) -> str:
    """Return the page for one or several runs, a section for each."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"ms": ms, "percent": percent, "faster": faster}
    template = environment.from_string(
        Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    )
    sections = [_section(number, results) for number, results in enumerate(runs)]
    plots = {plot["id"]: plot["figure"] for s in sections for plot in s["plots"] + s["families"]}
    return template.render(sections=sections, figures=plots, plotly=get_plotlyjs())


def write(runs: list[Results], path) -> None:
    """Write the page."""
    Path(path).write_text(render(runs), encoding="utf-8")


def _section(number, results):
    def plot(name, figure, title="", text=""):
        return {"id": f"{name}-{number}", "figure": figure, "title": title, "text": text}

    families = list(dict.fromkeys(row["family"] for row in results.rows))
    return {
        "number": number,
        "results": results,
        "machine": results.machine,
        "facts": _facts(results),
        "tiles": _tiles(results),
        "summary": _with_bars(first_cases(results)),
        "plots": [
            plot("roofline", figures.roofline(results), *ROOFLINE),
            plot("copy", figures.percent_of_copy(results), *COPY),
            plot("speedup", figures.speed_up(results), *SPEED_UP),
        ],
        "families": [
            plot(f"family-{_identifier(name)}", figures.family(results, name), name)
            for name in families
        ],
    }


ROOFLINE = (
    "Bytes and time",
    "On the line, a call takes as long as a copy of as many bytes; in the shaded part, longer. "
    "Hollow: bytes summed over the operations of torch that it is made of.",
)
COPY = (
    "Percent of a copy",
    "How much of the bandwidth of a copy each call reaches with the bytes it moves. Each moves its "
    "own: a chain of operations that reads and writes more can be near a copy and slow.",
)
SPEED_UP = (
    "Others, in units of ours",
    "Each point is a case: the median over rounds that timed both beside each other, with "
    "quartiles. In the shaded part the other is faster.",
)


def _facts(results):
    machine, copy = results.machine, results.machine["copy_GBps"]
    facts = [
        ("backend", machine["backend"]),
        ("threads", f"{machine['threads']} of {machine.get('cores') or '?'}"),
        ("copy", f"{copy:.3g} GB/s" if copy else None),
        ("torch", machine["torch"]),
        ("largebatch", machine["largebatch"]),
        ("CUDA", machine.get("cuda")),
        ("driver", machine.get("driver")),
        ("Python", machine.get("python")),
        ("commit", re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", machine["commit"])),
        ("date", machine["date"][:16].replace("T", " ")),
        ("grid", results.settings.get("grid")),
        ("selected", results.settings.get("select")),
    ]
    return [(name, value) for name, value in facts if value]


def _tiles(results):
    """Return what one wants to know first, as pairs of a number and what it is."""
    lines = first_cases(results)
    times = [x["best"]["times_ours"] for x in lines if x["best"] and x["best"]["times_ours"]]
    copies = [
        x["ours"]["percent_of_copy"]
        for x in lines
        if x["ours"] and x["ours"]["percent_of_copy"] is not None
    ]
    peers = [r["times_ours"] for r in results.rows if r["role"] == "peer" and r["times_ours"]]
    tiles = [(str(len(results.rows)), f"calls measured, {len(lines)} operations")]
    if times:
        wins = sum(t > 1 for t in times)
        tiles += [
            (
                f"{statistics.median(times):.2f}x",
                "is what the best of the others takes, in units of ours (median)",
            ),
            (f"{wins} of {len(times)}", "operations in which ours is the fastest"),
        ]
    if peers:
        tiles.append((f"{sum(t < 1 for t in peers)} of {len(peers)}", "comparisons that ours lost"))
    if copies:
        tiles.append((f"{statistics.median(copies):.0f} %", "of a copy's bandwidth (median)"))
    return tiles


def _with_bars(lines):
    """Add to each line of the summary where its bars begin and end, in percent of a cell."""
    logs = [math.log(x["best"]["times_ours"]) for x in lines if _compared(x)]
    low, high = min([0, *logs]), max([0.01, *logs])
    for line in lines:
        line["bar"] = None
        if _compared(line):
            ends = sorted(100 * (v - low) / (high - low) for v in (0, _log_of(line)))
            line["bar"] = {"left": round(ends[0], 2), "width": round(ends[1] - ends[0], 2)}
    return lines


def _compared(line):
    return bool(line["best"] and line["best"]["times_ours"])


def _log_of(line):
    return math.log(line["best"]["times_ours"])


def _identifier(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
