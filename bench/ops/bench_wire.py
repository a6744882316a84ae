# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The wire format of whole tensors: a long vector to a payload, and the mean of four payloads.

Bytes per fp32 element: packing reads 4 and writes the bits of a value, the mean reads these four
times and writes 4; signs read twice, as the scale is that of the whole tensor. The baselines are
torch: casts to bf16 and their mean, and int8 with a scale for 2048 neighbours and stochastic
rounding, as a composition of operations.

Packing to 8, 4 and 2 bits is bound by arithmetic, not by memory: callgrind counts 18 AVX2
instructions an element, where a copy has 0.25. 13 of them make the random word that rounds it
(Philox, ten rounds for four words), 3 round it, 1 finds the scale. The mean of four takes 6 to 8.
"""

from functools import partial

import pytest
import torch
from entries import ours, peer

import largebatch
from largebatch.compression import Dense, Quantize, Sign

WORLD = 4
FORMATS = {
    "bfloat16": (Dense(values="bfloat16"), 16),
    "int8": (Quantize(bits=8), 8),
    "int4": (Quantize(bits=4), 4),
    "int2": (Quantize(bits=2), 2),
    "sign": (Sign(), 1),
}


def _pack(compressor, tensors):
    (x,) = tensors
    plan = largebatch._C.CompressionPlan([x.numel()], [compressor.record([x.numel()])])
    values = torch.empty(plan.slots, device=x.device)  # of selected elements: here not touched
    indices = torch.empty(plan.slots, dtype=torch.int64, device=x.device)
    counts = torch.zeros(1, 2, dtype=torch.int64, device=x.device)
    payload = torch.empty(plan.payload_bytes, dtype=torch.uint8, device=x.device)
    return plan, payload, partial(plan.pack, tensors, values, indices, counts, 0, 0, payload)


def _packing(compressor, tensors):
    return _pack(compressor, tensors)[-1]


def _mean(compressor, tensors):
    plan, payload, pack = _pack(compressor, tensors)
    pack()
    payloads = payload.expand(WORLD, -1).contiguous()
    nonfinite = torch.zeros(WORLD, dtype=torch.int64, device=payload.device)
    none = [[]] * 4
    rule = {"method": "none"}
    return partial(
        plan.decode, payloads, -1, *none, tensors, [], None, rule, nonfinite, None, False, True
    )


def _cast(tensors):
    (x,) = tensors
    return lambda: x.to(torch.bfloat16)


def _eager_int8(tensors):
    (x,) = tensors
    blocks = x[: x.numel() // 2048 * 2048].view(-1, 2048)

    def step():
        scale = blocks.abs().amax(dim=1, keepdim=True) / 127
        return (blocks / scale + torch.rand_like(blocks)).floor().to(torch.int8), scale

    return step


def _torch_mean(tensors):
    (x,) = tensors
    payloads = [x.to(torch.bfloat16) for _ in range(WORLD)]
    out = torch.empty_like(x)

    def mean():
        out.copy_(payloads[0])
        for payload in payloads[1:]:
            out.add_(payload)
        return out.div_(WORLD)

    return mean


def _packing_of(name):
    compressor, bits = FORMATS[name]
    reads = 8 if name == "sign" else 4
    return {"largebatch": ours(partial(_packing, compressor), reads + bits / 8)}


def _mean_of(name):
    compressor, bits = FORMATS[name]
    return {"largebatch": ours(partial(_mean, compressor), WORLD * bits / 8 + 4)}


PACKING = {name: _packing_of(name) for name in FORMATS}
PACKING["bfloat16"]["torch"] = peer(_cast, 6)
PACKING["int8"]["torch"] = peer(_eager_int8)
MEANS = {name: _mean_of(name) for name in FORMATS}
MEANS["bfloat16"]["torch"] = peer(_torch_mean)


def _every(families):
    """Return all (format, implementation) there are."""
    return [(name, implementation) for name in families for implementation in families[name]]


@pytest.mark.parametrize(("name", "implementation"), _every(PACKING))
def bench_pack(bench_op, vector, name, implementation):
    bench_op(f"pack {name}", vector, PACKING[name], implementation)


@pytest.mark.parametrize(("name", "implementation"), _every(MEANS))
def bench_mean(bench_op, vector, name, implementation):
    bench_op(f"mean of 4 {name}", vector, MEANS[name], implementation)
