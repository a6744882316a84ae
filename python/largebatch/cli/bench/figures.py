# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of the page, as plotly's dictionaries.

A colour is written "@name": the page has its value, one for a light and one for a dark screen.
"""

from __future__ import annotations

import math
from html import escape

from .axes import empty, ends, frame, in_bytes, line_at, log_axis, names_axis, note
from .results import OURS, Results
from .tables import faster, ms, percent

# role -> (name in the legend, colour, marker)
ROLES = {
    "floor": ("does less work", "@floor", "square"),
    "peer": ("others", "@peer", "diamond"),
    "ours": ("largebatch", "@ours", "circle"),  # last: drawn on top
}
ROW, BAR = 26, 21  # pixels


def roofline(results: Results) -> dict:
    """Time against bytes moved: along the line it takes as long as a copy of as many bytes."""
    rows = [row for row in results.rows if row["bytes"]]
    if not rows:
        return empty("No call whose bytes are known.")
    low, high = ends([row["bytes"] for row in rows], 0.25)
    copy = results.machine["copy_GBps"] or 1.0
    times = [1e3 * nbytes / copy / 1e9 for nbytes in (low, high)]
    bottom, top = ends([row["median_ms"] for row in rows] + times, 0.2)
    line = {"x": [low, high], "mode": "lines", "hoverinfo": "skip", "showlegend": False}
    traces = [
        {
            **line, "x": [low, high, high, low], "y": [*times, top, top], "fill": "toself",
            "fillcolor": "@shade", "line": {"width": 0},
        },
        {**line, "y": times, "line": {"color": "@copy", "width": 2}},
        {
            **line, "y": [10 * t for t in times],
            "line": {"color": "@copy", "width": 1, "dash": "dot"},
        },
    ]  # fmt: skip
    for role in ROLES:
        given = [row for row in rows if row["role"] == role]
        traces.append(
            _markers(role, given, [r["bytes"] for r in given], [r["median_ms"] for r in given])
        )
        # Hollow where the bytes are not a formula's: what operations read and write in sum.
        hollow = ["" if r["bytes_from"] == "formula" else "-open" for r in given]
        traces[-1]["marker"]["symbol"] = [ROLES[role][2] + h for h in hollow]
        traces[-1]["marker"]["line"]["width"] = [2 if h else 1 for h in hollow]
    middle = math.log10(low) + 0.06 * math.log10(high / low)
    notes = [
        note(middle, middle - 9 + 3 - math.log10(copy) + up, text)
        for up, text in ((0, f"a copy: {copy:.3g} GB/s"), (1, "a tenth of it"))
    ]
    layout = frame(
        460,
        xaxis=log_axis("bytes moved by a call", low, high, in_bytes),
        yaxis=log_axis("milliseconds", bottom, top),
        annotations=notes,
    )
    return {"data": traces, "layout": layout}


def percent_of_copy(results: Results) -> dict:
    """How near to a copy each operation is, on all its cases, ours with the others beside."""
    rows = [row for row in results.rows if row["percent_of_copy"] is not None]
    if not rows:
        return empty("No call whose bytes are known.")
    labels = _labels(results, rows)
    order = list(dict.fromkeys(labels))[::-1]
    traces = [line_at(100, order)]
    for role, lift in (("floor", -0.2), ("peer", -0.2), ("ours", 0.14)):
        at = [i for i, row in enumerate(rows) if row["role"] == role]
        given = [rows[i] for i in at]
        heights = [order.index(labels[i]) + lift for i in at]
        traces.append(_markers(role, given, [row["percent_of_copy"] for row in given], heights))
    most = max(row["percent_of_copy"] for row in rows)
    layout = frame(
        90 + ROW * len(order),
        xaxis={"title": {"text": "% of a copy"}, "range": [0, max(110, 1.06 * most)]},
        yaxis=names_axis(order),
    )
    return {"data": traces, "layout": layout}


def speed_up(results: Results) -> dict:
    """How many times as long others take, with quartiles; below one they are faster."""
    rows = [r for r in results.rows if r["role"] == "peer" and r["times_ours"]]
    if not rows:
        return empty("Nothing to compare with was measured here.")
    labels = [
        f"{label} <span style='color:@muted'>vs</span> {escape(row['implementation'])}"
        for label, row in zip(_labels(results, rows), rows, strict=True)
    ]
    order = list(dict.fromkeys(labels))[::-1]
    traces = [line_at(1, order)]
    for name, colour, chosen in (
        ("largebatch is faster", "@ours", lambda t: t >= 1),
        ("largebatch is slower", "@loss", lambda t: t < 1),
    ):
        at = [i for i, row in enumerate(rows) if chosen(row["times_ours"])]
        given = [rows[i] for i in at]
        heights = _side_by_side([order.index(labels[i]) for i in at])
        trace = _markers("peer", given, [row["times_ours"] for row in given], heights)
        symbol = "circle" if colour == "@ours" else "x"
        trace["marker"] = {"color": colour, "size": 9, "symbol": symbol}
        trace["error_x"] = {
            "array": [_or(r["times_ours_q3"], r["times_ours"]) - r["times_ours"] for r in given],
            "arrayminus": [
                r["times_ours"] - _or(r["times_ours_q1"], r["times_ours"]) for r in given
            ],
            "color": colour,
            "thickness": 1.5,
            "width": 3,
        }
        traces.append({**trace, "name": name, "showlegend": True})
    parts = ("times_ours", "times_ours_q1", "times_ours_q3")
    low, high = ends([0.8, 1.25, *(row[p] for row in rows for p in parts if row[p])], 0.08)
    layout = frame(
        90 + ROW * len(order),
        xaxis=log_axis("times as long as largebatch takes", low, high, "{:.4g}x".format),
        yaxis=names_axis(order),
        shapes=[
            {
                "type": "rect", "x0": low, "x1": 1, "yref": "paper", "y0": 0, "y1": 1,
                "fillcolor": "@shade", "line": {"width": 0}, "layer": "below",
            },
        ],
    )  # fmt: skip
    return {"data": traces, "layout": layout}


def family(results: Results, name: str) -> dict:
    """Bars of time: a panel for each case of each operation, two beside each other."""
    groups = [rows for key, rows in results.groups().items() if key[0] == name]
    panels = [groups[i : i + 2] for i in range(0, len(groups), 2)]
    heights = [52 + BAR * max(map(len, pair)) for pair in panels]
    total, top = sum(heights), 0
    traces, layout = [], frame(total + 20, annotations=[], showlegend=False)
    layout["margin"] = {"l": 8, "r": 8, "t": 4, "b": 16}
    for pair, height in zip(panels, heights, strict=True):
        for column, rows in enumerate(pair):
            number = str(len(traces) + 1)
            traces.append(_bars(rows, results.machine, number))
            # What is below the bars of a shorter panel stays free.
            begin = top + 36
            end = begin + BAR * len(rows)
            left = 0.52 * column
            longest = max(row["q3_ms"] for row in rows)
            layout[f"xaxis{number}"] = {
                "domain": [left + 0.19, left + 0.48], "anchor": f"y{number}", "visible": False,
                "range": [0, 1.3 * longest],
            }  # fmt: skip
            layout[f"yaxis{number}"] = {
                "domain": [1 - end / total, 1 - begin / total], "anchor": f"x{number}",
                "showgrid": False, "zeroline": False, "automargin": False, "ticklabelstandoff": 6,
                "tickvals": list(range(len(rows))), "range": [-0.5, len(rows) - 0.5],
                "ticktext": [_shortened(text) for text in traces[-1].pop("names")],
            }  # fmt: skip
            title = " · ".join(rows[0][part] for part in ("operation", "case", "dtype"))
            layout["annotations"].append(
                {
                    "text": f"<b>{escape(title)}</b>", "x": left, "y": 1 - (top + 26) / total,
                    "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
                    "showarrow": False, "font": {"size": 13, "color": "@text"},
                }
            )  # fmt: skip
        top += height
    return {"data": traces, "layout": layout}


def _bars(rows, machine, number):
    # Ours at the top, then from fast to slow.
    rows = sorted(rows, key=lambda row: (row["role"] != "ours", row["median_ms"]))[::-1]
    names = [_call(row, machine) for row in rows]
    return {
        "type": "bar", "orientation": "h", "xaxis": f"x{number}", "yaxis": f"y{number}",
        "x": [row["median_ms"] for row in rows], "y": list(range(len(rows))), "names": names,
        "marker": {"color": [ROLES[row["role"]][1] for row in rows]}, "width": 0.68,
        "text": [f" {ms(row['median_ms'])} ms" for row in rows], "textposition": "outside",
        "cliponaxis": False, "textfont": {"size": 12, "color": "@text"},
        "hovertext": list(map(hover, rows)), "hoverinfo": "text",
    }  # fmt: skip


# ---- Parts of them -------------------------------------------------------------------------------


def hover(row: dict) -> str:
    """Say in lines of HTML what a point is."""
    lines = [
        f"<b>{escape(row['implementation'])}</b>"
        + (f" ({escape(row['backend'])})" if row["backend"] else ""),
        escape(" · ".join(row[name] for name in ("family", "operation", "case", "dtype"))),
        f"{ms(row['median_ms'])} ms ({ms(row['q1_ms'])} to {ms(row['q3_ms'])})",
    ]
    if row["bytes"]:
        source = "" if row["bytes_from"] == "formula" else ", as its operations say"
        lines.append(f"{ms(row['bytes'] / 1e6)} MB{source}")
    if row["percent_of_copy"] is not None:
        lines.append(f"{percent(row['percent_of_copy'])} of a copy")
    if row["role"] != "ours" and row["times_ours"]:
        lines.append(f"largebatch is {faster(row['times_ours'])}")
    return "<br>".join(lines)


def _markers(role, rows, x, y):
    name, colour, symbol = ROLES[role]
    outline = {"color": "@panel", "width": 1}
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": x, "y": y,
        "marker": {"color": colour, "symbol": symbol, "size": 10, "line": outline},
        "hovertext": list(map(hover, rows)), "hoverinfo": "text", "showlegend": bool(rows),
    }  # fmt: skip


def _labels(results, rows):
    """Name the operation of each row; that of a family with one goes without saying."""
    operations: dict[str, set] = {}
    for row in results.rows:
        operations.setdefault(row["family"], set()).add(row["operation"])

    def label(row):
        alone = len(operations[row["family"]]) == 1
        return escape(row["family"] if alone else f"{row['family']} {row['operation']}")

    return [label(row) for row in rows]


def _call(row, machine):
    name = row["implementation"].removeprefix(f"{OURS}, ")
    other = row["backend"] not in (None, machine["backend"])
    return f"{name} ({row['backend']})" if other else name


def _shortened(text, characters=27):
    return escape(text if len(text) <= characters else f"{text[: characters - 1]}…")


def _side_by_side(heights):
    """Move points of the same line apart, so that none hides another."""
    seen: dict[int, int] = {}
    moved = []
    for height in heights:
        number = seen[height] = seen.get(height, 0) + 1
        moved.append(height + 0.14 * (number // 2) * (-1) ** number)
    return moved


def _or(value, instead):
    return instead if value is None else value
