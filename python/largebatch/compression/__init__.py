# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient compression with error feedback: compressors, methods, and hooks for DDP."""

from .compressors import BlockTopK, Dense, RandomK, Sign, Threshold, TopK
from .dgc import DGC
from .econtrol import EControl
from .ef21 import EF21
from .feedback import ErrorFeedback
from .functional import (
    Encoded,
    Selection,
    ThresholdSelection,
    block_topk,
    quantize,
    random_k,
    sign,
    threshold,
    topk,
)
from .hook import Hook
from .quantizer import Quantize
from .traffic import Traffic, break_even, traffic

__all__ = [
    "DGC",
    "EF21",
    "BlockTopK",
    "Dense",
    "EControl",
    "Encoded",
    "ErrorFeedback",
    "Hook",
    "Quantize",
    "RandomK",
    "Selection",
    "Sign",
    "Threshold",
    "ThresholdSelection",
    "TopK",
    "Traffic",
    "block_topk",
    "break_even",
    "quantize",
    "random_k",
    "sign",
    "threshold",
    "topk",
    "traffic",
]
