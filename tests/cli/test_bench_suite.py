# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import io
import sys

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from largebatch.cli import main
from largebatch.cli.bench import page, suite
from largebatch.cli.bench.results import Results

from .bench_setting import fake_suite, make  # noqa: F401

FAILS = {"ops/bench_kron.py": "def bench_kron():\n    raise MemoryError('9 GB')\n"}
SKIPS = {"ops/bench_norm.py": "import pytest\ndef bench_norm():\n    pytest.skip('no apex')\n"}
STOPS = {"ops/bench_topk.py": "def bench_topk():\n    raise KeyboardInterrupt\n"}


@pytest.fixture
def folder(fake_suite):  # noqa: F811
    return fake_suite()


def invoke(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def last_line(result):
    return result.output.splitlines()[-1]


# ---- Running -------------------------------------------------------------------------------------


def test_a_run_prints_tables_and_writes_both_files(folder, tmp_path):
    files = ["--json", tmp_path / "r.json", "--html", tmp_path / "r.html"]
    result = invoke("--suite", folder, "--device", "cpu", "--threads", 3, *files)
    assert result.exit_code == 0, result.output
    found = Results.load(tmp_path / "r.json")
    assert [row["family"] for row in found.rows] == ["wire", "lamb"]
    assert {row["threads"] for row in found.rows} == {found.machine["threads"]} == {3}
    assert found.settings == {"grid": "quick", "families": [], "select": None}
    assert found.finished
    assert "Results: " in result.output
    assert last_line(result) == f"Page: {tmp_path / 'r.html'}"
    assert result.output.index("\nlamb") < result.output.index("Summary: the first case of each")
    # Neither pytest nor what benchmarks print is to be seen.
    for text in ("passed", "collected", "said by a benchmark", "and by its warnings", "rootdir"):
        assert text not in result.output
    assert 'id="roofline-0"' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "families"),
    [
        (["lamb"], ["lamb"]),
        (["wire", "lamb"], ["wire", "lamb"]),
        (["-k", "lamb"], ["lamb"]),
        (["wire", "-k", "not lamb"], ["wire"]),
    ],
)
def test_families_and_expressions_select(folder, tmp_path, arguments, families):
    result = invoke(*arguments, "--suite", folder, "--json", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert [row["family"] for row in Results.load(tmp_path / "r.json").rows] == families


def test_full_asks_for_the_full_grid(folder, tmp_path):
    invoke("lamb", "--full", "--suite", folder, "--json", tmp_path / "r.json")
    found = Results.load(tmp_path / "r.json")
    assert found.rows[0]["case"] == found.settings["grid"] == "full"


def test_a_failure_is_told_and_stops_no_other(fake_suite, tmp_path):  # noqa: F811
    broken = {"ops/bench_broken.py": "import no_such_module\n"}
    folder = fake_suite({**FAILS, **broken})
    result = invoke("--suite", folder, "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "failed: ops/bench_kron.py::bench_kron: MemoryError: 9 GB" in result.output
    assert "ModuleNotFoundError: No module named 'no_such_module'" in result.output
    found = Results.load(tmp_path / "r.json")
    assert [row["family"] for row in found.rows] == ["wire", "lamb"]
    assert len(found.failed) == 2
    assert found.finished


def test_a_skip_is_told_and_is_no_failure(fake_suite, tmp_path):  # noqa: F811
    result = invoke("--suite", fake_suite(SKIPS), "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    assert "norm: skipped: no apex (1)\n" in result.output
    assert len(Results.load(tmp_path / "r.json").skipped) == 1


def test_what_there_is_at_an_interruption_is_kept(fake_suite, tmp_path):  # noqa: F811
    result = invoke("topk", "wire", "--suite", fake_suite(STOPS), "--json", tmp_path / "n.json")
    assert result.exit_code == 1
    assert not Results.load(tmp_path / "n.json").rows
    result = invoke("wire", "topk", "lamb", "--suite", fake_suite(), "--json", tmp_path / "r.json")
    assert result.exit_code == 1
    assert "Not all of it ran" in result.output
    found = Results.load(tmp_path / "r.json")
    assert [row["family"] for row in found.rows] == ["wire"]
    assert not found.finished


def test_options_and_plugins_of_other_tests_stay_out(folder, tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_plugin")
    result = invoke("lamb", "--suite", folder)
    assert result.exit_code == 0, result.output
    assert suite.os.environ["PYTEST_ADDOPTS"] == "--no-such-option"


def test_what_pytest_said_is_shown_if_it_fails(fake_suite):  # noqa: F811
    result = invoke("--suite", fake_suite(conftest="raise RuntimeError('broken conftest')\n"))
    assert result.exit_code == 1
    assert "broken conftest" in result.output
    assert last_line(result).startswith("Error: pytest did not run the benchmarks: ")


# ---- Progress ------------------------------------------------------------------------------------


def test_progress_is_drawn_on_a_terminal(folder):
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=120)
    found = suite.run(folder, suite.Asked(torch.device("cpu"), 1), console)
    assert len(found.rows) == 2
    for text in ("wire pack ", "lamb lamb ", "0/2", "1/2", "2/2"):
        assert text in said.getvalue()


def test_there_is_no_progress_without_a_terminal(folder):
    said = io.StringIO()
    suite.run(folder, suite.Asked(torch.device("cpu"), 1), Console(file=said))
    assert said.getvalue() == ""


def test_progress_reaches_a_terminal_that_pytest_captures_too(folder, capfd):
    with open(2, "w", closefd=False) as stderr:
        console = Console(file=stderr, force_terminal=True, width=120)
        suite.run(folder, suite.Asked(torch.device("cpu"), 1), console)
    said = capfd.readouterr().err
    assert all(text in said for text in ("wire pack ", "lamb lamb ", "0/2", "1/2", "2/2"))


# ---- Finding -------------------------------------------------------------------------------------


def test_the_suite_is_the_wheels_or_the_clones(folder, tmp_path, monkeypatch):
    package = tmp_path / "python" / "largebatch"
    monkeypatch.setattr(suite, "PACKAGE", package)
    with pytest.raises(suite.SuiteError, match="in a clone of the repository: --suite bench"):
        suite.find()
    folder.rename(tmp_path / "bench")
    assert suite.find() == tmp_path / "bench"
    wheel = package / "_bench" / "ops"
    wheel.mkdir(parents=True)
    assert suite.find() == tmp_path / "bench"
    (wheel / "bench_x.py").write_text("")
    assert suite.find() == package / "_bench"
    assert list(suite.families(package / "_bench")) == ["x"]
    assert suite.find(tmp_path / "bench") == tmp_path / "bench"


# ---- Wrong usage: one line, before anything runs -------------------------------------------------


@pytest.fixture
def nothing_runs(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("benchmarks ran")

    monkeypatch.setattr(suite.pytest, "main", refuse)


@pytest.fixture
def saved(tmp_path):
    file = tmp_path / "saved.json"
    make().save(file)
    return file


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lam"], "Error: unknown family 'lam'; there are lamb, wire."),
        (["--threads", "0"], "'--threads': 0 is not in the range x>=1."),
        (["--device", "tpu"], "'--device': 'tpu' is not one of auto, cpu, cuda, cuda:N."),
        (["--json", "/no/such/r.json"], "'--json': /no/such/r.json cannot be written: No such fil"),
        (["--html", "/no/such/r.html"], "'--html': /no/such/r.html cannot be written: No such fil"),
        (["--threshold", "5"], "Error: --threshold goes with --compare only."),
        (["--suite", "/no/such"], "'--suite': Directory '/no/such' does not exist."),
    ],
)
def test_wrong_usage_of_a_run(folder, arguments, message):
    result = invoke("--suite", folder, *arguments)
    assert result.exit_code == 2
    assert message in last_line(result)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    "options",
    [["lamb"], ["--full"], ["--device", "cpu"], ["--threads", 1], ["-k", "x"], ["--json", "x.json"],
     ["--suite", "."]],
)  # fmt: skip
def test_what_runs_nothing_takes_no_options_of_a_run(saved, options):
    name = "FAMILY" if options == ["lamb"] else options[0]
    for command, arguments in (("--from", [saved]), ("--compare", [saved, saved])):
        result = invoke(*options, command, *arguments)
        assert result.exit_code == 2
        assert last_line(result) == f"Error: {command} runs nothing: it does not go with {name}."


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize("options", [["--from", "saved.json"], ["--html", "x.html"]])
def test_compare_makes_no_report(saved, options, monkeypatch):
    monkeypatch.chdir(saved.parent)
    result = invoke("--compare", saved, saved, *options)
    assert result.exit_code == 2
    assert last_line(result).endswith(f"it does not go with {options[0]}.")


def test_a_folder_without_benchmarks(tmp_path):
    result = invoke("--suite", tmp_path)
    assert result.exit_code == 2
    expected = f"Error: {tmp_path} has no benchmarks: no file bench_*.py is in it."
    assert last_line(result) == expected


@pytest.mark.parametrize(
    ("expression", "code", "message"),
    [
        ("no_such", 2, "Error: there is no benchmark that -k 'no_such' selects for cpu."),
        ("(", 1, "Error: pytest did not run the benchmarks: Wrong expression passed to '-k'"),
    ],
)
def test_expressions_that_select_nothing(folder, expression, code, message):
    result = invoke("--suite", folder, "--device", "cpu", "-k", expression)
    assert result.exit_code == code
    assert last_line(result).startswith(message)


@pytest.mark.usefixtures("nothing_runs")
@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("pytest", [], "measuring needs pytest"),
        ("pytest_benchmark", [], "measuring needs pytest-benchmark"),
        ("plotly", ["--html", "x.html"], "the page needs plotly"),
        ("jinja2", ["--html", "x.html"], "the page needs jinja2"),
    ],
)
def test_what_is_not_installed_is_named(folder, monkeypatch, module, options, message):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, module, None)
    result = invoke("--suite", folder, *options)
    assert result.exit_code == 1
    assert result.output == f"Error: {message}: pip install largebatch[bench]\n"


# ---- Reports of files ----------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_runs")
def test_files_are_shown_and_nothing_runs(saved, tmp_path):
    result = invoke("--from", saved, "--from", saved, "--html", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert result.output.count("Summary: the first case of each") == 2
    html = (tmp_path / "r.html").read_text()
    assert html == page.render([make(), make()])
    assert 'id="roofline-1"' in html


def test_a_wrong_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    for options in (["--from", "x.json"], ["--compare", "x.json", "x.json"]):
        result = CliRunner().invoke(
            main, ["bench", *(str(tmp_path / o) if o == "x.json" else o for o in options)]
        )
        assert result.exit_code == 2
        assert "x.json is not a file of results: " in last_line(result)


def test_help_has_examples():
    result = invoke("--help")
    assert result.exit_code == 0
    assert "largebatch bench --compare before.json after.json" in result.output
