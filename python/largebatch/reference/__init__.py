# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The mathematics of every family in plain PyTorch, written from the papers.

One file per family. Each function works in place on the tensors it is given and computes in the
dtype of the optimizer state: float64 tensors make it the oracle of the tests, float32 tensors make
it the ``fused=False`` path of the optimizers. It is meant to be read next to the paper.
"""

from . import (
    adan,
    agvm,
    compression,
    kfac,
    kron,
    lamb,
    lars,
    lion,
    mkor,
    norm,
    rounding,
    ulysses,
    wire,
)

__all__ = [
    "adan",
    "agvm",
    "compression",
    "kfac",
    "kron",
    "lamb",
    "lars",
    "lion",
    "mkor",
    "norm",
    "rounding",
    "ulysses",
    "wire",
]
