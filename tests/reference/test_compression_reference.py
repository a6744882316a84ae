# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle of gradient compression against its definitions, by hand and by the theorems."""

import math

import numpy as np
import pytest
import torch

from largebatch.reference.compression import (
    Plan,
    accumulate,
    fix_up,
    random_indices,
    select,
    strided_indices,
)
from tests.helpers import same_bits

F64 = torch.float64
INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def gaussian(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


def compress(x, record, *, step=0, rank=0):
    """Return what is decoded of a vector, and how many elements there were to select."""
    plan = Plan([x.numel()], [record])
    values, indices = x.new_empty(plan.slots), torch.empty(plan.slots, dtype=torch.int64)
    counts = torch.empty(1, 2, dtype=torch.int64)
    payload = torch.empty(plan.payload_bytes, dtype=torch.uint8)
    key, method = [x.clone()], {"method": "none"}
    plan.encode(key, key, [], [], [], method, step, rank, values, indices, counts, payload)
    decoded, nonfinite = [torch.empty_like(x)], torch.empty(1, dtype=torch.int64)
    world = payload.unsqueeze(0)
    plan.decode(world, -1, [], [], [], [], decoded, [], indices, method, nonfinite, zero=True)
    return decoded[0], counts[0, 0].item()


# ---- Selection -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "k", "expected"),
    [
        ([1.0, -3.0, 2.0, -2.0], 2, [1, 2]),  # of a tie, the lower index
        ([1.0, 1.0, -1.0, 1.0], 3, [0, 1, 2]),
        ([0.0, -0.0, 0.0], 1, [0]),  # -0 is 0
        ([-0.0, 0.0, 5e-324], 1, [2]),
        ([9.0, -INF, INF, 8.0], 1, [1]),
        ([INF, NAN, -INF, -NAN], 2, [1, 3]),
        ([3.0, 1.0], 0, []),
        ([3.0, 1.0], 5, [0, 1]),
        ([], 1, []),
    ],
)
def test_selection_by_hand(x, k, expected):
    assert select(torch.tensor(x, dtype=F64), k).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("digits", [0, 6])
def test_selection_is_that_of_numpy(dtype, digits):
    x = gaussian(1000).mul(2**digits).round().div(2**digits).to(dtype)  # with ties
    order = np.lexsort((np.arange(1000), -x.double().abs().numpy()))
    for k in (1, 10, 333, 999):
        assert select(x, k).tolist() == sorted(order[:k])


def test_a_nan_with_the_larger_payload_comes_first():
    bits = torch.tensor([0x7FC00000, 0x7FC00002 - 2**31, 0x7FC00001, 0x7F800000])
    x = bits.int().view(torch.float32)
    assert x.isnan().tolist() == [True, True, True, False]
    assert select(x, 1).tolist() == [1]
    assert select(x, 2).tolist() == [1, 2]


@pytest.mark.parametrize("numel", [0, 1, 63, 64, 65, 130, 191])
def test_every_block_keeps_its_share(numel):
    x = gaussian(numel)
    decoded, found = compress(x, dict(select="block", block=64, k=5, values="float64"))
    expected = torch.zeros_like(x)
    for start in range(0, numel, 64):
        block = x[start : start + 64]
        kept = select(block, math.ceil(5 * block.numel() / 64))
        expected[start + kept] = block[kept]
    assert same_bits(decoded, expected)
    assert found == expected.count_nonzero()


def test_a_threshold_keeps_the_first_by_index_and_counts_all():
    x = torch.tensor([1.0, -3.0, 2.0, -1.9, 5.0])
    for capacity, kept in ((2, [0, -3, 2, 0, 0]), (4, [0, -3, 2, 0, 5]), (0, [0] * 5)):
        decoded, found = compress(x, dict(select="threshold", tau=2.0, k=capacity))
        assert decoded.tolist() == kept
        assert found == 3


@pytest.mark.parametrize("numel", [1, 2, 3, 4, 5, 16, 17, 255, 1000])
def test_drawn_indices_are_distinct_and_cover_all(numel):
    for draw in (random_indices, strided_indices):
        for k in {0, 1, numel // 2, numel}:
            drawn = draw(numel, k, 3, seed=2**63 + 5, id=2**40 + 1)
            assert drawn.unique().numel() == k
            assert k == 0 or (drawn.min() >= 0 and drawn.max() < numel)
    assert (strided_indices(numel, numel // 2, 1).diff() > 0).all()


def test_the_first_drawn_indices_do_not_depend_on_how_many_are_drawn():
    assert random_indices(1000, 10).tolist() == random_indices(1000, 400)[:10].tolist()
    assert random_indices(1000, 10).tolist() != random_indices(1000, 10, 1).tolist()
    assert random_indices(1000, 10).tolist() != random_indices(1000, 10, seed=1).tolist()
    assert random_indices(1000, 10).tolist() != random_indices(1000, 10, id=1).tolist()


def test_strided_indices_of_numbers_that_need_more_than_64_bits():
    numel, k = 2**40 - 1, 2**16 + 1
    drawn = strided_indices(numel, k).tolist()
    for j in range(0, k, 997):
        assert j * numel // k <= drawn[j] < (j + 1) * numel // k


@pytest.mark.parametrize("draw", [random_indices, strided_indices])
def test_every_index_is_drawn_equally_often(draw):
    numel, k, draws = 40, 8, 500
    counts = torch.zeros(numel)
    for step in range(draws):
        counts[draw(numel, k, step)] += 1
    mean = draws * k / numel
    assert (counts - mean).abs().max() < 5 * math.sqrt(mean * (1 - k / numel))


# ---- What compressors guarantee ------------------------------------------------------------------

N, K = 2000, 100
CONTRACTIONS = {  # E ||C(x) - x||^2 <= (1 - delta) ||x||^2
    "topk": (dict(select="topk", k=K), K / N),
    "block": (dict(select="block", block=64, k=4), 4 / 64),
    "sign": (dict(select="dense", values="sign"), 1 / N),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
@pytest.mark.parametrize("data", ["gaussian", "equal", "one", "two", "zero"])
def test_contraction(name, data):
    x = {
        "gaussian": gaussian(N),
        "equal": torch.full((N,), -3.0, dtype=F64),
        "one": torch.eye(1, N, dtype=F64)[0],
        "two": gaussian(N).sign() + 5 * (gaussian(N, seed=1) > 2),
        "zero": torch.zeros(N, dtype=F64),
    }[data]
    record, delta = CONTRACTIONS[name]
    decoded, _ = compress(x, record)
    lost = (decoded - x).square().sum().item()
    assert lost <= (1 - delta) * x.square().sum().item() * (1 + 1e-6)  # 1e-6: fp32 on the wire


@pytest.mark.parametrize("select_by", ["random", "strided"])
def test_drawn_indices_contract_in_expectation(select_by):
    x = gaussian(200)
    record = dict(select=select_by, k=20, values="float64")
    kept = [compress(x, record, step=s)[0].square().sum().item() for s in range(150)]
    mean, error = np.mean(kept), np.std(kept) / math.sqrt(len(kept))
    assert abs(mean - 0.1 * x.square().sum().item()) < 5 * error


LEVELS = [("int8", 127, 0), ("int4", 7, 0), ("int2", 1.5, 0.5)]  # of one sign; offset of a code


@pytest.mark.parametrize(("values", "levels", "offset"), LEVELS)
def test_stochastic_integers_are_unbiased(values, levels, offset):
    x = gaussian(64, dtype=torch.float32)
    record = dict(select="dense", values=values, scale_block=64)
    draws = torch.stack(
        [
            compress(x, record | dict(id=i), step=s, rank=r)[0]
            for i in range(3)
            for s in range(25)
            for r in range(3)
        ]
    ).double()
    step = x.abs().max().double() / levels
    up = (x / step + offset) % 1  # the chance of the code above
    error = step * (up * (1 - up) / len(draws)).sqrt()
    # One draw more or less where the chance is nearly 0.
    assert ((draws.mean(dim=0) - x).abs() <= 5 * error + step / len(draws)).all()
    assert draws.unique(dim=0).shape == draws.shape  # every id, step and rank has its own numbers


@pytest.mark.parametrize(("values", "levels"), [case[:2] for case in LEVELS])
def test_nearest_integers_are_within_half_a_step(values, levels):
    x = gaussian(1000, dtype=torch.float32)
    record = dict(select="dense", values=values, scale_block=128, rounding="nearest")
    decoded, _ = compress(x, record)
    for start in range(0, 1000, 128):
        chunk = slice(start, start + 128)
        step = x[chunk].abs().max().item() / levels
        assert (decoded[chunk] - x[chunk]).abs().max() <= step / 2 * (1 + 1e-5)


def test_the_scale_of_signs_is_the_mean_magnitude():
    x = torch.tensor([1.0, -2.0, 0.0, -0.0, -7.0])
    assert compress(x, dict(select="dense", values="sign"))[0].tolist() == [2, -2, 2, 2, -2]


def test_values_beyond_a_format_are_its_largest():
    x = torch.tensor([1e6, -1e6, 3.4e38, 1.0])
    assert compress(x, dict(select="dense", values="float16"))[0].tolist() == [
        65504,
        -65504,
        65504,
        1,
    ]
    most = torch.finfo(torch.bfloat16).max
    assert compress(x, dict(select="dense", values="bfloat16"))[0][2].item() == most
    wide = torch.tensor([1e300, -1e300], dtype=F64)
    most = torch.finfo(torch.float32).max
    assert compress(wide, dict(select="dense"))[0].tolist() == [most, -most]


# ---- Error feedback ------------------------------------------------------------------------------


def vector(*numbers):
    return torch.tensor(numbers, dtype=F64)


# grad 8, e 2, h 3, v 4; the key and the state (e, h, v) before and after 5 is sent.
BY_HAND = {
    "none": (dict(), 8, (2, 3, 4), (2, 3, 4)),
    "none, averaged": (dict(beta=0.25), 5, (2, 3, 5), (2, 3, 5)),
    "feedback": (dict(), 10, (10, 3, 4), (5, 3, 4)),
    "feedback, decayed": (dict(decay=0.5), 9, (9, 3, 4), (4, 3, 4)),
    "ef21": (dict(), 5, (2, 3, 4), (2, 8, 4)),
    "ef21, averaged": (dict(beta=0.25), 2, (2, 3, 5), (2, 8, 5)),
    "econtrol": (dict(eta=0.5), 6, (7, 3, 4), (2, 8, 4)),
    "dgc": (dict(mu=0.5), 12, (12, 3, 10), (7, 3, 0)),
    "dgc, nesterov": (dict(mu=0.5, nesterov=True), 16, (16, 3, 6), (11, 3, 0)),
    "dgc, unmasked": (dict(mu=0.5, masking=False), 12, (12, 3, 10), (7, 3, 10)),
    "dgc, dense": (dict(mu=0.5, dense=True), 10, (2, 3, 10), (2, 3, 10)),
    "dgc, dense, nesterov": (dict(mu=0.5, dense=True, nesterov=True), 14, (2, 3, 6), (2, 3, 6)),
    "feedback, scaled": (dict(inv_scale=torch.tensor([0.5])), 6, (6, 3, 4), (1, 3, 4)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_error_feedback_by_hand(name):
    options, key, before, after = BY_HAND[name]
    method, masking = name.split(",")[0], options.pop("masking", True)
    state = vector(2), vector(3), vector(4)
    actual, guarded = accumulate(method, vector(8), *state, **options)
    assert actual.item() == key
    assert not guarded.item()
    assert tuple(s.item() for s in state) == before
    index = None if options.get("dense") else torch.tensor([0])
    fix_up(method, vector(5), index, *state, masking=masking)
    assert tuple(s.item() for s in state) == after


# The key and the state of a gradient that is left out.
GUARDED = {
    "none": (dict(), 0, (2, 3, 4)),
    "feedback": (dict(decay=0.5), 1, (1, 3, 4)),
    "feedback, averaged": (dict(beta=0.25), 2, (2, 3, 4)),
    "ef21": (dict(), 0, (2, 3, 4)),
    "ef21, averaged": (dict(beta=0.25), 0, (2, 3, 4)),
    "econtrol": (dict(eta=0.5), 1, (2, 3, 4)),
    "dgc": (dict(mu=0.5), 4, (4, 3, 2)),
    "dgc, nesterov": (dict(mu=0.5, nesterov=True), 4, (4, 3, 2)),
    "dgc, dense": (dict(mu=0.5, dense=True), 2, (2, 3, 2)),
}


@pytest.mark.parametrize("name", GUARDED)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_gradients_that_are_not_finite_are_left_out(name, bad):
    options, key, after = GUARDED[name]
    state = vector(2), vector(3), vector(4)
    actual, guarded = accumulate(name.split(",")[0], vector(bad), *state, **options)
    assert guarded.item()
    assert actual.item() == key
    assert tuple(s.item() for s in state) == after


def test_states_do_not_overflow():
    most = torch.finfo(torch.float32).max
    e = torch.tensor([most, 1.0])
    key, guarded = accumulate("feedback", torch.tensor([most, 1.0]), e)
    assert guarded.tolist() == [True, False]
    assert key.tolist() == e.tolist() == [most, 2.0]
