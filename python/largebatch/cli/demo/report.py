# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's table and figure."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median

from rich import box
from rich.table import Table

from .train import RECIPES, Run, Settings

LAST_STEPS = 10  # the training loss of the table is the mean over so many last batches
MIB = 2**20


def table(runs: list[Run], settings: Settings) -> Table:
    """Return one row per run: losses, times and memory."""
    result = Table(
        title=f"{settings.batch:,} x {settings.context} bytes a step, {settings.steps} steps, "
        f"{runs[0].parameters:,} parameters, {settings.device}",
        caption=caption(settings),
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        caption_justify="left",
    )
    result.add_column("optimizer", no_wrap=True)
    for header in (
        "peak\nlr",
        "training\nloss",
        "validation\nloss",
        "opt. ms\nper step",
        "tokens\nper s",
        "state\nMiB",
        "peak\nMiB",
    ):
        result.add_column(header, justify="right", no_wrap=True)
    for run in runs:
        result.add_row(RECIPES[run.name].title, f"{run.lr:g}", *losses(run), *costs(run, settings))
    return result


def losses(run: Run) -> tuple[str, str]:
    """Return the training and the validation loss at the end, as text."""
    if run.diverged:
        return f"diverged\nat step {len(run.train)}", "-"
    return f"{fmean(run.train[-LAST_STEPS:]):.3f}", f"{run.validation[-1][1]:.3f}"


def costs(run: Run, settings: Settings) -> tuple[str, str, str, str]:
    """Return optimizer milliseconds, tokens per second and the two memory figures, as text."""
    if not run.step_seconds:
        return "-", "-", "-", "-"
    tokens = len(run.step_seconds) * settings.batch * settings.context
    return (
        f"{1e3 * median(run.step_seconds):.2f}",
        f"{tokens / run.train_seconds:,.0f}",
        f"{run.state_bytes / MIB:.1f}",
        "-" if run.peak_bytes is None else f"{run.peak_bytes / MIB:,.0f}",
    )


def caption(settings: Settings) -> str:
    """Say what the columns are."""
    memory = (
        "the most PyTorch allocated on the device in that run"
        if settings.device.type == "cuda"
        else "of the whole process since its start, so a later row includes the earlier ones"
    )
    return (
        f"Losses in bits per byte; training loss: mean of the last {LAST_STEPS} batches. "
        "opt. ms: median time of the optimizer, clipping of the gradient norm included. "
        f"State: what the optimizer keeps. Peak: memory, {memory}."
    )


def figure(runs: list[Run], settings: Settings, path: Path) -> None:
    """Draw training and validation loss over steps and write the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chart = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(chart)
    axes = chart.subplots()
    for run in runs:
        recipe = RECIPES[run.name]
        color, title = recipe.color, f"{recipe.title}, lr {run.lr:g}"
        axes.plot(range(1, len(run.train) + 1), run.train, color=color, alpha=0.35, linewidth=1)
        steps, values = zip(*run.validation, strict=True) if run.validation else ((), ())
        axes.plot(steps, values, "o-", color=color, markersize=4, label=title)
    axes.plot([], [], color="gray", alpha=0.5, linewidth=1, label="thin: training batches")
    axes.plot([], [], "o-", color="gray", markersize=4, label="dots: validation")
    axes.set_xlabel(f"steps of {settings.batch:,} x {settings.context} bytes")
    axes.set_ylabel("loss, bits per byte")
    axes.set_title("Next-byte prediction on the Python standard library", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    chart.savefig(path)
