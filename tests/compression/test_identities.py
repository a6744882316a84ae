# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What holds of every method whatever the compressor and the gradients, over a thousand steps."""

import numpy as np
import pytest
import torch

import largebatch
from tests.compression.problems import EC, EF21, Ranks, econtrol

pytestmark = pytest.mark.usefixtures("one_thread")

NUMEL, RANKS, STEPS = 301, 3, 1000
RECORDS = {
    "topk": dict(select="topk", k=30),
    "topk, float64": dict(select="topk", k=30, values="float64"),
    "topk, fp16, abs32": dict(select="topk", k=30, values="float16", indices="abs32"),
    "topk, bf16, blk16": dict(select="topk", k=31, values="bfloat16", indices="blk16"),
    "topk, int8": dict(select="topk", k=30, values="int8"),
    "topk, int4": dict(select="topk", k=30, values="int4", scale_block=64, rounding="nearest"),
    "blocks, blk12": dict(select="block", block=64, k=6, values="bfloat16"),
    "blocks, odd": dict(select="block", block=128, k=13),
    "blocks, int2": dict(select="block", block=64, k=6, values="int2", rounding="nearest"),
    "threshold": dict(select="threshold", tau=1.0, k=60),
    "threshold, blk16": dict(select="threshold", tau=1.0, k=60, values="float16", indices="blk16"),
    "random": dict(select="random", k=30, seed=5, id=6),
    "strided, fp16": dict(select="strided", k=30, seed=5, id=6, values="float16"),
    "dense": dict(select="dense"),
    "dense, bf16": dict(select="dense", values="bfloat16"),
    "dense, int8": dict(select="dense", values="int8"),
    "dense, int4": dict(select="dense", values="int4", scale_block=64),
    "dense, int2": dict(select="dense", values="int2", rounding="nearest"),
    "sign": dict(select="dense", values="sign"),
}


def ranks_of(method, record, dtype=torch.float64):
    return Ranks(largebatch._C.CompressionPlan, method, record, RANKS, NUMEL, dtype=dtype)


def gradients(steps=STEPS):
    random = np.random.default_rng(0)
    for _ in range(steps):
        yield random.standard_normal((RANKS, NUMEL))


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("method", [EC, EF21, econtrol(0.003)], ids=lambda m: m["method"])
def test_nothing_is_lost(method, name):
    """The virtual iterate, x less the mean residual, moves as SGD does; H is the mean of h."""
    ranks = ranks_of(method, RECORDS[name])
    has_error, has_shift = ranks.error.numel() > 0, ranks.shift.numel() > 0
    H, x, sgd, size = np.zeros(NUMEL), np.zeros(NUMEL), np.zeros(NUMEL), 1.0
    for grads in gradients():
        ranks.grads[:] = grads
        sent = ranks.step().mean(axis=0)
        H += sent
        x -= H if has_shift else sent
        sgd -= grads.mean(axis=0)
        size = max(size, np.abs(ranks.sent.numpy()).max(), np.abs(x).max())
    # Rounding of a thousand sums of numbers of this size.
    if has_error:
        virtual = x - ranks.error.numpy().mean(axis=0)
        assert np.abs(virtual - sgd).max() < 1e-12 * size
    if has_shift:
        assert np.abs(H - ranks.shift.numpy().mean(axis=0)).max() < 1e-12 * size


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_econtrol_is_ef21_with_gain_0_and_ec_with_gain_1_and_no_shift(dtype, name):
    pairs = [(econtrol(0.0), EF21, "shift"), (econtrol(1.0), EC, "error")]
    for ours, theirs, state in pairs:
        one, other = (ranks_of(method, RECORDS[name], dtype) for method in (ours, theirs))
        for grads in gradients(100):
            one.grads[:] = other.grads[:] = grads
            assert np.array_equal(one.step(), other.step())
            if theirs is EC:
                one.shift.zero_()
            assert torch.equal(getattr(one, state), getattr(other, state))
