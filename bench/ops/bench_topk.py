# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Selection, and a step of error feedback around it, of one long vector.

Bytes per fp32 element. Selection reads 4 once or twice, so that its percentage of a copy is of the
8 of a cold call; blocks read 4 and write 12 for each kept one. A step of EControl with blocks reads
g, e, h and writes e and the key, 20; then reads H and writes the update, 8. Selection reads the key
once more, 32 in all. What keeps every element in few bits also takes its own payload out of e and
into h, 16, and moves its bits three times: 48 and these; signs read the key twice, for their scale
is that of the whole tensor.

The baselines are torch.topk, and EControl's listing as a composition of torch's operations. Beside
blocks stands torch.sum, which reads the same and writes nothing: where a copy writes past the
caches, it moves more bytes in a second than anything that only reads.
"""

import importlib
from functools import partial

import pytest
import torch
from entries import floor, ours, peer

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


def _cupy(ratio, tensors):
    (x,) = tensors
    if x.device.type != "cuda":
        raise ImportError("CuPy is for GPUs")
    cupy = importlib.import_module("cupy")
    array, k = cupy.from_dlpack(x), round(ratio * x.numel())
    return lambda: array[cupy.argpartition(cupy.abs(array), -k)[-k:]]


def _selection(ratio):
    return {
        "largebatch": ours(partial(_top, ratio), 8),
        "largebatch, warm": ours(partial(_top, ratio, warm=True), 4),
        "torch.topk": peer(partial(_torch_topk, ratio)),
        "CuPy argpartition": peer(partial(_cupy, ratio)),
    }


@pytest.mark.parametrize("implementation", _selection(1))
@pytest.mark.parametrize("ratio", [0.001, 0.01])
def bench_selection(bench_op, vector, ratio, implementation):
    bench_op(f"top {ratio:.1%}", vector, _selection(ratio), implementation)


def _sum(tensors):
    (x,) = tensors
    return x.sum


def _torch_blocks(tensors):
    blocks = tensors[0].view(-1, 4096)
    return lambda: blocks.gather(1, blocks.abs().topk(64, dim=1).indices)


BLOCKS = {
    "largebatch": ours(_blocks, 4 + 12 * 64 / 4096),
    "torch.topk of rows": peer(_torch_blocks),
    "torch.sum": floor(_sum, 4),
}


@pytest.mark.parametrize("implementation", BLOCKS)
def bench_blocks(bench_op, vector, implementation):
    bench_op("top 64 of 4096", vector, BLOCKS, implementation)


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
    "largebatch": ours(partial(_step, TopK(ratio=0.01)), 32),
    "largebatch, blocks": ours(partial(_step, BlockTopK()), 28),
    "largebatch, int8": ours(partial(_step, Quantize(bits=8)), 48 + 3 * 8 / 8),
    "largebatch, sign": ours(partial(_step, Sign()), 52 + 3 * 1 / 8),
    "torch": peer(partial(_eager, 0.01)),
}


@pytest.mark.parametrize("implementation", STEPS)
def bench_econtrol(bench_op, vector, implementation):
    bench_op("EControl, 1%", vector, STEPS, implementation)
