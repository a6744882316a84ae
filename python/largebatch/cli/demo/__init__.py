# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""``largebatch demo``: optimizers side by side on real text, on this machine, in minutes."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .._options import check_writable, device_option
from . import data, report, train
from .model import HEAD_WIDTH
from .train import RECIPES, Settings

DEFAULT_RATES = ", ".join(f"{name} {recipe.lr:g}" for name, recipe in RECIPES.items())


class Rate(click.ParamType):
    """A learning rate for one optimizer, written ``lamb=0.02``."""

    name = "OPTIMIZER=RATE"

    def convert(self, value, param, ctx):
        """Return the pair (optimizer, rate), or fail."""
        name, _, text = value.partition("=")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if name not in RECIPES or not 0 < rate < math.inf:
            self.fail(
                f"{value!r} is not NAME=RATE with a name of {', '.join(RECIPES)} "
                "and a positive rate.",
                param,
                ctx,
            )
        return name, rate


def check_width(ctx, param, value):
    """Refuse a width that does not divide into attention heads."""
    if value % HEAD_WIDTH:
        raise click.BadParameter(f"{value} is not a multiple of {HEAD_WIDTH}.")
    return value


def check_png(ctx, param, value):
    """Refuse a path that could not be written after the training, or that is no figure's."""
    if value.suffix.lower() != ".png":
        raise click.BadParameter(f"{value} does not end in .png.")
    return check_writable(ctx, param, value)


def whole(minimum: int, maximum: int | None = None) -> click.IntRange:
    """Shorten the type of the integer options."""
    return click.IntRange(min=minimum, max=maximum)


@click.command()
@click.option(
    "--optimizer",
    "optimizers",
    type=click.Choice(list(RECIPES)),
    multiple=True,
    default=("lamb", "adamw"),
    show_default="lamb, adamw",
    help="What to train with; repeat for several. Each trains the same model from the same seed "
    "on the same batches.",
)
@click.option(
    "--batch",
    type=whole(1),
    default=256,
    show_default=True,
    help="Windows of text per step. Larger batches want fewer steps and a larger rate.",
)
@click.option(
    "--micro-batch",
    type=whole(1),
    default=64,
    show_default=True,
    help="Windows per forward and backward pass; the gradients of a step are accumulated. "
    "Lower it if memory runs out: the result is the same up to rounding.",
)
@click.option("--steps", type=whole(1), default=120, show_default=True, help="Optimizer steps.")
@click.option(
    "--lr",
    "rates",
    type=Rate(),
    multiple=True,
    show_default=DEFAULT_RATES,
    help="Peak learning rate of one optimizer; repeatable. All follow the same schedule: linear "
    "warm-up over the first tenth of the steps, then linear decay to zero.",
)
@device_option
@click.option(
    "--seed", type=whole(0, 2**32 - 1), default=0, show_default=True, help="Of model and batches."
)
@click.option("--layers", type=whole(1), default=2, show_default=True, help="Transformer blocks.")
@click.option(
    "--width",
    type=whole(HEAD_WIDTH),
    default=128,
    show_default=True,
    callback=check_width,
    help=f"Model width, a multiple of {HEAD_WIDTH}.",
)
@click.option(
    "--context", type=whole(1, 4096), default=64, show_default=True, help="Bytes per window."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default="largebatch-demo.png",
    show_default=True,
    callback=check_png,
    help="Where to write the figure.",
)
def command(
    optimizers, batch, micro_batch, steps, rates, device, seed, layers, width, context, out
):
    r"""Train a small byte-level transformer at a large batch, one optimizer after the other.

    The text is the source code of Python's standard library, as bytes; one file in ten is kept for
    validation. A table with losses, times and memory comes last, and a figure with the curves.

    \b
    Examples:
      largebatch demo
      largebatch demo --batch 1024 --steps 60 --lr lamb=0.03
      largebatch demo --optimizer lars --optimizer lamb --device cpu
    """
    if find_spec("matplotlib") is None:
        raise click.ClickException("the figure needs matplotlib: pip install largebatch[demo]")
    chosen = {name: RECIPES[name].lr for name in optimizers}
    for name, rate in rates:
        if name not in chosen:
            raise click.UsageError(f"--lr {name}={rate:g}: {name} is not trained in this run.")
        chosen[name] = rate
    try:
        corpus = data.load()
    except FileNotFoundError as error:
        raise click.ClickException(str(error)) from error

    console = Console()
    console.print(
        f"{corpus.files} files of the Python standard library: {corpus.train.numel():,} bytes to "
        f"train on, {corpus.validation.numel():,} to validate. "
        f"Device: {device}, {torch.get_num_threads()} threads.",
        highlight=False,
    )
    settings = Settings(device, batch, min(micro_batch, batch), steps, seed, layers, width, context)
    runs = run_all(chosen, settings, corpus, console)
    console.print(report.table(runs, settings))
    report.figure(runs, settings, out)
    click.echo(f"Curves: {out}")


def run_all(chosen, settings, corpus, console):
    """Train with each of ``chosen`` (optimizer to rate) under a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    runs = []
    with Progress(*columns, console=console) as progress:
        bars = {
            name: progress.add_task(
                f"{RECIPES[name].title:6}", total=settings.steps, loss="", start=False
            )
            for name in chosen
        }
        for name, rate in chosen.items():
            bar = bars[name]
            progress.start_task(bar)

            def show(step, loss, bar=bar):
                progress.update(bar, completed=step, loss=f"{loss:.2f} bits/byte")

            runs.append(train.run(name, rate, settings, corpus, show))
            if runs[-1].diverged:
                progress.update(bar, loss="diverged")
                progress.stop_task(bar)
    return runs
