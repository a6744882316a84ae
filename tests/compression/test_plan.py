# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled plan against its oracle: every array of a step equal, bit for bit."""

import numpy as np
import pytest
import torch

import largebatch
from largebatch.reference.compression import Plan, random_indices, strided_indices
from tests.helpers import HUGE, Padded, need, same_bits

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
METHODS = {
    "none": dict(method="none"),
    "feedback": dict(method="feedback", decay=0.9),
    "ef21": dict(method="ef21"),
    "ef21-sgdm": dict(method="ef21", beta=0.1),
    "econtrol": dict(method="econtrol", eta=0.07),
    "econtrol-m": dict(method="econtrol", eta=0.07, beta=0.3),
    "dgc": dict(method="dgc", mu=0.9),
    "dgc nesterov": dict(method="dgc", mu=0.9, nesterov=True, masking=False),
}
# Sizes around vectors, tiles and blocks of indices, and what is kept of them.
NUMELS = [5000, 40000, 33000, 70000, 100, 20000, 0, 3000, 4097, 2049, 20000, 31, 8192, 1]
RECORDS = [
    dict(select="block", block=4096, k=40, values="bfloat16"),
    dict(select="topk", k=500, tensors=2, values="float16"),
    dict(select="random", k=500, seed=3, id=2**63 + 5),
    dict(select="dense", values="bfloat16"),
    dict(select="threshold", tau=1.0, k=4000, values="int8"),
    dict(select="topk", k=0),
    dict(select="dense", values="sign"),
    dict(select="dense", values="int4", scale_block=64),
    dict(select="dense", values="int2", rounding="nearest"),
    dict(select="topk", k=300, values="int2", indices="abs32"),
    dict(select="topk", k=30),
    dict(select="strided", k=100, values="int4"),
    dict(select="dense"),
]
WORLD = 2


def real(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def data(kind, dtype, step, rank):
    """Return gradients of each size: normal ones, ties, or some that are not finite."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    tensors = [torch.randn(n, generator=generator, dtype=torch.float64) for n in NUMELS]
    if kind == "ties":
        tensors = [t.round() for t in tensors]
    if kind == "equal":
        tensors = [torch.where(t > 0, 2.0, -2.0) for t in tensors]
    if kind == "nonfinite":
        for t in tensors:
            t[3::97], t[5::89] = torch.nan, -torch.inf
    return [t.to(dtype) for t in tensors]


class Run:
    """The ranks of one plan, in one process."""

    def __init__(self, plan, method, dtype, device, padded=False):
        self.plan, self.method, self.dtype, self.device = plan, method, dtype, device
        self.real, self.padded = real(dtype), []
        if not padded:
            self.padded = None
        name = method["method"]
        roles = dict(
            errors=name in ("feedback", "econtrol", "dgc"),
            shifts=name in ("ef21", "econtrol"),
            momenta="beta" in method or name == "dgc",
        )
        self.states = [
            {role: self.tensors(self.real) if there else [] for role, there in roles.items()}
            for _ in range(WORLD)
        ]
        self.sums = self.tensors(self.real)
        self.warm = torch.zeros(len(RECORDS), 2, dtype=torch.float64, device=device)

    def tensors(self, dtype):
        new = [torch.zeros(n, dtype=dtype, device=self.device) for n in NUMELS]
        if self.padded is None:
            return new
        self.padded.append(Padded(new, offset=1))
        return self.padded[-1].tensors

    def step(self, kind, step, skip=False, zero=False, scale=None, inv_scale=None):
        """Return all arrays that a step has written."""
        plan, written = self.plan, []
        payloads = torch.full((WORLD, plan.payload_bytes), 7, dtype=torch.uint8, device=self.device)
        method = self.method | {"inv_scale": inv_scale}
        selected = []
        for rank, state in enumerate(self.states):
            grads = [g.to(self.device) for g in data(kind, self.dtype, step, rank)]
            keys = grads if self.dtype == self.real and step % 2 else self.tensors(self.real)
            values = torch.zeros(plan.slots, dtype=self.real, device=self.device)
            indices = torch.zeros(plan.slots, dtype=torch.int64, device=self.device)
            counts = torch.zeros(len(RECORDS), 2, dtype=torch.int64, device=self.device)
            plan.encode(
                grads, keys, *state.values(), method, step, rank,
                values, indices, counts, payloads[rank], self.warm,
            )  # fmt: skip
            selected.append((keys, indices))
            # Afterwards keys are scratch.
            written += [*(key.clone() for key in keys), values, indices, counts]
        outs = self.tensors(self.dtype)
        before = [s.clone() for s in self.sums]
        for rank, state in enumerate(self.states):
            for total, old in zip(self.sums, before, strict=True):
                total.copy_(old)
            keys, indices = selected[rank]
            nonfinite = torch.zeros(WORLD, dtype=torch.int64, device=self.device)
            plan.decode(
                payloads, rank, keys, *state.values(), self.sums, outs,
                indices, method, nonfinite, scale, skip, zero,
            )  # fmt: skip
            written += [nonfinite, *self.sums, *outs]
        written += [payloads, *(t for s in self.states for role in s.values() for t in role)]
        values = torch.zeros(plan.slots, dtype=self.real, device=self.device)
        indices = torch.zeros(plan.slots, dtype=torch.int64, device=self.device)
        plan.unpack(payloads[0], values, indices)
        return [t.clone().cpu() for t in [*written, values, indices]]


def runs(backend, method, dtype, padded=False):
    compiled = largebatch._C.CompressionPlan(NUMELS, RECORDS)
    return (
        Run(compiled, METHODS[method], dtype, backend.device, padded),
        Run(Plan(NUMELS, RECORDS), METHODS[method], dtype, torch.device("cpu")),
    )


def test_layout():
    compiled, oracle = largebatch._C.CompressionPlan(NUMELS, RECORDS), Plan(NUMELS, RECORDS)
    assert compiled.payload_bytes == oracle.payload_bytes
    assert compiled.slots == oracle.slots
    assert compiled.layout == oracle.layout


CASES = [
    *((method, torch.float32) for method in METHODS),
    *((method, dtype) for method in ("econtrol-m", "dgc") for dtype in DTYPES[1:]),
]


@pytest.mark.parametrize(("method", "dtype"), CASES, ids=str)
def test_every_array_is_the_oracles(backend, method, dtype):
    ours, oracle = runs(backend, method, dtype, padded=True)
    for step, kind in enumerate(["normal", "ties", "equal"]):
        options = dict(zero=method in ("feedback", "dgc"))
        assert same_bits(ours.step(kind, step, **options), oracle.step(kind, step, **options))
    assert all(padded.intact() for padded in ours.padded)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("method", ["feedback", "econtrol-m", "dgc"])
def test_what_is_not_finite(backend, method, skip):
    ours, oracle = runs(backend, method, torch.float32)
    for step, kind in enumerate(["normal", "nonfinite", "normal"]):
        mine, expected = ours.step(kind, step, skip=skip), oracle.step(kind, step, skip=skip)
        assert same_bits(mine, expected)
        state = [t for s in ours.states for role in s.values() for t in role]
        assert all(t.isfinite().all() for t in state)


def test_scales_of_a_loss_scaler(backend):
    ours, oracle = runs(backend, "econtrol", torch.float16)
    scale, inverse = torch.tensor([8.0]), torch.tensor([0.125])
    where = backend.device
    for step in range(2):
        mine = ours.step("normal", step, scale=scale.to(where), inv_scale=inverse.to(where))
        assert same_bits(mine, oracle.step("normal", step, scale=scale, inv_scale=inverse))


@pytest.mark.parametrize("low", [0.0, 1e-30, 0.5, 2.3, 100.0, float("inf"), float("nan")])
def test_a_threshold_to_start_from_changes_nothing(backend, low):
    ours, oracle = runs(backend, "feedback", torch.float32)
    for step in range(2):
        ours.warm[:, 0], ours.warm[:, 1] = low, 0.8
        assert same_bits(ours.step("normal", step), oracle.step("normal", step))


def test_number_of_threads_and_instruction_set():
    before, threads = largebatch._C.cpu_isa(), torch.get_num_threads()
    results = []
    for isa in largebatch._C.cpu_isas():
        for count in (1, 2, 3):
            largebatch._C.set_cpu_isa(isa)
            torch.set_num_threads(count)
            plan = largebatch._C.CompressionPlan(NUMELS, RECORDS)
            run = Run(plan, METHODS["econtrol"], torch.float32, torch.device("cpu"))
            results.append(run.step("normal", 0) + run.step("ties", 1))
    largebatch._C.set_cpu_isa(before)
    torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results)


def kinds(n, dtype):
    """Return vectors of every kind that selection might stumble over."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    index = torch.arange(n)
    mixed = x.clone()
    mixed[::7], mixed[::5], mixed[::3] = torch.nan, torch.inf, -torch.inf
    outlier = x.clone()
    outlier[n // 2 :][:1] = 1e4
    alternating = torch.where(index % 2 == 0, 1.0, -1.0) * (1 + index % 3)
    found = [
        x, torch.full_like(x, 3.0), torch.zeros_like(x), (x > 0.5) + 1.0, 1 + x.abs() * 1e-6,
        x * 1e-42, mixed, x.sort().values, -x.sort().values, outlier, alternating.double(),
    ]  # fmt: skip
    return [t.to(dtype) for t in found]


def by_argsort(x, k):
    """Return the indices of the first k in the order (magnitude bits descending, index)."""
    width = {2: np.uint16, 4: np.uint32, 8: np.uint64}[x.element_size()]
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.view(signed).numpy().view(width) & width((1 << (8 * x.element_size() - 1)) - 1)
    return np.sort(np.argsort(~bits, kind="stable")[:k])


def selected(tensors, record, warm=None):
    plan = largebatch._C.CompressionPlan([t.numel() for t in tensors], [record])
    device = tensors[0].device
    values = torch.zeros(plan.slots, dtype=tensors[0].dtype, device=device)
    indices = torch.zeros(plan.slots, dtype=torch.int64, device=device)
    counts = torch.zeros(1, 2, dtype=torch.int64, device=device)
    plan.select(tensors, values, indices, counts, warm)
    return values.cpu(), indices.cpu()


def assert_selects(x, k, device, warm=None):
    values, indices = selected([x.to(device)], dict(select="topk", k=k), warm)
    assert np.array_equal(indices.numpy(), by_argsort(x, k))
    assert same_bits([values], [x[indices]])


SIZES = [0, 1, 31, 32, 33, 1023, 4095, 4096, 4097, 16384, 16385, 65535, 65537]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection_is_that_of_a_stable_sort(backend, dtype):
    for n in [33, 16385, 40001] if backend.name == "simt" else SIZES:
        for x in kinds(n, dtype):
            counts = {0, 1, n // 1000, n // 100, n // 10, n - 1, n}
            if backend.name == "simt":
                counts = {n // 50}
            for k in sorted(k for k in counts if 0 <= k <= n):
                assert_selects(x, k, backend.device)


@pytest.mark.parametrize("n", [10**6 - 1, 10**6 + 1])
def test_selection_from_a_million(n):
    for x in kinds(n, torch.float32):
        for k in (n // 1000, n // 10):
            assert_selects(x, k, "cpu")
            warm = torch.tensor([[1.0, 0.8]], dtype=torch.float64)
            for _ in range(2):  # the second time by the threshold of the first
                assert_selects(x, k, "cpu", warm)


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_selection_from_a_slice(backend, offset):
    x = kinds(40_000, torch.float32)[0].to(backend.device)
    sliced = x[offset : offset + 39_000]
    values, indices = selected([sliced], dict(select="topk", k=390))
    assert np.array_equal(indices.numpy(), by_argsort(sliced.cpu(), 390))
    assert same_bits([values], [sliced.cpu()[indices]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_tensors_and_drawn_elements_of_every_type(backend, dtype):
    x = kinds(3000, dtype)[0]
    assert_selects(x, 60, backend.device)
    draws = dict(random=random_indices, strided=strided_indices)
    for select, draw in draws.items():
        record = dict(select=select, k=50, seed=1, id=2)
        values, indices = selected([x.to(backend.device)], record)
        assert torch.equal(indices, draw(3000, 50, 0, seed=1, id=2))
        assert same_bits([values], [x[indices]])


@pytest.mark.parametrize("block", [64, 4096, 8192, 65536])
def test_selection_of_blocks(backend, block):
    for n in (1, block - 1, block, block + 1, 70_000):
        if n > 70_000:
            continue
        x, kept = kinds(n, torch.float32)[-1 if n % 2 else 0], block // 50 + 1
        _, indices = selected([x.to(backend.device)], dict(select="block", block=block, k=kept))
        parts = x.split(block)
        expected = [by_argsort(part, -(-kept * len(part) // block)) for part in parts]
        expected = [part + i * block for i, part in enumerate(expected)]
        assert np.array_equal(indices.numpy(), np.concatenate(expected))


def test_selection_beyond_2_to_the_31():
    need(4, "cpu")  # 2 of them, and what the candidates take
    n = HUGE
    x = torch.zeros(n, dtype=torch.bfloat16)
    places = torch.tensor([0, 5, 2**31 - 1, 2**31, n - 1])
    x[places] = torch.tensor([1.0, -2.0, 3.0, -4.0, 5.0], dtype=torch.bfloat16)
    values, indices = selected([x], dict(select="topk", k=7))
    assert indices.tolist() == [0, 1, 2, 5, 2**31 - 1, 2**31, n - 1]
    assert values.tolist() == [1.0, 0.0, 0.0, -2.0, 3.0, -4.0, 5.0]
