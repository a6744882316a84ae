# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion, for what it alone has: signs that the last bit decides, and what is not finite."""

import baselines  # of bench/, which pytest puts on the path
import pytest
import torch

from largebatch.optim import Lion, kappa
from largebatch.reference import lion
from tests.helpers import assign, leaves, problem, run, same_bits, ulp_distance, values

HYPER = dict(lr=2.0**-7, betas=(0.9, 0.99), weight_decay=0.1)
MILLION = 2**20 - 3


# ---- The same bits everywhere --------------------------------------------------------------------


def every_pattern(n, seed, dtype=torch.float32):
    """Return all kinds of numbers, most of them by random bits: denormals, infinities, NaN."""
    generator = torch.Generator().manual_seed(seed)
    integer, width = {
        torch.float32: (torch.int32, 2**31),
        torch.bfloat16: (torch.int16, 2**15),
        torch.float16: (torch.int16, 2**15),
    }[dtype]
    x = torch.randint(-width, width, (n,), generator=generator).to(integer).view(dtype)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 1e-38, 3e38, 1.0]
    ).to(dtype)
    x[: len(special) ** 2] = special.repeat_interleave(len(special))
    return x


def nearly_cancelling(grads, beta1, seed):
    """Return momenta with which c comes out at 0 or a few units in its last place off."""
    generator = torch.Generator().manual_seed(seed)
    exact = -(1 - beta1) / beta1 * grads
    ulps = torch.randint(-2, 3, grads.shape, generator=generator, dtype=torch.int32)
    return (exact.view(torch.int32) + ulps).view(torch.float32)


def quiet(x):
    """Return x with one and the same NaN for all: which one it is, hardware decides."""
    return torch.where(x.isnan(), torch.nan, x)


def with_state(params, exp_avgs, optimizer):
    """Give the optimizer a run in progress."""
    for p, m in zip(params, exp_avgs, strict=True):
        step = torch.full((), 3.0, device=p.device)
        optimizer.state[p] = {"step": step, "exp_avg": m.to(p.device, copy=True)}


def stepped(backend, weights, grads, exp_avgs, **over):
    """Return weights and momenta after one step of the optimizer and of the reference."""
    params = leaves([w.to(backend.device, copy=True) for w in weights])
    optimizer = Lion(params, **HYPER, **over)
    with_state(params, exp_avgs, optimizer)
    run(optimizer, params, [[g.to(backend.device) for g in grads]])
    ours = [[p.detach().cpu(), optimizer.state[p]["exp_avg"].cpu()] for p in params]
    theirs = [values(weights), values(exp_avgs)]
    steps = [torch.full((), 3.0) for _ in weights]
    lion.lion_step(
        theirs[0],
        grads,
        theirs[1],
        steps,
        **HYPER,
        kappa=kappa.L1(),
        maximize=over.get("maximize", False),
    )
    return ours, [list(pair) for pair in zip(*theirs, strict=True)]


@pytest.mark.parametrize("maximize", [False, True])
def test_a_million_patterns_of_bits(backend, maximize):
    weights, grads, exp_avgs = (every_pattern(MILLION, seed) for seed in (1, 2, 3))
    grads[::2] = every_pattern(MILLION, 4)[::2].sign() * 1e-3 * torch.rand(MILLION)[::2]
    exp_avgs[::2] = nearly_cancelling(grads, HYPER["betas"][0], 5)[::2] * (-1) ** maximize
    ours, theirs = stepped(backend, [weights], [grads], [exp_avgs], maximize=maximize)
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert same_bits(quiet(a), quiet(b))
    # All three signs were decided, many of them by the last bit.
    c = lion.blend(exp_avgs, grads * (-1) ** maximize, HYPER["betas"][0])[::2]
    size = 0.1 * grads[::2].abs()
    assert (c.abs() < 1e-6 * size).sum() > MILLION / 8
    assert all((c.sign() == sign).sum() > MILLION / 40 for sign in (-1, 0, 1))


def test_million_doubles(backend):
    generator = torch.Generator().manual_seed(0)
    weights, grads = (torch.randn(MILLION, generator=generator).double() for _ in range(2))
    exp_avgs = -(1 - 0.9) / 0.9 * grads
    exp_avgs[::3] = torch.randn(MILLION, generator=generator).double()[::3]
    ours, theirs = stepped(backend, [weights], [grads], [exp_avgs])
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 16383, 16384, 16385, 3 * 16384 + 5])
def test_sizes_around_vectors_and_tiles(backend, n):
    weights, grads, exp_avgs = (every_pattern(n + 128, seed)[128:] for seed in (1, 2, 3))
    ours, theirs = stepped(backend, [weights], [grads], [exp_avgs])
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert same_bits(quiet(a), quiet(b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights_and_gradients_of_every_pattern(backend, dtype):
    weights, grads = (every_pattern(2**16, seed, dtype) for seed in (1, 2))
    exp_avgs = nearly_cancelling(grads.float(), HYPER["betas"][0], 3)
    ours, theirs = stepped(
        backend, [weights], [grads], [exp_avgs], master_weights=False, stochastic_rounding=False
    )
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert same_bits(quiet(a), quiet(b))


def test_layouts(backend):
    weights = [
        torch.randn(6, 5, 7, 3).to(memory_format=torch.channels_last),
        torch.randn(70, 40).t(),
        torch.randn(65, 2)[:, 1],
        torch.randn(()),
    ]
    grads = [torch.randn(w.shape) for w in weights]
    exp_avgs = [-0.1 / 0.9 * g for g in grads]
    warm_up = [m / (1 - HYPER["betas"][1]) for m in exp_avgs]  # leaves about these momenta
    p = [torch.empty(w.shape).copy_(w) for w in weights]
    m, steps = [torch.zeros(w.shape) for w in weights], [torch.zeros(()) for _ in weights]
    params = leaves([w.to(backend.device) for w in weights])
    optimizer = Lion(params, **HYPER)
    for given in (warm_up, grads):
        lion.lion_step(p, given, m, steps, **HYPER, kappa=kappa.L1())
        run(optimizer, params, [[g.to(backend.device) for g in given]])
    assert same_bits([x.detach().cpu() for x in params], p)
    assert same_bits([optimizer.state[x]["exp_avg"].cpu() for x in params], m)


# ---- Three signs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_untouched_rows_do_not_drift(backend, fused, zero):
    """A peer's kernel chooses between two signs: rows without gradient moved by the rate a step.

    By +lr in its GPU kernel, by -lr on the CPU. In an embedding those are most rows.
    """
    data = problem([(50, 33)], steps=5).to(backend.device)  # odd: none comes back
    data.params[0][10] = torch.tensor([0.0, -0.0, 1e-45]).repeat(11).to(backend.device)
    for grads in data.grads:
        grads[0][::5] = zero
    params = leaves(data.to().params)
    optimizer = Lion(params, lr=1e-2, fused=fused)
    run(optimizer, params, data.grads)
    (p,) = params
    assert same_bits(p[::5].detach(), data.params[0][::5])
    assert not optimizer.state[p]["exp_avg"][::5].any()
    others = torch.arange(50, device=backend.device) % 5 != 0
    assert (p[others] != data.params[0][others]).all()


@pytest.mark.parametrize("fused", [None, False])
def test_rows_are_let_go_where_momentum_has_run_out(backend, fused):
    # They only decay: by the bracket alone.
    p = torch.nn.Parameter(torch.full((100,), 0.5, device=backend.device))
    optimizer = Lion([p], lr=2.0**-5, weight_decay=0.5, fused=fused)
    run(optimizer, [p], [[torch.zeros_like(p)]])
    assert torch.equal(p.detach(), torch.full_like(p, 0.5 * (1 - 2.0**-6)))


@pytest.mark.parametrize("fused", [None, False])
def test_every_weight_moves_by_the_rate(backend, fused):
    data = problem([(70, 30)], steps=1, grad_scale=1e-20).to(backend.device)
    params = leaves(data.to().params)
    run(Lion(params, lr=2.0**-4, fused=fused), params, data.grads)
    expected = data.params[0] - 2.0**-4 * data.grads[0][0].sign()
    assert same_bits(params[0].detach(), expected)


# ---- What is not finite --------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
def test_nonfinite_counts_elements_of_all_tensors_and_groups(backend, fused):
    params = leaves([torch.ones(n, device=backend.device) for n in (20000, 70, 3)])
    optimizer = Lion([dict(params=params[:1]), dict(params=params[1:])], fused=fused)
    assert optimizer.nonfinite is None
    grads = [torch.ones_like(p) for p in params]
    grads[0][::2] = torch.nan
    grads[1][:3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    run(optimizer, params, [grads])
    assert optimizer.nonfinite.item() == 10003
    assert (optimizer.nonfinite.dtype, optimizer.nonfinite.shape) == (torch.int32, ())
    assert optimizer.grad_norm is None
    run(optimizer, params[2:], [[grads[2]]])
    assert optimizer.nonfinite.item() == 0
    run(optimizer, params, [[torch.ones_like(p) for p in params]])  # now it is in the momentum
    assert optimizer.nonfinite.item() == 10003


@pytest.mark.parametrize("fused", [None, False])
def test_a_weight_with_a_broken_momentum_stands_still_and_its_neighbours_go_on(backend, fused):
    data, clean = (problem([(300,)], steps=5).to(backend.device) for _ in range(2))
    data.grads[1][0][7] = torch.nan
    results = []
    for given in (data, clean):
        params = leaves(given.params)
        run(Lion(params, lr=2.0**-7, fused=fused), params, given.grads[:1])
        before = params[0].detach().clone()
        optimizer = Lion(params, lr=2.0**-7, fused=fused)
        run(optimizer, params, given.grads[1:])
        results.append((params[0].detach(), before))
    (broken, before), (whole, _) = results
    assert broken[7] == before[7]
    assert whole[7] != before[7]
    others = torch.arange(300, device=backend.device) != 7
    assert same_bits(broken[others], whole[others])


@pytest.mark.parametrize("fused", [None, False])
def test_a_skipped_step_counts_nothing(backend, fused):
    params = leaves([torch.ones(70, device=backend.device)])
    optimizer = Lion(params, fused=fused)
    optimizer.found_inf = torch.ones((), device=backend.device)
    run(optimizer, params, [[torch.full_like(params[0], torch.nan)]])
    assert optimizer.nonfinite.item() == 0


# ---- Other people's Lion -------------------------------------------------------------------------

PEERS = ("timm", "lion-pytorch", "lion-pytorch foreach", "pytorch_optimizer")


@pytest.mark.parametrize("name", PEERS)
def test_single_steps_agree_with_peers_up_to_signs_that_rounding_decides(backend, name):
    """From the same state, everywhere but where c is a few roundings from 0; there 2 lr at most."""
    data = problem([(300, 70), (65,)], steps=8)
    try:
        make = baselines.BASELINES["lion"][name].make
        their_params = leaves(data.to().params)
        theirs = make(their_params)
    except ImportError as error:
        pytest.skip(str(error))
    lr, (beta1, beta2), decay = 1e-4, (0.9, 0.99), 0.1
    params = leaves(data.to(backend.device).params)
    ours = Lion(params, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    for t, grads in enumerate(data.grads):
        if t:  # from the same state
            with_state(params, [theirs.state[q]["exp_avg"] for q in their_params], ours)
            for p, q in zip(params, their_params, strict=True):
                p.data.copy_(q.detach())
        old = [p.detach().cpu().double() for p in params]
        momenta = [ours.state[p]["exp_avg"].cpu().double() if t else 0 * old[i]
                   for i, p in enumerate(params)]  # fmt: skip
        run(ours, params, [[g.to(backend.device) for g in grads]])
        assign(their_params, grads)
        theirs.step()
        for p, q, x, m, g in zip(params, their_params, old, momenta, grads, strict=True):
            g = g.double()
            size = beta1 * m.abs() + (1 - beta1) * g.abs()
            c = beta1 * m + (1 - beta1) * g
            decided = c.abs() > 8 * 2.0**-24 * size
            assert decided.double().mean() > 0.99
            exact = x * (1 - lr * decay) - lr * c.sign()
            tight = 4 * 2.0**-24 * (x.abs() + lr)
            for result in (p.detach().cpu(), q.detach()):
                error = (result.double() - exact).abs()
                assert (error <= torch.where(decided, tight, 2 * lr + tight)).all()
            bound = 4 * 2.0**-24 * (beta2 * m.abs() + (1 - beta2) * g.abs())
            exact = beta2 * m + (1 - beta2) * g
            for owner, tensor in ((ours, p), (theirs, q)):
                momentum = owner.state[tensor]["exp_avg"].cpu().double()
                assert ((momentum - exact).abs() <= bound).all()


def test_bits_differ_from_a_blend_by_lerp(backend):
    # So the order of evaluation is one thing and not another: with lerp these signs turn.
    grads = 0.01 * torch.randn(MILLION, generator=torch.Generator().manual_seed(0))
    exp_avgs = nearly_cancelling(grads, 0.9, 1)
    weights = torch.zeros(MILLION)
    ours, _ = stepped(backend, [weights], [grads], [exp_avgs])
    other = -(2.0**-7) * torch.lerp(grads, exp_avgs, 0.9).sign()
    turned = (ours[0][0] != other).double().mean()
    assert 0.01 < turned < 0.9
    assert ulp_distance(ours[0][1], torch.lerp(grads, exp_avgs, 0.99)).max() < 2**20
