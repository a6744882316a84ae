# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels as functions, and as ``torch.ops.largebatch.*``.

Functions take arrays of one device, most of them lists: torch tensors, or NumPy and CuPy arrays,
which are shared and not copied.
"""

from .adan import adan_step
from .agvm import half_dots
from .kron import kron_rank1_update
from .lamb import lamb_apply, lamb_moments
from .lars import lars_apply, lars_norms
from .lion import lion_step
from .norm import multi_tensor_norm, multi_tensor_sq_sum
from .topk import scatter_reduce, topk_select
from .ulysses import ulysses_pack, ulysses_unpack

__all__ = [
    "adan_step",
    "half_dots",
    "kron_rank1_update",
    "lamb_apply",
    "lamb_moments",
    "lars_apply",
    "lars_norms",
    "lion_step",
    "multi_tensor_norm",
    "multi_tensor_sq_sum",
    "scatter_reduce",
    "topk_select",
    "ulysses_pack",
    "ulysses_unpack",
]
