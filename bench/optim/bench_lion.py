# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One step of Lion with decay over whole models, and of Lion-K with other functions.

Bytes per fp32 parameter: weights and momentum read and written, the gradient read: 20, as torch's
fused SGD with momentum moves; whatever the function of each element is, and with rows normalised on
the way. With the momentum in 8 bits it is 14.1; with a norm of the whole tensor 28.
"""

import pytest
from baselines import BASELINES
from shapes import SHAPES

import largebatch


def _lion(params):
    return largebatch.optim.Lion(params, lr=1e-4, weight_decay=0.1)


def _huber(params):
    k = {"name": "huber", "e": 1e-3}
    return largebatch.optim.LionK(params, lr=1e-4, weight_decay=0.1, kappa=k)


def _rows(params):
    return largebatch.optim.LionK(params, lr=1e-4, weight_decay=0.1, kappa="group_lasso")


def _whole(params):
    return largebatch.optim.LionK(params, lr=1e-4, weight_decay=0.1, kappa="l2")


def _int8(params):
    return largebatch.optim.Lion(params, lr=1e-4, weight_decay=0.1, state_dtype="int8")


FAMILY = {
    "largebatch": _lion,
    "largebatch, int8 momentum": _int8,
    "largebatch LionK, huber": _huber,
    "largebatch LionK, group_lasso": _rows,
    "largebatch LionK, l2": _whole,
    **BASELINES["lion"],
}
BYTES = {
    "largebatch": 20,
    "largebatch, int8 momentum": 14.1,
    "largebatch LionK, huber": 20,
    "largebatch LionK, group_lasso": 20,
    "largebatch LionK, l2": 28,
    "torch SGD fused": 20,
}


@pytest.mark.parametrize("implementation", FAMILY)
@pytest.mark.parametrize("shapes", SHAPES)
def bench_lion(bench_optimizer, shapes, implementation):
    bench_optimizer(
        "lion", implementation, shapes, FAMILY[implementation], BYTES.get(implementation)
    )
