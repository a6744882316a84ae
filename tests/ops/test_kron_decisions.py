# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of factors: which are blended, reset or left as they are, and what is counted."""

import math

import pytest
import torch

from tests.helpers import same_bits
from tests.ops.kron_setting import (
    DTYPES,
    F16,
    F32,
    F64,
    GAMMA,
    ONE,
    VARIANTS,
    PaddedRows,
    by_formula,
    copies,
    error,
    norm_of,
    pairs,
    real,
    spd,
    update,
    vector,
)

STABILIZER = dict(stabilizer_threshold=10.0, stabilizer_blend=0.4)
NAN, INF = math.nan, math.inf


def good(d, dtype):
    return spd(d, dtype), vector(d, real(dtype))


def scaled(factor, of_vector=0.1, at=None, put=0.0):
    """Return what makes a case: the identity times a factor, and a vector with a bad element."""

    def make(d, dtype):
        m, v = factor * torch.eye(d).to(dtype), good(d, dtype)[1] * of_vector
        if at is not None:
            v[at] = put
        return m, v

    return make


def overflowing(d, dtype):
    """Return a finite vector whose product with the factor is not."""
    m, v = scaled(16.0)(d, dtype)
    return m, torch.full_like(v, torch.finfo(v.dtype).max / 2)


def spoilt(d, dtype):
    m, v = good(d, dtype)
    m[-1, -1] = NAN
    return m, v


# name -> (what makes factor and vector, norm on entry if another one than the factor's, skip, what
# happens with leaky, and with exact and paper). "blended": updated, by the stabilizer.
CASES = {
    "good": (good, None, 0, "updated", "updated"),
    "norm above the threshold": (scaled(16.0), None, 0, "updated", "blended"),
    "norm at the threshold": (scaled(10.0), None, 0, "updated", "updated"),
    "skipped": (good, None, 1, "left", "left"),
    "skipped by a negative number": (good, None, -0.5, "left", "left"),
    "skipped by NaN": (good, None, NAN, "left", "left"),
    "not skipped by -0": (good, None, -0.0, "updated", "updated"),
    "skipped with a bad norm": (good, NAN, 1, "left", "left"),
    "skipped with a bad vector": (scaled(1, at=0, put=NAN), None, 1, "left", "left"),
    "skipped and indefinite": (scaled(-16), None, 1, "left", "left"),
    "infinite norm": (good, INF, 0, "updated", "reset"),
    "norm NaN": (good, NAN, 0, "updated", "reset"),
    "norm NaN, bad vector": (scaled(1, at=0, put=NAN), NAN, 0, "dropped", "reset"),
    "norm NaN, zero vector": (scaled(2, of_vector=0), NAN, 0, "updated", "reset"),
    "vector with NaN": (scaled(1, at=-1, put=NAN), None, 0, "dropped", "dropped"),
    "vector with infinity": (scaled(1, at=0, put=INF), None, 0, "dropped", "dropped"),
    "vector with -infinity": (scaled(1, at=-1, put=-INF), None, 0, "dropped", "dropped"),
    "bad vector above the threshold": (scaled(16, at=0, put=INF), None, 0, "dropped", "dropped"),
    "bad vector, indefinite": (scaled(-16, at=-1, put=INF), None, 0, "dropped", "dropped"),
    "product overflows": (overflowing, 9.0, 0, "dropped", "dropped"),
    "factor with NaN": (spoilt, 1.0, 0, "dropped", "dropped"),
    "zero vector": (scaled(2, of_vector=0), None, 0, "updated", "left"),
    "vector of -0": (scaled(2, of_vector=-0.0), None, 0, "updated", "left"),
    "zero vector above the threshold": (scaled(16, of_vector=0), None, 0, "updated", "left"),
    "zero vector, indefinite": (scaled(-2, of_vector=0), None, 0, "updated", "left"),
    "zero but for the last": (
        scaled(2, of_vector=0, at=-1, put=1.0),
        None,
        0,
        "updated",
        "updated",
    ),
    "indefinite": (scaled(-2), None, 0, "reset", "reset"),
    "indefinite above the threshold": (scaled(-16), None, 0, "reset", "reset"),
    "indefinite before the blend": (scaled(-0.125), 11.0, 0, "updated", "blended"),
}
COUNTS = {"dropped": [1, 0, 0], "blended": [0, 1, 0], "reset": [0, 0, 1]}


def make_cases(names, d, dtype, device):
    """Return factors, vectors, and norms and skip of cases."""
    made = [CASES[name][0](d, dtype) for name in names]
    norms = [
        norm_of(m, "max") if CASES[name][1] is None else CASES[name][1]
        for name, (m, _) in zip(names, made, strict=True)
    ]
    skip = [float(CASES[name][2]) for name in names]
    return (
        [m.to(device) for m, _ in made],
        [v.to(device) for _, v in made],
        dict(norms=torch.tensor(norms, device=device), skip=torch.tensor(skip, device=device)),
    )


def assert_outcome(outcome, m, before, v, variant, norm, norm_before):
    if outcome in ("left", "dropped"):
        assert same_bits(m, before)
        assert same_bits(norm, norm_before)
    elif outcome == "reset":
        assert same_bits(m, torch.eye(len(m), dtype=m.dtype, device=m.device))
        assert norm.item() == 1
    else:
        expected = by_formula(before, v, variant, z=0.4 if outcome == "blended" else None)
        assert error(m, expected) <= ONE[m.dtype]
        assert norm.item() == pytest.approx(norm_of(m, "max"), rel=1e-7)


@pytest.mark.parametrize("d", [1, 40, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_factor_has_its_own_fate(backend, variant, dtype, d):
    names = list(CASES)
    before, vectors, state = make_cases(names, d, dtype, backend.device)
    rows, norms_before = PaddedRows(before), state["norms"].clone()
    stabilizer = {} if variant == "leaky" else STABILIZER
    norms, counters = update(rows.tensors, vectors, variant, **state, **stabilizer)
    assert rows.intact()
    for i, name in enumerate(names):
        outcome = CASES[name][3 if variant == "leaky" else 4]
        assert_outcome(
            outcome, rows.tensors[i], before[i], vectors[i], variant, norms[i], norms_before[i]
        )
        assert counters[i].tolist() == COUNTS.get(outcome, [0, 0, 0]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_bad_factors_change_nothing_of_their_neighbours(backend, variant):
    names = [n for name in CASES for n in (name, "good", "norm above the threshold")]
    stabilizer = {} if variant == "leaky" else STABILIZER
    factors, vectors, state = make_cases(names, 33, F32, backend.device)
    norms, _ = update(factors, vectors, variant, **state, **stabilizer)
    alone, of_alone, state = make_cases(names[1:3], 33, F32, backend.device)
    norms_alone, _ = update(alone, of_alone, variant, **state, **stabilizer)
    for i in range(1, len(names), 3):
        assert same_bits(factors[i : i + 2], alone)
        assert same_bits(norms[i : i + 2], norms_alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_vector_of_float64_that_is_tiny_is_not_zero(backend, variant):
    before = [spd(40, F64, backend.device)]
    vectors = [torch.full((40,), 1e-200, dtype=F64, device=backend.device)]
    factors = copies(before)
    update(factors, vectors, variant)
    assert error(factors[0], by_formula(before[0], vectors[0], variant)) <= ONE[F64]


def test_a_denominator_that_overflows_drops_the_update(backend):
    before = [spd(40, F64, backend.device)]
    vectors = [vector(40, F64, backend.device, length=1e10)]
    factors = copies(before)
    _, counters = update(factors, vectors, rho=1e300)
    assert same_bits(factors, before)
    assert counters.tolist() == [[1, 0, 0]]


def test_a_factor_that_overflows_is_reset_by_the_next_update(backend):
    m = (60000 * torch.eye(20)).to(backend.device, F16)
    v = torch.zeros(20, device=backend.device)
    v[3] = 1e-3
    norms, counters = update([m], [v], "exact", gamma=0.5)
    assert norms.item() == INF
    assert m[0, 0] == INF
    assert not counters.any()
    update([m], [v], "exact", gamma=0.5, norms=norms, counters=counters)
    assert same_bits(m, torch.eye(20, dtype=F16, device=backend.device))
    assert norms.item() == 1
    assert counters.tolist() == [[0, 0, 1]]
    update([m], [v], "exact", gamma=0.5, norms=norms, counters=counters)
    assert norms.item() == 2
    assert counters.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("kind", ["max", "inf"])
def test_a_factor_that_is_not_finite_has_no_finite_norm(backend, kind):
    for bad in (NAN, INF):
        for place in ((0, 0), (69, 0), (69, 69)):
            m = torch.eye(70, device=backend.device)
            m[place] = m[place[::-1]] = bad
            options = dict(stabilizer_norm=kind, **STABILIZER)
            norms, counters = update([m], [vector(70, device=backend.device)], "exact", **options)
            assert same_bits(m, torch.eye(70, device=backend.device))
            assert (norms.item(), counters.tolist()) == (1, [[0, 0, 1]])


# ---- The stabilizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64, F16], ids=str)
@pytest.mark.parametrize("kind", ["max", "inf"])
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_fires_on_the_update_after_the_norm_has_passed(backend, variant, kind, dtype):
    threshold = 1.7 if kind == "max" else 2.6
    options = dict(stabilizer_norm=kind, stabilizer_threshold=threshold, stabilizer_blend=0.3)
    m = torch.eye(12, dtype=dtype, device=backend.device)
    norms, counters, fired, first = None, None, 0, None
    v = vector(12, real(dtype), backend.device)
    for step in range(40):
        before, norm = m.clone(), norm_of(m, kind)
        assert abs(norm - threshold) > 1e-5
        passed = norm > threshold
        norms, counters = update([m], [v], variant, norms=norms, counters=counters, **options)
        fired += passed
        if passed and first is None:
            first = step
        assert error(m, by_formula(before, v, variant, z=0.3 if passed else None)) <= ONE[dtype]
        assert counters.tolist() == [[0, fired, 0]]
        assert norms.item() == pytest.approx(norm_of(m, kind), rel=1e-6)
    assert 0 < first < fired + first < 40  # it has fired, not at once and not always


def test_blending_is_the_expansion_of_the_two_sided_step(backend):
    """With both factors blended and no rank-1 part: z^2 L G R + z (1 - z) (L G + G R) + ..."""
    z, tiny = 0.25, 1e-160
    left, right = (2 * spd(d, F64, backend.device) for d in (9, 14))
    g = torch.randn(9, 14, dtype=F64, device=backend.device)
    parts = z * z * left @ g @ right + z * (1 - z) * (left @ g + g @ right) + (1 - z) ** 2 * g
    vectors = [torch.full((d,), tiny, dtype=F64, device=backend.device) for d in (9, 14)]
    options = dict(stabilizer_threshold=0.01, stabilizer_blend=z, gamma=GAMMA)
    update([left, right], vectors, "exact", **options)
    assert error(GAMMA**2 * left @ g @ right, parts) <= 1e-12


@pytest.mark.parametrize("kind", ["max", "inf"])
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_without_norms_they_are_those_on_entry(backend, variant, kind):
    before, vectors = pairs([1, 5, 40], F32, backend.device)
    factors, given = copies(before), copies(before)
    options = dict(stabilizer_norm=kind, stabilizer_threshold=0.9, stabilizer_blend=0.4)
    norms = torch.tensor([norm_of(m, kind) for m in before], device=backend.device)
    above = (norms.cpu() > 0.9).tolist()
    assert any(above)
    found = update(factors, vectors, variant, **options)
    of_given = update(given, vectors, variant, norms=norms, **options)
    assert same_bits([*factors, *found], [*given, *of_given])
    assert found[1].tolist() == [[0, int(x), 0] for x in above]


@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_without_a_threshold_it_never_fires(backend, variant):
    before, vectors = pairs([5, 40], F32, backend.device)
    before, vectors = [1e6 * m for m in before], [1e-3 * v for v in vectors]
    factors, never = copies(before), copies(before)
    norms = torch.full((2,), 1e6, device=backend.device)
    _, counters = update(factors, vectors, variant, norms=norms)
    update(never, vectors, variant, stabilizer_threshold=INF, stabilizer_blend=0.5)
    assert not counters.any()
    assert same_bits(factors, never)
    for m, old, v in zip(factors, before, vectors, strict=True):
        assert error(m, by_formula(old, v, variant)) <= ONE[F32]


# ---- Nothing to do -------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_without_elements(backend, variant):
    factors, vectors = pairs([0, 3, 0], F32, backend.device)
    norms = torch.tensor([5.0, 1.0, 7.0], device=backend.device)
    counters = torch.ones(3, 3, dtype=torch.int64, device=backend.device)
    update(factors, vectors, variant, norms=norms, counters=counters)
    assert norms.tolist() == [0, norm_of(factors[1], "max"), 0]
    assert (counters == 1).all()
    norms, counters = update(factors[:1], vectors[:1], variant)
    assert (norms.tolist(), counters.tolist()) == ([0], [[0, 0, 0]])


def test_all_skipped(backend):
    before, vectors = pairs([3, 40, 0], F32, backend.device)
    factors = copies(before)
    norms = torch.tensor([3.0, 4.0, 0.0], device=backend.device)
    skip = torch.ones(3, device=backend.device)
    norms, counters = update(factors, vectors, norms=norms, skip=skip)
    assert same_bits(factors, before)
    assert (norms.tolist(), counters.any().item()) == ([3, 4, 0], False)
