# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The convex functions of Lion-K against brute force: subgradients, conjugates, feasible sets."""

import itertools
import math

import pytest
import torch

from largebatch.optim import kappa
from tests.conftest import assert_close
from tests.helpers import same_bits

INF = math.inf
OWL = (1.0, 0.75, 0.5, 0.25)

SMOOTH = {  # sums over elements with a threshold, and without a bound
    "truncated_l1": kappa.TruncatedL1(0.5),
    "huber": kappa.Huber(0.5),
    "soft_sign": kappa.SoftSign(0.5),
    "log_cosh": kappa.LogCosh(0.5),
    "power 3": kappa.Power(3.0),
    "power 1.25": kappa.Power(1.25),
    "quadratic": kappa.Quadratic(),
}
HOMOGENEOUS = {  # K(a v) = a K(v) for a > 0: K is the support function of its feasible set
    "l1": kappa.L1(),
    "l2": kappa.L2(),
    "l2 none": kappa.L2(scale="none"),
    "lp 3": kappa.Lp(3.0),
    "lp 1.25 none": kappa.Lp(1.25, scale="none"),
    "l_inf": kappa.LInf(),
    "l_inf none": kappa.LInf(scale="none"),
    "group_lasso": kappa.GroupLasso(),
    "group_lasso column none": kappa.GroupLasso(axis="column", scale="none"),
    "group_lasso heads": kappa.GroupLasso.heads(3),
    "l2_inf": kappa.L2Inf(),
    "l2_inf size none": kappa.L2Inf(size=2, scale="none"),
    "top_k": kappa.TopK(3),
    "sorted_l1": kappa.SortedL1(OWL),
    "nuclear": kappa.Nuclear(),
    "nuclear svd none": kappa.Nuclear(scale="none", method="svd"),
}
OTHERS = {
    "entropy": kappa.Entropy(0.5),
    "entropy column": kappa.Entropy(0.5, axis="column"),
    "entropy whole": kappa.Entropy(0.5, axis=None),
    "signed_entropy": kappa.SignedEntropy(0.5),
    "signed_entropy whole": kappa.SignedEntropy(0.5, axis=None),
    "squared_l1": kappa.SquaredL1(),
    "spectral huber": kappa.Spectral("huber", e=0.5),
    "spectral power": kappa.Spectral("power", p=3.0, scale="none"),
}
ALL = {**SMOOTH, **HOMOGENEOUS, **OTHERS}
UNBOUNDED = ("power 3", "power 1.25", "quadratic", "squared_l1", "spectral power")

every = pytest.mark.parametrize("k", ALL.values(), ids=list(ALL))
homogeneous = pytest.mark.parametrize("k", HOMOGENEOUS.values(), ids=list(HOMOGENEOUS))
bounded = pytest.mark.parametrize(
    "k", [k for name, k in ALL.items() if name not in UNBOUNDED], ids=lambda k: repr(k)
)


def points(seed=0):
    """Return matrices where formulas break: random, ties, zeros, kinks, one or all of a size."""
    g = torch.Generator().manual_seed(seed)
    random = torch.randn(6, 4, generator=g, dtype=torch.float64)
    holes = random.clone()
    holes[2], holes[:, 1] = 0, 0
    one = torch.zeros(6, 4, dtype=torch.float64)
    one[3, 2] = -2.0
    return [
        random,
        1e-3 * random,
        1e3 * random,
        holes,
        one,
        torch.full((6, 4), 0.5, dtype=torch.float64),  # at the thresholds above, and a tie
        (2 * random).round() / 2,  # many ties, many zeros, many at the thresholds
        torch.outer(random[:, 0], random[0]),  # of rank one
    ]


# ---- Subgradient and conjugate -------------------------------------------------------------------


@every
def test_subgradient_inequality(k):
    for v, w in itertools.product(points(), points(seed=1)):
        u = k.subgradient(v)
        bound = k.value(v) + (u * (w - v)).sum()
        assert k.value(w) >= bound - 1e-12 * (abs(bound) + k.value(v) + 1)


@every
def test_fenchel_young_holds_everywhere_and_with_equality_at_the_subgradient(k):
    for v, w in itertools.product(points(), points(seed=1)):
        z = k.subgradient(w)  # in the domain
        product = (v * z).sum()
        slack = 1e-12 * (abs(product) + k.value(v) + k.conjugate(z) + 1)
        assert k.value(v) + k.conjugate(z) >= product - slack
    for v in points():
        z = k.subgradient(v)
        total, product = k.value(v) + k.conjugate(z), (v * z).sum()
        # Newton-Schulz is as exact as its last step leaves it.
        digits = 1e-8 if getattr(k, "method", "") == "newton_schulz" else 1e-12
        assert abs(total - product) <= digits * (abs(product) + 1)


def supremum(k, z):
    """Return sup of z v - K(v) over one number v, by ternary search of the concave function."""

    def f(v):
        v = torch.tensor([v], dtype=torch.float64)
        return (z * v).item() - k.value(v).item()

    low, high = -1e4, 1e4
    for _ in range(160):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if f(a) < f(b) else (low, b)
    return f((low + high) / 2)


@pytest.mark.parametrize("k", [kappa.L1(), *SMOOTH.values(), kappa.SquaredL1()], ids=repr)
def test_conjugate_is_the_supremum(k):
    for z in (-0.999, -0.7, -0.3, 0.0, 1e-3, 0.5, 0.96):
        expected = supremum(k, z)
        assert abs(k.conjugate(torch.tensor([z])).item() - expected) < 1e-7 * (1 + abs(expected))


@pytest.mark.parametrize("k", [kappa.TopK(1), kappa.TopK(2), kappa.TopK(9), kappa.SortedL1(OWL)])
def test_conjugate_of_ordered_kinds_is_the_supremum(k):
    # K is linear between vectors of -1, 0 and 1: those decide the supremum, 0 or infinity.
    corners = torch.tensor(list(itertools.product([-1.0, 0, 1], repeat=4)), dtype=torch.float64)
    values = torch.stack([k.value(c) for c in corners])
    inside = 0
    radii = torch.rand(300, 1)
    for z in radii * torch.empty(300, 4, dtype=torch.float64).uniform_(-1.2, 1.2):
        gap = (corners @ z - values).max()
        assert k.conjugate(z) == (INF if gap > 0 else 0.0)
        inside += gap <= 0
    assert 10 < inside < 290


@bounded
def test_conjugate_ends_where_it_should(k):
    # u at the longest of vectors lies on the edge of the domain.
    v = 1e6 * points()[0]
    edge = k.subgradient(v)
    assert k.conjugate(edge) < INF
    assert k.conjugate((1 + 1e-4) * edge) == INF
    assert k.conjugate((1 + 1e-4) * edge, tolerance=1e-3) < INF
    if not isinstance(k, kappa.Entropy):  # its domain is a surface
        assert k.conjugate((1 - 1e-4) * edge) < INF
    assert k.conjugate(torch.full_like(edge, INF)) == INF
    assert k.conjugate(torch.full_like(edge, math.nan)) == INF


@pytest.mark.parametrize("name", UNBOUNDED)
def test_what_is_not_bounded_has_no_bound(name):
    x = 1e3 * points()[0]
    assert ALL[name].conjugate(x) < INF
    assert ALL[name].distance(x, weight_decay=10.0) == 0
    assert same_bits(ALL[name].project(x, weight_decay=10.0), x)


def test_hand_computed_values():
    v = torch.tensor([3.0, -1.0, 0.0, 2.0])
    cases = [
        (kappa.L1(), 6, [1, -1, 0, 1]),
        (kappa.TruncatedL1(1.0), 3, [1, 0, 0, 1]),
        (kappa.Huber(2.0), 2 + 0.25 + 0 + 1, [1, -0.5, 0, 1]),
        (kappa.SoftSign(4.0), (5 - 4) + (17**0.5 - 4) + (20**0.5 - 4), None),
        (kappa.LogCosh(1.0), sum(math.log(math.cosh(x)) for x in (3, 1, 0, 2)), None),
        (kappa.Power(3.0), (27 + 1 + 8) / 3, [9, -1, 0, 4]),
        (kappa.Quadratic(), 7, [3, -1, 0, 2]),
        (kappa.Entropy(1.0), math.log(sum(map(math.exp, (3, -1, 0, 2)))), None),
        (kappa.SignedEntropy(1.0), math.log(2 * sum(map(math.cosh, (3, 1, 0, 2)))), None),
        (kappa.L2(scale="none"), 14**0.5, [x / 14**0.5 for x in (3, -1, 0, 2)]),
        (kappa.L2(), 2 * 14**0.5, [2 * x / 14**0.5 for x in (3, -1, 0, 2)]),
        (kappa.Lp(3.0, scale="none"), 36 ** (1 / 3), [x / 36 ** (2 / 3) for x in (9, -1, 0, 4)]),
        (kappa.LInf(), 12, [4, 0, 0, 0]),
        (kappa.SquaredL1(), 18, [6, -6, 0, 6]),
        (kappa.TopK(2), 5, [1, 0, 0, 1]),
        (kappa.SortedL1(OWL), 3 + 1.5 + 0.5, [1, -0.5, 0, 0.75]),
        (kappa.Nuclear(scale="none"), 14**0.5, [x / 14**0.5 for x in (3, -1, 0, 2)]),
    ]
    for k, value, subgradient in cases:
        assert_close(k.value(v), torch.tensor(float(value)), "fp32")
        if subgradient is not None:
            assert_close(k.subgradient(v), torch.tensor(subgradient, dtype=torch.float64), "fp32")


# ---- Where formulas break ------------------------------------------------------------------------


@every
def test_zero_gives_zero(k):
    for shape in [(6, 4), (5,), (), (6, 2, 2)]:
        u = k.subgradient(torch.zeros(shape))
        if isinstance(k, kappa.Entropy):
            assert (u > 0).all()  # softmax(0) is uniform
        else:
            assert same_bits(u, torch.zeros(shape))


@every
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_numbers_of_any_size(k, size):
    u = k.subgradient(size * points()[0].float())
    if size > 1 and isinstance(k, kappa.Power | kappa.Spectral) and getattr(k, "p", None) == 3:
        assert torch.isinf(u).any()  # a power that float32 has no number for
        return
    assert torch.isfinite(u).all()
    assert u.abs().max() > 0 or isinstance(k, kappa.TruncatedL1) or getattr(k, "p", 0) == 3


@homogeneous
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_homogeneous_kinds_see_no_size(k, size):
    for v in points()[:1] + points()[3:7]:
        v = v.float()
        assert_close(k.subgradient(size * v), k.subgradient(v).double(), "fp32", scale=1.0)
        assert_close(k.value(size * v) / size, k.value(v), "fp32")


def test_float64_beyond_float32():
    v = points()[0]
    for k in (kappa.L2(), kappa.Lp(3.0), kappa.GroupLasso(), kappa.Nuclear()):
        for size in (1e-200, 1e200):
            assert_close(k.subgradient(size * v), k.subgradient(v), "fp64")


def test_kinks():
    e = torch.tensor(0.1)
    above = torch.nextafter(e, torch.tensor(1.0))
    v = torch.stack([e, above, -e, -above, torch.zeros(())])
    assert kappa.TruncatedL1(e.item()).subgradient(v).tolist() == [0, 1, 0, -1, 0]
    assert kappa.Huber(e.item()).subgradient(v).tolist() == [1, 1, -1, -1, 0]
    assert kappa.LInf("none").subgradient(torch.tensor([[1.0, -2], [2, 2]])).tolist() == [
        [0, -1],
        [0, 0],
    ]
    assert kappa.TopK(2).subgradient(torch.tensor([1.0, -1, 2, 1])).tolist() == [1, 0, 1, 0]
    assert kappa.SortedL1((2.0, 1.0)).subgradient(-torch.ones(3)).tolist() == [-2, -1, 0]
    rows = kappa.L2Inf(scale="none").subgradient(torch.tensor([[0.0, 0], [3, 4], [4, 3]]))
    assert_close(rows, torch.tensor([[0, 0], [0.6, 0.8], [0, 0]]))


def test_equals_beyond_a_block_of_a_sort_go_by_index():
    u = kappa.TopK(1000).subgradient(torch.ones(5000))
    assert torch.equal(u, (torch.arange(5000) < 1000).float())
    assert kappa.LInf("none").subgradient(torch.ones(5000)).argmax() == 0


@pytest.mark.parametrize("count", [1, 2, 3, 40, 499, 500, 900])
def test_ranks_are_those_of_a_stable_sort(count):
    v = torch.randint(-9, 10, (500,), generator=torch.Generator().manual_seed(0)).float()
    v[17], v[400] = -INF, INF
    order = sorted(range(500), key=lambda i: (-abs(v[i].item()), i))
    weights = tuple(1 - i / 1000 for i in range(count))
    expected = torch.zeros(500)
    for i, w in zip(order, weights, strict=False):
        expected[i] = w * torch.sign(v[i])
    assert torch.equal(kappa.SortedL1(weights).subgradient(v), expected)
    assert torch.equal(kappa.TopK(count).subgradient(v), torch.sign(expected))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_is_not_a_number_takes_a_rank_and_moves_nothing(count):
    v = torch.tensor([1.0, math.nan, -3.0, 2.0, math.nan])
    u = kappa.TopK(count).subgradient(v)
    assert u.tolist() == [count > 4, 0, -(count > 2), count > 3, 0]


@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
def test_a_bad_element_stays_in_its_group(bad):
    v = points()[0].float()
    v[2, 1] = bad
    others = torch.arange(6) != 2
    for k in (kappa.GroupLasso(), kappa.Entropy(0.5), kappa.SignedEntropy(0.5), kappa.Huber(0.5)):
        assert torch.isfinite(k.subgradient(v)[others]).all()
    for k in (kappa.Nuclear(), kappa.Nuclear(method="svd"), kappa.L2(), kappa.Lp(3.0)):
        assert torch.isnan(k.subgradient(v)).any()
    assert kappa.L1().subgradient(v)[2, 1] == (0 if math.isnan(bad) else math.copysign(1, bad))


@every
def test_dtypes_and_shapes(k):
    for shape in [(6, 4), (7,), (), (0,), (0, 4), (6, 2, 3, 1)]:
        v = torch.randn(shape)
        for dtype, computed in [
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ]:
            before = v.to(dtype)
            u = k.subgradient(before)
            assert u.dtype == computed and u.shape == v.shape
            assert same_bits(u, k.subgradient(before.to(computed)))
            assert same_bits(before, v.to(dtype))
        assert k.value(v).dtype == k.conjugate(v).dtype == torch.float64
        assert k.value(v).shape == k.conjugate(v).shape == k.distance(v, 0.1).shape == ()
    transposed = torch.randn(4, 6).T
    assert same_bits(k.subgradient(transposed), k.subgradient(transposed.contiguous()))


def test_other_dtypes_are_refused():
    for bad in (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64), [1.0]):
        with pytest.raises(TypeError, match=r"L2: v got .* expected a real floating tensor"):
            kappa.L2().subgradient(bad)


# ---- Relative thresholds -------------------------------------------------------------------------

RELATIVE = [
    kappa.TruncatedL1(0.5, relative=True),
    kappa.Huber(0.5, relative=True),
    kappa.SoftSign(0.5, relative=True),
    kappa.LogCosh(0.5, relative=True),
]


@pytest.mark.parametrize("k", RELATIVE, ids=repr)
def test_relative_thresholds_see_no_size(k):
    v = points()[0].float()
    there = k.at(v)
    assert not there.relative and not k.elementwise and there.elementwise
    name = "T" if isinstance(k, kappa.LogCosh) else "e"
    assert abs(getattr(there, name) - 0.5 * v.double().square().mean().sqrt()) < 1e-12
    expected = there.subgradient(v)
    for size in (1e-30, 1.0, 1e30):
        assert_close(k.subgradient(size * v), expected.double())
    assert k.value(v) == there.value(v)
    assert same_bits(k.subgradient(torch.zeros(3)), torch.zeros(3))
    assert k.value(torch.zeros(3)) == 0
    assert k.distance(torch.tensor([3.0]), 1.0) == 2
    with pytest.raises(ValueError, match=r"relative got True, .* kappa.at\(v\)"):
        k.conjugate(v)


# ---- Groups and scale ----------------------------------------------------------------------------


def test_groups_are_rows_columns_or_dimensions():
    v = torch.randn(6, 4, 2)
    row, column, last = (kappa.GroupLasso(axis=a, scale="none") for a in ("row", "column", 2))
    norms = [v.square().sum((1, 2)).sqrt(), v.square().sum((0, 2)).sqrt(), v.square().sum((0, 1))]
    assert_close(row.subgradient(v), v / norms[0][:, None, None])
    assert_close(column.subgradient(v), v / norms[1][None, :, None])
    assert_close(last.subgradient(v), v / norms[2].sqrt())
    two = kappa.GroupLasso(axis="column", size=2, scale="none").subgradient(v)
    first = v[:, :2]
    assert_close(two[:, :2], first / first.square().sum().sqrt())
    assert same_bits(kappa.GroupLasso(axis=0).subgradient(v), kappa.GroupLasso().subgradient(v))


def test_entropies_sum_to_one_in_every_group():
    v = torch.randn(6, 4, 2, dtype=torch.float64)
    for axis, rest in [("row", (1, 2)), ("column", (0, 2)), (2, (0, 1)), (None, (0, 1, 2))]:
        u = kappa.Entropy(0.7, axis=axis).subgradient(v)
        assert_close(u.sum(rest), torch.ones_like(u.sum(rest)), "formula")
        assert_close(u, torch.exp(v / 0.7) / torch.exp(v / 0.7).sum(rest, keepdim=True), "formula")


def test_few_dimensions_are_one_group():
    v = torch.randn(6)
    for axis in ("row", "column", 2):
        k = kappa.GroupLasso(axis=axis, size=4)  # 4 does not divide 6: nothing to divide
        assert_close(k.subgradient(v), kappa.L2().subgradient(v))
    matrix = torch.randn(6, 4)
    assert_close(kappa.GroupLasso(axis=2).subgradient(matrix), kappa.L2().subgradient(matrix))


def test_size_must_divide():
    for k in (kappa.GroupLasso(size=4), kappa.L2Inf(size=4)):
        with pytest.raises(ValueError, match=r"size got 4, .* dimension 0 of .* shape \(6, 4\)"):
            k.subgradient(torch.ones(6, 4))


def test_scale_gives_rms_one():
    v = torch.randn(48, 12)
    for k in (kappa.L2(), kappa.Lp(2.0), kappa.GroupLasso(), kappa.GroupLasso("column", 3)):
        assert_close(k.subgradient(v).square().mean(), torch.tensor(1.0))
    square = torch.randn(24, 24)
    assert_close(kappa.Nuclear().subgradient(square).square().mean(), torch.tensor(1.0), "fp32")
    assert kappa.Nuclear().scale_factor((8, 3, 3, 3)) == 27**0.5
    assert kappa.LInf().scale_factor((8, 3)) == 24
    assert kappa.L2Inf().scale_factor((8, 3)) == 8 * 3**0.5
    assert kappa.L2Inf(size=8).scale_factor((8, 3)) == kappa.L2().scale_factor((8, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_schulz_is_the_polar_factor_and_never_longer(dtype):
    u, _, vt = torch.linalg.svd(torch.randn(30, 20, dtype=dtype), full_matrices=False)
    digits = 20 * torch.finfo(dtype).eps
    for sigma in (torch.ones(20), torch.logspace(0, -3, 20), torch.logspace(0, -12, 20)):
        sigma = sigma.to(dtype)
        for v in ((u * sigma) @ vt, ((u * sigma) @ vt).T):
            ours = kappa.Nuclear("none").subgradient(v)
            assert torch.linalg.svdvals(ours).max() <= 1 + digits
            if sigma[-1] >= 1e-3:
                exact = kappa.Nuclear("none", "svd").subgradient(v)
                assert (ours - exact).abs().max() <= (1e-6 if dtype == torch.float64 else 1e-4)


# ---- Feasible sets -------------------------------------------------------------------------------


def support(k, d):
    """Return sup <d, y> over the domain of K*."""
    if isinstance(k, kappa.Entropy | kappa.SignedEntropy):
        rows = d.reshape(1, -1) if k.axis is None else d if k.axis == "row" else d.T
        return (rows if isinstance(k, kappa.Entropy) else rows.abs()).amax(1).sum()
    if isinstance(k, kappa.Spectral):
        return kappa.Nuclear(scale=k.scale).value(d)
    return k.value(d) if k in HOMOGENEOUS.values() else d.abs().sum()


@bounded
@pytest.mark.parametrize("weight_decay", [0.1, 3.0])
def test_projection_is_the_nearest_point(k, weight_decay):
    # Nearest if and only if it is feasible and nothing feasible reaches further towards x.
    outside = 0
    for x in points():
        near = k.project(x, weight_decay)
        away = x - near
        assert k.conjugate(weight_decay * near, tolerance=1e-12) < INF
        reach = support(k, away) / weight_decay
        assert abs((away * near).sum() - reach) <= 1e-11 * (abs(reach) + x.norm() * away.norm())
        assert abs(k.distance(x, weight_decay) - away.norm()) <= 1e-14 * (x.norm() + away.norm())
        outside += away.norm() > 0
        again = k.project(near, weight_decay)
        assert (again - near).norm() <= 1e-14 * near.norm()
    assert outside


@bounded
def test_inside_is_at_distance_zero(k):
    for w in points():
        x = k.subgradient(w) / 0.3
        assert k.distance(x, weight_decay=0.3) <= 1e-12 * x.norm()
    assert k.distance(1e3 * points()[0], weight_decay=0) == 0


def test_known_distances():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    cases = [
        (kappa.L1(), 1.0, math.hypot(2, 3)),
        (kappa.Huber(9.0), 0.5, math.hypot(1, 2)),
        (kappa.L2(scale="none"), 1.0, 4),
        (kappa.L2(), 1.0, 3),  # RMS at most 1: norm at most 2
        (kappa.GroupLasso(scale="none"), 0.5, 3),
        (kappa.LInf(scale="none"), 1.0, math.hypot(3, 3)),  # (0, 1) is nearest
        (kappa.TopK(1), 1.0, math.hypot(3, 3)),
        (kappa.Nuclear(scale="none"), 1.0, 4),
        (kappa.Entropy(1.0, axis=None), 1.0, math.hypot(3, 3)),
        (kappa.Entropy(1.0), 1.0, math.hypot(3, 3, 0.5, 0.5)),
        (kappa.L2Inf(scale="none"), 1.0, 4),
        (kappa.SortedL1((1.0, 0.0)), 1.0, math.hypot(3, 3)),
    ]
    for k, weight_decay, expected in cases:
        assert_close(k.distance(x, weight_decay), torch.tensor(float(expected)), "fp32")
