# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers for large batches, drop-in for those of ``torch.optim``."""

from .agvm import AGVM
from .groups import param_groups
from .lamb import LAMB
from .lars import LARS

__all__ = ["AGVM", "LAMB", "LARS", "param_groups"]
