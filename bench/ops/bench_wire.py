# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The wire format of whole tensors: 1e8 elements to a payload, and the mean of four payloads.

Bytes per fp32 element: packing reads 4 and writes the bits of a value, the mean reads these four
times and writes 4. The baselines are torch: a cast to bf16, and int8 with a scale for 2048
neighbours and stochastic rounding, as a composition of operations.
"""

from functools import partial

import pytest
import torch
from shapes import FLAT

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


PACKING = {
    f"largebatch, {name}": (partial(_packing, c), 4 + b / 8) for name, (c, b) in FORMATS.items()
}
PACKING |= {"torch, bfloat16": (_cast, 6), "torch, int8": (_eager_int8, None)}
MEANS = {
    f"largebatch, {name}": (partial(_mean, c), WORLD * b / 8 + 4)
    for name, (c, b) in FORMATS.items()
}


@pytest.mark.parametrize("implementation", PACKING)
def bench_pack(bench_model, implementation):
    make, nbytes = PACKING[implementation]
    bench_model("pack", implementation, "1e8 elements", make, nbytes, models=FLAT)


@pytest.mark.parametrize("implementation", MEANS)
def bench_mean(bench_model, implementation):
    make, nbytes = MEANS[implementation]
    bench_model("mean of 4", implementation, "1e8 elements", make, nbytes, models=FLAT)
