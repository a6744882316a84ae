# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments of this folder share, beside what all do."""

import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))  # shared.py is beside this folder

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


def band(axes, x, curves, color, label, **style):
    """Draw the mean of some curves over the range of them."""
    points = list(zip(*curves, strict=True))
    low, high = [min(p) for p in points], [max(p) for p in points]
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(x, [fmean(p) for p in points], color=color, label=label, **style)
