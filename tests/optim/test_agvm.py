# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM: what is measured, when, and what the wrapped optimizer makes of it."""

import math

import pytest
import torch

from largebatch.optim import AGVM, LAMB
from largebatch.reference import agvm as reference
from tests.conftest import assert_close
from tests.helpers import leaves, same_bits, snapshot
from tests.optim import agvm_setting as setting
from tests.optim.agvm_setting import NAMES, accumulate, batches, modules_of, train, weights


def make(params, optimizer=None, **options):
    optimizer = torch.optim.SGD(params, lr=0.1) if optimizer is None else optimizer
    options = dict(anchor="body", interval=2, warmup=1, momentum=0.5) | options
    return AGVM(optimizer, modules_of(params), **options)


# ---- Factors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("micro", [2, 3, 4, 5])
def test_factors_match_the_definition(backend, micro, fused):
    params = weights(backend.device)
    given = batches(6, micro, backend.device)
    found = train(make(params, fused=fused), params, given)
    expected = setting.expected_factors(given, interval=2, warmup=1, momentum=0.5)
    assert_close(torch.tensor(found), torch.tensor(expected))
    body, neck, head = found[-1]
    assert (body, neck > 1.1, head < 0.9) == (1.0, True, True)  # the setting tells them apart


@pytest.mark.parametrize(
    "options",
    [
        dict(anchor="head"),
        dict(interval=1, warmup=0),
        dict(interval=3, warmup=2),
        dict(momentum=0.0, clamp=(0.9, 1.1)),
        dict(momentum=0.97, clamp=(0.5, 10.0)),
    ],
    ids=str,
)
def test_every_setting_reaches_the_factors(options):
    params, given = weights(), batches(7)
    options = dict(interval=2, warmup=1, momentum=0.5) | options
    found = train(make(params, **options), params, given)
    expected = setting.expected_factors(given, **options)
    assert_close(torch.tensor(found), torch.tensor(expected))


def test_defaults_are_those_of_the_paper_and_its_code():
    params, given = weights(), batches(1)
    agvm = AGVM(torch.optim.SGD(params, lr=0.1), modules_of(params), anchor="body")
    assert (agvm.interval, agvm.momentum, agvm.warmup, agvm.clamp) == (10, 0.97, 500, (0.5, 10.0))
    agvm._steps = 500
    found = train(agvm, params, given)
    expected = setting.expected_factors(given, interval=10, warmup=0)
    assert_close(torch.tensor(found), torch.tensor(expected))


def test_known_gradient_and_noise_give_the_known_variance():
    # Gradients of samples are G + sigma z: phi and r in closed form, to what 2e5 elements allow.
    n, micro, sigmas = 200000, 8, (3.0, 1.0, 9.0)
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(n, generator=generator) for _ in sigmas]
    params = leaves([torch.zeros(n) for _ in sigmas])
    agvm = AGVM(
        torch.optim.SGD(params, lr=0.1),
        {str(i): [p] for i, p in enumerate(params)},
        anchor="0",
        warmup=0,
        momentum=0.0,
    )
    for _ in range(micro):
        samples = [
            (mean + sigma * torch.randn(n, generator=generator)) / micro
            for mean, sigma in zip(means, sigmas, strict=True)
        ]
        accumulate(params, samples)
        agvm.micro_batch()
    agvm.step()
    phi = [
        reference.expected_variance(mean, sigma**2 * n, micro).item()
        for mean, sigma in zip(means, sigmas, strict=True)
    ]
    found = list(agvm.variances.values())
    assert [v.item() for v in found] == pytest.approx(phi, rel=0.02)
    ratio = [math.sqrt(min(max(phi[0] / x, 0.5), 10)) for x in phi]
    assert [f.item() for f in agvm.factors.values()] == pytest.approx(ratio, rel=0.02)
    assert ratio[2] < 0.9 < 1.5 < ratio[1]


def test_measures_only_when_due_and_keeps_nothing_between():
    params, given = weights(), batches(9)
    agvm = make(params, interval=3, warmup=2)
    changed, buffers, before = [], [], agvm.variances["head"]
    for batch in given:
        for grads in batch:
            accumulate(params, grads)
            agvm.micro_batch()
        buffers.append(len(agvm._halves.buffers))
        agvm.step()
        assert not agvm._halves.buffers
        now = agvm.variances["head"]
        changed.append(not same_bits(now, before))
        before = now
        agvm.zero_grad()
    due = [step in (2, 5, 8) for step in range(9)]
    assert changed == due
    assert buffers == [len(params) if at else 0 for at in due]


def test_one_buffer_in_the_dtype_of_the_gradients():
    params, (batch,) = weights(dtype=torch.bfloat16), batches(1, dtype=torch.bfloat16)
    agvm = make(params, warmup=0)
    for grads in batch:
        accumulate(params, grads)
        agvm.micro_batch()
    buffers = agvm._halves.buffers
    assert [(buffers[p].dtype, buffers[p].shape) for p in params] == [
        (torch.bfloat16, p.shape) for p in params
    ]
    agvm.step()
    expected = setting.expected_factors([batch], interval=1, warmup=0, momentum=0.5)[0]
    assert [f.item() for f in agvm.factors.values()] == pytest.approx(expected, rel=0.01)


def test_gradients_clipped_after_the_last_micro_batch_measure_the_same():
    found = []
    for clip in (False, True):
        params, (batch,) = weights(), batches(1)
        agvm = make(params, warmup=0)
        for grads in batch:
            accumulate(params, grads)
            agvm.micro_batch()
        if clip:
            torch.nn.utils.clip_grad_norm_(params, 1e-3)
        agvm.step()
        found.append([f.item() for f in agvm.factors.values()])
    assert found[0] == found[1]


# ---- Optimizers of Adam's kind -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["AdamW", "LAMB"])
@pytest.mark.parametrize("precondition", [None, True, False])
def test_halves_are_preconditioned_where_there_are_second_moments(backend, kind, precondition):
    params, given = weights(backend.device), batches(3, device=backend.device)
    cls = {"AdamW": torch.optim.AdamW, "LAMB": LAMB}[kind]
    optimizer = cls(params, lr=0.01, betas=(0.9, 0.8), eps=0.05)
    agvm = make(params, optimizer, warmup=2, momentum=0.0, precondition=precondition)
    train(agvm, params, given[:2])
    squares = [optimizer.state[p]["exp_avg_sq"].clone() for p in params]
    found = train(agvm, params, given[2:])
    phi = setting.variances(given[2], None if precondition is False else squares, 0.8, 0.05)
    assert_close(torch.stack(list(agvm.variances.values())).cpu(), phi)
    expected = reference.next_factors(torch.ones(3).double(), phi, 0, momentum=0.0)
    assert_close(torch.tensor(found[0]), expected.float())


def test_preconditioning_makes_a_difference():
    (batch,) = batches(1)
    squares = [g.square() * 100 * torch.rand_like(g) for g in batch[0]]
    plain, scaled = setting.variances(batch), setting.variances(batch, squares, 0.8, 0.05)
    assert ((plain - scaled).abs() > 1e-3).all()


def test_parameters_without_second_moments_yet_are_left_out():
    params, given = weights(), batches(2)
    agvm = make(params, torch.optim.Adam(params, lr=0.01), warmup=1, momentum=0.0)
    for grads in given[0]:
        grads[4] = grads[5] = None  # of the head
    train(agvm, params, given[:1])
    train(agvm, params, given[1:])
    assert agvm.variances["head"].isnan()
    assert agvm.factors["head"] == 1
    assert agvm.variances["neck"] > 0


def test_preconditioning_without_second_moments_is_refused():
    params, given = weights(), batches(2)
    agvm = make(params, torch.optim.SGD(params, lr=0.1), precondition=True)
    train(agvm, params, given[:1])
    with pytest.raises(ValueError, match=r"AGVM: precondition: got True.*exp_avg_sq.*Leave it"):
        train(agvm, params, given[1:])


# ---- What cannot be measured ---------------------------------------------------------------------


def spoiled(value, index, micro):
    """Return three batches, in the last of which a parameter's micro-batches are something else."""
    given = batches(3)
    for j in micro:
        g = given[2][j][index]
        given[2][j][index] = None if value is None else torch.full_like(g, value)
    return given


CASES = {
    "no gradients": (None, range(4)),
    "zero": (0.0, range(4)),
    "a half is zero": (0.0, (1, 3)),
    "nan": (math.nan, (2,)),
    "inf": (math.inf, (0,)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("anchor", ["body", "head"])
def test_a_module_that_cannot_be_measured_keeps_its_factor(name, anchor):
    value, micro = CASES[name]
    params = weights()
    given = spoiled(value, NAMES.index("head") + 2, micro)
    agvm = make(params, torch.optim.SGD(params, lr=0.0), interval=1, anchor=anchor)
    before = train(agvm, params, given[:2])[-1]
    phi = agvm.variances["head"]
    after = train(agvm, params, given[2:])[-1]
    assert after[2] == before[2]
    assert same_bits(agvm.variances["head"], phi)
    if anchor == "head":  # nothing to compare with
        assert after == before
    else:
        assert after[1] != before[1]


# ---- The step ------------------------------------------------------------------------------------


def by_hand(params, make_optimizer, given, factors):
    """Train with a group for each run of parameters of a module, whose lr is set before steps."""
    groups = [{"params": [p], "lr": 0.1} for p in params]
    optimizer = make_optimizer(groups)
    for batch, mu in zip(given, factors, strict=True):
        for grads in batch:
            accumulate(params, grads)
        for group, owner in zip(optimizer.param_groups, setting.OWNERS, strict=True):
            group["lr"] = 0.1 * mu[NAMES.index(owner)]
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def same_step(make_optimizer, device="cpu"):
    params, given = weights(device), batches(5, device=device)
    agvm = make(params, make_optimizer(params), interval=1, warmup=1, precondition=False)
    factors = train(agvm, params, given)
    assert len({mu[1] for mu in factors}) == 5  # each of them another
    twins = weights(device)
    twin = by_hand(twins, make_optimizer, given, factors)
    assert same_bits(snapshot(agvm), snapshot(twin))


def test_steps_of_our_optimizers_are_theirs_with_the_rates_multiplied(backend, family):
    same_step(lambda params: family.make(params, lr=0.1), backend.device)


TORCH = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "foreach": lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
    "fused": lambda params: torch.optim.AdamW(params, lr=0.1, fused=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, lr=0.1),
}


@pytest.mark.parametrize("name", TORCH)
def test_steps_of_torch_optimizers_are_theirs_with_the_rates_multiplied(name):
    same_step(TORCH[name])


def test_same_bits_on_every_run(backend):
    results = []
    for _ in range(2):
        params = weights(backend.device)
        agvm = make(params, interval=1)
        train(agvm, params, batches(4, device=backend.device))
        results.append([*snapshot(agvm), *agvm.factors.values(), *agvm.variances.values()])
    assert same_bits(*results)


def test_modules_of_torch_and_groups_of_their_own():
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    groups = [
        {"params": [m.weight for m in (model[0], model[2])], "lr": 0.5},
        {"params": [m.bias for m in (model[0], model[2])], "lr": 0.25, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    agvm = AGVM(optimizer, {"body": model[0], "head": model[2]}, anchor="body", momentum=0.0,
                warmup=0)  # fmt: skip
    for _ in range(2):
        model(torch.randn(16, 5)).square().mean().backward()
        agvm.micro_batch()
    seen = []
    optimizer.register_step_pre_hook(
        lambda opt, *_: seen.extend((g["lr"], g["weight_decay"]) for g in opt.param_groups)
    )
    agvm.step()
    mu = agvm.factors["head"].item()
    assert mu != 1
    assert seen == [(0.5, 0), (0.5 * mu, 0), (0.25, 0.1), (0.25 * mu, 0.1)]
    assert [group["lr"] for group in agvm.param_groups] == [0.5, 0.25]


def test_noncontiguous_and_complex_parameters(backend):
    shapes = [(6, 5), (6, 5), (40,)]
    params = leaves([torch.zeros(s, device=backend.device).t() for s in shapes[:2]])
    params.append(torch.nn.Parameter(torch.zeros(40, dtype=torch.cfloat, device=backend.device)))
    agvm = AGVM(torch.optim.SGD(params, lr=0.1), {"a": params[:1], "b": params[1:]}, anchor="a",
                warmup=0)  # fmt: skip
    grads = [[torch.randn(p.shape, dtype=p.dtype).to(p.device) for p in params] for _ in range(2)]
    for own in grads:
        accumulate(params, own)
        agvm.micro_batch()
    agvm.step()
    halves = [torch.cat([torch.view_as_real(g[2]).flatten(), g[1].flatten()]) for g in grads]
    sums = reference.half_dots(halves[:1], halves[1:], ((1, 0), (0, 1)))
    assert_close(agvm.variances["b"].cpu(), reference.variances(sums.cpu())[0])


def test_gradients_in_another_layout_than_the_second_moments():
    p, q = leaves([torch.zeros(6, 5), torch.zeros(6, 5)])
    optimizer = torch.optim.Adam([p, q], lr=0.1)
    agvm = AGVM(optimizer, {"a": [p], "b": [q]}, anchor="a", warmup=1)
    for _ in range(2):
        grads = [torch.randn(6, 5) for _ in range(4)]
        for g, h in zip(grads[:2], grads[2:], strict=True):
            p.grad = (g if p.grad is None else p.grad + g).t().contiguous().t()
            q.grad = (h if q.grad is None else q.grad + h).t().contiguous().t()
            agvm.micro_batch()
        squares = {t: s["exp_avg_sq"].clone() for t, s in optimizer.state.items()}
        agvm.step()
        agvm.zero_grad()
    sums = reference.half_dots(grads[:1], grads[1:2], ((2, 0), (0, 2)), exp_avg_sq=[squares[p]],
                               beta2=0.999, eps=1e-8)  # fmt: skip
    assert_close(agvm.variances["a"], reference.variances(sums)[0])
