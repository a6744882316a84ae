# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the stages run, and what they make of how that ended."""

import json

import pytest

from tests.gpu import sanitizers, stages
from tests.gpu.report import FAILED, OK, SKIPPED, TIMED_OUT
from tests.gpu.session import ROOT, Finished

DONE = Finished(0, "fine\n", 3.0)


def information(available=True, compiled=True):
    cuda = {"compiled": compiled, "available": available, "reason": "no driver"}
    if compiled:
        cuda |= {"version": "13.0", "architectures": "90"}
    return Finished(0, f"a warning\n{json.dumps({'cuda': cuda})}\n", 1.0)


def results(rows):
    return [(row.what, row.status, row.text) for row in rows]


# ---- build ---------------------------------------------------------------------------------------


def test_build_is_in_place_without_a_network_and_for_this_gpu(scripted, monkeypatch):
    monkeypatch.delenv("LARGEBATCH_CUDA_ARCHITECTURES", raising=False)
    session = scripted(DONE, information())
    assert results(stages.build(session)) == [
        ("pip install -e .", OK, "in 3 s"),
        ("import largebatch", OK, "compiled with 13.0 for 90"),
    ]
    command, environment = session.commands[0]
    assert {"--no-build-isolation", "--no-deps", "--no-index"} < set(command)
    assert environment == {"LARGEBATCH_CUDA_ARCHITECTURES": "native"}
    assert session.machine["extension"]["cuda"]["version"] == "13.0"


def test_build_takes_the_architectures_that_are_set(scripted, monkeypatch):
    monkeypatch.setenv("LARGEBATCH_CUDA_ARCHITECTURES", "80-real")
    session = scripted(DONE, information())
    list(stages.build(session))
    assert session.commands[0][1] == {"LARGEBATCH_CUDA_ARCHITECTURES": "80-real"}


def test_build_without_a_gpu_in_mind(scripted, monkeypatch):
    monkeypatch.delenv("LARGEBATCH_CUDA_ARCHITECTURES", raising=False)
    session = scripted(DONE, information(False, False), backend="simt")
    assert results(stages.build(session))[1] == ("import largebatch", OK, "")
    assert session.commands[0][1] == {"LARGEBATCH_CUDA_ARCHITECTURES": ""}


def test_build_that_fails(scripted):
    session = scripted(Finished(1, "x.cu(1): error: no such type\nbye", 1.0))
    assert results(stages.build(session)) == [
        ("pip install -e .", FAILED, "x.cu(1): error: no such type")
    ]


def test_build_that_takes_too_long(scripted):
    session = scripted(Finished(None, "[3/9] x.cu", 1.0))
    assert results(stages.build(session)) == [("pip install -e .", TIMED_OUT, "[3/9] x.cu")]


def test_an_extension_that_cannot_be_imported(scripted):
    session = scripted(DONE, Finished(1, "Traceback\nImportError: no symbol", 1.0))
    assert results(stages.build(session))[1] == (
        "import largebatch",
        FAILED,
        "ImportError: no symbol",
    )


def test_an_extension_without_cuda_is_a_failure(scripted):
    session = scripted(DONE, information(available=False))
    assert results(stages.build(session))[1] == ("CUDA", FAILED, "no driver")


# ---- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["cuda", "simt"])
def test_tests_run_with_the_backend_asked_for(scripted, asked):
    session = scripted(Finished(5, "", 1.0), backend=asked)
    list(stages.tests(session))
    command = session.commands[0][0]
    assert command[command.index("--backend") + 1] == asked
    assert command[command.index("-m", 3) + 1] == "not huge"


def test_files_that_have_a_stage_of_their_own_exist():
    for path in stages.NOT_TESTS:
        assert (ROOT / path).exists()


# ---- benches -------------------------------------------------------------------------------------


def timing(implementation, ms, **over):
    return {
        "family": "norm",
        "operation": "norm",
        "case": "resnet50",
        "dtype": "float32",
        "implementation": implementation,
        "median_ms": ms,
        "wall_ms": ms + 0.01,
        "copy_GBps": 4000.0,
        "bytes": None,
        **over,
    }


OURS = timing("largebatch", 0.05, bytes=102_000_000, GBps=2040.0, percent_of_copy=51.0)


def test_a_bench_row_has_bytes_bandwidth_and_the_baselines(scripted):
    session = scripted(Finished(0, "", 1.0))
    found = {"rows": [timing("torch foreach", 0.2), OURS]}
    (session.folder / "bench.json").write_text(json.dumps(found))
    _, copy, row = stages.benches(session)
    assert copy.text == "4000 GB/s, read and written"
    assert session.machine["copy_GBps"] == 4000.0
    assert session.machine["bench"] == found
    assert (row.what, row.status) == ("norm norm resnet50 float32", OK)
    assert row.text == (
        "largebatch 0.05 ms (wall 0.06), 102 MB, 2040 GB/s, 51 % of copy; "
        "torch foreach 0.2 ms (wall 0.21)"
    )


@pytest.mark.parametrize("written", [None, '{"rows": []}'])
def test_benches_that_were_stopped(scripted, written):
    session = scripted(Finished(None, "bench_norm[x]", 1.0))
    if written is not None:
        (session.folder / "bench.json").write_text(written)
    (row,) = stages.benches(session)
    assert row.status == TIMED_OUT


def test_benches_without_a_gpu_are_not_timed(scripted):
    session = scripted(Finished(5, "", 1.0), backend="simt")
    list(stages.benches(session))
    assert {"--benchmark-disable", "cpu"} < set(session.commands[0][0])


# ---- sanitizers ----------------------------------------------------------------------------------

PASSED = "==== 12 passed, 3 deselected in 4.2s ====\n"
CLEAN = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
BANNER = "========= COMPUTE-SANITIZER\n"


def verdict(code, output, tool="memcheck"):
    row = sanitizers.verdict(tool, Finished(code, output, 9.0))
    return row.status, row.text


@pytest.mark.parametrize("tool", CLEAN)
def test_nothing_found(tool):
    output = f"{BANNER}{PASSED}========= {CLEAN[tool]}\n"
    assert verdict(0, output, tool) == (OK, "nothing found in 12 tests, 9 s")


def test_what_is_found_is_shown_wherever_it_is_printed():
    output = (
        f"{BANNER}tests/a.py::test_x ========= Invalid __global__ write of size 4 bytes\n"
        "=========     at lb::cuda::lamb_kernel+0x30\nPASSED\n"
        f"{PASSED}========= ERROR SUMMARY: 2 errors\n"
    )
    status, text = verdict(100, output)
    assert status == FAILED
    assert text.splitlines()[:3] == [
        "2 found",
        "Invalid __global__ write of size 4 bytes",
        "    at lb::cuda::lamb_kernel+0x30",
    ]


def test_hazards_count():
    output = (
        f"{BANNER}{PASSED}========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n"
    )
    assert verdict(100, output)[0] == FAILED


def test_a_device_that_the_tool_refuses_is_a_skip_with_its_words():
    output = f"{BANNER}========= Error: Device not supported. See the list\nE  RuntimeError: 999\n"
    output += "========= ERROR SUMMARY: 1 error\n"
    assert verdict(1, output) == (SKIPPED, "Error: Device not supported. See the list")


@pytest.mark.parametrize(
    ("code", "output"),
    [
        (0, BANNER + "========= ERROR SUMMARY: 0 errors\n"),  # no test has run
        (0, PASSED),  # the tool has not
        (1, f"{BANNER}E   assert 1 == 2\n{PASSED}========= ERROR SUMMARY: 0 errors\n"),
        (255, "unrecognised option '--kernel-name-exclude'"),
        (-11, ""),
    ],
)
def test_no_pass_without_tests_and_a_clean_summary(code, output):
    status, text = verdict(code, output)
    assert status == FAILED
    assert f"ended with status {code}: " in text


def test_no_test_matches():
    assert verdict(5, BANNER + "========= ERROR SUMMARY: 0 errors\n")[0] == SKIPPED


def test_no_time():
    output = f"{BANNER}========= Invalid read\ntests/a.py::test_x[cuda] "
    assert verdict(None, output) == (
        TIMED_OUT,
        "stopped at: tests/a.py::test_x[cuda]\nInvalid read",
    )


def test_without_the_tool(session, monkeypatch):
    monkeypatch.setattr(sanitizers, "find", lambda: None)
    (row,) = sanitizers.sanitizers(session)
    assert (row.status, row.text) == (SKIPPED, "compute-sanitizer is not installed")


def test_each_tool_runs_the_selection(scripted, monkeypatch):
    monkeypatch.setattr(sanitizers, "find", lambda: "/bin/compute-sanitizer")
    session = scripted(*[Finished(5, "", 1.0)] * 3)
    session.select = "lamb"
    assert [row.what for row in sanitizers.sanitizers(session)] == list(sanitizers.TOOLS)
    command, environment = session.commands[1]
    assert command[:3] == ["/bin/compute-sanitizer", "--tool", "racecheck"]
    assert command[-1] == f"({sanitizers.SELECTION}) and (lamb)"
    assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
