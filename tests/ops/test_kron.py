# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of the inverses of Kronecker factors: values, norms, bits."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from largebatch import ops
from largebatch.reference import kron as reference
from tests.helpers import Padded, same_bits
from tests.ops.kron_setting import (
    BF16,
    DTYPES,
    F16,
    F32,
    F64,
    GAMMA,
    LEAK,
    ONE,
    RHO,
    STABILIZER,
    VARIANTS,
    PaddedRows,
    assert_updated,
    by_formula,
    copies,
    error,
    norm_of,
    orders,
    pairs,
    real,
    spd,
    symmetric,
    update,
    vector,
)

# Of many: 16-bit factors are rounded each time.
MANY = {F64: 1e-12, F32: 5e-6, F16: 2e-3, BF16: 4e-2}


# ---- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_the_formulas_in_float64(backend, variant, dtype):
    before, vectors = pairs(orders(backend), dtype, backend.device)
    rows, padded = PaddedRows(before), Padded(vectors, offset=1)
    norms, counters = update(rows.tensors, padded.tensors, variant)
    assert_updated(rows.tensors, before, vectors, variant)
    assert rows.intact()
    assert padded.intact()
    assert same_bits(padded.tensors, vectors)
    assert (norms.dtype, norms.shape, norms.device.type) == (
        F32,
        (len(before),),
        vectors[0].device.type,
    )
    assert (counters.dtype, counters.shape) == (torch.int64, (len(before), 3))
    assert not counters.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_blended_by_the_stabilizer_matches_the_formulas(backend, variant, dtype):
    before, vectors = pairs([1, 7, 33, 64, 129], dtype, backend.device)
    before = [2 * m / m.abs().max() for m in before]
    factors = copies(before)
    options = dict(stabilizer_threshold=1.5, stabilizer_blend=0.4)
    _, counters = update(factors, vectors, variant, **options)
    assert_updated(factors, before, vectors, variant, z=0.4)
    assert counters.tolist() == [[0, 1, 0]] * len(before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_constants_are_those_given(backend, variant):
    for constants in (
        dict(gamma=0.5, leak=0.25, rho=0.125),
        dict(gamma=0.999, leak=1.0, rho=40.0),
        dict(gamma=0.01, leak=0.0, rho=1e-3),
    ):
        before, vectors = pairs([5, 65], F64, backend.device)
        factors = copies(before)
        update(factors, vectors, variant, **constants)
        assert_updated(factors, before, vectors, variant, **constants)


@pytest.mark.parametrize("variant", VARIANTS)
def test_defaults_are_those_of_the_paper(variant):
    before, vectors = pairs([9], F64)
    factors = copies(before)
    ops.kron_rank1_update(factors, vectors, variant=variant)
    assert_updated(factors, before, vectors, variant, gamma=0.95, leak=0.95, rho=1.0)
    given_none = copies(before)
    ops.kron_rank1_update(given_none, vectors)
    assert_updated(given_none, before, vectors, "leaky", leak=0.95, rho=1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_fifty_updates_match_the_dense_inverse(backend, variant):
    sizes = [1, 7, 33] if backend.name == "simt" else [1, 7, 33, 64, 129]
    factors = [torch.eye(d, dtype=F64, device=backend.device) for d in sizes]
    dense, norms, counters = [m.cpu() for m in factors], torch.ones(len(sizes)), None
    norms = norms.to(backend.device)
    stabilizer = {} if variant == "leaky" else STABILIZER
    fired = 0
    for step in range(50):
        vectors = [vector(d, F64, backend.device, seed=step) for d in sizes]
        blends = [LEAK] * len(sizes)
        if variant != "leaky":
            blends = [0.4 if m.abs().max() > 2.0 else None for m in dense]
        fired += sum(z is not None for z in blends)
        dense = [
            reference.dense_inverse(variant, m, v.cpu(), blend=z, gamma=GAMMA, rho=RHO)
            for m, v, z in zip(dense, vectors, blends, strict=True)
        ]
        _, counters = update(
            factors, vectors, variant, norms=norms, counters=counters, **stabilizer
        )
    for m, expected in zip(factors, dense, strict=True):
        assert error(m, expected) <= 1e-8
        assert symmetric(m)
    assert counters.sum(dim=0).tolist() == [0, 0 if variant == "leaky" else fired, 0]
    assert fired > 0


@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_many_leaky_updates_stay_close_to_float64(backend, dtype):
    sizes = [1, 20, 65]
    factors = [torch.eye(d, dtype=dtype, device=backend.device) for d in sizes]
    expected = [m.cpu().double() for m in factors]
    lengths = (0.1, 1.0, 3.0)
    for step in range(50 if backend.name == "simt" else 1000):
        length = lengths[step % 3]
        vectors = [vector(d, F32, backend.device, step, length) for d in sizes]
        update(factors, vectors)
        expected = [by_formula(m, v, "leaky") for m, v in zip(expected, vectors, strict=True)]
    for m, e in zip(factors, expected, strict=True):
        assert error(m, e) <= MANY[dtype]
        assert symmetric(m)


def test_leaky_keeps_eigenvalues_within_their_bounds(backend):
    m = torch.eye(30, device=backend.device)
    for step in range(60):
        update([m], [vector(30, device=backend.device, seed=step % 7, length=10.0)])
    low, high = torch.linalg.eigvalsh(m.double().cpu())[[0, -1]].tolist()
    least, most = reference.eigenvalue_bounds(LEAK, RHO, 100.0)
    assert least - 1e-6 <= low < high <= most + 1e-6


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e8, 1e15, 1e25])
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_huge_vectors_and_tiny_ones_leave_finite_factors(backend, dtype, scale):
    before, vectors = pairs([2, 33, 129], dtype, backend.device)
    vectors = [v * scale for v in vectors]
    factors = copies(before)
    norms, counters = update(factors, vectors)
    assert all(m.isfinite().all() for m in factors)
    assert norms.isfinite().all()
    assert not counters.any()
    assert_updated(factors, before, vectors, "leaky")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vector_whose_products_vanish_is_not_zero(backend, variant):
    before, _ = pairs([3, 40], F32, backend.device)
    vectors = [torch.zeros(len(m), device=backend.device) for m in before]
    for v in vectors:
        v[-1] = 1e-30
    factors = copies(before)
    update(factors, vectors, variant)
    assert_updated(factors, before, vectors, variant)
    assert not any(map(same_bits, factors, before))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    sizes=st.lists(st.integers(0, 80), max_size=12),
    variant=st.sampled_from(VARIANTS),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["max", "inf"]),
    gap=st.integers(0, 5),
)
def test_any_list_of_sizes(backend, sizes, variant, dtype, kind, gap):
    before, vectors = pairs(sizes, dtype, backend.device, seed=1)
    rows = PaddedRows(before, gap, offset=gap)
    options = dict(stabilizer_norm=kind) | ({} if variant == "leaky" else STABILIZER)
    norms, counters = update(rows.tensors, vectors, variant, **options)
    expected = [m.cpu().double() for m in before]
    of_expected = update_reference(expected, [v.cpu() for v in vectors], variant, **options)
    assert all(error(m, e) <= ONE[dtype] for m, e in zip(rows.tensors, expected, strict=True))
    assert counters.tolist() == of_expected[1].tolist()
    assert all(symmetric(m) for m in rows.tensors)
    assert norms.tolist() == pytest.approx([norm_of(m, kind) for m in rows.tensors], rel=1e-6)
    assert rows.intact()


def update_reference(factors, vectors, variant, **options):
    options = dict(gamma=GAMMA, leak=LEAK, rho=RHO) | options
    return reference.kron_rank1_update(factors, vectors, variant=variant, **options)


def test_dtypes_side_by_side(backend):
    dtypes = [F64, F32, BF16, F32, F16, F64, F16]
    before = [spd(20 + i, dtype, backend.device) for i, dtype in enumerate(dtypes)]
    vectors = [vector(20 + i, real(dtype), backend.device) for i, dtype in enumerate(dtypes)]
    factors = copies(before)
    norms, _ = update(factors, vectors)
    assert_updated(factors, before, vectors, "leaky")
    assert norms.tolist() == pytest.approx([norm_of(m, "max") for m in factors], rel=1e-6)


def test_many_small_factors(backend):
    before, vectors = pairs([1 + i % 20 for i in range(200)], F32, backend.device)
    factors = copies(before)
    norms, _ = update(factors, vectors, "exact")
    assert_updated(factors, before, vectors, "exact")
    assert norms.tolist() == [norm_of(m, "max") for m in factors]


def test_one_vector_for_two_factors(backend):
    (a, b), _ = pairs([30, 30], F32, backend.device)
    b = 2 * b
    before, v = [a.clone(), b.clone()], vector(30, F32, backend.device)
    update([a, b], [v, v])
    assert_updated([a, b], before, [v, v], "leaky")


def test_factors_in_one_storage(backend):
    stack = torch.full((3, 40, 48), torch.nan, device=backend.device)
    before, vectors = pairs([40, 33, 1], F32, backend.device)
    factors = [stack[i, : len(m), : len(m)].copy_(m) for i, m in enumerate(before)]
    update(factors, vectors)
    assert_updated(factors, before, vectors, "leaky")
    assert stack.isfinite().sum() == sum(m.numel() for m in before)


# ---- Norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_norms_are_those_of_the_stored_factors(backend, variant, dtype):
    factors, vectors = pairs(orders(backend), dtype, backend.device)
    twins = copies(factors)
    largest, _ = update(factors, vectors, variant, stabilizer_norm="max")
    sums, _ = update(twins, vectors, variant, stabilizer_norm="inf")
    assert same_bits(twins, factors)
    # What is largest is no sum: only a float64 number is rounded, to the float32 of the norm.
    exact = torch.tensor([norm_of(m, "max") for m in factors], dtype=F64).float()
    assert same_bits(largest, exact)
    assert sums.tolist() == pytest.approx([norm_of(m, "inf") for m in factors], rel=1e-6)


def test_norms_and_counters_given_are_those_returned(backend):
    factors, vectors = pairs([3, 40], F32, backend.device)
    norms = torch.tensor([5.0, 7.0], device=backend.device)
    counters = torch.arange(6, device=backend.device).reshape(2, 3)
    vectors[1][7] = torch.nan
    kept = factors[1].clone()
    got = update(factors, vectors, norms=norms, counters=counters)
    assert got[0] is norms
    assert got[1] is counters
    assert norms.tolist() == [norm_of(factors[0], "max"), 7.0]
    assert counters.tolist() == [[0, 1, 2], [4, 4, 5]]
    assert same_bits(factors[1], kept)
