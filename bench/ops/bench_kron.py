# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of the inverses of Kronecker factors: what an updating step of MKOR adds.

Bytes per fp32 element of a factor: it is read for the product and read and written by the update,
12; 6 in fp16. The baseline is the update of MKOR's authors as a composition of torch's operations:
blend with an identity, two products with vectors, an outer product, a subtraction, a look at the
largest entry. Beside it, for scale, what K-FAC does in its place: an inverse.
"""

from functools import partial

import pytest
import torch
from entries import floor, ours, peer

import largebatch


def _start(tensors, dtype=torch.float32):
    """Return factors that are I, and a vector for each."""
    factors = [torch.eye(len(t), dtype=dtype, device=t.device) for t in tensors]
    return factors, [10 * t[0].contiguous() for t in tensors]


def _ours(tensors, dtype=torch.float32, **settings):
    factors, vectors = _start(tensors, dtype)
    norms, counters = largebatch.ops.kron_rank1_update(factors, vectors, **settings)
    return partial(
        largebatch.ops.kron_rank1_update,
        factors,
        vectors,
        norms=norms,
        counters=counters,
        **settings,
    )


def _exact(tensors):
    return _ours(tensors, variant="exact", stabilizer_threshold=2.0, stabilizer_blend=0.9)


def _released(tensors):
    factors, vectors = _start(tensors)

    def update():
        for m, v in zip(factors, vectors, strict=True):
            eye = torch.eye(len(m), device=m.device)
            m.copy_(0.95 * m + 0.05 * eye)
            u = m @ v
            m.sub_(torch.outer(u, u) / (1 + v @ u))
            if m.abs().max() > 2:
                m.copy_(eye)

    return update


def _inverse(tensors):
    factors, _ = _start(tensors)
    return lambda: [torch.linalg.inv(m) for m in factors]


FAMILY = {
    "largebatch": ours(_ours, 12),
    "largebatch, exact": ours(_exact, 12),
    "largebatch, fp16": ours(partial(_ours, dtype=torch.float16), 6),
    "torch, as released": peer(_released),
    "torch.linalg.inv": floor(_inverse),
}


@pytest.mark.parametrize("implementation", FAMILY)
def bench_kron(bench_op, factors, implementation):
    bench_op("rank-1 update", factors, FAMILY, implementation)
