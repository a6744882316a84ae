# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""``largebatch bench``: how fast it is on this machine, beside a copy and beside others."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click
import torch
from click.core import ParameterSource

from .._options import check_writable, device_option
from .results import Results

NEEDED = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}
NEEDED_BY_HTML = {"jinja2": "jinja2", "plotly": "plotly"}
OF_A_RUN = ("families", "full", "device", "threads", "select", "json_file", "suite")


class File(click.Path):
    """A path to a file, which may not be there yet."""

    def __init__(self, **more):
        super().__init__(dir_okay=False, path_type=Path, **more)


def output(*names, **more):
    """Shorten the options that name a file to write."""
    return click.option(*names, type=File(), callback=check_writable, **more)


@click.command()
@click.argument("families", nargs=-1, metavar="[FAMILY]...")
@click.option(
    "--full", is_flag=True, help="All cases and dtypes, all instruction sets, more rounds."
)
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=torch.get_num_threads,
    show_default="those of PyTorch",
    help="CPU threads.",
)
@click.option("-k", "select", metavar="EXPR", help="Only benchmarks that this selects in pytest.")
@output("--json", "json_file", help="Write the results, to read or to compare later.")
@output("--html", "html_file", help="Write a page with plots, one file that needs no other.")
@click.option(
    "--suite",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the benchmarks, if not the installed ones.",
)
@click.option(
    "--from",
    "sources",
    type=File(),
    multiple=True,
    help="Show this file of results and run nothing; repeat for several machines.",
)
@click.option(
    "--compare",
    "compared",
    type=File(),
    nargs=2,
    metavar="BEFORE AFTER",
    help="Compare two files of results and run nothing.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="With --compare: what is slower by more is a regression.",
)
@click.pass_context
def command(context, sources, compared, threshold, html_file, **asked):
    r"""Measure largebatch on this machine, beside a copy of memory and beside other libraries.

    FAMILY is one of the benchmarks, such as lamb or norm; without one all of them run, in some
    minutes. Ratios are of times that were taken beside each other, round by round.

    The exit status is 1 if a benchmark failed, if it was interrupted, or if --compare found a
    regression: ours slower in time and in units of a copy, and the quartiles apart.

    \b
    Examples:
      largebatch bench
      largebatch bench lamb lion --json after.json --html bench.html
      largebatch bench --compare before.json after.json
      largebatch bench --from cpu.json --from h100.json --html both.html
    """
    _check_usage(context, sources, compared)
    if compared:
        context.exit(_compare(compared, threshold / 100))
    if html_file is not None:
        _need(NEEDED_BY_HTML, "the page")
    if sources:
        _show([_load(file) for file in sources], None, html_file)
        return
    found = _run(**asked)
    _show([found], asked["json_file"], html_file)
    context.exit(int(bool(found.failed) or not found.finished))


def _check_usage(context, sources, compared):
    """Refuse what does not go together."""

    def given(name):
        return context.get_parameter_source(name) is ParameterSource.COMMANDLINE

    params = {param.name: param for param in context.command.params}
    apart = [*OF_A_RUN, *(("html_file", "sources") if compared else ())]
    if sources or compared:
        for name in filter(given, apart):
            what = "FAMILY" if name == "families" else params[name].opts[0]
            option = "--compare" if compared else "--from"
            raise click.UsageError(f"{option} runs nothing: it does not go with {what}.")
    if given("threshold") and not compared:
        raise click.UsageError("--threshold goes with --compare only.")


def _need(modules, what):
    for module, name in modules.items():
        if find_spec(module) is None:
            raise click.ClickException(f"{what} needs {name}: pip install largebatch[bench]")


def _load(path):
    try:
        return Results.load(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _compare(files, threshold):
    from . import tables
    from .compare import compare

    try:
        found = compare(*map(_load, files), threshold)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tables.show_comparison(found)
    return int(bool(found.regressions))


def _run(families, full, device, threads, select, json_file, suite):
    _need(NEEDED, "measuring")
    from . import suite as suites

    asked = suites.Asked(device, threads, families, full, select)
    try:
        found = suites.run(suites.find(suite), asked, suites.default_console(), json_file)
    except suites.Unknown as error:
        raise click.UsageError(str(error)) from error
    except suites.SuiteError as error:
        click.echo(error.log, nl=False)
        raise click.ClickException(str(error)) from error
    return found


def _show(runs, json_file, html_file):
    """Print results, write the page, and say which files there are."""
    from . import tables

    for results in runs:
        tables.show(results)
    if html_file is not None:
        from . import page

        page.write(runs, html_file)
    for name, path in (("Results", json_file), ("Page", html_file)):
        if path is not None:
            click.echo(f"{name}: {path}")
