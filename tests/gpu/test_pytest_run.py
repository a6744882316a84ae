# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of pytest as rows: a real one of everything that can happen to a test, and broken ones."""

import re
import time

import pytest

from tests.gpu.pytest_run import pytest_rows, read, telling_line
from tests.gpu.report import FAILED, OK, SKIPPED, TIMED_OUT
from tests.gpu.session import Finished

EVERYTHING = """
import pytest

@pytest.fixture
def broken():
    raise OSError("no device")

@pytest.fixture
def breaks_later():
    yield
    raise OSError("still busy")

def test_passes(): pass
@pytest.mark.parametrize("x", ["a[b]"])
def test_fails(x): assert 1 + 1 == 3, "sum\\nsecond line"
class TestGroup:
    def test_raises(self): raise ValueError("bad <value> & more")
def test_setup(broken): pass
def test_teardown(breaks_later): pass
def test_skips(): pytest.skip("no GPU: none here")
def test_skips_too(): pytest.skip("no GPU: none here")
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""
FILES = {
    "test_everything": EVERYTHING,
    "test_import": "import largebatch_no_such_module",
    "test_whole": "import pytest\npytest.skip(\"no 'CuPy' here\", allow_module_level=True)",
    "test_absent": "import pytest\npytest.importorskip('largebatch_no_such_module')",
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # starts faster
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.fixture
def run(session, files):
    """Return a function: the rows of a run of pytest on some of the files."""

    def call(*names, seconds=100, **options):
        session.deadline = time.monotonic() + seconds
        paths = [files / f"{name}.py" for name in names]
        return list(pytest_rows(session, "tests", "--rootdir", files, *paths, **options))

    return call


def test_everything_that_can_happen(run):
    count, *failures, skips = run(*FILES)
    assert count.status == FAILED
    assert count.numbers == {"passed": 1, "failed": 5, "skipped": 5}
    assert count.text.startswith("1 passed, 5 failed, 5 skipped in ")
    assert {(row.what.rpartition("::")[2], row.status, row.text) for row in failures} == {
        ("test_fails[a[b]]", FAILED, "AssertionError: sum"),
        ("test_raises", FAILED, "ValueError: bad <value> & more"),
        ("test_setup", FAILED, 'failed on setup with "OSError: no device"'),
        ("test_teardown", FAILED, 'failed on teardown with "OSError: still busy"'),
        ("test_import", FAILED, "ModuleNotFoundError: No module named 'largebatch_no_such_module'"),
    }
    assert any("TestGroup::test_raises" in row.what for row in failures)
    assert (skips.status, skips.what) == (SKIPPED, "5 skipped")
    assert skips.text.splitlines()[0] == "2: no GPU: none here"
    assert skips.numbers["reasons"] == {
        "no GPU: none here": 2,
        "known": 1,
        "no 'CuPy' here": 1,
        "could not import 'largebatch_no_such_module': "
        "No module named 'largebatch_no_such_module'": 1,
    }


def test_selection(run, session):
    session.select = "passes or fails"
    (count,) = run("test_everything", select="not fails")
    assert (count.status, count.numbers["passed"], count.numbers["failed"]) == (OK, 1, 0)
    session.select = "no_such_test"
    (count,) = run("test_everything")
    assert (count.status, count.text) == (SKIPPED, "no test matches")


def test_all_skipped_is_no_success(run):
    count, _ = run("test_whole")
    assert count.status == SKIPPED


def test_a_wrong_argument_is_a_failure_with_its_message(session, files):
    (count,) = pytest_rows(session, "tests", files, "--no-such-option")
    assert count.status == FAILED
    assert "ended with status 4" in count.text
    assert "unrecognized arguments: --no-such-option" in count.text


SEVERAL = """
import os, signal, time
def test_quick(): pass
def test_wrong(): assert 1 == 2
def test_last(): {last}
"""


def test_a_test_that_hangs_is_named_and_those_before_it_count(run, files):
    (files / "test_hang.py").write_text(SEVERAL.format(last="time.sleep(600)"))
    count, wrong = run("test_hang", seconds=4)
    assert (count.status, count.numbers) == (TIMED_OUT, {"passed": 1, "failed": 1, "skipped": 0})
    assert re.search(r"; stopped in \S+test_hang.py::test_last$", count.text)
    assert wrong.text == "assert 1 == 2"


def test_one_that_must_be_killed_is_named_too(run, files):
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"
    (files / "test_hang.py").write_text(SEVERAL.format(last=deaf))
    count, wrong = run("test_hang", seconds=4)
    assert (count.status, count.numbers) == (TIMED_OUT, {"passed": 1, "failed": 1, "skipped": 0})
    assert re.search(r"; stopped in \S+test_hang.py::test_last$", count.text)
    assert wrong.what.endswith("test_hang.py::test_wrong")


def test_a_crash_is_a_failure_with_its_reason(run, files):
    (files / "test_crash.py").write_text(SEVERAL.format(last="os.kill(os.getpid(), 11)"))
    count, _ = run("test_crash")
    assert (count.status, count.numbers) == (FAILED, {"passed": 1, "failed": 1, "skipped": 0})
    assert "test_last Fatal Python error: Segmentation fault" in count.text


def test_a_file_of_results_that_is_cut_off(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text("<testsuites><testsuite><testcase name='a'/>")
    ((name, line),) = read(path).failures
    assert name == "tests.xml"
    assert line.startswith("unreadable: ")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "a\n  error: subprocess-exited-with-error\nx.cu(3): error: no such type\nb",
            "x.cu(3): er",
        ),
        ("-- ok\nCMake Error at CMakeLists.txt:3\nlast", "CMake Error at"),
        ("one\nlast line\n\n", "last line"),
        ("", "no output"),
    ],
)
def test_the_telling_line(output, line):
    assert telling_line(Finished(1, output, 0.0)).startswith(line)
