# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""A step of AGVM around SGD that measures, with two micro-batches; and one that does not.

What measuring adds to a step of the optimizer, 20 bytes per fp32 parameter: the gradient of the
first half is copied, 8, and both are read for the dot products, 8: 36. With `interval=10` one step
in ten is such a step.
"""

import pytest
import torch
from entries import floor, ours

from largebatch.optim import AGVM


def _sgd(params):
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)


class _Steps:
    """An optimizer whose step is that of AGVM after two micro-batches."""

    def __init__(self, params, **settings):
        half = len(params) // 2
        modules = {"backbone": params[:half], "head": params[half:]}
        self.agvm = AGVM(_sgd(params), modules, anchor="backbone", **settings)

    def step(self):
        self.agvm.micro_batch()
        self.agvm.micro_batch()
        self.agvm.step()


def _measuring(params):
    return _Steps(params, interval=1, warmup=1)


def _between(params):
    return _Steps(params, interval=10**9)


FAMILY = {
    "largebatch": ours(_measuring, lambda dtype: 9 * dtype.itemsize),
    "largebatch, between measurements": ours(_between, lambda dtype: 5 * dtype.itemsize),
    "torch SGD fused alone": floor(_sgd, lambda dtype: 5 * dtype.itemsize),
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_agvm(bench_optimizer, model, dtype, implementation):
    bench_optimizer(model, dtype, FAMILY, implementation)
