# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One Adan step with decay over whole models.

Bytes per fp32 parameter: weights, three averages and the previous gradient read and written, the
gradient read: 44, and 48 with clipping by the global norm. 28 for torch's fused AdamW, which keeps
two averages.

Of 5000 tiny tensors the arithmetic is the least part. `perf record` of steps right after each other
on one thread found 42 % of the time in torch, which says what each of the 35,000 tensors is, gives
gradients and counts writes to parameters; 17 % in Python and its dicts; 39 % in the extension, of
which 8 in the formula. That is 1.2 to 1.5 microseconds a tensor, at which we aim, and up to 2 while
the core is slow.
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
