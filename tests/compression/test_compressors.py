# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What compressors keep, and the same as functions of one tensor."""

import doctest
import importlib
import pkgutil

import pytest
import torch

from largebatch import compression
from largebatch.compression import (
    DGC,
    EF21,
    BlockTopK,
    Dense,
    EControl,
    ErrorFeedback,
    Quantize,
    RandomK,
    Sign,
    Threshold,
    TopK,
    block_topk,
    quantize,
    random_k,
    sign,
    threshold,
    topk,
)
from largebatch.reference import compression as reference
from tests.helpers import same_bits

COMPRESSORS = [
    TopK(ratio=0.1),
    TopK(k=7, scope="bucket"),
    TopK(ratio=0.05, values="float16", indices="abs32"),
    BlockTopK(k=4, block=64),
    BlockTopK(k=5, block=64, indices="blk16"),
    RandomK(ratio=0.1, seed=3),
    RandomK(k=50, mode="strided"),
    Sign(),
    Quantize(bits=8),
    Quantize(bits=4, block=64),
    Quantize(bits=2, block=64),
    Dense(),
    Dense(values="bfloat16"),
]
SIZES = (1, 63, 700)


def vectors(numel):
    """Return vectors that are hard for one compressor or another."""
    x = torch.randn(numel)
    outlier = 0.01 * x
    outlier[numel // 2] = 100.0
    return [x, torch.ones(numel), outlier, x**5]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_contraction_is_at_least_what_is_guaranteed(compressor):
    """Of random ones in the mean of many steps."""
    method = ErrorFeedback(compressor, decay=0.0, min_numel=0)
    drawn = isinstance(compressor, RandomK | Quantize)
    for numel in SIZES:
        for x in vectors(numel) if compressor.delta(numel) > 0 else ():
            state, lost = method.init([x]), []
            for _ in range(100 if drawn else 1):
                method.decode(state, [method.encode(state, [x])])
                lost.append(state.errors[0].double().square().sum() / x.double().square().sum())
            lost = torch.stack(lost)
            # Five standard errors, and the rounding of fp16.
            room = 5 * lost.std(correction=0).item() / len(lost) ** 0.5 + 1e-5
            assert lost.mean() <= 1 - compressor.delta(numel) + room


def test_few_bits_guarantee_nothing():
    """One large element makes the steps of all the others too large: the error exceeds the rest."""
    compressor, x = Quantize(bits=2, block=64), vectors(63)[2]
    assert compressor.delta(63) == Threshold(tau=1.0, capacity=1.0).delta(63) == 0
    method = ErrorFeedback(compressor, decay=0.0, min_numel=0)
    state = method.init([x])
    method.decode(state, [method.encode(state, [x])])
    assert state.errors[0].square().sum() > 5 * x.square().sum()
    with pytest.raises(ValueError, match="EControl: eta: got None, expected a number: Quantize"):
        EControl(compressor).gain([63])


@pytest.mark.parametrize("n", [0, 1, 63, 700, 40_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_functions_are_the_oracles(backend, dtype, n):
    if backend.name == "simt" and n > 700:
        pytest.skip("small ones go through all kernels")
    x = torch.randn(n).to(dtype)
    there = x.to(backend.device).view(1, -1)
    for k in sorted({0, min(n, 1), n // 10, n, n + 3}):
        expected = reference.select(x, k)
        found = topk(there, k)
        assert same_bits([t.cpu() for t in found], [x[expected], expected])
    found = block_topk(there, k=4, block=64)
    expected = reference.Plan([n], [dict(select="block", k=4, block=64)])
    values, indices = torch.empty(expected.slots, dtype=dtype), torch.empty(expected.slots).long()
    expected.select([x], values, indices, torch.empty(1, 2).long())
    assert same_bits([t.cpu() for t in found], [values, indices])
    if n == 0:
        return
    tau = x.abs().double().median().item()
    values, indices, count = (t.cpu() for t in threshold(there, tau, 0.25))
    expected = (x.abs().double() >= tau).nonzero()[:, 0]
    kept = min(len(expected), len(indices))
    assert count == len(expected)
    assert same_bits([values[:kept], indices[:kept]], [x[expected[:kept]], expected[:kept]])
    assert not values[kept:].any() and (indices[kept:] == n).all()
    for step, mode in ((0, "permutation"), (5, "strided")):
        found = random_k(there, n // 3 + 1, seed=8, step=step, tensor_id=2, mode=mode)
        draw = reference.random_indices if mode == "permutation" else reference.strided_indices
        expected = draw(n, n // 3 + 1, step, seed=8, id=2)
        assert same_bits([t.cpu() for t in found], [x[expected], expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_signs_and_quantized_values_and_back(backend, dtype):
    x = torch.randn(30, 50).to(backend.device, dtype)
    coded = sign(x)
    expected = torch.where(x < 0, -1.0, 1.0) * x.double().abs().mean()
    assert coded.decode().dtype == dtype
    assert torch.allclose(coded.decode().double(), expected.double(), rtol=1e-3)
    assert coded.nbytes == 64 + 16 + 192  # header, scale, 47 words of signs up to a multiple of 16
    for bits, steps in ((8, 127), (4, 7), (2, 1.5)):
        for rounding in ("stochastic", "nearest"):
            coded = quantize(x, bits, block=64, rounding=rounding, seed=1, step=2, rank=3)
            reach = x.double().abs().max() / steps
            most = reach * (1.001 if rounding == "stochastic" else 0.501)
            assert (coded.decode().double() - x.double()).abs().max() <= most + 1e-3
    for other in (dict(seed=2), dict(step=3), dict(tensor_id=1), dict(rank=1)):
        assert not torch.equal(quantize(x, 4, **other).decode(), quantize(x, 4).decode())
    assert torch.equal(quantize(x, 4).payload, quantize(x, 4).payload)


def test_random_elements_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    random_k(torch.ones(100), 10)
    quantize(torch.ones(100), 4)
    assert torch.equal(before, torch.get_rng_state())


def test_stochastic_rounding_is_unbiased():
    x = torch.randn(1000)
    steps = 200
    mean = sum(quantize(x, 4, step=t).decode() for t in range(steps)) / steps
    width = x.abs().max() / 7
    assert (mean - x).abs().max() < 5 * width / 2 / steps**0.5


REFUSED = [
    (lambda: TopK(), ValueError, "TopK: ratio, k: got (None, None), expected one of the two."),
    (lambda: TopK(ratio=0.0), ValueError, "TopK: ratio: got 0.0, expected a number in (0, 1]."),
    (lambda: TopK(k=0), ValueError, "TopK: k: got 0, expected an integer of at least 1."),
    (
        lambda: TopK(k=1, values="int8"),
        ValueError,
        "TopK: values: got 'int8', expected one of float32, ",
    ),
    (
        lambda: TopK(k=1, scope="all"),
        ValueError,
        'TopK: scope: got \'all\', expected "tensor" or "bucket".',
    ),
    (
        lambda: BlockTopK(block=100),
        ValueError,
        "BlockTopK: block: got 100, expected a power of two",
    ),
    (
        lambda: BlockTopK(k=65, block=64),
        ValueError,
        "BlockTopK: k: got 65, expected an integer from 1 to",
    ),
    (lambda: RandomK(k=1, mode="x"), ValueError, "RandomK: mode: got 'x', expected"),
    (
        lambda: Threshold(tau=0.0, capacity=1.0),
        ValueError,
        "Threshold: tau: got 0.0, expected a number above 0",
    ),
    (
        lambda: Threshold(tau=1.0, capacity=2.0),
        ValueError,
        "Threshold: capacity: got 2.0, expected",
    ),
    (lambda: Quantize(bits=3), ValueError, "Quantize: bits: got 3, expected 8, 4 or 2."),
    (lambda: EF21("topk"), TypeError, "EF21: compressor: got 'topk', expected a compressor"),
    (
        lambda: EF21(TopK(k=1), momentum=0.0),
        ValueError,
        "EF21: momentum: got 0.0, expected a number in (0, 1]",
    ),
    (
        lambda: ErrorFeedback(TopK(k=1), decay=2.0),
        ValueError,
        "ErrorFeedback: decay: got 2.0, expected",
    ),
    (lambda: DGC(TopK(k=1), momentum=1.0), ValueError, "DGC: momentum: got 1.0, expected"),
    (lambda: DGC(Sign()), ValueError, "DGC: compressor: got Sign(), expected one that keeps some"),
    (lambda: EControl(TopK(k=1), eta=-1.0), ValueError, "EControl: eta: got -1.0, expected"),
    (
        lambda: EControl(Sign()).gain([9]),
        ValueError,
        "EControl: eta: got None, expected a number: Sign()",
    ),
    (
        lambda: EControl(TopK(k=1), eta=0.4).gain([10]),
        ValueError,
        "EControl: eta: got 0.4, expected at most 0.1",
    ),
    (lambda: TopK(ratio="a"), TypeError, "TopK: ratio: got 'a', expected a number in (0, 1]."),
    (lambda: TopK(ratio=True), TypeError, "TopK: ratio: got True, expected a number in (0, 1]."),
    (lambda: TopK(ratio=float("nan")), ValueError, "TopK: ratio: got nan, expected a number in"),
    (lambda: TopK(k=1.5), TypeError, "TopK: k: got 1.5, expected an integer of at least 1."),
    (lambda: TopK(k=True), TypeError, "TopK: k: got True, expected an integer of at least 1."),
    (lambda: TopK(k=1, ratio=0.5), ValueError, "TopK: ratio, k: got (0.5, 1), expected one of"),
    (lambda: TopK(k=1, indices="blk12"), ValueError, "TopK: indices: got 'blk12', expected"),
    (lambda: TopK(k=1, values=Quantize), ValueError, "TopK: values: got <class"),
    (
        lambda: BlockTopK(k=3, indices="blk12"),
        ValueError,
        "BlockTopK: indices: got 'blk12', expected others unless block is at most 4096 and k even.",
    ),
    (lambda: BlockTopK(block=64.0), TypeError, "BlockTopK: block: got 64.0, expected a power of"),
    (lambda: RandomK(k=1, seed=-1), ValueError, "RandomK: seed: got -1, expected an integer from"),
    (lambda: RandomK(k=1, seed=2**64), ValueError, "RandomK: seed: got 18446744073709551616, "),
    (lambda: Threshold(tau="1", capacity=1), TypeError, "Threshold: tau: got '1', expected a"),
    (lambda: Threshold(tau=float("inf"), capacity=1), ValueError, "Threshold: tau: got inf, "),
    (lambda: Threshold(tau=1, capacity=0), ValueError, "Threshold: capacity: got 0, expected a"),
    (lambda: Quantize(block=100), ValueError, "Quantize: block: got 100, expected a multiple of"),
    (lambda: Quantize(rounding="up"), ValueError, "Quantize: rounding: got 'up', expected "),
    (lambda: Quantize(bits="8"), TypeError, "Quantize: bits: got '8', expected 8, 4 or 2."),
    (lambda: topk(torch.ones(3), -1), ValueError, "topk: k: got -1, expected an integer of at"),
    (
        lambda: topk([1.0], 1),
        TypeError,
        "topk: x is a list, expected a torch, NumPy or CuPy array.",
    ),
    (lambda: sign(None), TypeError, "sign: x is a NoneType, expected a torch, NumPy or CuPy"),
    (lambda: topk(torch.ones(3), 1.0), TypeError, "topk: k: got 1.0, expected an integer of at"),
    (lambda: EF21(TopK(k=1), momentum="0.1"), TypeError, "EF21: momentum: got '0.1', expected"),
    (lambda: EF21(TopK(k=1), momentum=1.5), ValueError, "EF21: momentum: got 1.5, expected a"),
    (lambda: EF21(TopK(k=1), min_numel=-1), ValueError, "EF21: min_numel: got -1, expected an"),
    (lambda: EControl(TopK(k=1), eta="big"), TypeError, "EControl: eta: got 'big', expected a"),
    (lambda: ErrorFeedback(TopK(k=1), decay=-0.1), ValueError, "ErrorFeedback: decay: got -0.1, "),
    (lambda: DGC(TopK(k=1), momentum=-0.1), ValueError, "DGC: momentum: got -0.1, expected"),
    (lambda: DGC(TopK(k=1), clip=0.0), ValueError, "DGC: clip: got 0.0, expected a number above"),
    (lambda: DGC(TopK(k=1), warmup=0.25), TypeError, "DGC: warmup: got 0.25, expected a tuple of"),
    (lambda: DGC(TopK(ratio=0.1), warmup=(2.0,)), ValueError, "DGC: warmup: got 2.0, expected"),
    (lambda: DGC(TopK(k=1), warmup=(0.5,)), ValueError, "DGC: compressor: got TopK(ratio=None, k"),
    (lambda: DGC(TopK(k=1)).set_epoch(-1), ValueError, "DGC: epoch: got -1, expected an integer"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusals(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


MODULES = [m.name for m in pkgutil.iter_modules(compression.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"largebatch.compression.{name}")
    names = {n: getattr(compression, n) for n in compression.__all__}
    skipped = ("hook", "rebuild")  # they need processes
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(module, extraglobs=names | {"torch": torch}):
        if test.name.rsplit(".", 1)[-1] not in skipped:
            runner.run(test)
    assert runner.failures == 0
