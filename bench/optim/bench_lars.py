# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One LARS step with decay and momentum over whole models.

Bytes per fp32 parameter: 8 (norms) + 20 (apply) = 28; 20 for torch's fused SGD, which takes no
norms.
"""

import pytest
from baselines import BASELINES
from entries import moves, ours

import largebatch


def _ours(params):
    return largebatch.optim.LARS(params, lr=1e-3, momentum=0.9, weight_decay=1e-4)


FAMILY = {
    "largebatch": ours(_ours, moves(weights=3, grads=2, states=2)),
    **BASELINES["lars"],
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_lars(bench_optimizer, model, dtype, implementation):
    bench_optimizer(model, dtype, FAMILY, implementation)
