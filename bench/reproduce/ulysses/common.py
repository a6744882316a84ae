# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments of this folder share: the way to what all do."""

import sys
from pathlib import Path

FOLDERS = Path(__file__).parents
sys.path[:0] = [str(FOLDERS[1]), str(FOLDERS[2])]  # of shared.py, of measure.py

# After Okabe and Ito, whom the colour-blind can tell apart.
COLORS = {"Ulysses": "#0072b2", "Ulysses, messages": "#56b4e9", "Megatron": "#d55e00"}
