# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One step of Lion with decay over whole models, and of Lion-K with other functions.

Bytes per fp32 parameter: weights and momentum read and written, the gradient read: 20, as torch's
fused SGD with momentum moves; whatever the function of each element is, and with rows normalised on
the way. With the momentum in 8 bits it is 14.1; with a norm of the whole tensor 28.

With 8 bits it takes longer in spite of that: callgrind counts 29 AVX2 instructions an element in
place of 4, of which 13 make the random word that rounds the momentum and 12 are its conversions.
"""

from functools import partial

import pytest
from baselines import BASELINES
from entries import moves, ours

from largebatch.optim import Lion, LionK

_lion = partial(Lion, lr=1e-4, weight_decay=0.1)
_lion_k = partial(LionK, lr=1e-4, weight_decay=0.1)
_huber = {"name": "huber", "e": 1e-3}
_ONE_PASS = moves(weights=2, grads=1, states=2)
_TWO_PASSES = moves(weights=2, grads=2, states=3)

FAMILY = {
    "largebatch": ours(_lion, _ONE_PASS),
    "largebatch, int8 momentum": ours(
        partial(_lion, state_dtype="int8"), lambda dtype: _ONE_PASS(dtype) - 8 + 2 * (1 + 4 / 128)
    ),
    "largebatch LionK, huber": ours(partial(_lion_k, kappa=_huber), _ONE_PASS),
    "largebatch LionK, group_lasso": ours(partial(_lion_k, kappa="group_lasso"), _ONE_PASS),
    "largebatch LionK, l2": ours(partial(_lion_k, kappa="l2"), _TWO_PASSES),
    **BASELINES["lion"],
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_lion(bench_optimizer, model, dtype, implementation):
    bench_optimizer(model, dtype, FAMILY, implementation)
