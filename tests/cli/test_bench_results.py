# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import largebatch
from largebatch.cli.bench import results, tables
from largebatch.cli.bench.results import FORMAT, Results

from .bench_setting import MACHINE, make, slower


@pytest.fixture
def written(tmp_path):
    """Return a function that writes results, changed, and returns the file."""

    def write(change=lambda content: None):
        file = tmp_path / "results.json"
        make().save(file)
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
        return file

    return write


# ---- The file ------------------------------------------------------------------------------------


def test_a_file_holds_all_that_was_saved(tmp_path):
    found = make()
    found.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == found
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_file_stays_whole_if_writing_fails(tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    make().save(file)
    before = file.read_text()

    def full(path, text, encoding):
        path.write_bytes(text[:100].encode())
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        make().save(file)
    assert file.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_file_of_the_gpu_run_holds_results(tmp_path, written):
    inner = json.loads(written().read_text())
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"device": "H100", "stages": [], "bench": inner}))
    assert Results.load(file) == make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: "),
        ("\udcff", "is not JSON: "),
        ("[1]", "is not a file of results: write one with largebatch bench --json FILE."),
        ('{"format": 3}', "is not a file of results: "),
        ('{"bench": []}', "is not a file of results: "),
        ('{"format": "largebatch bench 2"}', f"this version reads {FORMAT!r}."),
        (f'{{"format": "{FORMAT}"}}', "'machine' is missing or no dict."),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, text, message):
    file = tmp_path / "other.json"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError) as error:
        Results.load(file)
    assert message in str(error.value)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"no\.json cannot be read: No such file or directory\.$"):
        Results.load(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["rows"][3].pop("q1_ms"), "rows[3]: 'q1_ms' is missing or no such value."),
        (lambda c: c["rows"][0].update(median_ms=0), "rows[0]: 'median_ms' is missing or no"),
        (lambda c: c["rows"][0].update(median_ms=float("nan")), "rows[0]: 'median_ms'"),
        (lambda c: c["rows"][0].update(role="rival"), "rows[0]: 'role' is missing or no"),
        (lambda c: c["rows"][0].update(bytes="4"), "rows[0]: 'bytes' is missing or no"),
        (lambda c: c["rows"].append(4), f"rows[{len(make().rows)}] is no object."),
        (lambda c: c["machine"].pop("threads"), "the machine lacks 'threads'."),
        (lambda c: c["problems"].append({}), "problems[2] lacks 'benchmark' or 'problem'."),
        (lambda c: c.update(rows={}), "'rows' is missing or no list."),
    ],
)
def test_a_damaged_file_is_refused_where_it_is_damaged(written, change, message):
    with pytest.raises(ValueError) as error:
        Results.load(written(change))
    assert message in str(error.value)


# ---- Rows and groups -----------------------------------------------------------------------------


def report(when="call", outcome="passed", longrepr=None, properties=()):
    return SimpleNamespace(
        when=when, nodeid="bench_x.py::bench_x", longrepr=longrepr, user_properties=properties,
        skipped=outcome == "skipped", failed=outcome == "failed",
    )  # fmt: skip


def test_reports_become_rows_and_problems():
    row = make().rows[0]
    found = Results({**MACHINE, "copy_GBps": None})
    for copy in (10.0, 30.0, 20.0):
        with_row = [("row", {**row, "copy_GBps": copy})]
        for when in ("setup", "call", "teardown"):  # the properties are in each
            found.add(report(when, properties=with_row if when != "setup" else ()))
    found.add(report(outcome="skipped", longrepr=("file", 3, "Skipped: no apex")))
    found.add(report("setup", "failed", "E   first\nE   ValueError: so\nfile:3: ValueError"))
    assert [r["copy_GBps"] for r in found.rows] == [10, 30, 20]
    assert found.machine["copy_GBps"] == 20
    assert [p["problem"] for p in found.skipped] == ["skipped: no apex"]
    assert [p["problem"] for p in found.failed] == ["ValueError: so"]


def test_a_benchmark_that_failed_after_its_row_has_none():
    found = Results(dict(MACHINE))
    found.add(report(outcome="failed", longrepr="E  x", properties=[("row", make().rows[0])]))
    assert not found.rows
    assert len(found.failed) == 1


def test_the_base_of_a_group_runs_on_the_best_backend():
    found = make()
    found.rows.reverse()  # cpu-base comes first now
    key = ("lamb", "step", "bert-35m", "float32", MACHINE["device"])
    rows = found.groups()[key]
    assert next(r for r in rows if r["role"] == "ours")["backend"] == "cpu-base"
    assert found.base(rows)["backend"] == "cpu-avx512"
    assert found.base([r for r in rows if r["role"] != "ours"]) is None


# ---- The machine ---------------------------------------------------------------------------------


def test_the_machine_of_a_cpu():
    machine = results.describe(torch.device("cpu"), 3)
    assert set(machine) == set(MACHINE)
    assert machine["backend"] == f"cpu-{largebatch.build_info()['cpu']['isa']}"
    assert machine["threads"] == 3
    assert machine["device"] == results.device_name(torch.device("cpu")) != ""
    assert machine["cuda"] is machine["driver"] is None
    assert machine["commit"] == "unknown"
    assert machine["torch"] == torch.__version__


def test_the_commit_is_that_of_the_folder_if_it_is_in_it(tmp_path):
    def git(*command):
        name = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", *name, "-C", tmp_path, *command], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(folder):
        return results.describe(torch.device("cpu"), 1, folder)["commit"]

    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "conftest.py").write_text("")
    (tmp_path / "conftest.py").write_text("")
    git("init", "-q")
    git("add", "conftest.py")
    git("commit", "-qm", "first")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    assert commit(installed) == "unknown"
    (tmp_path / "conftest.py").write_text("# changed\n")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_results_import_no_plots_and_no_pytest():
    code = (
        "import sys, largebatch.cli.bench.results, largebatch.cli.bench.tables\n"
        "print([m for m in ('plotly', 'jinja2', 'pytest', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- Tables --------------------------------------------------------------------------------------


def cells(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_the_summary_has_the_first_case_and_the_best_peer():
    lines = cells(tables.summary(make()))
    assert [line[0] for line in lines] == [
        "lamb: step", "lion: step", "wire: pack int8", "wire: mean of 4 sign", "topk: top 0.1%",
        "ulysses: q, k, v to heads",
    ]  # fmt: skip
    assert lines[0] == (
        "lamb: step", "bert-35m, float32", "67.8", "90 %", "timm", "234",
        "[green]3.45x faster[/]", "torch AdamW fused", "52.5",
    )  # fmt: skip
    assert lines[1][4:7] == ("lion-pytorch Triton", "33.9", "[red]1.08x slower[/]")
    assert lines[3][4:] == ("-",) * 5


def test_the_summary_of_a_group_without_ours():
    found = make()
    found.rows = [r for r in found.rows if r["role"] != "ours"]
    assert cells(tables.summary(found))[0][2:5] == ("-", "-", "timm")


def test_details_have_all_rows_ours_first():
    found = make()
    found.rows.reverse()
    shown = {table.title: cells(table) for table in tables.details(found)}
    calls = [line[0].strip() for line in shown["lamb"]]
    at = calls.index("[cyan]step, bert-35m, float32[/]")
    assert calls[at + 1 : at + 3] == ["largebatch (cpu-base)", "largebatch"]
    assert sum(len(lines) for lines in shown.values()) == len(found.rows) + len(found.groups())
    timm = shown["lamb"][calls.index("timm", calls.index("[cyan]step, tiny-5000, bfloat16[/]"))]
    assert timm[1:] == ("21.8", "5 %", "17.5", "10.35", "~127", "5.80", "29 %", "40", "7.03")


def test_names_are_no_markup(capsys):
    found = make()
    found.rows[0].update(case="[bold]x[/]", implementation="[/nothing]")
    found.problems[0]["problem"] = "skipped: [/]"
    found.problems[1]["problem"] = "[/]"
    tables.show(found)
    said = capsys.readouterr().out
    assert said.count("[bold]x[/]") == 2  # among all rows and in the summary
    assert "[/nothing]" in said
    assert "lamb: skipped: [/] (1)\n" in said
    assert "bench_kron[a]: [/]\n" in said
    assert "Not all of it ran" not in said


def test_numbers_have_three_digits():
    shown = [tables.ms(x) for x in (None, 0, 9e-7, 0.001234, 0.1234, 1.0, 12.34, 123.4, 12345.6)]
    assert shown == ["-", "0", "<0.001", "0.00123", "0.123", "1.00", "12.3", "123", "12,346"]
    assert slower(make().rows[0], 2)["GBps"] == make().rows[0]["GBps"] / 2
