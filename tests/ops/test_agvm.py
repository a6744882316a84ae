# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Dot products of the halves of a batch's gradient: values, kinds of input, bits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import largebatch
from largebatch import ops
from largebatch.reference import agvm as reference
from tests.helpers import Padded, problem, same_bits

SHAPES = [
    (0,),
    (1,),
    (3,),
    (),
    (31,),
    (32,),
    (33,),
    (511, 2),
    (16383,),
    (16384,),
    (16385,),
    (2, 3, 0),
    (40001,),
    (0,),
]
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
# Gradients and second moments that go together.
PAIRS = [
    *((x, None) for x in (F32, F16, BF16, F64)),
    *((F32, v) for v in (F32, F16, BF16)),
    *((F16, v) for v in (F16, F32)),
    *((BF16, v) for v in (BF16, F32)),
    (F64, F64),
]
# Of an even and an odd number of micro-batches, of workers, and one without a zero in it.
COMBINES = [((-2, 2), (2, 0)), ((-1.5, 0), (3, 3)), ((2, 0), (-2, 2)), ((0.5, 0.75), (-0.25, 1))]


def arrays(device, shapes=SHAPES, dtype=F32, square=None, seed=0):
    """Return x, y and, where `square` is its dtype, v."""
    data = problem(shapes, steps=2, seed=seed, scale=1.0, grad_scale=1.0)
    x, y, v = data.params, data.grads[0], [g * g for g in data.grads[1]]
    x, y = ([t.to(device, dtype) for t in group] for group in (x, y))
    return x, y, None if square is None else [t.to(device, square) for t in v]


def assert_dots(actual, expected, numels, relative=1e-6):
    """Hold each sum against the size of its terms: those of a b cancel."""
    actual, expected = actual.cpu(), expected.cpu()
    assert (actual.shape, actual.dtype) == (expected.shape, torch.float64)
    typical = expected[:, :2].sum() / max(1, sum(numels)) / 2
    squares = expected[:, :2]
    size = torch.stack([*squares.unbind(1), squares.prod(1).sqrt()], dim=1)
    # In tensors of a few elements a half may cancel as a whole.
    few = torch.tensor([n * typical if n < 256 else 0.0 for n in numels])[:, None]
    assert ((actual - expected).abs() <= relative * torch.maximum(size, few)).all()


def numels(tensors):
    return [t.numel() for t in tensors]


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize(("dtype", "square"), PAIRS)
def test_matches_float64_reference(backend, dtype, square, combine):
    x, y, v = arrays(backend.device, dtype=dtype, square=square)
    padded = [Padded(tensors, offset=1) for tensors in (x, y, v) if tensors is not None]
    x, y, *v = (p.tensors for p in padded)
    options = dict(exp_avg_sq=v[0], beta2=0.75, eps=0.125) if v else {}
    dots = ops.half_dots(x, y, combine, **options)
    expected = reference.half_dots(x, y, combine, **options)
    assert_dots(dots, expected, numels(x), 1e-12 if dtype == F64 else 1e-6)
    assert dots.device.type == backend.device.type
    assert all(p.intact() for p in padded)


def test_aligned_at_16_bytes_and_not_gives_the_same_bits(backend):
    x, y, v = arrays(backend.device, square=F32)
    shifted = [Padded(tensors, offset=1).tensors for tensors in (x, y, v)]
    options = dict(beta2=0.9, eps=1e-3)
    assert same_bits(
        ops.half_dots(x, y, COMBINES[3], exp_avg_sq=v, **options),
        ops.half_dots(*shifted[:2], COMBINES[3], exp_avg_sq=shifted[2], **options),
    )


def test_dtypes_side_by_side_come_back_in_order(backend):
    dtypes = [F64, F32, BF16, F32, F16]
    lists = [arrays(backend.device, [(300 + i,)], d, seed=i) for i, d in enumerate(dtypes)]
    x, y = ([own[k][0] for own in lists] for k in (0, 1))
    dots = ops.half_dots(x, y, COMBINES[0])
    assert_dots(dots, reference.half_dots(x, y, COMBINES[0]), numels(x))
    v = [t.square().to(F64 if t.dtype == F64 else F32) for t in x]
    options = dict(exp_avg_sq=v, beta2=0.5, eps=0.1)
    dots = ops.half_dots(x, y, COMBINES[0], **options)
    assert_dots(dots, reference.half_dots(x, y, COMBINES[0], **options), numels(x))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), seed=st.integers(0, 9))
def test_any_list_of_sizes(backend, sizes, seed):
    x, y, _ = arrays(backend.device, [(n,) for n in sizes], seed=seed)
    dots = ops.half_dots(x, y, COMBINES[2])
    assert_dots(dots, reference.half_dots(x, y, COMBINES[2]), sizes)


def test_the_identities_of_sum_and_difference(backend):
    s, h, _ = arrays(backend.device)
    raw = ops.half_dots(s, h, ((1, 0), (0, 1)))
    found = reference.from_sum_and_difference(raw)
    halves = ops.half_dots(s, h, ((0.5, 0.5), (0.5, -0.5)))
    assert_dots(halves, found, numels(s))
    a = [(p.double() + q.double()) / 2 for p, q in zip(s, h, strict=True)]
    b = [(p.double() - q.double()) / 2 for p, q in zip(s, h, strict=True)]
    assert_dots(halves, reference.half_dots(a, b, ((1, 0), (0, 1))), numels(s))


def test_small_variances_are_not_lost_in_the_difference(backend):
    # 1 - cos of 1e-8: a sum in fp32, or halves that were rounded to 16 bits, would leave noise.
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300000, generator=generator)
    b = a + 1e-4 * torch.randn(a.shape, generator=generator)
    a, b = a.to(backend.device), b.to(backend.device)
    phi = reference.variances(ops.half_dots([a], [b], ((1, 0), (0, 1))))
    assert phi.item() == pytest.approx(0.5e-8, rel=0.01)


@pytest.mark.parametrize("value", [1e-30, 1e20, 3e38])
def test_squares_neither_vanish_nor_overflow(backend, value):
    x = [torch.full((1000,), value, device=backend.device)]
    dots = ops.half_dots(x, x, ((1, 0), (0, 1)))
    assert dots.tolist() == [[pytest.approx(1000 * x[0][0].double().item() ** 2, rel=1e-6)] * 3]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("of", [0, 1])
def test_non_finite_values_stay_in_their_tensor(backend, value, of):
    lists = arrays(backend.device, [(300,), (20000,), (5,)])
    clean = ops.half_dots(*lists[:2], COMBINES[3])
    lists[of][1][17000] = value
    dots = ops.half_dots(*lists[:2], COMBINES[3])
    assert not dots[1].isfinite().any()
    assert same_bits(dots[::2], clean[::2])


def test_without_eps_only_what_is_there_counts(backend):
    # Beyond the end of a tensor there is 0 / 0; in it, where h and v are both 0, too.
    shapes = [(1,), (33,), (16385,)]
    x, y, v = arrays(backend.device, shapes, square=F32)
    dots = ops.half_dots(x, y, COMBINES[2], exp_avg_sq=v, beta2=0.9, eps=0.0)
    expected = reference.half_dots(x, y, COMBINES[2], exp_avg_sq=v, beta2=0.9, eps=0.0)
    assert dots.isfinite().all()
    assert_dots(dots, expected, numels(x))
    for t in (x, y, v):
        t[1][7] = 0
    dots = ops.half_dots(x, y, COMBINES[2], exp_avg_sq=v, beta2=0.9, eps=0.0)
    assert dots.isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("scale", [1024.0, 3.0])
def test_grad_scale_divides_the_gradients(backend, scale):
    x, y, v = arrays(backend.device, square=F32)
    options = dict(exp_avg_sq=v, beta2=0.9, eps=0.01)
    expected = reference.half_dots(x, y, COMBINES[3], **options)
    scaled = [[scale * t for t in group] for group in (x, y)]
    divisor = torch.tensor(scale, device=backend.device)
    dots = ops.half_dots(*scaled, COMBINES[3], grad_scale=divisor, **options)
    assert_dots(dots, expected, numels(x))
    assert_dots(reference.half_dots(*scaled, COMBINES[3], grad_scale=divisor, **options), expected,
                numels(x))  # fmt: skip
    plain = ops.half_dots(*scaled, COMBINES[3], grad_scale=divisor)
    assert_dots(plain, reference.half_dots(x, y, COMBINES[3]), numels(x))


# ---- Bits ----------------------------------------------------------------------------------------


def test_same_bits_on_every_run_and_in_any_company(backend):
    x, y, v = arrays(backend.device, square=F32)
    options = dict(beta2=0.9, eps=1e-3)
    first = ops.half_dots(x, y, COMBINES[3], exp_avg_sq=v, **options)
    assert same_bits(ops.half_dots(x, y, COMBINES[3], exp_avg_sq=v, **options), first)
    alone = [
        ops.half_dots([p], [q], COMBINES[3], exp_avg_sq=[r], **options)
        for p, q, r in zip(x, y, v, strict=True)
    ]
    assert same_bits(torch.cat(alone), first)


def test_number_of_threads(backend):
    if backend.device.type != "cpu":
        pytest.skip("threads are those of the CPU")
    x, y, _ = arrays("cpu", [*SHAPES, (400000,)])
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(ops.half_dots(x, y, COMBINES[3]))
    torch.set_num_threads(before)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize(("dtype", "square"), PAIRS)
def test_same_bits_for_any_instruction_set(dtype, square):
    x, y, v = arrays("cpu", dtype=dtype, square=square)
    before = largebatch._C.cpu_isa()
    results = []
    for isa in largebatch._C.cpu_isas():
        largebatch._C.set_cpu_isa(isa)
        results.append(ops.half_dots(x, y, COMBINES[3], exp_avg_sq=v, beta2=0.9, eps=1e-3))
    largebatch._C.set_cpu_isa(before)
    assert all(same_bits(result, results[0]) for result in results)


# ---- Kinds of input ------------------------------------------------------------------------------


def test_transposed_tensors_pair_elements_of_the_same_place(backend):
    x, y, v = (t[0].t() for t in arrays(backend.device, [(40, 30)], square=F32))
    options = dict(beta2=0.9, eps=0.1)
    dots = ops.half_dots([x], [y], COMBINES[0], exp_avg_sq=[v], **options)
    assert_dots(dots, reference.half_dots([x], [y], COMBINES[0], exp_avg_sq=[v], **options), [1200])


def test_empty_lists():
    for half_dots in (ops.half_dots, reference.half_dots):
        dots = half_dots([], [], ((1, 0), (0, 1)))
        assert (dots.shape, dots.dtype) == ((0, 3), torch.float64)


def test_numpy_arrays():
    x, y = [np.array([3.0, 4.0], np.float32)], [np.array([1.0, 2.0], np.float32)]
    assert ops.half_dots(x, y, ((1, 0), (0, 1))).tolist() == [[25.0, 5.0, 11.0]]


def test_gradients_are_only_read(backend):
    lists = arrays(backend.device, [(17000,)], square=F32)
    before = [t[0].clone() for t in lists]
    ops.half_dots(*lists[:2], COMBINES[3], exp_avg_sq=lists[2])
    assert same_bits([t[0] for t in lists], before)


def test_opcheck():
    x, y, v = arrays("cpu", [(3, 2), (4,)], square=F32)
    op = torch.ops.largebatch.half_dots.default
    numbers = [1.0, 0.0, 0.0, 1.0]
    torch.library.opcheck(op, (x, y, numbers, [], 0.9, 1e-8, None))
    torch.library.opcheck(op, (x, y, numbers, v, 0.9, 1e-8, torch.tensor(2.0)))


# ---- What is refused -----------------------------------------------------------------------------

ONES = torch.ones(3)
BAD = {
    "length of y": (dict(y=[ONES]), ValueError, "half_dots: y "),
    "length of v": (dict(exp_avg_sq=[ONES]), ValueError, "half_dots: exp_avg_sq "),
    "shape": (dict(y=[ONES, torch.ones(4)]), ValueError, r"half_dots: y\[1\]"),
    "strides": (
        dict(x=[ONES, torch.ones(2, 3)], y=[ONES, torch.ones(3, 2).t()]),
        ValueError,
        r"half_dots: y\[1\]",
    ),
    "gaps": (dict(x=[ONES, torch.ones(6)[::2]]), ValueError, r"half_dots: x\[1\]"),
    "dtype of x": (dict(x=[ONES, torch.ones(3).int()]), TypeError, r"half_dots: x\[1\]"),
    "dtype of y": (dict(y=[ONES, torch.ones(3).half()]), TypeError, r"half_dots: y\[1\]"),
    "dtype of v": (
        dict(exp_avg_sq=[ONES, torch.ones(3).double()]),
        TypeError,
        r"half_dots: exp_avg_sq\[1\] .* x\[1\]",
    ),
    "device": (dict(y=[ONES, torch.ones(3, device="meta")]), ValueError, r"half_dots: y\[1\]"),
    "kind": (dict(y=[ONES, 3.0]), TypeError, r"half_dots: y\[1\]"),
    "bare tensor": (dict(x=ONES), TypeError, "half_dots: x .* expected a list"),
    "beta2": (dict(beta2=1.0), ValueError, "half_dots: beta2"),
    "eps": (dict(eps=-1.0), ValueError, "half_dots: eps"),
    "three numbers": (dict(combine=((1, 0), (1,))), ValueError, "half_dots: combine"),
    "no number": (dict(combine=((1, 0), (0, math.inf))), ValueError, "half_dots: combine"),
    "kind of combine": (dict(combine=1.0), ValueError, "half_dots: combine"),
    "grad_scale": (dict(grad_scale=torch.ones(2)), ValueError, "half_dots: grad_scale"),
    "dtype of grad_scale": (
        dict(grad_scale=torch.tensor(2.0).double()),
        TypeError,
        "half_dots: grad_scale",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name):
    over, error, pattern = BAD[name]
    arguments = dict(x=[ONES, ONES], y=[ONES, ONES], combine=((1, 0), (0, 1))) | over
    with pytest.raises(error, match=pattern) as caught:
        ops.half_dots(**arguments)
    assert "\n" not in str(caught.value)
