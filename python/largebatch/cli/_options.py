# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What options of several commands have in common."""

import tempfile
from pathlib import Path

import click
import torch

from .. import build_info


class Device(click.ParamType):
    """A device that torch and this build of largebatch can both use."""

    name = "DEVICE"

    def convert(self, value, param, ctx):
        """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a `torch.device`, or fail."""
        cuda = build_info()["cuda"]
        if value == "auto":
            value = "cuda" if cuda["available"] and torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(value)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            self.fail(f"{value!r} is not one of auto, cpu, cuda, cuda:N.", param, ctx)
        if device.type == "cuda":
            if not torch.cuda.is_available():
                self.fail("PyTorch finds no CUDA device here; use cpu.", param, ctx)
            if not cuda["available"]:
                self.fail(f"CUDA is off in largebatch: {cuda['reason']}; use cpu.", param, ctx)
            if (device.index or 0) >= torch.cuda.device_count():
                count = torch.cuda.device_count()
                self.fail(f"{value}: PyTorch finds {count} CUDA device(s).", param, ctx)
        return device


device_option = click.option(
    "--device",
    type=Device(),
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N; auto is cuda where both PyTorch and largebatch have it.",
)


def check_writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuse a path that could not be written in the end, before the work that it is for."""
    if value is None:
        return None
    try:
        if value.exists():
            value.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=value.parent).close()
    except OSError as error:
        raise click.BadParameter(f"{value} cannot be written: {error.strerror}.") from error
    return value
