# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The table and the file."""

import io
import json

import pytest
from rich.console import Console

from tests.gpu.report import FAILED, OK, ROWS_SHOWN, SKIPPED, STATUSES, TIMED_OUT, Report, Row


def printed(report):
    console = Console(file=io.StringIO(), width=110)
    report.print(console)
    return console.file.getvalue()


def test_table_has_every_row_and_ends_with_the_counts_and_the_file(report):
    report.rows = [
        Row("tests", "all", FAILED, "9 passed, 1 failed"),
        Row("tests", "test_x[cuda-bold]", FAILED, "[red] is not a colour"),
        Row("cupy", "all", SKIPPED, "no CuPy"),
        Row("huge", "all", TIMED_OUT, "stopped"),
    ]
    text = printed(report)
    for row in report.rows:
        (line,) = (s for s in text.splitlines() if row.text in s)
        assert row.what in line
        assert row.status in line
    assert "device NVIDIA H200, driver 580.1, cuda 13.0, torch 2.11.0, commit abc-dirty" in text
    assert text.splitlines()[-1] == f"2 failed, 1 skipped, 1 timed out. Written to {report.path}"


def test_long_texts_are_cut_in_the_table_and_whole_in_the_file(report):
    report.rows = [Row("tests", "all", FAILED, "x" * 5000)]
    report.save()
    assert printed(report).count("x") < 1000
    assert json.loads(report.path.read_text())["rows"][0]["text"] == "x" * 5000


def test_many_failures_of_one_stage_do_not_bury_the_others(report):
    report.rows = [Row("tests", f"test_{i}_", FAILED) for i in range(500)]
    report.rows.append(Row("benches", "all", OK, "fast"))
    text = printed(report)
    assert f"test_{ROWS_SHOWN - 1}_" in text
    assert f"test_{ROWS_SHOWN}_" not in text
    assert f"{500 - ROWS_SHOWN} more" in text
    assert "fast" in text
    assert "500 failed" in text


def test_nothing_known_of_the_machine(tmp_path, machine):
    report = Report(tmp_path, machine | dict.fromkeys(["device", "driver", "cuda", "torch"]), {})
    assert report.path.name == "no-gpu-2026-11-20.json"
    assert "device none, driver none, cuda none, torch none" in printed(report)


@pytest.mark.parametrize("status", STATUSES)
def test_exit_code(report, status):
    report.rows = [Row("a", "all", OK), Row("b", "all", status)]
    assert report.exit_code == (1 if status in (FAILED, TIMED_OUT) else 0)


def test_the_file_is_there_from_the_start_and_complete(report, machine):
    assert report.path.name == "nvidia-h200-2026-11-20.json"
    content = json.loads(report.path.read_text())
    assert content["finished"] is False
    report.rows = [Row("tests", "all", OK, "9 passed", {"passed": 9})]
    report.stages = [{"name": "tests", "seconds": 1.5}]
    report.finished = True
    report.save()
    assert json.loads(report.path.read_text()) == {
        **machine,
        "settings": {"backend": "cuda"},
        "finished": True,
        "stages": [{"name": "tests", "seconds": 1.5}],
        "rows": [
            {
                "stage": "tests",
                "what": "all",
                "status": "ok",
                "text": "9 passed",
                "numbers": {"passed": 9},
            }
        ],
    }


def test_results_of_one_day_stand_side_by_side(tmp_path, machine, report):
    kept = report.path.read_text()
    names = [Report(tmp_path, machine, {"n": n}).path.name for n in (2, 3)]
    assert names == ["nvidia-h200-2026-11-20-2.json", "nvidia-h200-2026-11-20-3.json"]
    assert report.path.read_text() == kept
    assert len({path for path in tmp_path.iterdir() if path.is_dir()}) == 3


def test_device_names_make_file_names(tmp_path, machine):
    report = Report(tmp_path, machine | {"device": "NVIDIA RTX PRO 6000 (Max-Q)/Server"}, {})
    assert report.path.name == "nvidia-rtx-pro-6000-max-q-server-2026-11-20.json"
