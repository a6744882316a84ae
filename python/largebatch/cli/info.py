# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""``largebatch info``: what this installation has in it, and what of that runs here."""

from __future__ import annotations

import json

import click
import torch
from rich.console import Console
from rich.table import Table

from .. import build_info


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(as_json: bool) -> None:
    """Show what was built, what of it runs on this machine, and why a backend is off.

    The instruction set in use can be forced with the environment variable LARGEBATCH_CPU_ISA
    (base, avx2 or avx512), for instance to compare them or to reproduce another machine's bits.
    The thread count is that of torch.get_num_threads().
    """
    info = build_info()
    if as_json:
        click.echo(json.dumps(info, indent=2))
        return
    table = Table(title="largebatch", show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(info):
        table.add_row(name, value)
    Console().print(table)


def rows(info: dict) -> list[tuple[str, str]]:
    """Put the dictionary of `build_info` into (name, plain English) pairs."""
    cpu, cuda = info["cpu"], info["cuda"]
    threads = str(cpu["threads"]) if cpu["openmp"] else "1 (built without OpenMP)"
    result = [
        ("version", info["version"]),
        ("torch", torch.__version__),
        ("compiler", info["compiler"]),
        ("CPU instruction set", f"{cpu['isa']} (this processor runs {', '.join(cpu['isas'])})"),
        ("CPU threads", threads),
        ("CUDA", "available" if cuda["available"] else f"off: {cuda['reason']}"),
    ]
    if cuda["compiled"]:
        result += [
            ("CUDA compiled with", cuda["version"]),
            ("CUDA architectures", cuda["architectures"]),
            ("CUDA driver", f"for CUDA {cuda['driver']}" if cuda["driver"] else "none found"),
            ("CUDA devices", str(cuda["devices"])),
        ]
    return result
