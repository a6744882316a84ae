# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Runs stages one after the other. Whatever happens in one becomes a row of the report."""

import time

from .report import FAILED, SKIPPED, TIMED_OUT, Row


def run_stages(stages, session, report, seconds, say=print):
    """Run the stages within that time, saving the report after each."""
    end = time.monotonic() + seconds
    try:
        for i, stage in enumerate(stages):
            waiting = [later for later in stages[i + 1 :] if not _why_not(later, session, report)]
            kept = sum(later.share for later in waiting) / 100 * seconds
            _run(stage, session, report, end - kept, say)
    except KeyboardInterrupt:
        report.rows.append(Row("all", "interrupted", FAILED, "stages may be missing"))
    report.finished = True
    report.save()


def _run(stage, session, report, deadline, say):
    began, before = time.monotonic(), len(report.rows)
    session.deadline = deadline
    reason = _why_not(stage, session, report)
    try:
        if reason:
            report.rows.append(Row(stage.name, "all", SKIPPED, reason))
        elif session.left() < 1:
            report.rows.append(Row(stage.name, "all", TIMED_OUT, "no time was left for it"))
        else:
            say(f"{stage.name}: at most {session.left():.0f} s")
            for row in stage.rows(session):
                report.rows.append(row)
    except Exception as error:
        report.rows.append(Row(stage.name, "all", FAILED, f"{type(error).__name__}: {error}"))
    if len(report.rows) == before:
        report.rows.append(Row(stage.name, "all", FAILED, "it said nothing"))
    report.stages.append({"name": stage.name, "seconds": round(time.monotonic() - began, 1)})
    report.save()


def _why_not(stage, session, report):
    """Return why a stage cannot run, or None."""
    if session.backend == "cuda" and session.machine["device"] is None:
        return f"no GPU: {session.machine['no_gpu']}"
    if session.backend != "cuda" and stage.needs_gpu:
        return f"needs a GPU, and the backend is {session.backend}"
    if any(r.stage == "build" and r.status in (FAILED, TIMED_OUT) for r in report.rows):
        return "the build failed"
    return None
