# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The example that shares sequences trains as one process does, on any number of ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 3
LINE = re.compile(
    r"step +(\d+)  loss (\S+) nats/byte  one process: loss (\S+) off, parameters (\S+)"
)


def run(ranks, *options):
    """Return (loss, its difference from one process, that of the parameters) of each step."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(launcher if ranks else []), "examples/long_context.py"]
    small = ["--check", "--double", "--batch=2", "--length=70", f"--steps={STEPS}"]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *small, *options],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = LINE.findall(done.stdout)
    assert [int(step) for step, *_ in found] == list(range(1, STEPS + 1)), done.stdout
    return [tuple(map(float, numbers)) for _, *numbers in found]


@pytest.fixture(scope="module")
def plain():
    """What python prints, without a launcher."""
    return run(0)


def test_example_learns_without_a_launcher(plain):
    assert plain[-1][0] < plain[0][0] - 0.5


def test_example_has_the_losses_of_one_process_on_two_ranks(plain):
    for (loss, *_), (expected, *_) in zip(run(2, "--head-chunks=2"), plain, strict=True):
        assert loss == pytest.approx(expected, abs=1.1e-6)  # six places are printed


def test_example_equals_one_process_on_more_ranks_than_kv_heads():
    for _, loss_off, off in run(4, "--kv-heads=2"):  # 18, 18, 17 and 17 tokens
        assert loss_off <= 1e-12
        assert off <= 1e-12
