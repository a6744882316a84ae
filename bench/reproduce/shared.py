# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What experiments share: choice of learning rates, text, figures, JSON, bytes on the wire."""

import json
import math
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure


def best(scores):
    """Return the key of the least score, a number or a tuple; NaN is worse than all else."""

    def ordered(score):
        numbers = score if isinstance(score, tuple) else (score,)
        return tuple(math.inf if math.isnan(number) else number for number in numbers)

    return min(scores, key=lambda key: ordered(scores[key]))


def at_an_end(lr, grid):
    """Return a warning, to be printed, where the grid should be wider."""
    return "AT AN END OF THE GRID" if lr in (min(grid), max(grid)) else ""


def spread(numbers, form=".2f"):
    """Return mean and range as text."""
    low, high = min(numbers), max(numbers)
    return f"{fmean(numbers):{form}} ({low:{form}} to {high:{form}})"


def figure(columns=1, width=5.6, height=3.8):
    """Return (figure, its axes from left to right), with little drawn that is not data."""
    chart = Figure(figsize=(width, height), dpi=110, layout="constrained")
    panels = list(chart.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return chart, panels


def save(chart, path, results):
    """Write the figure to `path` and its numbers beside it."""
    chart.savefig(path)
    Path(path).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


def interface_bytes():
    """Return the bytes that the loopback interface has carried, or None where none can be read."""
    try:
        lines = Path("/proc/net/dev").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip()[:3] == "lo:")
