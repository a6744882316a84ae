# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What a result depends on: the device, its driver, the versions and the commit.

torch is asked in a process of its own (python -m tests.gpu.machine): a driver that hangs or crashes
costs that process alone, and the one that waits for the stages holds no memory of the GPU.
"""

import json
import platform
import subprocess
import sys
from datetime import datetime

from .session import ROOT

SECONDS = 60
NOTHING_ELSE = (":(exclude)bench/results",)  # results are no change of what was measured


def describe(commit=None):
    """Return what is recorded of this machine; `device` is None where there is no GPU."""
    machine = {
        "device": None,
        "no_gpu": None,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": None,
        "torch": None,
        "python": platform.python_version(),
        "commit": commit or current_commit(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "copy_GBps": None,
    }
    try:
        probe = subprocess.run(
            [sys.executable, "-m", "tests.gpu.machine"],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        return machine | json.loads(probe.stdout)
    except subprocess.TimeoutExpired:
        reason = f"torch did not answer within {SECONDS} s"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"torch ended with status {error.returncode}"
    except ValueError as error:
        reason = f"torch printed something else: {error}"
    return machine | {"no_gpu": reason}


def current_commit():
    """Return the commit of the working tree, with -dirty if it has changes, or "unknown"."""
    commit = _first_line("git", "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return commit + "-dirty" * bool(
        _first_line("git", "status", "--porcelain", "--", ".", *NOTHING_ELSE)
    )


def _first_line(*command):
    """Return the first line that a command prints; None if it prints nothing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


def _ask_torch():
    import torch

    found = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if not torch.cuda.is_available():
        why = "is built without CUDA" if torch.version.cuda is None else "finds no GPU or driver"
        return found | {"no_gpu": f"torch {torch.__version__} {why}"}
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_GiB": round(properties.total_memory / 2**30, 1),
    }


if __name__ == "__main__":
    print(json.dumps(_ask_torch()))
