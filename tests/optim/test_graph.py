# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""A step inside a CUDA graph: replays must see new gradients, rates, scales and skips."""

import pytest
import torch

import largebatch
from tests.conftest import assert_matches
from tests.helpers import assign, leaves, problem, same_bits, snapshot

SHAPES = [(300, 70), (1000,), (7,), (0,)]

pytestmark = pytest.mark.skipif(
    not (largebatch._C.cuda_available() and torch.cuda.is_available()),
    reason=f"CUDA graphs need the CUDA backend: {largebatch.build_info()}",
)


@pytest.fixture
def captured(family):
    """Return a problem and a captured step of it: (data, params, optimizer, oracle, graph)."""
    data = problem(SHAPES, steps=6)
    oracle = family.reference(data.params)
    data = data.to("cuda")
    params = leaves(data.params)
    rate = torch.tensor(family.options["lr"], device="cuda")
    optimizer = family.make(params, lr=rate, capturable=True)
    optimizer.grad_scale = torch.ones((), device="cuda")
    optimizer.found_inf = torch.zeros((), device="cuda")
    assign(params, [torch.zeros_like(p) for p in params])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for grads in data.grads[:2]:
            load(params, grads)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for grads in data.grads[:2]:
        oracle.step([g.cpu() for g in grads])
    return data, params, optimizer, oracle, graph


def load(params, grads):
    for p, g in zip(params, grads, strict=True):
        p.grad.copy_(g)


def test_replays_follow_gradients_step_and_rate(captured):
    data, params, optimizer, oracle, graph = captured
    for t, grads in enumerate(data.grads[2:]):
        rate = optimizer.param_groups[0]["lr"]
        rate.mul_(0.5)
        oracle.groups[0][1]["lr"] = rate.item()
        load(params, grads)
        optimizer.grad_scale.fill_(2.0**t)
        for p in params:
            p.grad.mul_(2.0**t)
        graph.replay()
        oracle.step([g.cpu() for g in grads])
    assert_matches(optimizer, params, oracle)


def test_replays_skip_when_told(captured):
    data, params, optimizer, _, graph = captured
    before = snapshot(optimizer)
    load(params, data.grads[2])
    optimizer.found_inf.fill_(1.0)
    graph.replay()
    assert same_bits(snapshot(optimizer), before)
    optimizer.found_inf.fill_(0.0)
    graph.replay()
    assert not same_bits(snapshot(optimizer), before)


def test_capture_needs_capturable(family):
    p = torch.nn.Parameter(torch.ones(10, device="cuda"))
    optimizer = family.make([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(RuntimeError, match="capturable"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
