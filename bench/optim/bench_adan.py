# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One Adan step with decay over whole models.

Bytes per fp32 parameter: weights, three averages and the previous gradient read and written, the
gradient read: 44, and 48 with clipping by the global norm. 28 for torch's fused AdamW, which keeps
two averages.
"""

from functools import partial

import pytest
from baselines import BASELINES
from entries import moves, ours

import largebatch

_ours = partial(largebatch.optim.Adan, lr=1e-3, weight_decay=0.02)

FAMILY = {
    "largebatch": ours(_ours, moves(weights=2, grads=1, states=8)),
    "largebatch, clipping": ours(
        partial(_ours, max_grad_norm=1.0), moves(weights=2, grads=2, states=8)
    ),
    **BASELINES["adan"],
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_adan(bench_optimizer, model, dtype, implementation):
    bench_optimizer(model, dtype, FAMILY, implementation)
