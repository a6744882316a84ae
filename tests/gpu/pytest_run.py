# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""A run of pytest as rows: one of counts, one for each failure, one of the reasons of skips."""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from xml.etree import ElementTree

from .report import FAILED, OK, SKIPPED, TIMED_OUT, Row

NOTHING_COLLECTED = 5  # pytest's exit status
OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"


@dataclass
class Results:
    """What is known of the tests of a run."""

    passed: int = 0
    failures: list = field(default_factory=list)  # (test, first line of the error)
    skips: Counter = field(default_factory=Counter)  # reason -> tests


def pytest_rows(session, stage, *arguments, select=None):
    """Run pytest with these arguments and yield its rows."""
    xml = session.folder / f"{stage}.xml"
    done = session.run(*pytest_command(session, *arguments, f"--junitxml={xml}", select=select))
    results = read(xml) if xml.exists() else read_log(done.output)
    yield _count(stage, results, done)
    for test, line in results.failures:
        yield Row(stage, test, FAILED, line)
    if results.skips:
        reasons = dict(results.skips.most_common())
        text = "\n".join(f"{count}: {reason}" for reason, count in reasons.items())
        yield Row(stage, f"{results.skips.total()} skipped", SKIPPED, text, {"reasons": reasons})


def pytest_command(session, *arguments, select=None):
    """Return the command line: verbose, so that the log ends in the name of a test that hangs."""
    chosen = " and ".join(f"({e})" for e in (select, session.select) if e)
    return [sys.executable, "-m", "pytest", "-v", "--color=no", "--continue-on-collection-errors",
            *arguments, *(["-k", chosen] if chosen else [])]  # fmt: skip


def _count(stage, results, done):
    failed, skipped = len(results.failures), results.skips.total()
    counts = f"{results.passed} passed, {failed} failed, {skipped} skipped in {done.seconds:.0f} s"
    numbers = {"passed": results.passed, "failed": failed, "skipped": skipped}
    if done.code is None:
        status = TIMED_OUT
        counts += f"; stopped in {unfinished(done) or done.last_line}"
    elif done.code not in (0, 1, NOTHING_COLLECTED) or (done.code == 1 and not failed):
        status = FAILED
        counts += f"; pytest ended with status {done.code}: {telling_line(done)}"
    elif failed:
        status = FAILED
    elif results.passed:
        status = OK
    else:
        status, counts = SKIPPED, counts if skipped else "no test matches"
    return Row(stage, "all", status, counts, numbers)


def unfinished(done):
    """Return the test in which pytest was stopped, or None: the one named without an outcome."""
    named = [line for line in done.output.splitlines() if re.match(r"\S+\.py::", line)]
    if done.code is not None or not named or re.search(rf" {OUTCOME}( |$)", named[-1]):
        return None
    return named[-1].strip()


def telling_line(done):
    """Return the line of a failed command's output that most likely says why."""
    wanted = re.compile(r"CMake Error|(^|\W)(fatal )?error: |^ERROR[: ]|^E  |Fatal Python error")
    # The first line of pip and of pytest, whatever happened.
    noise = re.compile(r"subprocess-exited-with-error|ERROR: usage")
    lines = [line.strip() for line in done.output.splitlines() if not noise.search(line)]
    return next(filter(wanted.search, lines), done.last_line)


def read(path):
    """Return the results in a JUnit file of pytest; of a broken file, that it is broken."""
    results = Results()
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except ElementTree.ParseError as error:
        results.failures.append((path.name, f"unreadable: {error}"))
        return results
    for case in cases:
        bad = next((e for e in case if e.tag in ("failure", "error")), None)
        skip = case.find("skipped")
        if bad is not None:
            results.failures.append((_name(case), _first_line(bad)))
        elif skip is not None:
            results.skips[_reason(skip)] += 1
        elif case.get("name"):  # the test in which pytest was stopped has none there
            results.passed += 1
    return results


def read_log(output):
    """Return the results in what pytest -v printed before it crashed or had to be killed."""
    results = Results()
    for test, outcome in re.findall(rf"^(\S+\.py::.*) {OUTCOME}(?: |$)", output, re.MULTILINE):
        if outcome in ("FAILED", "ERROR"):
            results.failures.append((test, "the reason was lost"))
        elif outcome in ("SKIPPED", "XFAIL"):
            results.skips["the reason was lost"] += 1
        else:
            results.passed += 1
    return results


def _name(case):
    place = case.get("classname", "").removeprefix("tests.")
    return f"{place}::{case.get('name')}" if place else case.get("name")


def _first_line(element):
    message, text = element.get("message") or "", element.text or ""
    if message == "collection failure":  # then only the traceback says what it was
        marked = [line[1:].strip() for line in text.splitlines() if line.startswith("E  ")]
        message = next(iter(marked), message)
    return next(iter(message.splitlines()), "") or "no message"


def _reason(element):
    message = element.get("message") or "no reason"
    if message == "collection skipped":  # a whole file: ('path', line, 'Skipped: the reason')
        found = re.search(r"Skipped: (.*?)['\"]\)$", element.text or "", re.DOTALL)
        message = found.group(1) if found else message
    return message
