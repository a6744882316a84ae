# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""How benchmarks take time, on a GPU and a CPU that are made up."""

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


def times(call, rounds):
    seconds = measure.clock(DEVICE, call)
    return [seconds() for _ in range(rounds)]


@pytest.mark.parametrize("host_ms", [0.0, 0.05, 5.0])
def test_time_on_the_gpu_does_not_hold_the_time_of_the_host(gpu, host_ms):
    def call():  # three kernels of 10 us, between which the host takes its time
        for _ in range(3):
            gpu.host += host_ms / 3e3
            gpu.launch("ours", 10e-6)

    assert times(call, 4) == pytest.approx([30e-6] * 4)


def test_the_cache_is_flushed_before_every_call(gpu):
    times(lambda: gpu.launch("ours", 10e-6), 4)
    rounds = "".join(name[0] for name in gpu.kernels).split("o")[1:-1]
    assert len(rounds) == 4
    assert all(rounds)


def test_a_host_that_is_too_slow_is_not_hidden(gpu):
    def call():
        gpu.host += 1.0
        gpu.launch("ours", 10e-6)

    (seconds,) = times(call, 1)
    assert seconds > 0.9


def test_warming_up_keeps_the_gpu_busy_for_its_time(gpu):
    measure.warm_up(DEVICE, seconds=0.01)
    assert gpu.kernels == ["flush"] * 100
    measure.warm_up(torch.device("cpu"))
    assert len(gpu.kernels) == 100


# ---- Rounds --------------------------------------------------------------------------------------


class Benchmark:
    """What is used of pytest-benchmark's fixture."""

    def __init__(self, clock):
        self.clock = clock

    def pedantic(self, call, setup, rounds, warmup_rounds):
        data = []
        for _ in range(warmup_rounds + rounds):
            setup()
            start = self.clock()
            call()
            data.append(self.clock() - start)
        stats = types.SimpleNamespace(data=data[warmup_rounds:])
        self.stats = types.SimpleNamespace(stats=stats)


class Machine:
    """A CPU that is slower by a factor in every other round, for whatever runs on it."""

    def __init__(self):
        self.now, self.pace = 0.0, 1.0

    def takes(self, seconds):
        def call(*_):
            self.now += self.pace * seconds

        return call

    def change(self, *_):
        self.pace = 4.0 if self.pace == 1.0 else 1.0


def test_ratios_are_taken_within_a_round(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: machine.now))
    copied = types.SimpleNamespace(nbytes=1000)
    copy = machine.takes(0.001)

    def copy_in_another_state():
        machine.change()  # once a round, as the copy comes first
        copy()

    def made(device):
        return type("", (), {"nbytes": 1000, "__call__": lambda _: copy_in_another_state()})()

    monkeypatch.setattr(measure, "copy_of", made)
    found = measure.measure(
        Benchmark(lambda: machine.now),
        torch.device("cpu"),
        machine.takes(0.006),
        base=machine.takes(0.002),
    )
    assert found["times_ours"] == pytest.approx(3)
    assert [found["times_ours_q1"], found["times_ours_q3"]] == pytest.approx([3, 3])
    assert found["copied_meanwhile"] == pytest.approx(6 * 2 * copied.nbytes)
    assert found["q3_ms"] == pytest.approx(24)  # while times themselves are far apart
    assert found["q1_ms"] == pytest.approx(6)


@pytest.mark.parametrize(("seconds", "rounds"), [(1e-6, 25), (0.06, 7), (10, 3)])
def test_short_calls_are_timed_more_often(monkeypatch, seconds, rounds):
    machine = Machine()
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(perf_counter=lambda: machine.now))
    copy = type("", (), {"nbytes": 1000, "__call__": machine.takes(0.01)})
    monkeypatch.setattr(measure, "copy_of", lambda device: copy())
    benchmark = Benchmark(lambda: machine.now)
    found = measure.measure(benchmark, torch.device("cpu"), machine.takes(seconds))
    assert found["rounds"] == rounds == len(benchmark.stats.stats.data)
    assert "times_ours" not in found
