# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How benchmarks take time on a GPU, seen on one that is made up."""

import types

import measure  # of bench/, which pytest puts on the path
import pytest
import torch

LAUNCH, FLUSH = 1e-6, 100e-6  # seconds: of the host for each launch, of the GPU for each flush


class Gpu:
    """A host and a GPU with clocks of their own: work is queued, and begins when it is launched."""

    def __init__(self):
        self.host, self.busy_until, self.kernels = 0.0, 0.0, []

    def launch(self, name, seconds):
        self.host += LAUNCH
        self.busy_until = max(self.busy_until, self.host) + seconds
        self.kernels.append(name)

    def synchronize(self, _=None):
        self.host = max(self.host, self.busy_until)

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.busy_until, self.gpu.host)

    def synchronize(self):
        self.gpu.host = max(self.gpu.host, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "synchronize", gpu.synchronize)
    monkeypatch.setattr(measure.Flush, "__init__", lambda *_: None)
    monkeypatch.setattr(measure.Flush, "__call__", lambda _: gpu.launch("flush", FLUSH))
    clock = types.SimpleNamespace(perf_counter=lambda: gpu.host)
    monkeypatch.setattr(measure, "time", clock)
    return gpu


DEVICE = torch.device("cuda")


@pytest.mark.parametrize("host_ms", [0.0, 0.05, 5.0])
def test_time_on_the_gpu_does_not_hold_the_time_of_the_host(gpu, host_ms):
    def call():  # three kernels of 10 us, between which the host takes its time
        for _ in range(3):
            gpu.host += host_ms / 3e3
            gpu.launch("ours", 10e-6)

    times = measure.gpu_seconds(DEVICE, call, rounds=4)
    assert times == pytest.approx([30e-6] * 4)


def test_the_cache_is_flushed_before_every_call(gpu):
    measure.gpu_seconds(DEVICE, lambda: gpu.launch("ours", 10e-6), rounds=4)
    rounds = "".join(name[0] for name in gpu.kernels).split("o")[2:-1]
    assert len(rounds) == 3
    assert all(rounds)


def test_a_host_that_is_too_slow_is_not_hidden(gpu):
    def call():
        gpu.host += 1.0
        gpu.launch("ours", 10e-6)

    (seconds,) = measure.gpu_seconds(DEVICE, call, rounds=1)
    assert seconds > 0.9


def test_copy_bandwidth_counts_bytes_read_and_written(gpu, monkeypatch):
    copied = types.SimpleNamespace(copy_=lambda _: gpu.launch("copy", 1e-3))
    monkeypatch.setattr(torch, "arange", lambda n, dtype, device: n)
    monkeypatch.setattr(torch, "empty_like", lambda _: copied)
    assert measure.copy_bandwidth(DEVICE) == pytest.approx(2 * 2**30 / 1e-3)


def test_warming_up_keeps_the_gpu_busy_for_its_time(gpu):
    measure.warm_up(DEVICE, seconds=0.01)
    assert gpu.kernels == ["flush"] * 100
    measure.warm_up(torch.device("cpu"))
    assert len(gpu.kernels) == 100
