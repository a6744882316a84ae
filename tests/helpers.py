# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Problems to optimise, buffers that notice stray writes, the oracle run like an optimizer, and
processes that train together."""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import largebatch
from largebatch.optim import kappa
from largebatch.reference import adan, lamb, lars, lion, norm

# The published defaults, written out: a test that read them from the optimizer could not find a
# wrong one.
LAMB_DEFAULTS = dict(
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-6,
    weight_decay=0.01,
    bias_correction=True,
    grad_averaging=True,
    max_grad_norm=1.0,
    decay="in_update",
    adapt="decay_only",
    trust_clip=None,
    weight_norm_clip=None,
    maximize=False,
)
LARS_DEFAULTS = dict(
    lr=1.0,
    momentum=0.9,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    trust_coefficient=0.001,
    eps=1e-8,
    clip=False,
    lr_in_momentum=False,
    adapt=True,
    maximize=False,
)
ADAN_DEFAULTS = dict(
    lr=1e-3,
    betas=(0.98, 0.92, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm=None,
    no_prox=False,
    maximize=False,
)


LION_DEFAULTS = dict(
    lr=1e-4,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    cautious=False,
    maximize=False,
)
LION_K_DEFAULTS = dict(**LION_DEFAULTS, kappa="l1")


class LambOracle:
    """The float64 reference with an optimizer's interface: groups, state by tensor, step()."""

    defaults = LAMB_DEFAULTS
    buffers = ("exp_avg", "exp_avg_sq")
    update = staticmethod(lamb.lamb_step)

    def __init__(self, groups, dtype=torch.float64, **hyper):
        if torch.is_tensor(groups[0]):
            groups = [{"params": groups}]
        self.groups = []
        for group in groups:
            values = {**self.defaults, **hyper, **group}
            params = [p.detach().to(dtype, copy=True) for p in values.pop("params")]
            self.groups.append((params, values))
        self.params = [p for params, _ in self.groups for p in params]
        self.state = [
            {"step": torch.zeros(()), **{name: torch.zeros_like(p) for name in self.buffers}}
            for p in self.params
        ]

    def step(self, grads, **scaler):
        """Take one step; `grads` runs over the parameters of all groups, None for no gradient."""
        groups = [
            (
                [p for p, g in zip(params, own, strict=True) if g is not None],
                [g.double() for g in own if g is not None],
                [s for s, g in zip(state, own, strict=True) if g is not None],
                values,
            )
            for params, own, state, values in self._split(grads)
        ]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # many small operations: threads would only wait for each other
        self.update_all(groups, **scaler)
        torch.set_num_threads(threads)

    def _split(self, grads):
        first = 0
        for params, values in self.groups:
            last = first + len(params)
            yield params, grads[first:last], self.state[first:last], values
            first = last

    def update_all(self, groups, **scaler):
        total = norm.sum_of_squares([g for _, grads, _, _ in groups for g in grads])
        for params, grads, state, values in groups:
            if grads:
                moments = ([s[name] for s in state] for name in (*self.buffers, "step"))
                self.update(params, grads, *moments, grad_sq_sum=total, **values, **scaler)


class AdanOracle(LambOracle):
    """Likewise for Adan."""

    defaults = ADAN_DEFAULTS
    buffers = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")
    update = staticmethod(adan.adan_step)


class LarsOracle(LambOracle):
    """Likewise for LARS."""

    defaults = LARS_DEFAULTS
    buffers = ("momentum_buffer",)

    def __init__(self, groups, dtype=torch.float64, **hyper):
        super().__init__(groups, dtype, **hyper)
        for _, _, state, values in self._split(self.params):
            if values["momentum"] == 0:
                for s in state:
                    del s["momentum_buffer"]

    def update_all(self, groups, **scaler):
        for params, grads, state, values in groups:
            if grads:
                buffers = [s.get("momentum_buffer") for s in state]
                steps = [s["step"] for s in state]
                lars.lars_step(params, grads, buffers, steps, **values, **scaler)


class LionOracle(LambOracle):
    """Likewise for Lion, but in the dtype of the arithmetic: rounding decides signs near 0.

    What float64 would make of the same step is for tests/reference to say.
    """

    defaults = LION_DEFAULTS
    buffers = ("exp_avg",)

    def __init__(self, groups, dtype=None, **hyper):
        tensors = groups if torch.is_tensor(groups[0]) else groups[0]["params"]
        own = torch.promote_types(tensors[0].dtype, torch.float32)
        super().__init__(groups, dtype or own, **hyper)

    def update_all(self, groups, **scaler):
        for params, grads, state, values in groups:
            if grads:
                hyper = {name: values[name] for name in self.defaults}
                hyper["kappa"] = kappa.get(hyper.get("kappa", "l1"))
                moments = ([s[name] for s in state] for name in ("exp_avg", "step"))
                lion.lion_step(params, grads, *moments, **hyper, **scaler)


class LionKOracle(LionOracle):
    """Likewise for Lion-K."""

    defaults = LION_K_DEFAULTS


@dataclass
class Problem:
    """Parameters and the gradients of some steps, the same for every device and every run."""

    params: list  # [T] tensors
    grads: list  # [steps][T] tensors

    def to(self, device=None, dtype=None, grad_dtype=None):
        """Return fresh copies on another device or in another dtype."""
        return Problem(
            [p.to(device=device, dtype=dtype, copy=True) for p in self.params],
            [[g.to(device=device, dtype=grad_dtype, copy=True) for g in gs] for gs in self.grads],
        )


def problem(shapes, steps=10, seed=0, scale=0.05, grad_scale=0.02, device="cpu"):
    """Build a random problem: Gaussian weights, gradients with a mean that differs by element."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(shape):
        return torch.randn(shape, generator=generator)

    params = [scale * gaussian(shape) for shape in shapes]
    means = [gaussian(shape) for shape in shapes]
    grads = [[grad_scale * (mean + gaussian(mean.shape)) for mean in means] for _ in range(steps)]
    return Problem(params, grads).to(device)


def run(optimizer, params, grads):
    """Take one step for every list of gradients, then drop the gradients."""
    for step in grads:
        assign(params, step)
        optimizer.step()
    assign(params, [None] * len(params))


def assign(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad = g


def leaves(tensors):
    """Return the tensors as parameters that share their memory."""
    return [torch.nn.Parameter(t.detach()) for t in tensors]


def values(tensors):
    """Return copies of the tensors, as they are now."""
    return [t.detach().clone() for t in tensors]


def snapshot(optimizer):
    """Return copies of all parameters and all state, in a fixed order: what "bitwise" is about."""
    tensors = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            tensors.append(p.detach().clone())
            tensors += [state[k].detach().clone() for k in sorted(state)]
    return tensors


def same_bits(a, b):
    """Compare tensors or lists of tensors bit for bit, NaN equal to the same NaN."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def ulp_distance(a, b):
    """Count the representable numbers from each element of `a` to that of `b`, same dtype."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    lowest = torch.iinfo(integer).min

    def ordered(x):
        bits = x.detach().cpu().contiguous().view(integer).to(torch.int64)
        return torch.where(bits < 0, lowest - bits, bits)

    return (ordered(a) - ordered(b)).abs()


def everything(oracle):
    """Return the tensors an oracle holds: parameters, then states."""
    return oracle.params + [t for state in oracle.state for t in state.values()]


class Padded:
    """Tensors cut from one buffer with sentinels around each, to notice writes out of bounds."""

    SENTINEL = 0x5A  # as a byte, so that any change of any bit shows

    def __init__(self, tensors, gap=64, offset=0):
        """Copy `tensors` in, `gap` bytes apart; `offset` elements shift each off its alignment."""
        self.tensors, self._spans = [], []
        item = max(t.element_size() for t in tensors)
        size = sum(t.numel() * t.element_size() + 2 * gap + 128 for t in tensors) + gap
        self.buffer = torch.full(
            (size,), self.SENTINEL, dtype=torch.uint8, device=tensors[0].device
        )
        start = gap
        for t in tensors:
            start = math.ceil(start / 64) * 64 + offset * item
            stop = start + t.numel() * t.element_size()
            view = self.buffer[start:stop].view(t.dtype).view(t.shape)
            view.copy_(t)
            self.tensors.append(view)
            self._spans.append((start, stop))
            start = stop + gap

    def intact(self):
        """Tell whether all bytes between the tensors still hold the sentinel."""
        outside = torch.ones_like(self.buffer, dtype=torch.bool)
        for start, stop in self._spans:
            outside[start:stop] = False
        return bool((self.buffer[outside] == self.SENTINEL).all())


HUGE = 2**31 + 5  # elements, more than 32 bits can count


def free_gib(device):
    """Return how much memory is free."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2**30
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(line for line in lines if line.startswith("MemAvailable:"))
    return int(available.split()[1]) / 2**20


def need(bytes_per_element, device):
    """Skip the test unless HUGE elements of so many bytes fit."""
    gib, free = HUGE * bytes_per_element / 2**30 + 1, free_gib(device)
    if free < gib:
        pytest.skip(f"needs {gib:.0f} GiB of memory on {device}, {free:.0f} are free")


def timm_optimizer(module, name):
    """Return an optimizer of timm, as the benchmarks import it, or skip the test."""
    import baselines  # of bench/, which pytest puts on the path

    try:
        return baselines.timm_optimizer(module, name)
    except ImportError as error:
        pytest.skip(str(error))


def run_ranks(module, world, folder, timeout=120):
    """Run `python -m module rank folder` in `world` processes; return what each saved there."""
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    library = str(Path(largebatch.__file__).parents[1])
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": library}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(folder)],
            cwd=Path(__file__).parents[1],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, error in zip(ranks, errors, strict=True):
        assert process.returncode == 0, error
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
