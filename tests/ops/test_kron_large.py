# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of factors that no cache holds, and of one of more than 2^31 elements."""

import math

import pytest
import torch

import largebatch
from tests.helpers import need, same_bits
from tests.ops.kron_setting import (
    BEYOND_CACHE,
    F16,
    F32,
    F64,
    LEAK,
    RHO,
    PaddedRows,
    assert_updated,
    large,
    norm_of,
    symmetric,
    update,
)


@pytest.mark.parametrize(("variant", "kind"), [("leaky", "max"), ("exact", "inf")])
def test_large_orders(backend, variant, kind):
    d = 1025 if backend.name == "simt" else BEYOND_CACHE[F32]
    before, v = large(d, F32, backend.device)
    assert symmetric(before)
    rows = PaddedRows([before], gap=5)
    norms, counters = update(rows.tensors, [v], variant, stabilizer_norm=kind)
    assert_updated(rows.tensors, [before], [v], variant)
    assert norms.item() == pytest.approx(norm_of(rows.tensors[0], kind), rel=1e-6)
    assert rows.intact()
    assert not counters.any()


# On the CPU, in the best instruction set.
@pytest.mark.parametrize(("dtype", "d"), [(F32, 4100), *BEYOND_CACHE.items()], ids=str)
def test_large_orders_of_every_dtype(dtype, d):
    before, v = large(d, dtype)
    m = before.clone()
    norms, _ = update([m], [v], "paper", stabilizer_norm="inf")
    assert_updated([m], [before], [v], "paper")
    assert norms.item() == pytest.approx(norm_of(m, "inf"), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_large_factor_with_a_bad_vector_keeps_every_bit(bad):
    before, v = large(BEYOND_CACHE[F32])
    v[1000] = bad
    m, norms = before.clone(), torch.tensor([5.0])
    _, counters = update([m], [v], norms=norms)
    assert same_bits(m, before)
    assert (norms.tolist(), counters.tolist()) == ([5.0], [[1, 0, 0]])


@pytest.mark.huge
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # in the best instruction set
def test_more_than_two_to_the_31_elements(device):
    if device == "cuda" and not (largebatch._C.cuda_available() and torch.cuda.is_available()):
        pytest.skip(f"no CUDA backend: {largebatch.build_info()}")
    need(2.1, device)
    # Blocks that are alike inside, and what is the same matrix of order 2, with sums for vectors.
    d, values = 46500, torch.tensor([[0.5, 0.125], [0.125, 0.25]], dtype=F64)
    halves = [slice(0, d // 2), slice(d // 2, d)]
    m = torch.empty(d, d, dtype=F16, device=device)
    for i in (0, 1):
        for j in (0, 1):
            m[halves[i], halves[j]] = values[i, j]
    entries = torch.tensor([2.0**-14, 2.0**-15], dtype=F64)
    v = torch.repeat_interleave(entries, d // 2).float().to(device)
    sums = entries * (d // 2)
    u = LEAK * values @ sums + (1 - LEAK) * entries
    s = u @ sums
    expected = LEAK * values - RHO / (1 + RHO * s) * torch.outer(u, u)
    norms, counters = update([m], [v])
    diagonal = expected.diagonal() + 1 - LEAK
    for i in (0, 1):
        found = m.diagonal()[halves[i]].aminmax()
        assert [x.item() for x in found] == [pytest.approx(diagonal[i].item(), rel=1e-3)] * 2
    assert norms.item() == m.diagonal().max().item()
    assert not counters.any()
    for i in (0, 1):
        m.diagonal()[halves[i]] = m[halves[i], halves[i]][1, 0]
        for j in (0, 1):
            found = m[halves[i], halves[j]].aminmax()
            assert [x.item() for x in found] == [pytest.approx(expected[i, j].item(), rel=1e-3)] * 2
