# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizers for large batches, drop-in for those of ``torch.optim``."""

from . import kappa
from .adan import Adan
from .agvm import AGVM
from .groups import param_groups
from .lamb import LAMB
from .lars import LARS
from .lion import Lion
from .lion_k import LionK
from .mkor import MKOR

__all__ = ["AGVM", "LAMB", "LARS", "MKOR", "Adan", "Lion", "LionK", "kappa", "param_groups"]
