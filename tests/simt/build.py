# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Builds and loads the modules whose CUDA kernels run on the CPU."""

import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / f"build/{sys.implementation.cache_tag}-simt"


def missing():
    """Say what the executor lacks here, or return None."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "the simt executor needs Linux on x86-64: its threads switch stacks in assembly"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "the simt executor needs a C++ compiler"
    return None


@functools.cache
def build(target="all", quiet=True):
    """Compile what has changed of a module, and return the build tree."""
    if missing():
        pytest.skip(missing())
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "LB_SIMT": "ON",
        "LB_WERROR": os.environ.get("LARGEBATCH_WERROR", "0"),
        "LB_VERSION": "simt",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    configure = ["cmake", "-S", ROOT, "-B", TREE, "-GNinja"]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    compile_ = ["cmake", "--build", TREE, "--parallel", jobs, "--target", target]
    # cmake and ninja may be in this environment without its being activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (configure, compile_):
        result = subprocess.run(
            command, env={**os.environ, "PATH": path}, capture_output=quiet, text=True
        )
        if result.returncode:
            raise RuntimeError(f"the simt build failed:\n{result.stdout}\n{result.stderr}")
    return TREE


def load(path):
    """Import an extension module from its file, beside any other of the same name."""
    spec = importlib.util.spec_from_file_location(path.name.split(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def extension():
    """Return largebatch._C with its CUDA kernels run by the executor, on tensors of the CPU."""
    return load(next(build("_C").glob("_C.*.so")))


def launched():
    """Return the kernels of it that this process has run: {offset in the module: times}."""
    counts = {}
    tell = ctypes.CFUNCTYPE(None, ctypes.c_ulong, ctypes.c_ulong)(counts.__setitem__)
    ctypes.CDLL(extension().__file__).lb_simt_launched(tell)
    return counts


@functools.cache
def kernels():
    """Return the module of the executor's own test kernels."""
    return load(next((build("_kernels") / "tests/simt").glob("_kernels.*.so")))


if __name__ == "__main__":
    if missing():
        print(missing())
    else:
        build(quiet=False)
