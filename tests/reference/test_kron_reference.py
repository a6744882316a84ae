# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle of rank-1 updates against dense inverses and what is known of each variant."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from largebatch.reference import kron
from largebatch.reference.kron import kron_rank1_update as update
from tests.conftest import assert_close

F64 = torch.float64
GAMMA = 0.95
FP16_MAX = 65504.0
VARIANTS = ["leaky", "exact", "paper"]
ORDERS = [1, 2, 7, 64, 257, 1025]
# The dense inverses lose what the condition takes, 1e4 here: measured 5e-13, 1.4e-12 after fifty.
ONE, FIFTY = 1e-11, 1e-10


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def definite(d, condition=1e4, seed=0):
    """Return a symmetric matrix with eigenvalues from 1/sqrt(condition) to sqrt(condition)."""
    axes = torch.linalg.qr(gaussian(d, d, seed=seed)).Q
    end = math.log10(condition) / 2
    matrix = axes * torch.logspace(-end, end, d, dtype=F64) @ axes.T
    return (matrix + matrix.T) / 2


def identity(d):
    return torch.eye(d, dtype=F64)


def of_length(length, d, seed=0):
    v = gaussian(d, seed=seed)
    return length * v / v.norm()


def distance(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def along(M, v):
    """Return v^T M v."""
    return (v @ M @ v).item()


# ---- Dense inverses ------------------------------------------------------------------------------

KINDS = {
    "leaky": (dict(variant="leaky", leak=0.95, rho=1.0), dict(blend=0.95, rho=1.0)),
    "leaky, other": (dict(variant="leaky", leak=0.5, rho=3.0), dict(blend=0.5, rho=3.0)),
    "leaky, leak of 1": (dict(variant="leaky", leak=1.0, rho=0.2), dict(rho=0.2)),
    "exact": (dict(variant="exact", gamma=GAMMA), dict(gamma=GAMMA)),
    "paper": (dict(variant="paper", gamma=GAMMA), dict(gamma=GAMMA)),
}
for variant, blend in (("exact", 0.9), ("paper", 0.4)):
    stabilizer = dict(stabilizer_threshold=1e-6, stabilizer_blend=blend)
    KINDS[f"{variant}, blended"] = (
        dict(variant=variant, gamma=0.8, **stabilizer),
        dict(gamma=0.8, blend=blend),
    )


@pytest.mark.parametrize("d", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_update_is_the_inverse_of_the_updated_factor(kind, d):
    options, dense = KINDS[kind]
    M, v = definite(d), gaussian(d, seed=1)
    expected = kron.dense_inverse(options["variant"], M, v, **dense)
    update([M], [v], **options)
    assert distance(M, expected) < ONE
    assert torch.equal(M, M.T)


@pytest.mark.parametrize("d", ORDERS[:-1])
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_updates_are_fifty_inverses(kind, d):
    options, dense = KINDS[kind]
    M = definite(d)
    expected = M.clone()
    length = 0.1 if options["variant"] == "paper" else 2.0  # which would have it diverge
    for t in range(50):
        v = of_length(length, d, seed=t)
        expected = kron.dense_inverse(options["variant"], expected, v, **dense)
        update([M], [v], **options)
    assert distance(M, expected) < FIFTY


@pytest.mark.parametrize("d", [7, 64])
def test_exact_is_the_inverse_of_the_moving_average(d):
    M, average = identity(d), identity(d)
    for t in range(50):
        v = gaussian(d, seed=t)
        average = GAMMA * average + (1 - GAMMA) * torch.outer(v, v)
        update([M], [v], variant="exact", gamma=GAMMA)
    assert distance(M, torch.linalg.inv(average)) < 1e-12


def test_leaky_without_a_leak_is_the_inverse_of_a_sum():
    vectors = gaussian(30, 12)
    M = identity(12)
    for v in vectors:
        update([M], [v], leak=1.0, rho=0.5)
    assert distance(M, torch.linalg.inv(identity(12) + 0.5 * vectors.T @ vectors)) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_scale_of_a_factor_goes_into_its_vector(variant):
    # M -> c M with v -> v / sqrt(c), where nothing is blended: I has no other scale.
    M, c = definite(9), 7.0
    scaled = c * M
    for t in range(5):
        v = of_length(0.5, 9, seed=t)
        update([M], [v], variant=variant, leak=1.0)
        update([scaled], [v / math.sqrt(c)], variant=variant, leak=1.0)
    assert distance(scaled, c * M) < 1e-13


# ---- leaky ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 12),
    lengths=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30),
    leak=st.sampled_from([0.0, 0.5, 0.95, 0.999]),
    rho=st.sampled_from([0.1, 1.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_leaky_stays_between_its_bounds(d, lengths, leak, rho, seed):
    M = identity(d)
    for t, length in enumerate(lengths):
        aligned = of_length(1.0, d, seed=seed)  # as successive inputs are
        v = length * (aligned + (t % 3) * of_length(1.0, d, seed=seed + t)) / (1 + t % 3)
        update([M], [v], leak=leak, rho=rho)
    low, high = kron.eigenvalue_bounds(leak, rho, max(lengths) ** 2)
    eigenvalues = torch.linalg.eigvalsh(M)
    assert low - 1e-12 <= eigenvalues.min()
    assert eigenvalues.max() <= high + 1e-12


@pytest.mark.parametrize("leak", [0.0, 0.5, 0.95])
def test_lower_bound_of_leaky_is_approached(leak):
    # Long vectors leave nothing along them, and the next M^ is 1 - leak there.
    M, v = identity(2), torch.tensor([1e3, 0.0], dtype=F64)
    for _ in range(3):
        update([M], [v], leak=leak, rho=1.0)
    assert M[0, 0].item() == pytest.approx(kron.eigenvalue_bounds(leak, 1.0, 1e6)[0], rel=1e-4)
    assert M[1, 1].item() == pytest.approx(1.0, rel=1e-15)
    assert kron.eigenvalue_bounds(1.0, 1.0, 1e6)[0] == 0.0


@pytest.mark.parametrize(
    ("length", "expected"), [(0.1, 0.8532), (1.0, 0.1827), (3.0, 0.0526), (10.0, 0.00853)]
)
def test_steady_state_of_leaky(length, expected):
    M, v = identity(3), of_length(length, 3)
    for _ in range(500):
        update([M], [v])
    x = along(M, v) / length**2
    assert x == pytest.approx(expected, abs=5e-5)
    blended = 0.95 * x + 0.05
    assert x == pytest.approx(blended / (1 + blended * length**2), rel=1e-12)


# ---- exact ---------------------------------------------------------------------------------------


def test_exact_forgets_what_no_vector_points_to():
    M, v = identity(2), torch.tensor([2.0, 0.0], dtype=F64)
    first = None
    for t in range(1, 301):
        update([M], [v], variant="exact", gamma=GAMMA)
        assert M[1, 1].item() == pytest.approx(GAMMA**-t, rel=1e-12)
        first = first or (t if M[1, 1] > FP16_MAX else None)
    assert first == 217
    assert M[0, 0].item() == pytest.approx(0.25, rel=1e-6)  # 1 / |v|^2


# ---- paper ---------------------------------------------------------------------------------------


def paper(x, updates):
    """Return x = v^T M v after updates with the same v, from M = I."""
    M, v = identity(3), of_length(math.sqrt(x), 3)
    for _ in range(updates):
        update([M], [v], variant="paper", gamma=GAMMA)
    return along(M, v)


def test_paper_decays_below_its_fixed_point_and_explodes_above():
    fixed = kron.paper_fixed_point(GAMMA)
    assert fixed == pytest.approx(0.9429, abs=5e-5)
    assert paper(fixed, updates=20) == pytest.approx(fixed, rel=1e-12)
    assert paper(0.94, updates=300) < 1e-3
    assert paper(0.95, updates=300) > 1e6


@pytest.mark.parametrize(("square", "updates"), [(1.0, 78), (5.0, 21)])
def test_paper_leaves_the_range_of_fp16(square, updates):
    assert paper(square, updates - 1) / square <= FP16_MAX < paper(square, updates) / square


def test_growth_of_paper_has_a_limit():
    M, v = 1e12 * identity(1), torch.ones(1, dtype=F64)
    update([M], [v], variant="paper", gamma=GAMMA)
    assert M.item() / 1e12 == pytest.approx(GAMMA + GAMMA**-3, rel=1e-9)
    assert pytest.approx(2.116, abs=5e-4) == GAMMA + GAMMA**-3


def test_paper_amplifies_where_exact_damps():
    v = torch.tensor([2.0, 0.0], dtype=F64)
    for variant, larger in (("paper", True), ("exact", False)):
        M = identity(2)
        update([M], [v], variant=variant)
        assert (M[0, 0] > M[1, 1]).item() is larger


def test_paper_stays_definite():
    M = identity(8)
    for t in range(60):
        update([M], [of_length(0.9, 8, seed=t)], variant="paper")
        assert torch.linalg.eigvalsh(M).min() > 0


# ---- The stabilizer ------------------------------------------------------------------------------


def stabilized(variant, blend, length, kind, updates=1500):
    """Return the norms after each update with the same v, and how often M was blended."""
    M, v = identity(4), of_length(length, 4)
    options = dict(stabilizer_norm=kind, stabilizer_threshold=2.0, stabilizer_blend=blend)
    norms = counters = None
    seen = []
    for _ in range(updates):
        norms, counters = update(
            [M], [v], variant=variant, norms=norms, counters=counters, **options
        )
        seen.append(norms.item())
    return seen, counters[0].tolist()


@pytest.mark.parametrize("kind", ["max", "inf"])
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_stabilizer_below_its_bound_holds_the_norm(variant, kind):
    bound = kron.stable_blend(variant, GAMMA)
    for length in (0.1, 1.0, 10.0, 100.0):
        norms, (dropped, blended, reset) = stabilized(variant, 0.95 * bound, length, kind)
        assert max(norms) < 200
        assert (dropped, reset) == (0, 0)
        assert blended > 0 or max(norms) <= 2.0


@pytest.mark.parametrize("over", [1.02, 1.05])
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_stabilizer_above_its_bound_does_not(variant, over):
    blend = over * kron.stable_blend(variant, GAMMA)
    norms, (_, blended, _) = stabilized(variant, blend, 100.0, "max")
    assert max(norms) > 1e9
    assert blended > 500


def test_bounds_of_the_blend():
    assert kron.stable_blend("exact", GAMMA) == GAMMA
    assert kron.stable_blend("paper", GAMMA) == pytest.approx(1 / 2.1164, abs=5e-5)
    assert kron.stable_blend("leaky", GAMMA) is None


def test_exact_at_its_bound_still_grows():
    norms, _ = stabilized("exact", GAMMA, 1.0, "max")
    steps = torch.tensor(norms[-100:], dtype=F64).diff()
    assert steps.min() > 0  # by (1 - gamma) / gamma times what is orthogonal to v


@pytest.mark.parametrize("kind", ["max", "inf"])
@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_stabilizer_fires_in_the_update_after_the_norm_has_passed(variant, kind):
    M, v = identity(3), of_length(1.5, 3)
    options = dict(variant=variant, stabilizer_norm=kind, stabilizer_blend=0.4)
    norms = counters = None
    for _ in range(40):
        before, passed = M.clone(), norms is not None and norms.item() > 1.5
        seen = 0 if counters is None else counters[0, 1].item()
        norms, counters = update(
            [M], [v], stabilizer_threshold=1.5, norms=norms, counters=counters, **options
        )
        blend = 0.4 if passed else None
        assert distance(M, kron.dense_inverse(variant, before, v, blend=blend)) < ONE
        assert counters.tolist() == [[0, seen + passed, 0]]
        assert norms.item() == pytest.approx(kron.factor_norm(M, kind).item(), rel=1e-7)
    assert 0 < counters[0, 1] < 40


def test_norm_on_entry_is_computed_or_believed():
    options = dict(variant="exact", stabilizer_threshold=2.0, stabilizer_blend=0.5)
    v = [torch.ones(2, dtype=F64)]
    blended = [False, True, True, False]
    for M, norms, expected in zip(
        [1.0, 3.0, 1.0, 3.0], [None, None, [2.5], [2.0]], blended, strict=True
    ):
        norms = norms and torch.tensor(norms)
        _, counters = update([M * identity(2)], v, norms=norms, **options)
        assert counters.tolist() == [[0, expected, 0]]


def test_blended_gradient_is_a_mixture_of_four():
    # z^2 K-FAC + z (1 - z) (left + right) + (1 - z)^2 G: a definite operator on G.
    left, right, G, z = definite(5), definite(4, seed=1), gaussian(5, 4), 0.7
    expected = z**2 * (left @ G @ right) + z * (1 - z) * (left @ G + G @ right) + (1 - z) ** 2 * G
    found = kron.blended(left, z) @ G @ kron.blended(right, z)
    assert_close(found, expected, "formula")
    assert (found * G).sum() > 0


def test_norms_of_a_factor():
    M = torch.tensor([[1.0, -3.0], [-3.0, 0.5]], dtype=F64)
    assert kron.factor_norm(M, "max") == 3.0
    assert kron.factor_norm(M, "inf") == torch.linalg.matrix_norm(M, ord=math.inf) == 4.0
    M[0, 1] = math.nan
    for kind in ("max", "inf"):
        assert kron.factor_norm(M, kind).isnan()
        assert kron.factor_norm(torch.zeros(0, 0), kind) == 0.0


# ---- What is decided -----------------------------------------------------------------------------

STABILIZER = dict(stabilizer_threshold=2.0, stabilizer_blend=0.4)


def decided(variant, M, v, **options):
    """Return the factor after an update, its norm, and which counter has moved."""
    M = M.clone()
    stabilizer = {} if variant == "leaky" else STABILIZER
    counters = torch.full((1, 3), 10)
    norms, counters = update([M], [v], variant=variant, counters=counters, **stabilizer, **options)
    return M, norms.item(), [n - 10 for n in counters[0].tolist()]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e200])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_finite_is_dropped(variant, value):
    v = torch.tensor([1.0, value, 0.0], dtype=F64)  # the square of 1e200 is not
    M, norm, counts = decided(variant, 3 * definite(3, 4.0), v, norms=torch.tensor([1.5]))
    assert torch.equal(M, 3 * definite(3, 4.0))
    assert (norm, counts) == (1.5, [1, 0, 0])


def test_denominator_that_overflows_is_dropped():
    v = torch.tensor([1e154], dtype=F64)
    M, _, counts = decided("leaky", identity(1), v, rho=1e3)
    assert (M.item(), counts) == (1.0, [1, 0, 0])


def test_zero_vector_leaves_exact_and_paper_and_blends_leaky():
    zero, before = torch.zeros(3, dtype=F64), 3 * definite(3, 4.0)
    for variant in ("exact", "paper"):
        M, norm, counts = decided(variant, before, zero, norms=torch.tensor([9.0]))
        assert torch.equal(M, before)
        assert (norm, counts) == (9.0, [0, 0, 0])
    M, _, counts = decided("leaky", before, zero)
    assert_close(M, 0.95 * before + 0.05 * identity(3), "formula")
    assert counts == [0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_factor_that_is_not_definite_is_reset(variant):
    v = torch.tensor([0.0, 1.0], dtype=F64)
    M, norm, counts = decided(variant, torch.diag(torch.tensor([1.0, -9.0], dtype=F64)), v)
    assert torch.equal(M, identity(2))
    assert (norm, counts) == (1.0, [0, 0, 1])


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_factor_that_has_overflown_is_reset_but_for_leaky(value):
    broken = torch.tensor([[1.0, value], [value, 1.0]], dtype=F64)
    for v in ([1.0, 1.0], [0.0, 0.0], [math.nan, 0.0]):  # whatever its vector is
        v = torch.tensor(v, dtype=F64)
        for variant in ("exact", "paper"):
            M, norm, counts = decided(variant, broken, v)
            assert torch.equal(M, identity(2))
            assert (norm, counts) == (1.0, [0, 0, 1])
        M, _, counts = decided("leaky", broken, v)
        assert torch.equal(M.isfinite(), broken.isfinite())
        assert counts == [1, 0, 0]
    M, _, counts = decided("leaky", identity(2), v.nan_to_num(1.0), norms=torch.tensor([value]))
    assert counts == [0, 0, 0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_skipped_factors_keep_everything(variant):
    broken = torch.diag(torch.tensor([1.0, -9.0], dtype=F64))
    factors = [identity(2), broken.clone(), 3 * identity(2), math.inf * torch.ones(2, 2)]
    before = [M.clone() for M in factors]
    norms, counters = torch.tensor([1.0, 9.0, 3.0, math.inf]), torch.zeros(4, 3, dtype=torch.int64)
    v = [torch.ones(2, dtype=F64)] * 4
    stabilizer = {} if variant == "leaky" else STABILIZER
    skip = torch.tensor([0.0, 1.0, math.inf, -1.0])
    update(factors, v, variant=variant, norms=norms, counters=counters, skip=skip, **stabilizer)
    assert [torch.equal(*pair) for pair in zip(factors, before, strict=True)] == [False] + [
        True
    ] * 3
    assert norms[1:].tolist() == [9.0, 3.0, math.inf]
    assert counters.tolist() == [[0, 0, 0]] * 4


def test_norms_and_counters_are_those_given():
    norms, counters = torch.ones(2), torch.ones(2, 3, dtype=torch.int64)
    found = update([identity(2), identity(3)], [torch.ones(2), torch.ones(3)], norms=norms,
                   counters=counters)  # fmt: skip
    assert found[0] is norms
    assert found[1] is counters
    assert counters.tolist() == [[1, 1, 1]] * 2


def test_nothing_of_order_zero_and_no_factors():
    for variant in VARIANTS:
        none, v = [torch.zeros(0, 0)] * 2, [torch.zeros(0)] * 2
        norms, counters = update(
            none, v, variant=variant, norms=torch.ones(2), skip=torch.tensor([0.0, 1.0])
        )
        assert (norms.tolist(), counters.tolist()) == ([0.0, 1.0], [[0, 0, 0]] * 2)
        norms, counters = update([], [], variant=variant)
        assert (norms.shape, norms.dtype) == ((0,), torch.float32)
        assert (counters.shape, counters.dtype) == ((0, 3), torch.int64)


def test_stabilizer_that_makes_no_sense_is_refused():
    M, v = identity(2), torch.ones(2)
    with pytest.raises(ValueError, match="stabilizer_threshold"):
        update([M], [v], stabilizer_threshold=2.0, stabilizer_blend=0.5)
    with pytest.raises(ValueError, match="stabilizer_blend"):
        update([M], [v], variant="exact", stabilizer_threshold=2.0)
    with pytest.raises(ValueError, match="variant"):
        update([M], [v], variant="inexact")
    assert torch.equal(M, identity(2))
    with pytest.raises(ValueError, match="stabilizer_norm"):
        kron.factor_norm(M, "fro")


# ---- Precision -----------------------------------------------------------------------------------

# Relative Frobenius error after 200 updates with |v| from 0.1 to 10; see docs/mkor.md.
PRECISION = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 4e-2}


@pytest.mark.parametrize("dtype", PRECISION)
def test_precision_of_stored_factors(dtype):
    d = 64
    M, expected = torch.eye(d, dtype=dtype), identity(d)
    for t in range(200):
        v = of_length(10 ** (t % 3 - 1.0), d, seed=t).float()
        norms, _ = update([M], [v])
        update([expected], [v.double()])
        assert torch.equal(M, M.T)
        assert norms.item() == M.abs().max().item()
    assert distance(M.double(), expected) < PRECISION[dtype]


def test_fp16_overflow_is_seen_by_the_next_update():
    M, v = torch.eye(2, dtype=torch.float16), torch.tensor([1.0, 0.0])
    norms = counters = None
    for _ in range(250):
        overflown = norms is not None and norms.item() == math.inf
        norms, counters = update([M], [v], variant="exact", norms=norms, counters=counters)
        assert overflown == torch.equal(M, torch.eye(2).half())
    assert counters.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_in_padded_storage(variant):
    storage = torch.full((5, 8), 7.0, dtype=F64)
    M, v = storage[:, 2:7], gaussian(5)
    M.copy_(identity(5))
    alone = identity(5)
    update([M], [v], variant=variant)
    update([alone], [v], variant=variant)
    assert torch.equal(M, alone)
    assert storage[:, :2].eq(7.0).all()
    assert storage[:, 7:].eq(7.0).all()
