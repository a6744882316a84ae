# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Compressors and methods on plain tensors, and what they refuse."""

import pytest
import torch

import largebatch
from largebatch.compression import (
    DGC,
    EF21,
    BlockTopK,
    Dense,
    EControl,
    ErrorFeedback,
    Quantize,
    RandomK,
    Threshold,
    TopK,
    exchange,
)
from largebatch.reference import compression as reference
from tests.helpers import same_bits

COMPRESSORS = [
    TopK(ratio=0.02),
    TopK(k=40, values="bfloat16", scope="bucket"),
    TopK(ratio=0.05, values=Quantize(bits=4)),
    BlockTopK(k=4, block=256, values="float16"),
    RandomK(ratio=0.02, scope="bucket"),
    RandomK(k=30, mode="strided"),
    Threshold(tau=1.0, capacity=0.1),
    Quantize(bits=8),
    Dense(values="bfloat16"),
]
METHODS = [
    lambda c: ErrorFeedback(c, min_numel=100),
    lambda c: EF21(c, min_numel=100),
    lambda c: EF21(c, momentum=0.1, min_numel=100),
    lambda c: EControl(c, eta=0.003, min_numel=100),
    lambda c: EControl(c, eta=0.003, momentum=0.1, min_numel=100),
]
SHAPES = [(70, 60), (50,), (3000,), (0,), (20, 10, 15)]


def gradients(step, rank, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in SHAPES]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("make", METHODS)
def test_ranks_agree_and_nothing_is_lost(backend, make, compressor):
    if backend.name == "simt" and make is not METHODS[-1]:
        pytest.skip("one method goes through all kernels")
    method = make(compressor)
    ranks = [method.init(gradients(0, 0, device=backend.device), rank=r) for r in range(3)]
    for step in range(3):
        grads = [gradients(step, r, device=backend.device) for r in range(3)]
        before = [[t.clone() for t in s.errors] for s in ranks]
        given = [[g.clone() for g in gs] for gs in grads]
        payloads = [method.encode(s, gs) for s, gs in zip(ranks, grads, strict=True)]
        assert same_bits(sum(given, []), sum(grads, []))  # noqa: RUF017
        assert len({p.numel() for p in payloads}) == 1
        updates = [method.decode(s, payloads) for s in ranks]
        assert all(same_bits(u, updates[0]) for u in updates)
        for t in range(len(SHAPES)) if method.shifted else ():
            mean = sum(s.shifts[t].double() for s in ranks) / 3
            assert torch.allclose(ranks[0].means[t].double(), mean, atol=1e-5)
            assert same_bits(updates[0], ranks[0].means)
        # e' - e = g - h' with h; = g - Delta without it: means of it over ranks.
        if method.momentum is None and ranks[0].errors:
            for t in range(len(SHAPES)):
                moved = sum(
                    (s.errors[t] - b[t]).double() for s, b in zip(ranks, before, strict=True)
                )
                held = sum(s.shifts[t].double() for s in ranks) if method.shifted else None
                held = 3 * updates[0][t].double() if held is None else held
                mine = sum(g[t].double() for g in grads)
                assert torch.allclose(moved, mine - held, atol=2e-5)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("make", [*METHODS, lambda c: DGC(c, min_numel=100)])
def test_a_step_is_the_oracles(make, compressor, monkeypatch):
    """Payloads, updates and all state."""
    if isinstance(compressor, Quantize | Dense) and make not in METHODS:
        return
    found = []
    for engine in (largebatch._C.CompressionPlan, reference.Plan):
        monkeypatch.setattr(exchange, "new_plan", engine)
        method = make(compressor)
        ranks = [method.init(gradients(0, 0), rank=r) for r in range(2)]
        found.append([])
        for step in range(2):
            payloads = [method.encode(s, gradients(step, s.rank)) for s in ranks]
            found[-1] += payloads
            for s in ranks:
                found[-1] += method.decode(s, payloads)
                found[-1] += [t.clone() for t in s.errors + s.shifts + s.momenta + s.means]
    assert same_bits(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_gradients_of_other_types(backend, dtype):
    method = EControl(TopK(ratio=0.1), min_numel=100)
    state = method.init(gradients(0, 0, dtype, backend.device))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(t.dtype == real for t in [*state.errors, *state.means])
    update = method.decode(state, [method.encode(state, gradients(0, 0, dtype, backend.device))])
    assert all(
        u.dtype == dtype and u.shape == torch.Size(s) for u, s in zip(update, SHAPES, strict=True)
    )


def test_dgc_keeps_momentum_and_masks_it(backend):
    method = DGC(TopK(k=1), momentum=0.5, min_numel=0)
    state = method.init([torch.zeros(2, device=backend.device)])
    grads = [torch.tensor([4.0, 1.0], device=backend.device)]
    sent = [method.decode(state, [method.encode(state, grads)])[0].tolist() for _ in range(3)]
    # m = (4, 1), v = (4, 1): 4 goes, its m and v become 0. m = (4, 1.5), v = (4, 2.5): and again.
    # m = (4, 1.75), v = (4, 4.25): now the other one.
    assert sent == [[4.0, 0.0], [4.0, 0.0], [0.0, 4.25]]
    assert state.momenta[0].tolist() == [4.0, 0.0]
    assert state.errors[0].tolist() == [4.0, 0.0]


def test_a_gradient_that_is_not_finite_stops_every_rank_and_loses_nothing(backend):
    method = ErrorFeedback(TopK(k=2), min_numel=0)
    ranks = [method.init([torch.zeros(5, device=backend.device)], rank=r) for r in range(2)]
    grads = [torch.arange(1.0, 6.0, device=backend.device) for _ in range(2)]
    grads[1][4] = torch.inf
    payloads = [method.encode(s, [g]) for s, g in zip(ranks, grads, strict=True)]
    updates = [method.decode(s, payloads, skip=True)[0] for s in ranks]
    assert all(u[0].isnan() and not u[1:].any() for u in updates)
    assert ranks[0].errors[0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert ranks[1].errors[0].tolist() == [1.0, 2.0, 3.0, 4.0, 0.0]
    assert ranks[0].exchange.nonfinite.tolist() == [0, 1]


def test_scales_of_a_loss_scaler_leave_the_state_in_units_of_the_gradient(backend):
    method = EF21(TopK(k=1), min_numel=0)
    state = method.init([torch.zeros(2, device=backend.device)])
    scale = torch.tensor([8.0], device=backend.device)
    grads = [torch.tensor([16.0, 8.0], device=backend.device)]
    update = method.decode(state, [method.encode(state, grads, inv_scale=1 / scale)], scale=scale)
    assert state.shifts[0].tolist() == [2.0, 0.0]
    assert update[0].tolist() == [16.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(grads=[torch.zeros(5)]), r"encode: grads\[0\] has shape \[5\], expected 4 elements"),
        (dict(errors=[]), "encode: errors is empty, expected one tensor for each"),
        (dict(keys=[torch.zeros(4).double()]), r"encode: keys\[0\] has dtype float64, expected"),
        (dict(values=torch.zeros(3)), r"encode: values has shape \[3\], expected 2 elements"),
        (dict(payload=torch.zeros(8)), "encode: payload has dtype float32, expected uint8"),
        (dict(method={"method": "ec"}), "encode: method: got 'ec', expected one of"),
        (dict(method={"method": "feedback", "decay": 2.0}), "encode: decay: got 2.0, expected"),
    ],
)
def test_refusals_of_the_engine_write_nothing(backend, change, message):
    plan = largebatch._C.CompressionPlan([4], [dict(select="topk", k=2)])
    arguments = dict(
        grads=[torch.ones(4)], keys=[torch.ones(4)], errors=[torch.ones(4)], shifts=[], momenta=[],
        method={"method": "feedback"}, step=0, rank=0, values=torch.ones(2),
        indices=torch.ones(2, dtype=torch.int64), counts=torch.ones(1, 2, dtype=torch.int64),
        payload=torch.ones(plan.payload_bytes, dtype=torch.uint8),
    ) | change  # fmt: skip
    with pytest.raises((ValueError, TypeError), match=message) as error:
        plan.encode(**arguments)
    assert "\n" not in str(error.value)
    for argument in ("errors", "values", "payload"):
        got = arguments[argument]
        for tensor in got if isinstance(got, list) else [got]:
            assert argument in change or (tensor == 1).all()


def test_overlapping_buffers_are_refused(backend):
    plan = largebatch._C.CompressionPlan([4], [dict(select="topk", k=2)])
    memory = torch.ones(6)
    with pytest.raises(ValueError, match=r"encode: keys\[0\] and errors\[0\] share memory"):
        plan.encode(
            [torch.ones(4)], [memory[:4]], [memory[2:]], [], [], {"method": "feedback"}, 0, 0,
            torch.ones(2), torch.ones(2, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64),
            torch.ones(plan.payload_bytes, dtype=torch.uint8),
        )  # fmt: skip
    assert (memory == 1).all()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (dict(select="top"), "CompressionPlan: records[0]: select: got 'top', expected one of"),
        (
            dict(select="topk", k=11),
            "CompressionPlan: records[0]: k: got 11, expected at most the 10",
        ),
        (
            dict(select="topk", q=1),
            "CompressionPlan: records[0]: got 'q', expected a key of a record",
        ),
        (dict(select="topk", tensors=2), "CompressionPlan: records[0]: tensors: got 2, expected 1"),
        (
            dict(select="block", block=96, k=1),
            "CompressionPlan: records[0]: block: got 96, expected",
        ),
        (dict(select="threshold", tau=0.0), "CompressionPlan: records[0]: tau: got 0.0, expected"),
        (
            dict(select="topk", k=1, values="sign"),
            "CompressionPlan: records[0]: values: got 'sign'",
        ),
    ],
)
def test_records_that_are_refused(record, message):
    with pytest.raises(ValueError) as error:
        largebatch._C.CompressionPlan([10], [record])
    assert str(error.value).startswith(message)
