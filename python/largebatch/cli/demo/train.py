# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Train the demo's model once with one optimizer, and measure it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ... import optim
from . import data
from .model import ByteTransformer, loss

VALIDATION_WINDOWS = 512
VALIDATIONS = 10  # how often a run is validated; the last time is after the last step
NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class Recipe:
    """What the demo gives to one optimizer; docs/lamb.md says how it was chosen."""

    title: str
    color: str  # of its curve: after Okabe and Ito, whom the colour-blind can tell apart
    lr: float
    build: Callable[[list[dict], float], torch.optim.Optimizer]
    weight_decay: float
    clip: bool  # clip the global gradient norm to 1 before step(); LAMB and Adan do so in their own


def build_lars(groups: list[dict], lr: float) -> optim.LARS:
    """Return LARS; biases and norms, which have no local rate to tame ``lr``, get a hundredth."""
    matrices, vectors = groups
    return optim.LARS([matrices, {**vectors, "lr": lr / 100}], lr=lr, momentum=0.9)


RECIPES = {
    "lamb": Recipe(
        title="LAMB",
        color="#0072b2",
        lr=0.028,
        build=lambda groups, lr: optim.LAMB(groups, lr=lr),
        weight_decay=0.01,
        clip=False,
    ),
    "lars": Recipe(
        title="LARS",
        color="#009e73",
        lr=3.0,
        build=build_lars,
        weight_decay=1e-4,
        clip=False,
    ),
    "lion": Recipe(
        title="Lion",
        color="#cc79a7",
        lr=1.2e-3,
        build=lambda groups, lr: optim.Lion(groups, lr=lr, betas=(0.95, 0.98)),
        weight_decay=0.1,
        clip=False,
    ),
    "lion-k": Recipe(
        title="Lion-K",
        color="#e69f00",
        lr=1.2e-3,
        build=lambda groups, lr: optim.LionK(
            groups, lr=lr, betas=(0.95, 0.98), kappa="group_lasso"
        ),
        weight_decay=0.1,
        clip=False,
    ),
    "adan": Recipe(
        title="Adan",
        color="#56b4e9",
        lr=0.02,
        build=lambda groups, lr: optim.Adan(groups, lr=lr, max_grad_norm=1.0),
        weight_decay=0.02,
        clip=False,
    ),
    "adamw": Recipe(
        title="AdamW",
        color="#d55e00",
        lr=0.0042,
        build=lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
        weight_decay=0.01,
        clip=True,
    ),
}


@dataclass(frozen=True)
class Settings:
    """What all optimizers of one demo share; sizes in windows of ``context`` bytes."""

    device: torch.device
    batch: int
    micro_batch: int
    steps: int
    seed: int
    layers: int
    width: int
    context: int


@dataclass
class Run:
    """One optimizer's training run. Losses are in bits per byte."""

    name: str
    lr: float
    parameters: int = 0
    train: list[float] = field(default_factory=list)  # one entry a step, before that step
    validation: list[tuple[int, float]] = field(default_factory=list)  # (steps taken, loss)
    step_seconds: list[float] = field(default_factory=list)  # the optimizer alone
    train_seconds: float = 0.0  # whole steps, validation not counted
    state_bytes: int = 0
    peak_bytes: int | None = None  # see `peak_memory`

    @property
    def diverged(self) -> bool:
        """Whether the run was stopped because its loss was no longer finite."""
        return not math.isfinite(self.train[-1])


def schedule(step: int, steps: int) -> float:
    """Return the factor on the learning rate before step number ``step`` (from 0).

    Linear warm-up over the first tenth, then polynomial decay of power 1 to zero.
    """
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / max(1, steps - warmup)


def run(
    name: str,
    lr: float,
    settings: Settings,
    corpus: data.Corpus,
    on_step: Callable[[int, float], None],
) -> Run:
    """Train a fresh model from ``settings.seed`` with optimizer ``name``.

    Model, batches and validation windows depend on the seed alone, so that two runs differ in the
    optimizer only. ``on_step(steps taken, batch loss in bits per byte)`` is called after each
    step. A loss that is not finite ends the run.
    """
    device = settings.device
    torch.manual_seed(settings.seed)
    model = ByteTransformer(settings.layers, settings.width, settings.context).to(device)
    recipe = RECIPES[name]
    groups = optim.param_groups(model, weight_decay=recipe.weight_decay)
    optimizer = recipe.build(groups, lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule(step, settings.steps)
    )
    draws = torch.Generator().manual_seed(settings.seed)
    windows = data.sample(corpus.validation, VALIDATION_WINDOWS, settings.context, draws)
    validate_every = max(1, settings.steps // VALIDATIONS)

    result = Run(name, lr, parameters=sum(p.numel() for p in model.parameters()))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(1, settings.steps + 1):
        start = time.perf_counter()
        batch = data.sample(corpus.train, settings.batch, settings.context, draws)
        result.train.append(accumulate_gradients(model, batch, settings) / NATS_PER_BIT)
        if result.diverged:
            break
        result.step_seconds.append(timed_step(model, optimizer, recipe.clip, device))
        scheduler.step()
        result.train_seconds += time.perf_counter() - start
        if step % validate_every == 0 or step == settings.steps:
            result.validation.append((step, evaluate(model, windows, settings) / NATS_PER_BIT))
        on_step(step, result.train[-1])
    result.state_bytes = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    result.peak_bytes = peak_memory(device)
    return result


def accumulate_gradients(model: nn.Module, batch: Tensor, settings: Settings) -> float:
    """Set the gradients to those of the batch's mean loss, piece by piece; return that loss."""
    model.zero_grad()
    total = torch.zeros((), device=settings.device)
    for piece in batch.split(settings.micro_batch):
        share = loss(model, piece.to(settings.device)) * (len(piece) / len(batch))
        share.backward()
        total += share.detach()
    return total.item()


def timed_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, clip: bool, device: torch.device
) -> float:
    """Clip if asked to, step, and return the seconds it took, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    synchronize(device)
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(model: nn.Module, windows: Tensor, settings: Settings) -> float:
    """Mean loss over all ``windows``, in nats per byte."""
    return sum(
        loss(model, piece.to(settings.device)).item() * len(piece) / len(windows)
        for piece in windows.split(settings.micro_batch)
    )


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """Highest memory use in bytes, or None where the system does not tell.

    On CUDA: the most that PyTorch had allocated on the device during this run. On the CPU: the
    largest resident set of the whole process since it began, which holds Python, PyTorch, the
    text and earlier runs too.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
