# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Defects that other implementations have had: each a test of ours, of every optimizer.

Those of one optimizer alone are in its own test file.
"""

import pytest
import torch

from tests.conftest import assert_close, assert_matches
from tests.helpers import Problem, leaves, problem, run, same_bits, snapshot, values

# Around the widths of vectors and the 64 elements that a round of our CPU loops takes.
AROUND_VECTORS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023)


def test_vector_part_moves_as_the_tail_does(backend, family):
    """DeepSpeed's CPU Lion moved nothing where its vector loop ran; its scalar tail was exact.

    It masked signs with the bits of -1.0 in place of those of -0.0. Ten steps at a rate of 1e-3.
    """
    grads = [0.02 * (-1) ** (t // 3) * (1 + t % 3) for t in range(10)]
    data = Problem(
        [torch.full((n,), 0.05) for n in AROUND_VECTORS],
        [[torch.full((n,), g) for n in AROUND_VECTORS] for g in grads],
    )
    options = dict(lr=1e-3, **family.independent)
    oracle = family.solve(data, **options)
    data = data.to(backend.device)
    params = leaves(data.to().params)
    optimizer = family.make(params, **options)
    run(optimizer, params, data.grads)
    for p, before in zip(params, data.params, strict=True):
        assert not torch.equal(p, before)
        for tensor in (p.detach(), *(optimizer.state[p][name] for name in oracle.buffers)):
            assert same_bits(tensor, tensor[-1:].expand(len(tensor)))
    assert_matches(optimizer, params, oracle)


@pytest.mark.parametrize("fused", [None, False])
def test_strided_parameter_itself_is_updated(backend, family, fused):
    """DeepSpeed's CPU Lion called contiguous() on a strided parameter and updated the copy."""
    data = problem([(40, 30), (65,)], steps=3)
    oracle = family.solve(data)
    data = data.to(backend.device)
    transposed = data.params[0].t().contiguous()
    with_gaps = torch.zeros(65, 2, device=backend.device)
    with_gaps[:, 1] = data.params[1]
    params = leaves([transposed.t(), with_gaps[:, 1]])
    optimizer = family.make(params, fused=fused)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)
    assert same_bits(transposed.t(), params[0].detach())  # the memory that the model reads
    assert same_bits(with_gaps[:, 1], params[1].detach())
    assert not with_gaps[:, 0].any()


@pytest.mark.parametrize("fused", [None, False])
def test_group_without_gradients_is_passed_over(backend, family, fused):
    """lion-pytorch's foreach form raised on a group none of whose parameters had a gradient."""
    data = problem([(40,), (65,), (3,)], steps=2)
    oracle = family.solve(Problem(data.params[1:2], [grads[1:2] for grads in data.grads]))
    data = data.to(backend.device)
    first, second, third = params = leaves(data.params)
    before = values(params)
    optimizer = family.make([dict(params=[p]) for p in params], fused=fused)
    run(optimizer, params, [[None, grads[1], None] for grads in data.grads])
    assert same_bits(values([first, third]), [before[0], before[2]])
    assert set(optimizer.state) == {second}
    assert_matches(optimizer, [second], oracle)


def test_decay_is_not_folded_into_the_gradient(backend, family):
    """bitsandbytes' 32-bit Lion added the decay to the gradient until 2026 (its issue 1992).

    Then the momentum depends on it. In one step, for the second starts from other weights.
    """
    if not family.decoupled:
        pytest.skip(f"{family} has the decay in its direction by definition")
    kept = []
    for weight_decay in (0.0, 0.5):
        data, params, optimizer = family.start(
            [(65,), (300,)], steps=1, device=backend.device, weight_decay=weight_decay
        )
        run(optimizer, params, data.grads)
        kept.append([optimizer.state[p][name] for p in params for name in family.oracle.buffers])
        kept.append(values(params))
    assert same_bits(kept[0], kept[2])
    assert not any(torch.equal(p, q) for p, q in zip(kept[1], kept[3], strict=True))


def test_first_call_of_a_process_is_one_step(backend, family):
    """lion-pytorch's Triton kernel was tuned on live state: its first call took many steps (#36).

    Nothing here may be run again to be timed: not for a shape, a dtype or a group seen first.
    """
    data = problem([(n,) for n in (5, 300, 16385)], steps=3)
    oracle = family.solve(data, steps=1)
    data = data.to(backend.device)
    params = leaves(data.to().params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads[:1])
    assert_matches(optimizer, params, oracle)
    assert [optimizer.state[p]["step"].item() for p in params] == [1, 1, 1]
    run(optimizer, params, data.grads[1:])
    again_params = leaves(data.params)
    again = family.make(again_params)  # everything it does has been done before
    run(again, again_params, data.grads)
    assert same_bits(snapshot(again), snapshot(optimizer))


class Idle(torch.optim.Optimizer):
    """An optimizer that keeps state and counts steps, and moves nothing."""

    def __init__(self, params, names):
        self.names = names
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["step"] = state.get("step", torch.zeros(())) + 1
            for name in self.names:
                state[name] = torch.zeros_like(p)


@pytest.mark.parametrize("learning_rate", [None, 1e-3])
def test_a_step_that_does_nothing_fails_the_tests(family, learning_rate):
    """DeepSpeed's test of its CPU Lion passes without any update: weights move less than it allows.

    Ours must fail on one, even with the state as it should be and at a small learning rate.
    """
    over = {} if learning_rate is None else dict(lr=learning_rate)
    data, params, optimizer = family.start([(40, 30), (65,)], steps=10, **over)
    oracle = family.solve(data, **over)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)
    idle_params = leaves(data.to().params)
    idle = Idle(idle_params, family.oracle.buffers)
    run(idle, idle_params, data.grads)
    with pytest.raises(AssertionError):
        assert_matches(idle, idle_params, oracle)
    for p, q in zip(params, idle_params, strict=True):
        idle.state[q] = optimizer.state[p]
    with pytest.raises(AssertionError):
        assert_matches(idle, idle_params, oracle)
    with pytest.raises(AssertionError):
        assert_close(idle_params, oracle.params)
