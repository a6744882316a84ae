# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in a stage becomes a row, and those after it run."""

import json
import sys
from types import SimpleNamespace

import pytest

from tests.gpu.driver import run_stages
from tests.gpu.report import FAILED, OK, SKIPPED, TIMED_OUT, Report, Row
from tests.gpu.session import Session
from tests.gpu.stages import STAGES, Stage


def fine(session):
    yield Row("fine", "all", OK)


def hangs(session):
    done = session.run(sys.executable, "-c", "import time; time.sleep(60)")
    yield Row("hangs", "all", OK if done.code == 0 else TIMED_OUT)


def raises(session):
    yield Row("raises", "first", OK)
    raise ZeroDivisionError("of a kind")


FINE = Stage("fine", 10, fine)


@pytest.fixture
def run(session, report):
    """Return a function: what the rows say after these stages."""

    def call(*stages, seconds=60):
        run_stages(stages, session, report, seconds, say=lambda _: None)
        return [(row.stage, row.what, row.status, row.text) for row in report.rows]

    return call


def test_a_stage_that_hangs_is_stopped(run, report):
    rows = run(Stage("hangs", 5, hangs), Stage("fine", 95, fine), seconds=40)
    assert [(row[0], row[2]) for row in rows] == [("hangs", TIMED_OUT), ("fine", OK)]
    assert report.exit_code == 1


def test_a_stage_that_raises_keeps_the_rows_it_had(run, report):
    rows = run(Stage("raises", 10, raises), FINE)
    assert rows == [
        ("raises", "first", OK, ""),
        ("raises", "all", FAILED, "ZeroDivisionError: of a kind"),
        ("fine", "all", OK, ""),
    ]
    assert report.exit_code == 1


def test_a_stage_without_rows_has_failed(run):
    assert run(Stage("mute", 10, lambda session: [])) == [
        ("mute", "all", FAILED, "it said nothing")
    ]


def test_no_stage_starts_when_the_time_is_over(run, report):
    rows = run(FINE, seconds=0.5)
    assert rows == [("fine", "all", TIMED_OUT, "no time was left for it")]
    assert report.exit_code == 1


@pytest.mark.parametrize("status", [FAILED, TIMED_OUT])
def test_nothing_runs_after_a_failed_build(run, status):
    rows = run(Stage("build", 10, lambda session: [Row("build", "pip", status)]), FINE)
    assert rows[1] == ("fine", "all", SKIPPED, "the build failed")


def test_without_a_gpu_all_is_skipped_and_nothing_has_failed(run, report, machine):
    machine |= {"device": None, "no_gpu": "torch finds none"}
    assert run(FINE) == [("fine", "all", SKIPPED, "no GPU: torch finds none")]
    assert report.exit_code == 0


def test_other_backends_skip_what_needs_a_gpu(run, report, session, machine):
    machine["device"], session.backend = None, "simt"
    rows = run(Stage("graphs", 10, raises, needs_gpu=True), FINE)
    assert rows[0][2:] == (SKIPPED, "needs a GPU, and the backend is simt")
    assert rows[1][2] == OK


def test_an_interrupt_ends_the_run_and_not_the_report(run, report):
    def interrupted(session):
        yield Row("stopped", "first", OK)
        raise KeyboardInterrupt

    rows = run(Stage("stopped", 10, interrupted), FINE)
    assert [row[:3] for row in rows] == [
        ("stopped", "first", OK),
        ("all", "interrupted", FAILED),
    ]
    assert json.loads(report.path.read_text())["finished"]


# ---- Time ----------------------------------------------------------------------------------------


@pytest.fixture
def limits(monkeypatch, session, report):
    """Return a function: the seconds that each of these stages is given, if it takes so many."""
    now = [1000.0]
    for module in ("driver", "session"):
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(f"tests.gpu.{module}.time", clock)

    def call(*stages):
        given = []

        def takes(seconds):
            def rows(session):
                given.append(session.left())
                now[0] += seconds
                yield Row("x", "all", OK)

            return rows

        stages = [Stage(n, share, takes(t), needs_gpu) for n, share, t, needs_gpu in stages]
        run_stages(stages, session, report, 100, say=lambda _: None)
        return given

    return call


def test_time_is_kept_for_the_stages_to_come(limits):
    assert limits(("a", 50, 0, False), ("b", 20, 0, False), ("c", 30, 0, False)) == [50, 70, 100]


def test_a_stage_that_takes_all_it_is_given_leaves_the_others_their_shares(limits):
    assert limits(("a", 50, 50, False), ("b", 20, 5, False), ("c", 30, 0, False)) == [50, 20, 45]


def test_none_is_kept_for_stages_that_will_be_skipped(limits, session):
    session.backend = "simt"
    assert limits(("a", 50, 0, False), ("b", 20, 0, True), ("c", 30, 0, False)) == [70, 100]


def test_the_shares_of_the_stages_are_the_whole():
    assert sum(stage.share for stage in STAGES) == 100
    assert [stage.name for stage in STAGES[:2]] == ["build", "tests"]


# ---- The file ------------------------------------------------------------------------------------


def test_the_file_is_written_after_every_stage(session, report):
    seen = []

    def look(session):
        seen.append(json.loads(report.path.read_text()))
        yield Row("look", "all", OK)

    run_stages([FINE, Stage("look", 10, look)], session, report, 60, say=lambda _: None)
    assert [row["stage"] for row in seen[0]["rows"]] == ["fine"]
    assert not seen[0]["finished"]
    final = json.loads(report.path.read_text())
    assert [stage["name"] for stage in final["stages"]] == ["fine", "look"]
    assert final["finished"]


def test_what_stages_learn_of_the_machine_is_in_the_file(tmp_path, machine):
    def learn(session):
        session.machine["copy_GBps"] = 4000.0
        yield Row("learn", "all", OK)

    report = Report(tmp_path, machine, {})
    session = Session("cuda", report.folder, machine=machine)
    run_stages([Stage("learn", 10, learn)], session, report, 60, say=lambda _: None)
    assert json.loads(report.path.read_text())["copy_GBps"] == 4000.0
