# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: ``largebatch info`` and ``largebatch demo``."""

import click

from .. import __version__
from . import demo, info


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="largebatch")
def main() -> None:
    """Kernels for large-batch training with PyTorch: LAMB and LARS on CPU and CUDA."""


main.add_command(info.command, "info")
main.add_command(demo.command, "demo")

__all__ = ["main"]
