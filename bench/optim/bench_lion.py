# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One step of Lion, and of Lion-K by rows, with decay over whole models.

Bytes per fp32 parameter: weights and momentum read and written, the gradient read: 20, as torch's
fused SGD with momentum moves. Lion-K with a norm of every row takes them too: what its reduction
costs is its ratio to Lion.
"""

import pytest
from baselines import BASELINES
from shapes import SHAPES

import largebatch


def _lion(params):
    return largebatch.optim.Lion(params, lr=1e-4, weight_decay=0.1)


def _lion_k(params):
    return largebatch.optim.LionK(params, lr=1e-4, weight_decay=0.1, kappa="group_lasso")


FAMILY = {"largebatch": _lion, "largebatch LionK, group_lasso": _lion_k, **BASELINES["lion"]}
BYTES = {"largebatch": 20, "largebatch LionK, group_lasso": 20, "torch SGD fused": 20}


@pytest.mark.parametrize("implementation", FAMILY)
@pytest.mark.parametrize("shapes", SHAPES)
def bench_lion(bench_optimizer, shapes, implementation):
    bench_optimizer(
        "lion", implementation, shapes, FAMILY[implementation], BYTES.get(implementation)
    )
