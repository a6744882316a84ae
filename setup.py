# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the extension with CMake. Everything else about the package is in pyproject.toml."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("LARGEBATCH_CUDA") or "auto"
OLDEST_NVCC = (12, 8)  # the first that compiles for sm_100 and sm_120
WHY_OFF = f"built with LARGEBATCH_CUDA={MODE}" + (
    "" if MODE == "off" else ", which found neither an nvcc 12.8 or newer nor the compiler wheels"
)
# The extras are one matching set. nvidia-cuda-nvcc alone would be paired with a newer front end.
PIP_CUDA = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.*; platform_system == 'Linux'"


def system_nvcc():
    """Path of the first nvcc of the system that is new enough, or None."""
    home = os.environ.get("CUDA_HOME")
    places = [home and f"{home}/bin/nvcc", shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for nvcc in filter(None, map(shutil.which, filter(None, places))):
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release (\d+)\.(\d+)", text)
        if release and tuple(map(int, release.groups())) >= OLDEST_NVCC:
            return nvcc
    return None


def pip_nvcc():
    """Path of the nvcc that PIP_CUDA brought into this environment, or None."""
    spec = find_spec("nvidia")
    places = spec.submodule_search_locations if spec else []
    return next(filter(None, (shutil.which(f"{place}/cu13/bin/nvcc") for place in places)), None)


def choose_compiler():
    """(where CUDA's compiler comes from: system, pip or off; its path if known yet)."""
    here = f"{platform.system()} {platform.machine()}"
    wheels_exist = here in ("Linux x86_64", "Linux aarch64")
    if MODE not in ("auto", "system", "pip", "off"):
        sys.exit(f"LARGEBATCH_CUDA: got {MODE!r}, expected auto, system, pip or off.")
    if MODE in ("auto", "system") and (nvcc := system_nvcc()):
        return "system", nvcc
    if MODE == "system":
        sys.exit(
            "LARGEBATCH_CUDA=system: no nvcc 12.8 or newer in $CUDA_HOME/bin, PATH or "
            "/usr/local/cuda/bin. Set CUDA_HOME, or use LARGEBATCH_CUDA=pip."
        )
    if MODE == "pip" and not wheels_exist:
        sys.exit(f"LARGEBATCH_CUDA=pip: there are no wheels of CUDA's compiler for {here}.")
    return ("pip", None) if MODE != "off" and wheels_exist else ("off", None)


def tool(name):
    """Path of cmake or ninja: the wheel's in this environment, else the one in PATH."""
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    wheel = [str(f.locate()) for f in files if f.parent.name == "bin" and f.stem == name]
    return (wheel and wheel[0]) or shutil.which(name) or sys.exit(f"{name} is not installed.")


class PackBenchmarks(build_py):
    """Packs bench/ too, as largebatch/_bench: `largebatch bench` runs it from a wheel."""

    def run(self):
        super().run()
        if self.editable_mode:  # it is found in the clone then
            return
        for folder in (ROOT / "bench", ROOT / "bench/ops", ROOT / "bench/optim"):
            packed = Path(self.build_lib) / "largebatch/_bench" / folder.relative_to(ROOT / "bench")
            packed.mkdir(parents=True, exist_ok=True)
            for file in folder.glob("*.py"):
                self.copy_file(file, packed / file.name)


class CMakeBuild(build_ext):
    """Configures, builds and installs with CMake, in a build tree that is kept for next time."""

    def build_extension(self, ext):
        import pybind11

        nvcc = pip_nvcc() if SOURCE == "pip" else NVCC
        if MODE == "pip" and not nvcc:
            sys.exit(f'LARGEBATCH_CUDA=pip: no compiler wheels here: pip install "{PIP_CUDA}"')
        werror = os.environ.get("LARGEBATCH_WERROR") == "1"
        tree = ROOT / f"build/{sys.implementation.cache_tag}-{SOURCE}{'-werror' * werror}"
        # A configured tree cannot change its compilers. If they are others now, it starts afresh.
        names = ("CXX", "CXXFLAGS", "CUDAHOSTCXX", "CUDAFLAGS", "LDFLAGS")
        compilers = "\n".join([nvcc or "", *(os.environ.get(name, "") for name in names)])
        stamp = tree / "compilers.txt"
        fresh = not stamp.exists() or stamp.read_text() != compilers

        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "CMAKE_INSTALL_PREFIX": Path(self.get_ext_fullpath(ext.name)).resolve().parent,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "LB_VERSION": self.distribution.get_version(),
            "LB_WERROR": werror,
            "LB_CUDA": bool(nvcc),
            "LB_CUDA_OFF_REASON": "" if nvcc else WHY_OFF,
            "LB_CUDA_ARCHITECTURES": os.environ.get("LARGEBATCH_CUDA_ARCHITECTURES", ""),
        }
        if nvcc:
            settings["CMAKE_CUDA_COMPILER"] = nvcc
        configure = ["-S", ROOT, "-B", tree, "-GNinja", *["--fresh"] * fresh]
        configure += [f"-D{name}={value}" for name, value in settings.items()]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        for step in (configure, ["--build", tree, "--parallel", jobs], ["--install", tree]):
            if subprocess.run([tool("cmake"), *step]).returncode:
                sys.exit("largebatch: CMake failed, see above.")
            if step is configure:
                stamp.write_text(compilers)


SOURCE, NVCC = choose_compiler()
setup(
    ext_modules=[Extension("largebatch._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": PackBenchmarks},
    setup_requires=[PIP_CUDA] if SOURCE == "pip" else [],
)
