# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the executor says of the library's own kernels, beyond the results it gives."""

import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch

from largebatch import _C, ops
from largebatch.optim import LionK, kappa
from tests.conftest import OPTIMIZERS, use_simt
from tests.helpers import leaves, problem, run, same_bits, snapshot
from tests.simt import build
from tests.simt.schedules import SEEDS, under_each_seed

SHAPES = [(17,), (0,), (1,), (16384 + 5,), (33, 70)]


def barriers():
    """Return the place of every barrier in the library's kernels."""
    found = []
    for source in sorted((build.ROOT / "csrc").rglob("*.cu*")):
        for number, line in enumerate(source.read_text().splitlines(), 1):
            if re.search(r"__syncthreads\w*\(", line):
                found.append(f"{source.name}:{number}")
    return found


def steps(family, dtype=torch.float32, spoil=False):
    """Return all bits after two steps of an optimizer; `spoil` has gradients that get counted."""
    data = problem(SHAPES, steps=2).to(dtype=dtype, grad_dtype=dtype)
    if spoil:
        data.grads = [[g.fill_(torch.nan) for g in grads] for grads in data.grads]
    params = leaves(data.params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    return snapshot(optimizer)


GROUPS = [(3, 20000), (40, 300), (700, 3), (300, 70), (2000, 40), (5, 3000)]
REDUCING = [
    kappa.Lp(1.5),
    kappa.L2Inf(),
    kappa.GroupLasso("column"),
    kappa.SignedEntropy(0.01),
    kappa.LInf(),
]


def groups(k):
    """Return all bits after two steps of Lion-K with a function that sums over groups."""
    data = problem(GROUPS, steps=2)
    params = leaves(data.params)
    optimizer = LionK(params, kappa=k, weight_decay=0.1)
    run(optimizer, params, data.grads)
    return snapshot(optimizer)


def norms():
    return ops.multi_tensor_norm([torch.ones(shape) for shape in SHAPES])


def halves():
    lists = [[torch.full(shape, value) for shape in SHAPES] for value in (1.0, 3.0, 0.5)]
    return ops.half_dots(*lists[:2], ((2, 0), (-2, 2)), exp_avg_sq=lists[2])


def kron():
    """Return all bits after updates of factors of several panels, one of them with a bad vector."""
    results = []
    for dtype, variant, norm in ((torch.float32, "leaky", "max"), (torch.float64, "exact", "inf")):
        factors = [torch.eye(d, dtype=dtype) for d in (17, 0, 1, 300, 40)]
        vectors = [torch.linspace(0.01, 0.2, len(m), dtype=dtype) for m in factors]
        vectors[-1][7] = torch.nan
        for _ in range(2):
            options = dict(variant=variant, stabilizer_norm=norm)
            results += ops.kron_rank1_update(factors, vectors, **options)
        results += factors
    return results


def compression():
    """Return all bits after steps of three ranks with every kind of record, and large lists."""
    numels = [5000, 20000, 17000, 3000, 20000, 40000, 300, 33000, 300, 300]
    records = [
        dict(select="block", block=4096, k=40, values="bfloat16"),
        dict(select="topk", k=300, tensors=2, values="float16"),
        dict(select="dense", values="sign"),
        dict(select="threshold", tau=1.0, k=4000, values="float32", indices="abs32"),
        dict(select="random", k=100),
        dict(select="dense", values="int8"),
        dict(select="block", block=32768, k=50),
        dict(select="dense", values="int4"),
        dict(select="dense", values="int2"),
    ]
    generator, world = torch.Generator().manual_seed(0), 3
    plan = _C.CompressionPlan(numels, records)
    sums = [torch.zeros(n) for n in numels]
    payloads = torch.zeros(world, plan.payload_bytes, dtype=torch.uint8)
    method, results = {"method": "econtrol", "eta": 0.01}, []
    for step in range(2):
        for rank in range(world):
            grads = [torch.randn(n, generator=generator) for n in numels]
            if step == 1:  # elements that are equal, more than can be listed
                grads = [torch.where(g > 0, 2.0, -2.0) for g in grads]
            values, indices = torch.zeros(plan.slots), torch.zeros(plan.slots, dtype=torch.int64)
            counts = torch.zeros(len(records), 2, dtype=torch.int64)
            state = [[torch.zeros(n) for n in numels] for _ in range(2)]
            plan.encode(
                grads,
                grads,
                *state,
                [],
                method,
                step,
                rank,
                values,
                indices,
                counts,
                payloads[rank],
            )
            results += [values, indices, *state[0]]
        nonfinite = torch.zeros(world, dtype=torch.int64)
        plan.decode(payloads, world - 1, grads, *state, [], sums, [], indices, method, nonfinite)
        results += [payloads.clone(), *state[0], *state[1], *(s.clone() for s in sums)]
    return results


def ulysses():
    """Return all bits of messages, moved in vectors of every width, and of sums of copies."""
    counts, replicas = [[[1, 1, 0], [2, 1, 2]], [[1, 0, 1], [0, 1, 0]]], [1, 3, 3]
    generator, results = torch.Generator().manual_seed(0), []
    # Rows of 32, 24, 20, 10 and 9 bytes.
    for dtype, dim in (
        (torch.bfloat16, 16),
        (torch.float64, 3),
        (torch.float32, 5),
        (torch.float16, 5),
        (torch.int8, 9),
    ):
        numbers = (100 * torch.randn(9, 2, 6, dim, generator=generator)).to(dtype)
        messages = ops.ulysses_pack(numbers.split([4, 1, 1], dim=2), counts, replicas)
        results += messages
        if dtype != torch.int8:
            grads = [torch.randn(len(m), generator=generator).to(dtype) for m in messages]
            results += ops.ulysses_unpack(grads, 9, 2, [dim] * 3, counts, replicas, "bhsd")
    return results


@pytest.mark.parametrize("call", [norms, halves, kron, compression, ulysses])
def test_the_schedule_changes_no_bit_of_a_sum(call, monkeypatch):
    use_simt(monkeypatch)
    results = under_each_seed(monkeypatch, call)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_schedule_changes_no_bit(family, dtype, monkeypatch):
    use_simt(monkeypatch)
    results = under_each_seed(monkeypatch, steps, family, dtype)
    assert all(same_bits(result, results[0]) for result in results)


def test_no_kernel_races(family, monkeypatch):
    use_simt(monkeypatch)
    under_each_seed(monkeypatch, steps, family, racecheck=True)
    under_each_seed(monkeypatch, partial(steps, spoil=True), family, racecheck=True)
    under_each_seed(monkeypatch, norms, racecheck=True)
    under_each_seed(monkeypatch, halves, racecheck=True)
    under_each_seed(monkeypatch, kron, racecheck=True)


def test_no_kernel_of_compression_races(monkeypatch):
    use_simt(monkeypatch)
    under_each_seed(monkeypatch, compression, racecheck=True)


def test_no_kernel_of_ulysses_races(monkeypatch):
    use_simt(monkeypatch)
    under_each_seed(monkeypatch, ulysses, racecheck=True)


@pytest.mark.parametrize("k", REDUCING, ids=repr)
def test_sums_over_groups_neither_race_nor_depend_on_the_schedule(k, monkeypatch):
    use_simt(monkeypatch)
    results = under_each_seed(monkeypatch, groups, k, racecheck=True)
    assert all(same_bits(result, results[0]) for result in results)


def test_a_group_for_every_tensor_takes_no_more_launches(family, monkeypatch):
    """Users make them: RF-DETR had 465 groups with 28 different settings."""
    use_simt(monkeypatch)
    data = problem([(n,) for n in range(40)], steps=3)

    def launches(groups):
        params = leaves(data.to().params)
        optimizer = family.make(groups(params))
        before = sum(build.launched().values())
        run(optimizer, params, data.grads)
        return sum(build.launched().values()) - before

    together = launches(lambda params: params)
    alone = launches(
        lambda params: [dict(params=[p], weight_decay=i % 3 / 10) for i, p in enumerate(params)]
    )
    assert alone == together
    assert 0 < together < len(data.params)  # in all three steps


@pytest.mark.parametrize("barrier", barriers())
def test_each_barrier_is_missed(barrier, kernels, monkeypatch):
    """Without it, the executor finds an error under one schedule or another."""

    def two_sums_in_one_kernel():  # block_sum has a barrier for who calls it again
        kernels.sum_and_spread([1.0] * 300)

    use_simt(monkeypatch)
    monkeypatch.setenv("LARGEBATCH_SIMT_DROP_BARRIER", barrier)
    monkeypatch.setenv("LARGEBATCH_SIMT_RACECHECK", "1")
    runs = [partial(steps, f, spoil=s) for f in OPTIMIZERS for s in (False, True)]
    reducing = [partial(groups, k) for k in REDUCING]
    for seed in SEEDS:
        monkeypatch.setenv("LARGEBATCH_SIMT_SEED", str(seed))
        for work in (norms, halves, kron, compression, two_sums_in_one_kernel, *runs, *reducing):
            try:
                work()
            except RuntimeError as error:
                # A kernel, block, thread and line; and the message is the executor's.
                form = (
                    r"simt: \w+_kernel.*: block \(\d+,0,0\) thread \(\d+,0,0\): .*, at [\w.]+:\d+.*"
                )
                assert re.fullmatch(form, str(error))
                return
    pytest.fail(f"no schedule shows that {barrier} is needed")


def test_without_a_barrier_in_its_reduction_the_tests_of_lamb_are_red():
    """The ordinary tests, with no race detector: wrong results or an error must turn them red."""
    source = (build.ROOT / "csrc/core/tile.cuh").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(source) if "__syncthreads();" in text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "simt"]
    command += ["-x", "tests/optim/test_lamb.py", "-k", "float64 and simt"]
    outputs = []
    for drop in ("", f"tile.cuh:{line}"):
        environment = {**os.environ, "LARGEBATCH_SIMT_DROP_BARRIER": drop}
        environment["LARGEBATCH_SIMT_RACECHECK"] = "0"
        result = subprocess.run(
            command, env=environment, cwd=build.ROOT, capture_output=True, text=True
        )
        outputs.append((result.returncode, result.stdout))
    (whole, _), (mutated, report) = outputs
    assert whole == 0, outputs[0]
    assert mutated == 1, report
