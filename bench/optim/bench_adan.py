# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One Adan step with decay over whole models.

Bytes per fp32 parameter: weights, three averages and the previous gradient read and written, the
gradient read: 44, and 48 with clipping by the global norm. 28 for torch's fused AdamW, which keeps
two averages.

Of 5000 tiny tensors the arithmetic is the least part. Of steps right after each other on one
thread, 1.2 microseconds a tensor, a fifth went into the lists of 35,000 tensors, an eighth into
counting that parameters were written, and two thirds into the call of the extension: torch saying
what each tensor is, the checks, and the update, which `perf record` found to be a seventh of a
step. Of 500 tensors a step takes 0.8: the rest is waiting for memory. We aim at 1.5, and are above
it in slow minutes of the machine.
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
