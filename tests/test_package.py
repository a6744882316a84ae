# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the installed package says of itself, and how it is imported."""

import os
import subprocess
import sys

import pytest
import torch

import largebatch


def python(code, **environment):
    """Run code in a fresh interpreter, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=os.path.dirname(sys.executable),
        capture_output=True,
        text=True,
    )


def test_build_info_says_what_is_in_it():
    info = largebatch.build_info()
    assert info["version"] == largebatch.__version__
    assert info["cpu"]["isa"] in info["cpu"]["isas"]
    assert info["cpu"]["isas"][0] == "base"
    cuda = info["cuda"]
    assert cuda["available"] == (cuda["reason"] == "")
    if cuda["compiled"]:
        assert cuda["architectures"]


def test_threads_are_those_of_torch():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert largebatch.build_info()["cpu"]["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_unavailable_cuda_says_why():
    cuda = largebatch.build_info()["cuda"]
    if cuda["available"]:
        pytest.skip("CUDA works here")
    assert "driver" in cuda["reason"] or "LARGEBATCH_CUDA" in cuda["reason"]
    assert not largebatch._C.cuda_available()
    assert issubclass(largebatch.BackendUnavailable, RuntimeError)


@pytest.mark.parametrize("isa", largebatch._C.cpu_isas())
def test_environment_forces_the_instruction_set(isa):
    code = "import largebatch; print(largebatch.build_info()['cpu']['isa'])"
    assert python(code, LARGEBATCH_CPU_ISA=isa).stdout.strip() == isa


def test_unknown_instruction_set_is_one_line():
    result = python("import largebatch", LARGEBATCH_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "LARGEBATCH_CPU_ISA: got 'sse9', expected one of base" in result.stderr


def test_import_without_torch_is_one_line():
    result = python("import sys; sys.modules['torch'] = None; import largebatch")
    assert result.returncode != 0
    assert (
        result.stderr.strip().splitlines()[-1].startswith("ImportError: largebatch needs PyTorch")
    )


def test_extension_alone_imports_without_torch():
    # Built and imported where there is no torch: only calls need it.
    code = (
        "import importlib.machinery, importlib.util, sys\n"
        "sys.modules['torch'] = None\n"
        f"path = {largebatch._C.__file__!r}\n"
        "spec = importlib.util.spec_from_file_location('_C', path)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.build_info()['version'])\n"
    )
    result = python(code)
    assert result.stdout.strip() == largebatch.__version__, result.stderr
