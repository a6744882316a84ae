# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Tensors sharded over two processes against the same tensors whole, in float64.

Not bitwise against the unsharded kernel: where a tensor is cut its tiles begin anew, so the partial
sums of its norms are of other elements, and fp64 addition is not associative.
"""

import pytest
import torch

from largebatch.optim import kappa
from largebatch.reference import lion
from tests.conftest import assert_close, assert_holds
from tests.helpers import (
    AdanOracle,
    LambOracle,
    LarsOracle,
    LionKOracle,
    problem,
    run_ranks,
    same_bits,
)
from tests.optim import sharded_worker as worker

# Sizes that single elements of averages of the gradient are held against: they may cancel.
TYPICAL = {
    "exp_avg": 1e-3,
    "exp_avg_sq": 0.0,
    "momentum_buffer": 1e-3,
    "exp_avg_diff": 1e-3,
    "neg_pre_grad": 1e-3,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the processes once; return what each of them ended with."""
    return run_ranks("tests.optim.sharded_worker", worker.WORLD, tmp_path_factory.mktemp("ranks"))


def solved(oracle_type, shapes, options, dtype=torch.float32):
    data = problem(shapes, worker.STEPS).to(dtype=dtype, grad_dtype=dtype)
    oracle = oracle_type(data.params, **options)
    for grads in data.grads:
        oracle.step(grads)
    return oracle


SPLIT = {
    "split LAMB": (LambOracle, worker.LAMB_OPTIONS),
    "split LARS": (LarsOracle, worker.LARS_OPTIONS),
    "split Adan": (AdanOracle, worker.ADAN_OPTIONS),
    "split Lion": (LionKOracle, worker.LION_OPTIONS),
}


@pytest.mark.parametrize("name", SPLIT)
def test_split_form_over_two_ranks(results, name):
    oracle_type, options = SPLIT[name]
    oracle = solved(oracle_type, worker.FLAT_SHAPES, options)
    (params0, moments0), (params1, moments1) = (result[name] for result in results)
    assert_close(joined(params0, params1), oracle.params)
    for buffer, first, second in zip(oracle.buffers, moments0, moments1, strict=True):
        expected = [s[buffer] for s in oracle.state]
        assert_close(joined(first, second), expected, scale=TYPICAL[buffer])


def joined(first, second):
    """Put the parts of both ranks together."""
    return [torch.cat(pair) for pair in zip(first, second, strict=True)]


PATHS = ("fused", "pure torch", "bfloat16")


def whole(family, dtype=torch.float32):
    """Return the oracle that has seen the same steps, none of it sharded."""
    data = problem(worker.GRID_SHAPES, worker.STEPS).to(dtype=dtype, grad_dtype=dtype)
    return family.solve(data, **family.limiting or {})


@pytest.mark.parametrize("path", PATHS)
def test_distributed_parameters(results, family, path):
    oracle = whole(family, torch.bfloat16 if path == "bfloat16" else torch.float32)
    for result in results:
        own = result[f"{family} {path}"]
        params = own["params"]
        if path == "bfloat16":
            masters = [state.pop("master_param") for state in own["state"]]
            assert same_bits(params, [m.to(torch.bfloat16) for m in masters])
            params = masters
        assert [set(state) for state in own["state"]] == [set(state) for state in oracle.state]
        assert_holds(params, own["state"], oracle)
        assert own["sharded"]
        assert own["nonfinite"].item() == 0


@pytest.mark.parametrize("path", PATHS)
def test_ranks_end_with_the_same_bits(results, family, path):
    first, second = (result[f"{family} {path}"] for result in results)
    assert same_bits(first["params"], second["params"])


def test_gradient_norm_counts_shards_once_and_replicas_once(results, limiting):
    data = problem(worker.GRID_SHAPES, worker.STEPS)
    expected = torch.cat([g.double().flatten() for g in data.grads[-1]]).norm().item()
    for path in ("fused", "pure torch"):
        norm = results[0][f"{limiting} {path}"]["grad_norm"]
        assert norm.item() == pytest.approx(expected, rel=1e-6)


# ---- Lion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", worker.LION_K)
def test_functions_of_whole_tensors_and_of_groups(results, name):
    shapes = worker.HEADS if "heads" in name else worker.GRID_SHAPES
    options = worker.LION_OPTIONS | worker.LION_K[name]
    oracle = solved(LionKOracle, shapes, options)
    first, second = (result[f"LionK {name}"] for result in results)
    assert_close(first, oracle.params, scale=0.05)
    assert same_bits(first, second)


def blocks(t):
    return -(-t.numel() // 128)


@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_parts_in_few_bits_are_steps_of_the_oracle_on_the_part(results, state_dtype):
    # Random bits differ by shard and are equal on replicas; blocks of 128 begin with the shard.
    data = problem(worker.LOW_SHAPES, worker.STEPS)
    for rank, result in enumerate(results):
        ours, resumed = result[f"Lion in {state_dtype}"]
        assert same_bits(ours, resumed)
        for i, (p, m, *scale) in enumerate(ours):
            split = i < len(ours) - 1
            part = (lambda t: t.chunk(worker.WORLD)[rank]) if split else (lambda t: t)  # noqa: B023
            weights = part(data.params[i].bfloat16()).clone()
            coded = state_dtype == "int8"
            momentum = torch.zeros_like(weights, dtype=torch.int8 if coded else torch.bfloat16)
            scales = torch.zeros(blocks(weights))
            step = torch.zeros(())
            for grads in data.grads:
                lion.lion_step(
                    [weights],
                    [part(grads[i].bfloat16())],
                    [momentum],
                    [step],
                    betas=(0.9, 0.99),
                    kappa=kappa.L1(),
                    scales=[scales],
                    stochastic_rounding=True,
                    tensor_ids=[i | (rank << 32 if split else 0)],
                    **worker.LION_OPTIONS,
                )
            assert same_bits(p, weights)
            assert same_bits(m, momentum)
            assert len(scale) == coded
            for s in scale:
                assert same_bits(s[: blocks(weights)], scales)
                assert not s[blocks(weights) :].any()
