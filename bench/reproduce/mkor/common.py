# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments of this folder share: choice of learning rates, tables, figures, JSON."""

import json
import math
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

# After Okabe and Ito, whom the colour-blind can tell apart.
COLORS = {
    "SGD": "#555555",
    "LAMB": "#d55e00",
    "LAMB + MKOR": "#0072b2",
    "LAMB + MKOR, right side": "#56b4e9",
    "LAMB + MKOR-H": "#009e73",
    "LAMB + dense K-FAC": "#cc79a7",
}


def rates(middle, count=6, factor=2**0.5):
    """Return `count` learning rates, spaced by `factor`, around `middle` (of two, the lower)."""
    return [float(f"{middle * factor ** (i - (count - 1) // 2):.3g}") for i in range(count)]


def best(scores):
    """Return the key of the least score; NaN is worse than all else."""
    return min(scores, key=lambda key: math.inf if math.isnan(scores[key]) else scores[key])


def at_an_end(lr, grid):
    """Return a warning, to be printed, where the grid should be wider."""
    return "AT AN END OF THE GRID" if lr in (min(grid), max(grid)) else ""


def spread(numbers, digits=2):
    """Return mean and range as text."""
    low, high = min(numbers), max(numbers)
    return f"{fmean(numbers):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def figure(columns=1, width=5.6, height=3.8):
    """Return (figure, its axes from left to right), with little drawn that is not data."""
    chart = Figure(figsize=(width, height), dpi=110, layout="constrained")
    panels = list(chart.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return chart, panels


def band(axes, x, curves, color, label, **style):
    """Draw the mean of some curves over the range of them."""
    points = list(zip(*curves, strict=True))
    low, high = [min(p) for p in points], [max(p) for p in points]
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, [fmean(p) for p in points], color=color, label=label, **style)


def save(chart, path, results):
    """Write the figure to `path` and its numbers beside it."""
    chart.savefig(path)
    Path(path).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
