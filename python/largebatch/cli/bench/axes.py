# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Axes, notes and lines of the plots of the page, as plotly's dictionaries."""

from __future__ import annotations

import math


def ends(values, beyond):
    """Return the ends of a log axis: the data and a part of its length beyond them."""
    low, high = math.log10(min(values)), math.log10(max(values))
    more = max(beyond * (high - low) / 2, 0.08)
    return 10 ** (low - more), 10 ** (high + more)


def log_axis(title, low, high, text=lambda value: f"{value:,.10g}"):
    """Return a log axis with ticks at 1, 2 and 5, or at decades alone where that are too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    within = (1, 2, 5) if high / low < 1000 else (1,)
    ticks = [m * 10.0**decade for decade in decades for m in within]
    return {
        "type": "log", "title": {"text": title}, "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks, "ticktext": list(map(text, ticks)),
    }  # fmt: skip


def in_bytes(value):
    """Return a number of bytes as a tick says it."""
    power = min(max(int(math.log10(value)) // 3, 0), 4)
    return f"{value / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def names_axis(order):
    """Return an axis of lines, the first name at its lower end."""
    return {
        "tickvals": list(range(len(order))), "ticktext": order, "range": [-0.7, len(order) - 0.3],
        "automargin": True,
    }  # fmt: skip


def note(x, y, text):
    """Return a text whose upper left corner is at this point."""
    return {
        "x": x, "y": y, "text": text, "showarrow": False, "xanchor": "left", "yanchor": "top",
        "font": {"color": "@muted", "size": 12},
    }  # fmt: skip


def line_at(x, order):
    """Return a vertical line across all names, above the grid and behind the points."""
    return {
        "type": "scatter", "mode": "lines", "x": [x, x], "y": [-0.7, len(order) - 0.3],
        "line": {"color": "@copy", "width": 2}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip


def frame(height, **more):
    """Return the layout of a figure of this many pixels, with what `more` adds or overrides."""
    axis = {
        "gridcolor": "@grid",
        "zeroline": False,
        "linecolor": "@grid",
        "fixedrange": True,
        "ticklabelstandoff": 4,
    }
    layout = {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 40, "b": 48},
        "paper_bgcolor": "@panel",
        "plot_bgcolor": "@panel",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@text"},
        "hoverlabel": {"align": "left", "bgcolor": "@panel", "font": {"color": "@text"}},
        "legend": {
            "orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "reversed",
        },
        "hovermode": "closest",
        **more,
    }  # fmt: skip
    for name in ("xaxis", "yaxis"):
        if name in layout:
            layout[name] = {**axis, **layout[name]}
            layout[name].get("title", {})["font"] = {"size": 13, "color": "@muted"}
    return layout


def empty(text):
    """Return a figure that says why there is nothing in it."""
    middle = {**note(0.5, 0.5, text), "xref": "paper", "yref": "paper", "xanchor": "center"}
    hidden = {"visible": False}
    return {"data": [], "layout": frame(140, annotations=[middle], xaxis=hidden, yaxis=hidden)}
