# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Ten steps of an optimizer without and with MKOR, whose factors are updated in one of them.

The linear layers of a small encoder, biases folded. What MKOR adds is two products with factors in
each step, and the updates: bench/reproduce/mkor/frequency.py has whole iterations of training.
"""

import pytest
import torch
from entries import floor, ours

from largebatch.optim import LAMB, MKOR


def _layers(tensors):
    layers = torch.nn.ModuleList()
    for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
        layer = torch.nn.Linear(*reversed(weight.shape), device="meta")
        layer.weight, layer.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        layers.append(layer)
    for p in layers.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return layers


def _ten(optimizer):
    def steps():
        for _ in range(10):
            optimizer.step()

    steps()  # state is made: what is left is what every ten take
    return steps


def _backend(tensors):
    return _ten(LAMB(_layers(tensors).parameters(), lr=1e-4))


def _mkor(tensors, **settings):
    layers = _layers(tensors)
    # Statistics out of the gradients: there is no forward pass here for hooks to see.
    return _ten(MKOR(layers, LAMB(layers.parameters(), lr=1e-4), stats="grad", **settings))


FAMILY = {
    "largebatch": ours(_mkor),
    "largebatch, right side only": ours(lambda tensors: _mkor(tensors, sides="R")),
    "largebatch, updates in torch": ours(lambda tensors: _mkor(tensors, fused=False)),
    "LAMB alone": floor(_backend),
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_mkor(bench_op, layers, implementation):
    bench_op("ten steps", layers, FAMILY, implementation)
