# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's compute-sanitizer over a small selection of tests."""

import os
import re
import shutil

from .pytest_run import NOTHING_COLLECTED, pytest_command, telling_line
from .report import FAILED, OK, SKIPPED, TIMED_OUT, Row

TOOLS = ("memcheck", "racecheck", "synccheck")
# By the names that these tests have in every family: each kernel, at sizes around vectors, warps
# and tiles, on and off its alignment. A family with such tests is in.
SELECTION = "test_sizes or test_tensors_off_their_alignment or test_matches_float64"
FINDINGS = 100  # the tool's exit status if it found something; pytest's are below 6
LINES_SHOWN = 3
NOT_SUPPORTED = "Device not supported"


def sanitizers(session):
    """Yield a row for each tool: what it found, or why it could not look."""
    program = find()
    if program is None:
        yield Row("sanitizers", "all", SKIPPED, "compute-sanitizer is not installed")
        return
    for i, tool in enumerate(TOOLS):
        done = session.run(
            program,
            *("--tool", tool, "--error-exitcode", FINDINGS),
            *("--report-api-errors", "no"),  # tests provoke some; this is about the kernels
            *("--kernel-name-exclude", "kns=2at6native"),  # torch's own
            *pytest_command(
                session, "tests/optim", "tests/ops", "--backend", "cuda", select=SELECTION
            ),
            share=1 / (len(TOOLS) - i),
            # Else torch hands out pieces of large blocks, whose neighbours are no foreign memory.
            env={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        yield verdict(tool, done)


def find():
    """Return the path of the tool, or None."""
    places = [f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin", "/usr/local/cuda/bin"]
    name = "compute-sanitizer"
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def verdict(tool, done):
    """Read what the tool and pytest printed. Only a clean summary after passed tests is a pass."""
    # Anywhere in a line: the tool may speak while pytest's is not at its end yet.
    said = re.findall(r"(?<!=)={9} (?!COMPUTE-SANITIZER)(.*[^=\n])$", done.output, re.MULTILINE)
    found = sum(int(n) for n in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", "\n".join(said)))
    passed = re.search(r"(\d+) passed.* in ", done.output)
    refused = next((line for line in said if NOT_SUPPORTED in line), None)
    if refused:
        status, text = SKIPPED, refused
    elif found:
        status, text = FAILED, "\n".join([f"{found} found", *said[:LINES_SHOWN]])
    elif done.code is None:
        status = TIMED_OUT
        text = "\n".join([f"stopped at: {done.last_line}", *said[:LINES_SHOWN]])
    elif done.code == NOTHING_COLLECTED:
        status, text = SKIPPED, "no test matches"
    elif done.code != 0 or not passed or not any("SUMMARY: 0" in line for line in said):
        status, text = FAILED, f"ended with status {done.code}: {telling_line(done)}"
    else:
        status, text = OK, f"nothing found in {passed.group(1)} tests, {done.seconds:.0f} s"
    return Row("sanitizers", tool, status, text, {"found": found})
