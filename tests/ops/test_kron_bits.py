# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Rank-1 updates of factors: the same bits on every run, however factors lie and are divided."""

import pytest
import torch

import largebatch
from tests.helpers import Padded, same_bits
from tests.ops.kron_setting import (
    BEYOND_CACHE,
    DTYPES,
    F32,
    STABILIZER,
    VARIANTS,
    PaddedRows,
    copies,
    large,
    orders,
    pairs,
    real,
    symmetric,
    update,
    vector,
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_symmetric_in_every_bit_after_several_updates(backend, variant, dtype):
    sizes = [2, 17, 64, 129] if backend.name == "simt" else [2, 17, 64, 129, 513]
    factors, _ = pairs(sizes, dtype, backend.device)
    stabilizer = {} if variant == "leaky" else STABILIZER
    norms = None
    for step in range(5):
        vectors = [vector(d, real(dtype), backend.device, seed=step) for d in sizes]
        norms, _ = update(factors, vectors, variant, norms=norms, **stabilizer)
    assert all(symmetric(m) for m in factors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bits_on_every_run_in_any_company_and_any_storage(backend, variant, dtype):
    before, vectors = pairs(orders(backend), dtype, backend.device)
    if backend.name != "simt" and (variant, dtype) == ("leaky", F32):
        m, v = large(BEYOND_CACHE[F32], F32, backend.device)
        before, vectors = [*before, m], [*vectors, v]
    options = dict(stabilizer_norm="inf") | ({} if variant == "leaky" else STABILIZER)

    def results(factors, vectors):
        norms, counters = update(factors, vectors, variant, **options)
        return [*copies(factors), *norms, *counters]

    first = results(copies(before), vectors)
    assert same_bits(results(copies(before), vectors), first)
    backwards = results(copies(before)[::-1], vectors[::-1])
    n = len(before)
    assert same_bits([t for k in (0, n, 2 * n) for t in backwards[k : k + n][::-1]], first)
    alone = [results([m.clone()], [v]) for m, v in zip(before, vectors, strict=True)]
    assert same_bits([t for column in zip(*alone, strict=True) for t in column], first)
    for gap, offset in ((0, 1), (3, 0), (16, 5)):
        rows, padded = PaddedRows(before, gap, offset), Padded(vectors, offset=offset)
        assert same_bits(results(rows.tensors, padded.tensors), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["leaky", "exact"])
def test_number_of_threads(backend, variant, dtype):
    if backend.device.type != "cpu" or backend.name == "simt":
        pytest.skip("threads are those of the CPU")
    before, vectors = pairs([*range(30), 129, 257, 513], dtype)
    m, v = large(BEYOND_CACHE[dtype], dtype)
    before, vectors = [*before, m], [*vectors, v]
    threads = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        factors = copies(before)
        norms, _ = update(factors, vectors, variant, stabilizer_norm="inf")
        results.append([*factors, norms])
    torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bits_for_any_instruction_set(variant, dtype):
    before, vectors = pairs([*range(70), 129, 257, 513], dtype)
    m, v = large(BEYOND_CACHE[dtype], dtype)
    before, vectors = [*before, m], [*vectors, v]
    current = largebatch._C.cpu_isa()
    results = []
    for isa in largebatch._C.cpu_isas():
        largebatch._C.set_cpu_isa(isa)
        factors = copies(before)
        norms, _ = update(factors, vectors, variant, stabilizer_norm="inf")
        results.append([*factors, norms])
    largebatch._C.set_cpu_isa(current)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_is_read_and_rounded_as_torch_does(backend, dtype):
    """A vector of zeros leaves the blend alone: in fp32 one product and, on the diagonal, a sum."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = bits.view(dtype).to(backend.device)
    numbers = torch.where(torch.isfinite(numbers), numbers, 0.0)
    d = 259  # rows that no vector divides, and one number after all
    m = torch.zeros(d, d, dtype=dtype, device=backend.device)
    m.view(-1)[: len(numbers)] = numbers
    leak = 0.7
    expected = torch.tensor(leak) * m.float()
    expected.diagonal().add_(torch.tensor(1 - leak, dtype=torch.float64).float())
    update([m], [torch.zeros(d, device=backend.device)], "leaky", leak=leak)
    assert same_bits([m], [expected.to(dtype)])
