# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Selection, and a step of error feedback around it, of 1e8 elements.

Bytes per fp32 element. Selection reads 4 once or twice, so that its percentage of a copy is of the
8 of a cold call; blocks read 4 and write 12 for each kept one. A step of EControl with blocks reads
g, e, h and writes e and the key, 20; then reads H and writes the update, 8. The baselines are
torch.topk, and EControl's listing as a composition of torch's operations. Beside blocks stands
torch.sum, which reads the same and writes nothing: where a copy writes past the caches, it moves
more bytes in a second than anything that only reads.
"""

from functools import partial

import pytest
import torch
from shapes import FLAT

import largebatch
from largebatch.compression import BlockTopK, EControl, Quantize, Sign, TopK


def _select(record, tensors, warm=False):
    plan = largebatch._C.CompressionPlan([t.numel() for t in tensors], [record])
    device = tensors[0].device
    values = torch.empty(plan.slots, device=device)
    indices = torch.empty(plan.slots, dtype=torch.int64, device=device)
    counts = torch.empty(1, 2, dtype=torch.int64, device=device)
    state = torch.zeros(1, 2, dtype=torch.float64, device=device) if warm else None
    return partial(plan.select, tensors, values, indices, counts, state)


def _top(ratio, tensors, warm=False):
    return _select(dict(select="topk", k=round(ratio * tensors[0].numel())), tensors, warm)


def _blocks(tensors):
    return _select(dict(select="block", block=4096, k=64), tensors)


def _torch_topk(ratio, tensors):
    (x,) = tensors
    return lambda: x[torch.topk(x.abs(), round(ratio * x.numel())).indices]


SELECTION = {
    "largebatch": (_top, 8),
    "largebatch, warm": (partial(_top, warm=True), 4),
    "torch.topk": (_torch_topk, None),
}


@pytest.mark.parametrize("implementation", SELECTION)
@pytest.mark.parametrize("ratio", [0.001, 0.01])
def bench_selection(bench_model, ratio, implementation):
    make, nbytes = SELECTION[implementation]
    family = f"top {ratio:.1%}"
    bench_model(family, implementation, "1e8 elements", partial(make, ratio), nbytes, models=FLAT)


def _sum(tensors):
    (x,) = tensors
    return x.sum


BLOCKS = {"largebatch": (_blocks, 4 + 12 * 64 / 4096), "torch.sum": (_sum, 4)}


@pytest.mark.parametrize("implementation", BLOCKS)
def bench_blocks(bench_model, implementation):
    make, nbytes = BLOCKS[implementation]
    bench_model("top 64 of 4096", implementation, "1e8 elements", make, nbytes, models=FLAT)


def _step(compressor, tensors, eta=0.005):
    method = EControl(compressor, eta=eta)
    state = method.init(tensors)
    exchange = method._exchange(state, tensors)
    outs = [torch.empty_like(t) for t in tensors]

    def step():
        exchange.decode(exchange.encode(tensors)[None], outs=outs)

    return step


def _eager(ratio, tensors):
    (g,) = tensors
    e, h, mean = (torch.zeros_like(g) for _ in range(3))
    k = round(ratio * g.numel())

    def step():
        r = g - h
        key = 0.005 * e + r
        chosen = torch.topk(key.abs(), k).indices
        delta = torch.zeros_like(g)
        delta[chosen] = key[chosen]
        e.add_(r).sub_(delta)
        h.add_(delta)
        mean.add_(delta)
        return mean.clone()

    return step


STEPS = {
    "largebatch": (partial(_step, TopK(ratio=0.01)), None),
    "largebatch, blocks": (partial(_step, BlockTopK()), 28),
    "largebatch, int8": (partial(_step, Quantize(bits=8)), None),
    "largebatch, sign": (partial(_step, Sign()), None),
    "torch": (partial(_eager, 0.01), None),
}


@pytest.mark.parametrize("implementation", STEPS)
def bench_econtrol(bench_model, implementation):
    make, nbytes = STEPS[implementation]
    bench_model("EControl, 1%", implementation, "1e8 elements", make, nbytes, models=FLAT)
