# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Commands: what they print, how they end, and that they end."""

import os
import sys
import time

import pytest

from tests.gpu.session import Session


def python(session, code, seconds=30, **options):
    session.deadline = time.monotonic() + seconds
    return session.run(sys.executable, "-c", code, **options)


@pytest.fixture
def session(tmp_path):
    return Session("cuda", tmp_path)


def gone(pid):
    """Tell whether the process has ended, or does so very soon."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_output_status_and_environment(session):
    code = "import os, sys; print(os.environ['X'], os.getcwd()); print('e', file=sys.stderr)"
    done = python(session, f"{code}; sys.exit(3)", env={"X": "1"})
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    assert (done.code, done.output.splitlines()) == (3, [f"1 {root}", "e"])
    assert done.last_line == "e"


def test_each_command_has_its_own_output_and_the_log_has_all(session):
    python(session, "print('first')")
    assert python(session, "print('second')").output == "second\n"
    log = (session.folder / "log.txt").read_text()
    assert log.count("====") == 2
    assert log.index("first\n") < log.index("second\n")


def test_a_program_that_is_not_there(session):
    done = session.run("largebatch-no-such-program")
    assert done.code == 127
    assert "No such file" in done.output


def test_bytes_that_are_no_text(session):
    done = python(session, r"import os; os.write(1, b'\xff\n')")
    assert (done.code, done.output) == (0, "\ufffd\n")


def test_no_input_is_waited_for(session):
    assert python(session, "print(repr(input()))").code == 1


def test_a_command_that_hangs_may_write_its_results_before_it_is_stopped(session):
    code = "import time\ntry:\n  time.sleep(60)\nexcept KeyboardInterrupt:\n  print('saved')"
    done = python(session, code, seconds=2)
    assert done.code is None
    assert done.last_line == "saved"
    assert done.seconds < 30


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see that a process is gone")
def test_one_that_ignores_it_is_killed_with_its_children(session):
    deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(60)"
    code = (
        "import signal, subprocess, sys; signal.signal(2, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {deaf!r}])\n"
        "print(child.pid, flush=True); child.wait()"
    )
    done = python(session, code, seconds=2)
    assert done.code is None
    assert done.seconds < 30
    assert gone(int(done.output.split()[0]))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see that a process is gone")
def test_children_left_behind_are_killed(session):
    code = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    done = python(session, code)
    assert done.code == 0
    assert gone(int(done.output))


def test_a_share_of_the_time(session):
    done = python(session, "import time; time.sleep(60)", seconds=600, share=1 / 600)
    assert done.code is None
    assert done.seconds < 30
