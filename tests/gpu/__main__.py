# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.gpu``: what ``make gpu`` runs."""

import signal
import sys
from pathlib import Path

try:
    import click
    import rich  # noqa: F401
except ImportError as error:
    sys.exit(f"make gpu needs {error.name}: {sys.executable} -m pip install click rich")

from .driver import run_stages
from .machine import describe
from .report import Report
from .session import ROOT, Session
from .stages import STAGES

BACKENDS = ("cuda", "simt", "cpu-base", "cpu-avx2", "cpu-avx512")
NAMES = click.Choice([stage.name for stage in STAGES])


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backend", type=click.Choice(BACKENDS), default="cuda", show_default=True,
              help="Any but cuda: whatever of the run needs no GPU.")  # fmt: skip
@click.option("--only", type=NAMES, multiple=True, help="Run this stage only (repeatable).")
@click.option("--skip", type=NAMES, multiple=True, help="Leave this stage out (repeatable).")
@click.option("--select", metavar="EXPR", help="Run only the tests and benches that pytest -k has.")
@click.option("--out", type=click.Path(file_okay=False, resolve_path=True, path_type=Path),
              envvar="OUT", default=ROOT / "bench/results", show_default="bench/results",
              help="Folder for the results; $OUT if that is set.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(0, 600, min_open=True), default=9.0,
              show_default=True, help="Time for all stages together.")  # fmt: skip
@click.option("--commit", help="What to record where the files are not in a git repository.")
def main(backend, only, skip, select, out, minutes, commit):
    """Build, test and measure the package on this machine's GPU.

    Prints a table last and writes everything to <gpu>-<date>.json. The exit status is 1 if a row of
    the table failed or ran out of time. See docs/gpu.md.
    """
    stages = [s for s in STAGES if s.name not in skip and (not only or s.name in only)]
    if not stages:
        raise click.UsageError("--only and --skip leave no stage to run.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the table is printed all the same
    machine = describe(commit)
    settings = {
        "backend": backend,
        "stages": [stage.name for stage in stages],
        "select": select,
        "minutes": minutes,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        report = Report(out, machine, settings)
    except OSError as error:
        raise click.ClickException(f"--out: results cannot be written: {error}") from error
    session = Session(backend, report.folder, select, machine)
    run_stages(stages, session, report, 60 * minutes, click.echo)
    report.print()
    raise SystemExit(report.exit_code)


if __name__ == "__main__":
    main(prog_name="python -m tests.gpu")
