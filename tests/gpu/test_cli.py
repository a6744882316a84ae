# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The command line, what it records, and one run from end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from tests.conftest import BACKENDS
from tests.gpu import __main__ as cli
from tests.gpu import machine as machines
from tests.gpu.report import FAILED, OK, Row
from tests.gpu.session import ROOT
from tests.gpu.stages import Stage


@pytest.fixture
def ran(monkeypatch, machine):
    """Leave one stage that does nothing, and return the sessions that it is given."""
    sessions = []

    def rows(session):
        sessions.append(session)
        yield Row("tests", "all", OK)

    names = [stage.name for stage in cli.STAGES]
    monkeypatch.setattr(cli, "STAGES", [Stage(name, 10, rows) for name in names])
    monkeypatch.setattr(cli, "describe", lambda commit: machine | {"commit": commit})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return sessions


def invoke(*arguments, **options):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], **options)


def result(folder):
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())


def test_settings_reach_the_stages_and_the_file(ran, tmp_path):
    out = tmp_path / "new" / "folder"
    arguments = ["--select", "lamb", "--only", "tests", "--minutes", "0.5", "--commit", "abc"]
    done = invoke(*arguments, "--backend", "simt", "--out", out)
    assert done.exit_code == 0, done.output
    assert (ran[0].backend, ran[0].select) == ("simt", "lamb")
    content = result(out)
    assert content["commit"] == "abc"
    assert content["settings"] == {
        "backend": "simt",
        "stages": ["tests"],
        "select": "lamb",
        "minutes": 0.5,
    }


def test_defaults(ran, tmp_path):
    assert invoke(env={"OUT": str(tmp_path)}).exit_code == 0
    settings = result(tmp_path)["settings"]
    assert (settings["backend"], settings["minutes"], settings["select"]) == ("cuda", 9.0, None)
    assert len(ran) == len(settings["stages"]) == 7


def test_stages_can_be_left_out(ran, tmp_path):
    invoke("--skip", "build", "--skip", "huge", "--out", tmp_path)
    assert result(tmp_path)["settings"]["stages"] == [
        "tests",
        "graphs",
        "cupy",
        "sanitizers",
        "benches",
    ]


def test_the_exit_code_is_that_of_the_report(ran, tmp_path, monkeypatch):
    stage = Stage("tests", 10, lambda session: [Row("tests", "all", FAILED, "1 failed")])
    monkeypatch.setattr(cli, "STAGES", [stage])
    done = invoke("--out", tmp_path)
    assert done.exit_code == 1
    assert "1 failed. Written to" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "rocm"], "'rocm' is not one of 'cuda', 'simt'"),
        (["--only", "test"], "'test' is not one of 'build', 'tests'"),
        (["--only", "build", "--skip", "build"], "--only and --skip leave no stage to run"),
        (["--minutes", "0"], "0.0 is not in the range"),
        (["--minutes", "nine"], "'nine' is not a valid float"),
        (["--out", "{file}"], "is a file"),
        (["--out", "{file}/below"], "--out: results cannot be written"),
        (["lamb"], "unexpected extra argument (lamb)"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(ran, tmp_path, arguments, message):
    file = tmp_path / "file"
    file.touch()
    done = invoke(*(argument.format(file=file) for argument in arguments))
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert ran == []


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_a_missing_library_is_named(missing):
    code = f"import runpy, sys; sys.modules[{missing!r}] = None; "
    code += "runpy.run_module('tests.gpu', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"make gpu needs {missing}: ")
    assert done.stderr.count("\n") == 1


def test_the_backends_are_those_of_the_tests():
    assert set(cli.BACKENDS) == set(BACKENDS)


# ---- What is known of the machine ----------------------------------------------------------------


def test_this_machine_without_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machines.describe()
    assert found["device"] is None
    assert found["no_gpu"].startswith("torch ")
    assert found["torch"] and found["python"] and found["date"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('libcuda is broken')", "OSError: libcuda is broken"),
        ("import os; os._exit(3)", "torch ended with status 3"),
        ("print('Hello!')", "torch printed something else"),
        ("import time; time.sleep(60)", "torch did not answer within 1 s"),
    ],
)
def test_a_torch_that_does_not_answer_is_a_reason(monkeypatch, code, reason):
    original = subprocess.run

    def run(command, **options):
        return original([sys.executable, "-c", code], **options)

    monkeypatch.setattr(machines, "SECONDS", 1)
    monkeypatch.setattr(machines, "_first_line", lambda *_: None)
    monkeypatch.setattr(machines.subprocess, "run", run)
    found = machines.describe()
    assert found["device"] is None
    assert found["no_gpu"].startswith(reason)
    assert found["commit"] == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="makes a git repository")
def test_commit_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machines.current_commit() == "unknown"

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "kernel.cu").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = machines.current_commit()
    assert len(clean) == 40
    (tmp_path / "bench/results").mkdir(parents=True)
    (tmp_path / "bench/results/x.json").write_text("{}")
    assert machines.current_commit() == clean
    (tmp_path / "kernel.cu").write_text("2")
    assert machines.current_commit() == f"{clean}-dirty"


# ---- From end to end -----------------------------------------------------------------------------


def command(*arguments):
    return [sys.executable, "-m", "tests.gpu", *map(str, arguments)]


@pytest.mark.skipif(sys.platform != "linux", reason="the simt backend needs Linux")
def test_a_run_with_simt_in_place_of_cuda(tmp_path):
    arguments = ["--backend", "simt", "--skip", "build", "--out", tmp_path]
    done = subprocess.run(
        command(*arguments, "--select", "test_all_empty or bench_norm"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    content = result(tmp_path)
    assert content["finished"]
    rows = {row["stage"]: row for row in content["rows"] if row["what"] == "all"}
    for name in ("tests", "benches"):
        assert rows[name]["status"] == "ok"
        assert rows[name]["numbers"]["passed"] >= 2
    for name in ("graphs", "cupy", "huge", "sanitizers"):
        assert rows[name]["status"] == "skipped"
    # Beside the stages: a line that says why CuPy, one of the baselines, is not measured.
    assert done.stdout.splitlines()[-1].startswith("2 ok, 5 skipped. Written to ")
    assert "passed, 0 failed" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_run_that_is_told_to_stop_prints_its_table(tmp_path):
    arguments = ["--backend", "cpu-base", "--only", "tests", "--out", tmp_path]
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout.readline().startswith("tests: at most ")
    time.sleep(0.2)  # a moment later its command runs; a moment earlier would do as well
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "interrupted" in output
    assert result(tmp_path)["finished"]
