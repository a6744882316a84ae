# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels for large-batch and low-communication training with PyTorch."""

try:
    # Before the extension: torch brings the OpenMP runtime that both then share.
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "largebatch needs PyTorch 2.4 or newer, in the build of your choice: pip install torch"
    ) from error

from . import _C
from ._C import BackendUnavailable, build_info

__version__ = _C.__version__

from . import compression, ops, optim, reference, sequence

__all__ = [
    "BackendUnavailable",
    "build_info",
    "compression",
    "ops",
    "optim",
    "reference",
    "sequence",
]
