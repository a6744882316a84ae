# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One LAMB step with decay and clipping over whole models.

Bytes per fp32 parameter: 4 (norm) + 24 (moments) + 16 (apply) = 44; 28 for torch's fused AdamW,
which has neither norm nor ratio.
"""

import pytest
from baselines import BASELINES
from entries import moves, ours

import largebatch

FAMILY = {
    "largebatch": ours(largebatch.optim.LAMB, moves(weights=3, grads=2, states=6)),
    **BASELINES["lamb"],
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_lamb(bench_optimizer, model, dtype, implementation):
    bench_optimizer(model, dtype, FAMILY, implementation)
