# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Every kernel of the extension has run in the tests."""

import re
import subprocess

import pytest

import largebatch
from tests.conftest import ALL_OF_SIMT
from tests.simt import build

KERNELS_OF = {}  # module path: kernels, {name with template arguments: offset}


def symbols(path):
    """Return the kernels in a module: {demangled name without parameters: offset}."""
    if path not in KERNELS_OF:
        text = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        found = {}
        for line in text.splitlines():
            symbol = re.fullmatch(r"(\w+) [tTwW] (?:void )?lb::cuda::(.*)", line)
            if not symbol or "[clone" in line or "{lambda" in line:  # parts of a kernel
                continue
            name = symbol[2].replace("(anonymous namespace)::", "")
            kernel = re.match(r"\w+_kernel(<.*?>)?(?=\()", name)
            if kernel:
                found[kernel[0]] = int(symbol[1], 16)
        KERNELS_OF[path] = found
    return KERNELS_OF[path]


def declared():
    """Return the names after __global__ in the library's sources."""
    names = set()
    for source in (build.ROOT / "csrc").rglob("*.cu*"):
        declaration = r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
        text = source.read_text()
        found = re.findall(declaration, text)
        assert len(found) == len(re.findall(r"\b__global__\b", text)), source
        names.update(found)
    return names


def test_each_kernel_of_the_sources_is_in_the_build():
    """Also: its name ends in _kernel, by which the tests below know it."""
    kernels = symbols(build.extension().__file__)
    assert {name.split("<")[0] for name in kernels} == declared()


def test_builds_with_cuda_have_the_same_kernels():
    if not largebatch.build_info()["cuda"]["compiled"]:
        pytest.skip("the installed extension was built without CUDA")
    installed = symbols(largebatch._C.__file__)
    assert set(installed) == set(symbols(build.extension().__file__))


@pytest.mark.last
def test_each_kernel_has_run(request):
    if not request.config.stash[ALL_OF_SIMT]:
        pytest.skip("only a run of all simt tests can say which kernels are never run")
    path = build.extension().__file__
    ran = set(build.launched())
    assert ran <= set(symbols(path).values())
    assert {name for name, offset in symbols(path).items() if offset not in ran} == set()
