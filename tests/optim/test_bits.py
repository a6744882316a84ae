# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What must not change a single bit of a result, for every optimizer on every backend."""

import pytest
import torch

import largebatch
from tests.helpers import Padded, leaves, problem, run, same_bits, snapshot

SHAPES = [(17,), (300, 70), (1,), (0,), (16384 * 3 + 1,), (64, 3, 3, 3)]


def stepped(family, data, order=None, **over):
    """Return all bits after the steps of a problem, in its own order of tensors."""
    order = range(len(data.params)) if order is None else order
    fresh = data.to()
    params = leaves(fresh.params)
    optimizer = family.make([params[i] for i in order], **over)
    run(optimizer, params, fresh.grads)
    return [
        [p.detach(), *(optimizer.state[p][k] for k in sorted(optimizer.state[p]))] for p in params
    ]


def test_repeat_runs(backend, family):
    data = problem(SHAPES, steps=3).to(backend.device)
    assert same_bits(stepped(family, data), stepped(family, data))


def test_a_tensor_alone_or_among_five_hundred(backend, family):
    shapes = [(1 + 7 * i % 90,) for i in range(500)]
    for place, shape in ((3, (5,)), (250, (20000,)), (499, (70000,))):
        shapes[place] = shape
    data = problem(shapes, steps=2).to(backend.device)
    together = stepped(family, data, **family.independent)
    for place in (3, 250, 499, 100):
        alone = problem([], steps=0)
        alone.params = [data.params[place]]
        alone.grads = [[grads[place]] for grads in data.grads]
        assert same_bits(stepped(family, alone, **family.independent), [together[place]])


def test_order_of_tensors(backend, family):
    data = problem(SHAPES, steps=2).to(backend.device)
    expected = stepped(family, data, **family.independent)
    last = len(SHAPES) - 1
    shuffled = torch.randperm(len(SHAPES)).tolist()
    for order in (range(last, -1, -1), [last, *range(last)], shuffled):
        assert same_bits(stepped(family, data, order, **family.independent), expected)


def test_groups_with_equal_settings_are_one_group(backend, family):
    data = problem(SHAPES, steps=3).to(backend.device)
    expected = stepped(family, data)
    fresh = data.to()
    params = leaves(fresh.params)
    optimizer = family.make([dict(params=[p]) for p in params])
    run(optimizer, params, fresh.grads)
    assert same_bits([p.detach() for p in params], [tensors[0] for tensors in expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_number_of_threads(backend, family, dtype):
    if not backend.name.startswith("cpu"):
        pytest.skip("threads are those of the CPU kernels")
    data = problem([*SHAPES, (500, 700)], steps=2).to(dtype=dtype, grad_dtype=dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(stepped(family, data))
    torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_instruction_set(family, dtype):
    data = problem(SHAPES, steps=3).to(dtype=dtype, grad_dtype=dtype)
    before = largebatch._C.cpu_isa()
    results = []
    for isa in largebatch._C.cpu_isas():
        largebatch._C.set_cpu_isa(isa)
        assert largebatch._C.cpu_isa() == isa
        results.append(stepped(family, data))
    largebatch._C.set_cpu_isa(before)
    assert all(same_bits(results[0], other) for other in results[1:])


def test_one_step_or_two_half_models(backend, family):
    # Two optimizers with half of the tensors each, against one with all of them.
    data = problem(SHAPES, steps=3).to(backend.device)
    expected = stepped(family, data, **family.independent)
    fresh = data.to()
    params = leaves(fresh.params)
    halves = [family.make(half, **family.independent) for half in (params[:3], params[3:])]
    for grads in fresh.grads:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        for optimizer in halves:
            optimizer.step()
    assert same_bits([p.detach() for p in params], [tensors[0] for tensors in expected])


@pytest.mark.parametrize("maximize", [False, True])
def test_gradients_are_only_read(backend, family, maximize):
    data = problem(SHAPES, steps=2, grad_scale=1.0).to(backend.device)
    grads = [Padded(g) for g in data.grads]
    params = leaves(data.params)
    optimizer = family.make(params, maximize=maximize)
    optimizer.grad_scale = torch.tensor(4.0, device=backend.device)
    optimizer.found_inf = torch.tensor(0.0, device=backend.device)
    run(optimizer, params, [g.tensors for g in grads])
    for padded, given_ in zip(grads, data.grads, strict=True):
        assert same_bits(padded.tensors, given_)
        assert padded.intact()


def test_empty_tensors_change_nothing(backend, family):
    data = problem(SHAPES, steps=2).to(backend.device)
    expected = stepped(family, data)
    data.params = [
        torch.zeros(0, device=backend.device),
        *data.params,
        torch.zeros(0, 4, device=backend.device),
    ]
    data.grads = [
        [torch.zeros_like(data.params[0]), *g, torch.zeros_like(data.params[-1])]
        for g in data.grads
    ]
    assert same_bits(stepped(family, data)[1:-1], expected)


def test_results_do_not_depend_on_steps_of_another_model(backend, family):
    # The same optimizer object after its plan was rebuilt: gradients come, go and change place.
    data = problem(SHAPES, steps=4).to(backend.device)
    params = leaves(data.to().params)
    steady = family.make(params, **family.independent)
    run(steady, params, data.grads)
    moved = leaves(data.to().params)
    shaken = family.make(moved, **family.independent)
    for grads in data.grads:
        run(shaken, moved, [[g.clone() if i % 2 else None for i, g in enumerate(grads)]])
        run(shaken, moved, [[None if i % 2 else g.clone() for i, g in enumerate(grads)]])
    assert same_bits(snapshot(shaken), snapshot(steady))
