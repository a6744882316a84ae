# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Dot products of the two halves of a model's gradient: what a measuring step of AGVM adds.

Bytes read per fp32 element: the half and the sum, 8; with the second moment, 12. The baselines are
compositions of torch's own operations: halves made and multiplied tensor by tensor, in fp32; and
the three dot products of half and sum by the identities, which make no halves, and cancel.
"""

from functools import partial

import pytest
import torch
from entries import ours, peer

import largebatch

COMBINE = ((2.0, 0.0), (-2.0, 2.0))


def _ours(half, total, _):
    return partial(largebatch.ops.half_dots, half, total, COMBINE)


def _ours_preconditioned(half, total, square):
    return partial(largebatch.ops.half_dots, half, total, COMBINE, exp_avg_sq=square)


def _eager(half, total, _):
    def dots():
        rows = []
        for x, y in zip(half, total, strict=True):
            a, b = 2 * x, 2 * (y - x)
            rows.append(torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]))
        return torch.stack(rows)

    return dots


def _eager_preconditioned(half, total, square):
    def dots():
        rows = []
        for x, y, v in zip(half, total, square, strict=True):
            a, b = (h / ((0.999 * v + 0.001 * h * h).sqrt() + 1e-8) for h in (2 * x, 2 * (y - x)))
            rows.append(torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()]))
        return torch.stack(rows)

    return dots


def _identities(half, total, _):
    def dots():
        rows = []
        for x, y in zip(half, total, strict=True):
            x, y = x.flatten(), y.flatten()
            rows.append(torch.stack([x.dot(x), y.dot(y), x.dot(y)]))
        xx, yy, xy = torch.stack(rows).unbind(1)
        return 4 * torch.stack([xx, yy - 2 * xy + xx, xy - xx], dim=1)

    return dots


def _with_total(make):
    def prepare(tensors):
        total = [t + torch.randn_like(t) for t in tensors]
        return make(tensors, total, [t * t for t in total])

    return prepare


PLAIN = {
    "largebatch": ours(_with_total(_ours), 8),
    "torch, halves made": peer(_with_total(_eager)),
    "torch, identities": peer(_with_total(_identities)),
}
PRECONDITIONED = {
    "largebatch": ours(_with_total(_ours_preconditioned), 12),
    "torch, halves made": peer(_with_total(_eager_preconditioned)),
}


@pytest.mark.parametrize("implementation", PLAIN)
def bench_half_dots(bench_op, model, implementation):
    bench_op("dots", model, PLAIN, implementation)


@pytest.mark.parametrize("implementation", PRECONDITIONED)
def bench_preconditioned(bench_op, model, implementation):
    bench_op("dots, preconditioned", model, PRECONDITIONED, implementation)
