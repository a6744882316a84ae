# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient compression with error feedback: compressors, methods, and hooks for DDP."""

from .compressors import BlockTopK, Dense, Quantize, RandomK, Sign, Threshold, TopK
from .methods import DGC, EF21, EControl, ErrorFeedback
from .traffic import Traffic, break_even, traffic

__all__ = [
    "DGC",
    "EF21",
    "BlockTopK",
    "Dense",
    "EControl",
    "ErrorFeedback",
    "Quantize",
    "RandomK",
    "Sign",
    "Threshold",
    "TopK",
    "Traffic",
    "break_even",
    "traffic",
]
