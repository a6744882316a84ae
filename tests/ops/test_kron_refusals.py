# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of factors: kinds of input, and what is refused before anything is written."""

import math

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

from largebatch import ops
from largebatch.reference import kron as reference
from tests.helpers import same_bits
from tests.ops.kron_setting import (
    DTYPES,
    F32,
    F64,
    assert_updated,
    by_formula,
    copies,
    error,
    pairs,
    spd,
    update,
    vector,
)

# ---- Kinds of input ------------------------------------------------------------------------------


def test_empty_lists():
    for call in (ops.kron_rank1_update, reference.kron_rank1_update):
        norms, counters = call([], [])
        assert (norms.shape, norms.dtype) == ((0,), F32)
        assert (counters.shape, counters.dtype) == ((0, 3), torch.int64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_numpy_arrays(dtype):
    m = np.eye(2, dtype=dtype)
    v = np.array([3, 0], np.float64 if dtype == np.float64 else np.float32)
    norms, counters = np.ones(1, np.float32), np.zeros((1, 3), np.int64)
    options = dict(variant="exact", gamma=0.5, norms=norms, counters=counters)
    got = ops.kron_rank1_update([m], [v], skip=np.zeros(1, np.float32), **options)
    assert m.tolist() == [[pytest.approx(0.2, rel=1e-3), 0], [0, 2]]
    assert got[0] is norms
    assert got[1] is counters
    assert (norms.tolist(), counters.tolist()) == ([2], [[0, 0, 0]])
    v[0] = np.nan
    ops.kron_rank1_update([m], [v], skip=np.zeros(1, np.float32), **options)
    assert counters.tolist() == [[1, 0, 0]]


def test_numpy_views_into_wider_rows():
    storage = np.full((4, 7), 9, np.float32)
    m = storage[1:, 2:5]
    m[:] = np.eye(3)
    ops.kron_rank1_update([m], [np.array([1, 1, 0], np.float32)], leak=1.0)
    assert m == pytest.approx(np.array([[2, -1, 0], [-1, 2, 0], [0, 0, 3]]) / 3)
    assert (storage[0] == 9).all()
    assert (storage[:, [0, 1, 5, 6]] == 9).all()


def test_sequences_other_than_lists():
    factors, vectors = pairs([3, 5])
    before = copies(factors)
    update(tuple(factors), tuple(vectors))
    assert_updated(factors, before, vectors, "leaky")


def test_parameters_and_what_a_graph_has_made():
    m, v = spd(5), vector(5)
    p = torch.nn.Parameter(m.clone())
    update([p], [(torch.nn.Parameter(v) * 1.0)])
    assert_updated([p.detach()], [m], [v], "leaky")


def test_vectors_and_skip_are_only_read_and_the_rest_is_marked_as_written(backend):
    factors, vectors = pairs([3, 40], F32, backend.device)
    norms, skip = torch.ones(2, device=backend.device), torch.zeros(2, device=backend.device)
    counters = torch.zeros(2, 3, dtype=torch.int64, device=backend.device)
    written, read = [*factors, norms, counters], [*vectors, skip]
    versions = [[t._version for t in group] for group in (written, read)]
    before = copies(read)
    update(factors, vectors, norms=norms, counters=counters, skip=skip)
    assert same_bits(read, before)
    assert [t._version for t in read] == versions[1]
    assert all(t._version > old for t, old in zip(written, versions[0], strict=True))


def arguments(variant="exact", threshold=1.5, skip=None, dtype=F32):
    factors, vectors = pairs([3, 4, 0], dtype)
    norms, counters = torch.ones(3), torch.zeros(3, 3, dtype=torch.int64)
    rest = (variant, 0.9, 0.8, 1.5, "max", threshold, 0.4, skip)
    return factors, vectors, norms, counters, *rest


def test_opcheck():
    op = torch.ops.largebatch.kron_rank1_update.default
    torch.library.opcheck(op, arguments())
    torch.library.opcheck(op, arguments("leaky", math.inf, torch.tensor([0.0, 1.0, 0.0])))
    for dtype in DTYPES:
        torch.library.opcheck(op, arguments("paper", dtype=dtype))


def test_the_operation_itself():
    factors, vectors, norms, counters, *rest = arguments()
    before = copies(factors)
    norms[1] = 2.0
    result = torch.ops.largebatch.kron_rank1_update(factors, vectors, norms, counters, *rest)
    assert result is None
    for m, old, v, z in zip(factors, before, vectors, (None, 0.4, None), strict=True):
        assert error(m, by_formula(old, v, "exact", z)) <= 4e-7
    assert counters.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_fake_tensors():
    with FakeTensorMode():
        factors, vectors = [torch.empty(5, 5), torch.empty(3, 3)], [torch.empty(5), torch.empty(3)]
        norms, counters = torch.empty(2), torch.empty(2, 3, dtype=torch.int64)
        rest = ("leaky", 0.9, 0.8, 1.0, "max", math.inf, 0.0, None)
        op = torch.ops.largebatch.kron_rank1_update
        assert op(factors, vectors, norms, counters, *rest) is None
        made = ops.kron_rank1_update(factors, vectors)
        assert (made[0].shape, made[0].dtype) == ((2,), F32)
        assert (made[1].shape, made[1].dtype) == ((2, 3), torch.int64)


# ---- What is refused -----------------------------------------------------------------------------

EYE, ONES = torch.eye(3), torch.ones(3)
STACK = torch.eye(4).repeat(2, 1)  # two factors below each other
COUNTERS = torch.zeros(2, 3, dtype=torch.int64)
ABOVE = dict(variant="exact", stabilizer_threshold=2.0, stabilizer_blend=0.5)

SECOND_FACTOR, SECOND_VECTOR = r"factors\[1\]", r"vectors\[1\]"
# name -> (arguments, or a second factor or vector, what is raised, what its message names).
BAD = {
    # Kinds and dtypes.
    "kind of factors": (dict(factors=EYE), TypeError, "factors .* expected a list"),
    "kind of vectors": (dict(vectors=ONES), TypeError, "vectors .* expected a list"),
    "kind of a factor": (dict(factor=3.0), TypeError, SECOND_FACTOR),
    "kind of a vector": (dict(vector=[1.0, 1.0, 1.0]), TypeError, SECOND_VECTOR),
    "integer factor": (dict(factor=EYE.int()), TypeError, SECOND_FACTOR),
    "complex factor": (dict(factor=EYE.cfloat()), TypeError, SECOND_FACTOR),
    "fp16 vector": (dict(vector=ONES.half()), TypeError, SECOND_VECTOR),
    "bf16 vector": (dict(vector=ONES.bfloat16()), TypeError, SECOND_VECTOR),
    "fp64 vector": (dict(vector=ONES.double()), TypeError, SECOND_VECTOR),
    "integer vector": (dict(vector=ONES.int()), TypeError, SECOND_VECTOR),
    "fp16 vector of an fp16 factor": (
        dict(factor=EYE.half(), vector=ONES.half()),
        TypeError,
        SECOND_VECTOR,
    ),
    "kind of norms": (dict(norms=[1.0, 1.0]), TypeError, "norms"),
    "dtype of norms": (dict(norms=torch.ones(2).double()), TypeError, "norms"),
    "kind of counters": (dict(counters=3), TypeError, "counters"),
    "dtype of counters": (dict(counters=COUNTERS.int()), TypeError, "counters"),
    "counters of floats": (dict(counters=COUNTERS.float()), TypeError, "counters"),
    "kind of skip": (dict(skip=True), TypeError, "skip"),
    "dtype of skip": (dict(skip=torch.zeros(2, dtype=torch.bool)), TypeError, "skip"),
    # Shapes and lengths.
    "not square": (dict(factor=torch.ones(3, 4)), ValueError, SECOND_FACTOR),
    "not square, empty": (dict(factor=torch.ones(0, 3)), ValueError, SECOND_FACTOR),
    "factor of one dimension": (dict(factor=torch.ones(9)), ValueError, SECOND_FACTOR),
    "factor of three dimensions": (dict(factor=torch.ones(3, 3, 3)), ValueError, SECOND_FACTOR),
    "factor of none": (dict(factor=torch.tensor(1.0)), ValueError, SECOND_FACTOR),
    "too few vectors": (dict(vectors=[ONES]), ValueError, "vectors"),
    "too many vectors": (dict(vectors=[ONES] * 3), ValueError, "vectors"),
    "no vectors": (dict(vectors=[]), ValueError, "vectors"),
    "long vector": (dict(vector=torch.ones(4)), ValueError, SECOND_VECTOR),
    "short vector": (dict(vector=torch.ones(2)), ValueError, SECOND_VECTOR),
    "empty vector": (dict(vector=torch.ones(0)), ValueError, SECOND_VECTOR),
    "vector as a column": (dict(vector=torch.ones(3, 1)), ValueError, SECOND_VECTOR),
    "vector as a row": (dict(vector=torch.ones(1, 3)), ValueError, SECOND_VECTOR),
    "vector of no dimension": (dict(vector=torch.tensor(1.0)), ValueError, SECOND_VECTOR),
    "length of norms": (dict(norms=torch.ones(3)), ValueError, "norms"),
    "shape of norms": (dict(norms=torch.ones(2, 1)), ValueError, "norms"),
    "rows of counters": (dict(counters=COUNTERS[:1].clone()), ValueError, "counters"),
    "columns of counters": (dict(counters=COUNTERS[:, :2].clone()), ValueError, "counters"),
    "dimensions of counters": (dict(counters=COUNTERS.flatten()), ValueError, "counters"),
    "length of skip": (dict(skip=torch.zeros(1)), ValueError, "skip"),
    "shape of skip": (dict(skip=torch.zeros(2, 2)), ValueError, "skip"),
    # Strides and devices.
    "columns first": (dict(factor=torch.ones(3, 3).t()), ValueError, SECOND_FACTOR),
    "every other column": (dict(factor=torch.ones(3, 6)[:, ::2]), ValueError, SECOND_FACTOR),
    "rows that overlap": (
        dict(factor=torch.ones(9).as_strided((3, 3), (2, 1))),
        ValueError,
        SECOND_FACTOR,
    ),
    "one row for all": (dict(factor=torch.ones(1, 3).expand(3, 3)), ValueError, SECOND_FACTOR),
    "vector with gaps": (dict(vector=torch.ones(6)[::2]), ValueError, SECOND_VECTOR),
    "expanded vector": (dict(vector=torch.ones(1).expand(3)), ValueError, SECOND_VECTOR),
    "norms with gaps": (dict(norms=torch.ones(4)[::2]), ValueError, "norms"),
    "counters with gaps": (
        dict(counters=torch.zeros(2, 4, dtype=torch.int64)[:, :3]),
        ValueError,
        "counters",
    ),
    "device of a factor": (dict(factor=EYE.to("meta")), ValueError, SECOND_FACTOR),
    "device of a vector": (dict(vector=ONES.to("meta")), ValueError, SECOND_VECTOR),
    "device of norms": (dict(norms=torch.ones(2, device="meta")), ValueError, "norms"),
    "device of counters": (dict(counters=COUNTERS.to("meta")), ValueError, "counters"),
    "device of skip": (dict(skip=torch.zeros(2, device="meta")), ValueError, "skip"),
    # Memory.
    "a factor twice": (dict(factors=[EYE, EYE]), ValueError, "factors"),
    "factors that overlap": (
        dict(factors=[STACK[:4, :3][:3], STACK[2:5, :3]]),
        ValueError,
        "factors",
    ),
    "a factor that is its vector": (
        dict(vectors=[ONES, EYE[0]]),
        ValueError,
        r"factors\[0\]|vectors\[1\]",
    ),
    "a factor that is all norms": (dict(norms=EYE.view(-1)[3:5]), ValueError, "norms|factors"),
    "norms that are skip": (dict(norms=ONES[:2], skip=ONES[1:]), ValueError, "norms|skip"),
    "norms that are a vector": (dict(norms=ONES[:2]), ValueError, r"norms|vectors\[0\]"),
    # Values.
    "variant": (dict(variant="Leaky"), ValueError, "variant"),
    "no variant": (dict(variant=""), ValueError, "variant"),
    "norm": (dict(stabilizer_norm="l2"), ValueError, "stabilizer_norm"),
    "norm with a threshold": (
        dict(ABOVE, stabilizer_norm="Inf"),
        ValueError,
        "stabilizer_norm",
    ),
    "norm without norms": (
        dict(ABOVE, norms=None, stabilizer_norm="l2"),
        ValueError,
        "stabilizer_norm",
    ),
    "factor of no dimension without norms": (
        dict(ABOVE, norms=None, stabilizer_norm="inf", factor=torch.tensor(1.0)),
        ValueError,
        SECOND_FACTOR,
    ),
    **{f"gamma {x}": (dict(gamma=x), ValueError, "gamma") for x in (0.0, 1.0, -0.5, 1.5, math.nan)},
    **{f"leak {x}": (dict(leak=x), ValueError, "leak") for x in (-0.1, 1.1, math.inf, math.nan)},
    **{f"rho {x}": (dict(rho=x), ValueError, "rho") for x in (0.0, -1.0, math.inf, math.nan)},
    **{
        f"threshold {x}": (
            dict(ABOVE, stabilizer_threshold=x),
            ValueError,
            "stabilizer_threshold",
        )
        for x in (0.0, -1.0, math.nan, -math.inf)
    },
    **{
        f"blend {x}": (dict(ABOVE, stabilizer_blend=x), ValueError, "stabilizer_blend")
        for x in (None, -0.1, 1.0, math.nan)
    },
    "leaky with a threshold": (dict(ABOVE, variant="leaky"), ValueError, "stabilizer_threshold"),
}


def bits_of(given):
    """Return copies of all arrays among arguments."""
    flat = [x for value in given.values() for x in (value if isinstance(value, list) else [value])]
    return [x.clone() for x in flat if torch.is_tensor(x) and x.device.type == "cpu"]


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_writes_nothing(name):
    over, problem, pattern = BAD[name]
    over = dict(over)
    given = dict(
        factors=[EYE, over.pop("factor", 2 * torch.eye(3))],
        vectors=[ONES, over.pop("vector", 2 * torch.ones(3))],
        norms=torch.tensor([1.0, 2.0]),
        counters=torch.zeros(2, 3, dtype=torch.int64),
    )
    given |= over
    before = bits_of(given)
    with pytest.raises(problem, match=f"^kron_rank1_update: ({pattern})") as caught:
        ops.kron_rank1_update(**given)
    assert "\n" not in str(caught.value)
    assert same_bits(bits_of(given), before)


@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_constants_at_the_ends_of_their_ranges_are_taken(variant):
    update([spd(3)], [vector(3)], leak=0.0)
    update([spd(3)], [vector(3)], leak=1.0)
    update([spd(3)], [vector(3)], variant, stabilizer_threshold=1e-30, stabilizer_blend=0.0)
    # What diverges is for the optimizer to refuse.
    update([spd(3)], [vector(3)], variant, stabilizer_threshold=1.0, stabilizer_blend=0.999)


def test_two_vectors_may_share_memory_and_so_may_what_is_only_read():
    factors, _ = pairs([3, 3], F64)
    before, shared = copies(factors), torch.arange(1, 5, dtype=F64)
    vectors = [shared[:3], shared[1:]]
    update(factors, vectors)
    assert_updated(factors, before, vectors, "leaky", bounds={F64: 1e-14})
