# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The oracle's plan: bytes of the wire format, several tensors and ranks, identities of methods."""

import struct

import pytest
import torch

from largebatch.reference import draw, rounding, wire
from largebatch.reference.compression import Plan
from largebatch.reference.record import make_record
from tests.helpers import same_bits

F64 = torch.float64
EVERY_RECORD = {
    "topk": dict(select="topk", k=30),
    "topk, fp16": dict(select="topk", k=30, values="float16"),
    "topk, bf16, blk16": dict(select="topk", k=31, values="bfloat16", indices="blk16"),
    "topk, int4": dict(select="topk", k=30, values="int4", scale_block=64),
    "blocks of 64": dict(select="block", block=64, k=4, values="bfloat16"),
    "blocks of 256, odd": dict(select="block", block=256, k=3),
    "blocks, int2": dict(select="block", block=128, k=6, values="int2"),
    "threshold": dict(select="threshold", tau=1.0, k=60),
    "threshold, blk16": dict(select="threshold", tau=1.0, k=60, indices="blk16", values="int8"),
    "random": dict(select="random", k=30, seed=5, id=6),
    "strided": dict(select="strided", k=30, seed=5, id=6, values="float16"),
    "dense": dict(select="dense"),
    "dense, fp16": dict(select="dense", values="float16"),
    "dense, int8": dict(select="dense", values="int8"),
    "dense, int4": dict(select="dense", values="int4", scale_block=64),
    "dense, int2": dict(select="dense", values="int2", rounding="nearest"),
    "sign": dict(select="dense", values="sign"),
}
METHODS = {
    "none": dict(method="none"),
    "feedback": dict(method="feedback"),
    "ef21": dict(method="ef21"),
    "econtrol": dict(method="econtrol", eta=0.05),
    "dgc": dict(method="dgc", mu=0.9),
}
NUMEL = 301


def gaussian(*shape, seed=0, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype)


class Rank:
    """One rank's state and buffers."""

    def __init__(self, plan, method, rank, dtype=F64):
        def zeros():
            return [torch.zeros(n, dtype=dtype) for n in plan.numels]

        self.plan, self.method, self.rank, self.step = plan, method, rank, 0
        self.errors = zeros() if method["method"] in ("feedback", "econtrol", "dgc") else []
        self.shifts = zeros() if method["method"] in ("ef21", "econtrol") else []
        averaged = method.get("beta") is not None or method["method"] == "dgc"
        self.momenta = zeros() if averaged else []
        self.values = torch.zeros(plan.slots, dtype=dtype)
        self.indices = torch.zeros(plan.slots, dtype=torch.int64)
        self.counts = torch.zeros(len(plan.records), 2, dtype=torch.int64)
        self.sums = zeros()

    @property
    def state(self):
        return self.errors, self.shifts, self.momenta

    def encode(self, grads):
        self.keys = [g.clone() for g in grads]
        payload = torch.empty(self.plan.payload_bytes, dtype=torch.uint8)
        self.plan.encode(
            self.keys, self.keys, *self.state, self.method, self.step, self.rank,
            self.values, self.indices, self.counts, payload,
        )  # fmt: skip
        self.step += 1
        return payload

    def decode(self, payloads, zero=True, **options):
        self.nonfinite = torch.empty(len(payloads), dtype=torch.int64)
        outs = options.pop("outs", [])
        self.plan.decode(
            payloads, self.rank, self.keys, *self.state, self.sums, outs,
            self.indices, self.method, self.nonfinite, zero=zero, **options,
        )  # fmt: skip
        return self.sums


# ---- The wire format -----------------------------------------------------------------------------


def test_header_bytes():
    record = dict(select="block", block=64, k=6, values="int2", id=2**64 - 2, seed=9)
    plan = Plan([100], [record])
    rank = Rank(plan, dict(method="none"), 0, torch.float32)
    rank.step = 2**40 + 3
    grad = gaussian(100, dtype=torch.float32)
    grad[7] = torch.inf
    data = rank.encode([grad]).numpy().tobytes()
    slots = 6 + 4  # ceil(6 * 36 / 64)
    fields = struct.unpack("<4sHH4B I QQQQ 4I", data[:64])
    expected = (b"LBGC", 1, 2, 2, 6, 3, 0, 64, 100, slots, 2**64 - 2, 2**40 + 3, 6, 112, 1, 0)
    assert fields == expected
    assert len(data) == 112  # a scale, ten values of two bits, five triples: 16 bytes each


SIZES = [  # numel, record, bytes after the header
    (1000, dict(select="dense"), 4000),
    (1000, dict(select="dense", values="float64"), 8000),
    (1001, dict(select="dense", values="float16"), 2016),
    (1000, dict(select="dense", values="int8", scale_block=64), 64 + 1008),
    (1000, dict(select="dense", values="int4"), 16 + 512),
    (1000, dict(select="dense", values="int2"), 16 + 256),
    (1000, dict(select="dense", values="sign"), 16 + 128),
    (1000, dict(select="topk", k=10), 48 + 32),  # blk16: 4 + 20 bytes
    (1000, dict(select="topk", k=10, indices="abs32"), 48 + 48),
    (1000, dict(select="random", k=10), 48),
    (65536 * 2 + 1, dict(select="topk", k=100), 400 + 224),  # blk16: 12 + 200 bytes
    (65536 * 2 + 1, dict(select="topk", k=100, indices="abs32"), 400 + 400),
    (65536 * 200, dict(select="topk", k=100), 400 + 400),  # 200 counts would be more
    (4096 * 16, dict(select="block", block=4096, k=64, values="bfloat16"), 16 * (128 + 96)),
    (4096, dict(select="block", block=4096, k=64, values="int2"), 16 + 16 + 96),
    (8192 * 16, dict(select="block", block=8192, k=64, values="bfloat16"), 2048 + 2064),
    (0, dict(select="dense"), 0),
    (0, dict(select="dense", values="sign"), 16),
    (0, dict(select="topk", k=0), 0),
]


@pytest.mark.parametrize(("numel", "record", "size"), SIZES)
def test_sizes(numel, record, size):
    assert make_record(numel, record).bytes == 64 + size


def test_layout_is_that_of_the_bytes():
    plan = Plan([100, 10, 0, 5], [EVERY_RECORD["topk"], dict(tensors=2, select="topk", k=3),
                                  dict(select="dense")])  # fmt: skip
    first, second, third = plan.layout
    assert first == dict(
        offset=0,
        bytes=64 + 128 + 64,
        scales_at=64,
        values_at=64,
        indices_at=192,
        numel=100,
        slots=30,
        first_slot=0,
        indices="blk16",
    )
    assert (second["offset"], second["first_slot"], second["numel"]) == (256, 30, 10)
    assert third["offset"] == second["offset"] + second["bytes"]
    assert plan.payload_bytes == third["offset"] + third["bytes"]
    assert plan.slots == 30 + 3 + 5


def packed(record, values, indices=None):
    record = make_record(len(values) if indices is None else 70000, record)
    out = torch.full((record.bytes,), 0xAA, dtype=torch.uint8)
    values = torch.tensor(values, dtype=torch.float32)
    wire.pack(record, values, indices and torch.tensor(indices), 0, 0, 0, out)
    data = out.numpy().tobytes()
    return data[record.scales_at :], data[record.values_at :], data[record.indices_at :]


def test_value_bytes_by_hand():
    nearest = dict(select="dense", rounding="nearest", scale_block=64)
    scales, values, _ = packed(nearest | dict(values="int8"), [1.0, -0.5, -1.0, 0.1])
    assert scales[:16] == struct.pack("<f", 1.0) + bytes(12)
    assert struct.unpack("4b", values[:4]) == (127, -63, -127, 13)  # -63.5 + 0.5 rounds up
    assert values[4:] == bytes(12)
    _, values, _ = packed(nearest | dict(values="int4"), [7.0, -7.0, 2.0])
    assert values[:2] == bytes([0x97, 0x02])
    _, values, _ = packed(nearest | dict(values="int2"), [3.0, -3.0, 1.0, -1.0, 3.0])
    assert values[:2] == bytes([0b01100011, 0b11])
    scales, values, _ = packed(dict(select="dense", values="sign"), [-1.0] * 33 + [1.0] * 2)
    assert scales[:4] == struct.pack("<f", 1.0)
    assert values[:8] == struct.pack("<II", 0xFFFFFFFF, 1)


def test_a_chunk_of_zeros_or_of_what_is_not_finite():
    record = dict(select="dense", values="int8", scale_block=64)
    scales, values, _ = packed(record, [0.0] * 64 + [float("inf"), 2.0, float("nan")])
    assert struct.unpack("<2f", scales[:8]) == (0.0, 2.0)
    assert struct.unpack("67b", values[:67]) == (0,) * 65 + (127, 0)


def test_index_bytes_by_hand():
    topk = dict(select="topk", k=3)
    *_, indices = packed(topk | dict(indices="abs32"), [1.0] * 3, [1, 65536, 69999])
    assert struct.unpack("<3I", indices[:12]) == (1, 65536, 69999)
    *_, indices = packed(topk | dict(indices="blk16"), [1.0] * 3, [1, 65536, 69999])
    assert struct.unpack("<2I3H", indices[:14]) == (1, 3, 1, 0, 4463)
    threshold = dict(select="threshold", k=3, tau=1.0)
    *_, indices = packed(threshold | dict(indices="abs32"), [1.0, 0, 0], [9, 70000, 70000])
    assert struct.unpack("<3I", indices[:12]) == (9, 0xFFFFFFFF, 0xFFFFFFFF)
    *_, indices = packed(threshold | dict(indices="blk16"), [1.0, 0, 0], [9, 70000, 70000])
    assert struct.unpack("<2IH", indices[:10]) == (1, 1, 9)


def test_two_indices_in_three_bytes():
    record = make_record(4096 + 10, dict(select="block", block=4096, k=4))
    assert record.slots == 5  # the last block keeps ceil(40 / 4096)
    kept = torch.tensor([0xABC, 0xBCD, 0xFFE, 0xFFF, 4096 + 9])
    out = torch.empty(record.bytes, dtype=torch.uint8)
    wire.pack(record, torch.ones(5), kept, 0, 0, 0, out)
    triples = out[record.indices_at :][:9].tolist()
    assert triples == [0xBC, 0xDA, 0xBC, 0xFE, 0xFF, 0xFF, 9, 0, 0]
    assert wire.unpack(record, out, F64)[1].tolist() == kept.tolist()


@pytest.mark.parametrize("name", EVERY_RECORD)
def test_what_is_unpacked_is_what_was_selected(name):
    plan = Plan([NUMEL], [EVERY_RECORD[name]])
    rank = Rank(plan, METHODS["none"], 2)
    payload = rank.encode([gaussian(NUMEL)])
    values, indices = torch.empty(plan.slots, dtype=F64), torch.empty(plan.slots).long()
    plan.unpack(payload, values, indices)
    if name.split(",")[0] not in ("dense", "sign"):
        assert torch.equal(indices, rank.indices)
    if plan.records[0].values == "float32":
        sent = rank.keys[0] if name == "dense" else rank.values
        assert torch.equal(values, sent.float().double())
    assert payload.numel() % 16 == 0


def test_random_words_are_those_of_the_state_rounding():
    words = draw.random_words(9, 2**33 + 1, seed=2**63 + 1, id=2**35 + 7)
    low, high = rounding.random_bits(9, 2**33 + 1, seed=2**63 + 1, tensor_id=2**35 + 7)
    assert torch.equal(words, low | high << 16)


# ---- Tensors and ranks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [dict(select="topk", k=9), dict(select="threshold", tau=1.0, k=40),
     dict(select="random", k=9), dict(select="strided", k=9)],
    ids=lambda record: record["select"],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_a_record_are_one_space(record, method):
    sizes, grads = [40, 0, 1, 59], [gaussian(100, seed=s) for s in range(4)]
    joint, split = Plan([100], [record]), Plan(sizes, [record | dict(tensors=4)])
    one, four = Rank(joint, METHODS[method], 0), Rank(split, METHODS[method], 0)
    for grad in grads:
        payloads = [one.encode([grad]), four.encode(list(grad.split(sizes)))]
        assert torch.equal(*payloads)
        assert torch.equal(one.indices, four.indices)
        for rank, payload in zip((one, four), payloads, strict=True):
            rank.decode(payload[None])
        assert same_bits(one.sums[0], torch.cat(four.sums))
        for ours, theirs in zip(one.state, four.state, strict=True):
            assert not ours or same_bits(ours[0], torch.cat(theirs))


def test_ranks_are_added_in_their_order():
    plan = Plan([1], [dict(select="dense", values="float64")])
    numbers, total = [1e16, 1.0, -1e16], 0.0
    payloads = [
        Rank(plan, METHODS["none"], 0).encode([torch.tensor([x]).double()]) for x in numbers
    ]
    rank = Rank(plan, METHODS["none"], -1)
    rank.keys = []
    for x in numbers:
        total += x * (1 / 3)
    assert rank.decode(torch.stack(payloads))[0].item() == total
    total_of_two = total
    for x in numbers:
        total_of_two += x * (1 / 3)
    out = [torch.empty(1, dtype=torch.bfloat16)]
    sums = rank.decode(torch.stack(payloads), zero=False, outs=out, scale=torch.tensor([0.5]))
    assert sums[0].item() == total_of_two
    assert out[0].item() == torch.tensor(total_of_two * 0.5).bfloat16().item()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("zero", [False, True])
def test_a_step_that_is_skipped_changes_nothing(skip, zero):
    plan = Plan([0, 10], [dict(select="dense"), dict(select="topk", k=2)])
    ranks = [Rank(plan, METHODS["econtrol"], r) for r in range(2)]
    grads = [[torch.zeros(0, dtype=F64), gaussian(10, seed=r)] for r in range(2)]
    grads[1][1][3] = torch.nan
    payloads = torch.stack([rank.encode(g) for rank, g in zip(ranks, grads, strict=True)])
    for rank in ranks:
        rank.sums[1].fill_(5.0)
        before = [x.clone() for x in (rank.errors[1], rank.shifts[1])]
        outs = [torch.zeros(0), torch.zeros(10)]
        rank.decode(payloads, zero=zero, outs=outs, skip=skip)
        assert rank.nonfinite.tolist() == [0, 1]
        assert outs[1][0].isnan().item() == skip
        assert same_bits(before, [rank.errors[1], rank.shifts[1]]) == skip
        if skip:
            assert (rank.sums[1] == (0.0 if zero else 5.0)).all()
            assert (outs[1][1:] == rank.sums[1][1:]).all()


# ---- Identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_RECORD)
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_econtrol_with_eta_0_is_ef21(name, dtype):
    plan = Plan([NUMEL], [EVERY_RECORD[name]])
    ours = Rank(plan, dict(method="econtrol", eta=0.0), 1, dtype)
    theirs = Rank(plan, dict(method="ef21"), 1, dtype)
    for step in range(5):
        grad = gaussian(NUMEL, seed=step, dtype=dtype)
        payloads = [rank.encode([grad]) for rank in (ours, theirs)]
        assert torch.equal(*payloads)
        sums = [rank.decode(payloads[0].expand(2, -1)) for rank in (ours, theirs)]
        assert same_bits(*sums)
        assert same_bits(ours.shifts, theirs.shifts)


@pytest.mark.parametrize("name", EVERY_RECORD)
def test_econtrol_with_eta_1_and_h_0_is_error_feedback(name):
    plan = Plan([NUMEL], [EVERY_RECORD[name]])
    ours, theirs = (
        Rank(plan, dict(method="econtrol", eta=1.0), 0),
        Rank(plan, METHODS["feedback"], 0),
    )
    for step in range(5):
        payloads = [rank.encode([gaussian(NUMEL, seed=step)]) for rank in (ours, theirs)]
        assert torch.equal(*payloads)
        for rank in (ours, theirs):
            rank.decode(payloads[0][None])
        ours.shifts[0].zero_()
        assert same_bits(ours.errors, theirs.errors)


@pytest.mark.parametrize("name", EVERY_RECORD)
@pytest.mark.parametrize("method", ["feedback", "ef21", "econtrol"])
def test_nothing_is_lost(name, method):
    """The virtual iterate follows SGD, and H is the mean of h."""
    plan = Plan([NUMEL], [EVERY_RECORD[name]])
    ranks = [Rank(plan, METHODS[method], r) for r in range(3)]
    H, taken, grads = torch.zeros(NUMEL, dtype=F64), 0.0, 0.0
    for step in range(8):
        own = [gaussian(NUMEL, seed=10 * step + r) for r in range(3)]
        payloads = torch.stack([rank.encode([g]) for rank, g in zip(ranks, own, strict=True)])
        means = [rank.decode(payloads)[0] for rank in ranks]
        assert same_bits(means[0], means[1])
        H += means[0]
        taken = taken + (means[0] if method == "feedback" else H)
        grads = grads + sum(own) / 3
    if method != "feedback":
        torch.testing.assert_close(H, sum(r.shifts[0] for r in ranks) / 3, rtol=1e-12, atol=1e-12)
    if method != "ef21":
        residual = sum(r.errors[0] for r in ranks) / 3
        torch.testing.assert_close(taken + residual, grads, rtol=1e-12, atol=1e-11)
