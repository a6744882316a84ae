# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Sizes, layouts and values at which kernels break, for every optimizer on every backend."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import largebatch
from tests.conftest import assert_close, assert_matches
from tests.helpers import HUGE, Padded, leaves, need, problem, run

# Around vectors, warps and tiles (2^14) and beyond; empty ones first, last and in between.
SIZES = [0, 0, 1, 2, 3, 5, 31, 32, 33, 511, 16383, 0, 16384, 16385, 65535, 65536, 65537, 0, 0]


@functools.lru_cache(maxsize=4)
def solved(family, shapes, steps=3, seed=0):
    """Return a problem on the CPU and the oracle after its steps: the same for every backend."""
    data = problem(shapes, steps, seed)
    return data, family.solve(data)


def by_hand(family, params, grads, steps=3, **over):
    """Return the oracle after some steps with the same gradients."""
    oracle = family.reference([p.cpu() for p in params], **over)
    for _ in range(steps):
        oracle.step([g.cpu() for g in grads])
    return oracle


def test_sizes(backend, family):
    shapes = tuple((n,) for n in SIZES)
    data, oracle = solved(family, shapes)
    data = data.to(backend.device)
    weights = Padded(data.params)
    grads = [Padded(gs) for gs in data.grads]
    params = leaves(weights.tensors)
    optimizer = family.make(params)
    run(optimizer, params, [g.tensors for g in grads])
    assert_matches(optimizer, params, oracle)
    assert weights.intact()
    assert all(g.intact() for g in grads)


def test_tensors_off_their_alignment(backend, family):
    shapes = ((3,), (33,), (511,), (16385,), (200, 83))
    data, oracle = solved(family, shapes)
    data = data.to(backend.device)
    for weight_offset, grad_offset in ((1, 0), (0, 3), (1, 1), (2, 1)):
        weights = Padded(data.params, offset=weight_offset)
        grads = [Padded(gs, offset=grad_offset) for gs in data.grads]
        params = leaves(weights.tensors)
        optimizer = family.make(params)
        run(optimizer, params, [g.tensors for g in grads])
        assert_matches(optimizer, params, oracle)
        assert weights.intact()
        assert all(g.intact() for g in grads)


def test_all_empty(backend, family):
    params = leaves(
        [torch.zeros(0, device=backend.device), torch.zeros(3, 0, device=backend.device)]
    )
    optimizer = family.make(params)
    run(optimizer, params, [[torch.zeros_like(p) for p in params]] * 2)
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 2]


def test_many_small_tensors(backend, family):
    # More than twice the 1024 threads of the block that takes a tensor a thread.
    shapes = tuple((1 + i * 37 % 100,) for i in range(2100))
    data, oracle = solved(family, shapes, steps=1)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


def test_large_tensor_beside_small_ones(backend, family):
    # It has 257 tiles: one more than the block has threads that adds up their sums.
    data, oracle = solved(family, ((5,), (2050, 2047), (3,)), steps=1)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_any_list_of_sizes(backend, family, sizes, seed):
    data, oracle = solved(family, tuple((n,) for n in sizes), 2, seed)
    data = data.to(backend.device)
    params = leaves(data.params)
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


# ---- Layouts -------------------------------------------------------------------------------------


def test_channels_last_weights_with_contiguous_gradients(backend, family):
    data, oracle = solved(family, ((6, 5, 7, 3), (64, 3, 3, 3)))
    data = data.to(backend.device)
    params = leaves([p.to(memory_format=torch.channels_last) for p in data.params])
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)
    for p in params:
        assert p.is_contiguous(memory_format=torch.channels_last)
        for name in oracle.buffers:
            assert optimizer.state[p][name].stride() == p.stride()


def test_transposed_weights(backend, family):
    data, oracle = solved(family, ((40, 70), (3, 500)))
    data = data.to(backend.device)
    params = leaves([p.t().contiguous().t() for p in data.params])
    optimizer = family.make(params)
    run(optimizer, params, data.grads)
    assert_matches(optimizer, params, oracle)


def test_contiguous_weights_with_strided_gradients(backend, family):
    data, oracle = solved(family, ((40, 70), (3, 500), (8, 4, 3, 3)))
    data = data.to(backend.device)
    params = leaves(data.params)
    strided = [
        [
            gs[0].t().contiguous().t(),  # dense, in another order
            torch.stack([gs[1], gs[1]], dim=-1)[..., 0],  # with gaps
            gs[2].to(memory_format=torch.channels_last),
        ]
        for gs in data.grads
    ]
    optimizer = family.make(params)
    run(optimizer, params, strided)
    assert_matches(optimizer, params, oracle)


def test_expanded_gradient(backend, family):
    # What (p.sum() * 2).backward() leaves: one number, stride 0.
    weight = problem([(50, 8)], steps=1).params[0].to(backend.device)
    grad = torch.full((), 2.0, device=backend.device).expand(50, 8)
    (p,) = params = leaves([weight.clone()])
    run(family.make(params), params, [[grad]] * 3)
    assert_close(p, by_hand(family, [weight], [grad.contiguous()]).params[0])


# ---- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "grad"),
    [
        pytest.param(0.0, 0.02, id="zero weights"),
        pytest.param(0.05, 0.0, id="zero gradient"),
        pytest.param(0.0, 0.0, id="zero both"),
        pytest.param(0.05, 1e-41, id="denormal gradient"),
        pytest.param(0.05, 1e-25, id="gradient whose square vanishes in fp32"),
        pytest.param(1e-25, 0.02, id="weights whose square vanishes in fp32"),
        pytest.param(1e20, 0.02, id="weights whose square overflows fp32"),
    ],
)
def test_extreme_values(backend, family, weight, grad):
    data = problem([(700, 30), (11,)], steps=3, scale=weight, grad_scale=grad)
    oracle = family.solve(data)
    data = data.to(backend.device)
    params = leaves(data.params)
    run(family.make(params), params, data.grads)
    assert_close(params, oracle.params)


def test_zero_gradients_without_decay_change_nothing(backend, family):
    data = problem([(700, 30), (11,)], steps=1).to(backend.device)
    params = leaves(data.to().params)
    grads = [torch.zeros_like(p) for p in params]
    run(family.make(params, weight_decay=0.0), params, [grads] * 3)
    assert all(torch.equal(p, q) for p, q in zip(params, data.params, strict=True))


# ---- Which parameters take part ------------------------------------------------------------------


def test_parameters_without_gradient_on_alternate_steps(backend, family):
    data = problem([(40, 9), (700,), (33,)], steps=6)
    for t, grads in enumerate(data.grads):
        grads[0] = None if t % 2 else grads[0]
        grads[1] = grads[1] if t % 3 else None
    oracle = family.solve(data)
    params = leaves([p.to(backend.device) for p in data.params])
    optimizer = family.make(params)
    run(
        optimizer,
        params,
        [[None if g is None else g.to(backend.device) for g in grads] for grads in data.grads],
    )
    assert_matches(optimizer, params, oracle)
    assert [optimizer.state[p]["step"].item() for p in params] == [3, 4, 6]


# ---- Beyond 32 bits ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["cpu", "cuda"])  # in the best instruction set
def huge(request):
    """Return bf16 weights and their gradient, one memory for all: to map it takes longer than use.

    With fp32 states beside them they are as little as an optimizer can step through.
    """
    device = request.param
    if device == "cuda" and not (largebatch._C.cuda_available() and torch.cuda.is_available()):
        pytest.skip(f"no CUDA backend: {largebatch.build_info()}")
    need(4, device)
    memory = torch.empty(2, HUGE + 3, dtype=torch.bfloat16, device=device)[:, :HUGE]
    return memory.fill_(1.0)  # now it is taken: what is free is what is left


@pytest.mark.huge
def test_more_than_two_to_the_31_elements(family, huge):
    # All elements are alike, so that sixteen of them and the oracle tell what every one of the
    # tensor must become.
    options = family.independent | family.lean | dict(lr=0.25)
    weights, gradient = torch.ones(16), torch.full((16,), 2.0)
    small = by_hand(family, [weights], [gradient], steps=1, **options)
    (little,) = leaves([weights.bfloat16()])
    optimizer = family.make([little], master_weights=False, **options)
    run(optimizer, [little], [[gradient.bfloat16()]])
    states = [name for name in small.state[0] if name != "step"]
    need(sum(optimizer.state[little][s].element_size() for s in states), huge.device.type)
    p = torch.nn.Parameter(huge[0].fill_(1.0))
    p.grad = huge[1].fill_(2.0)
    optimizer = family.make([p], master_weights=False, **options)
    optimizer.step()
    low, high = p.detach().aminmax()
    assert low == high == small.params[0][0].to(torch.bfloat16)
    for name in states:
        assert_close(optimizer.state[p][name][-16:], small.state[0][name])
