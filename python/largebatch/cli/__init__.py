# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``largebatch info``, ``largebatch demo`` and ``largebatch bench``."""

import click

from .. import __version__
from . import bench, demo, info


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="largebatch")
def main() -> None:
    """Kernels for large-batch and low-communication training with PyTorch."""


main.add_command(info.command, "info")
main.add_command(demo.command, "demo")
main.add_command(bench.command, "bench")

__all__ = ["main"]
