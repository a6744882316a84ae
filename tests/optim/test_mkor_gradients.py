# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR: what the wrapped optimizer is given for a gradient, and what is left of it afterwards."""

import math

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, MKOR
from tests.helpers import same_bits, values
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import LAYERS, batches, chain, flat, loss_of, make, network, train

pytestmark = pytest.mark.usefixtures("one_thread")


def backward(model, batch):
    """Return the gradients of a batch: the objects, and copies."""
    loss_of(model, batch).backward()
    grads = [p.grad for p in model.parameters()]
    return grads, values(grads)


def assert_as_before(model, grads, copies):
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert same_bits([p.grad for p in model.parameters()], copies)


class Failing(torch.optim.SGD):
    fail = False

    def step(self, closure=None):
        if self.fail:
            raise KeyboardInterrupt
        return super().step(closure)


# ---- G' ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("options", [{}, dict(sides="L"), dict(fold_bias=False)], ids=str)
def test_the_optimizer_sees_both_factors_applied(backend, options, fused):
    model = network(backend.device)
    mkor = make(model, fused=fused, update_every=2, **options)
    seen = setting.watch(mkor.optimizer)
    for batch in batches(4, device=backend.device):
        grads, copies = backward(model, batch)
        mkor.step()
        assert_as_before(model, grads, copies)
        fold = options.get("fold_bias", True)
        expected = setting.preconditioned(model, mkor.factors, fold)
        assert setting.largest_error(seen[-1], expected) < 2e-6
        for name in LAYERS:
            own = [p for p in model.get_submodule(name).parameters()]
            own = own if fold else own[:1]
            found = [seen[-1][i] for i, p in enumerate(model.parameters()) if p in set(own)]
            before, after = (
                torch.cat([g.flatten() for g in group]).double().norm().item()
                for group in ([p.grad for p in own], found)
            )
            assert after == pytest.approx(before, rel=1e-6)
        mkor.zero_grad()
    changed = [not same_bits(s, c) for s, c in zip(seen[-1], copies, strict=True)]
    stem_bias = [name == "stem.bias" for name, _ in model.named_parameters()].index(True)
    assert changed[stem_bias] == options.get("fold_bias", True)


@pytest.mark.parametrize("kind", ["sgd", "lamb", "fused"])
def test_gradients_are_afterwards_what_they_were(backend, kind):
    model = network(backend.device)
    optimizer = {
        "sgd": lambda: setting.sgd(model),
        "lamb": lambda: LAMB(model.parameters(), lr=0.01),
        "fused": lambda: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True),
    }[kind]()
    mkor = make(model, optimizer)
    for batch in batches(3, device=backend.device):
        grads, copies = backward(model, batch)
        mkor.step()
        assert_as_before(model, grads, copies)
        mkor.zero_grad()


def test_gradients_are_what_they_were_after_a_step_that_failed():
    model = network()
    optimizer = Failing(model.parameters(), lr=0.1)
    mkor = make(model, optimizer)
    grads, copies = backward(model, batches(1)[0])
    optimizer.fail = True
    with pytest.raises(KeyboardInterrupt):
        mkor.step()
    assert_as_before(model, grads, copies)


def test_gradients_in_another_layout():
    model = network().to(memory_format=torch.channels_last)
    mkor = make(model)
    seen = setting.watch(mkor.optimizer)
    loss_of(model, batches(1)[0]).backward()
    for p in (model.stem.weight, model.conv.weight):
        p.grad = p.grad.to(memory_format=torch.channels_last)
    model.body.weight.grad = model.body.weight.grad.t().contiguous().t()
    copies = values([p.grad for p in model.parameters()])
    mkor.step()
    assert setting.largest_error(seen[0], setting.preconditioned(model, mkor.factors)) < 2e-6
    assert same_bits([p.grad for p in model.parameters()], copies)


@pytest.mark.parametrize("fused", [None, False])
def test_identity_factors_change_no_bit(backend, fused):
    model = network(backend.device)
    mkor = make(model, fused=fused)
    seen = setting.watch(mkor.optimizer)
    first, second = batches(2, device=backend.device)
    train(mkor, model, [first])
    for own in mkor.factors.values():
        for factor in own.values():
            factor.copy_(torch.eye(len(factor)))
    _, copies = backward(model, second)
    mkor.step()
    assert same_bits(seen[1], copies)
    assert not same_bits(seen[0], copies)


def test_a_model_in_evaluation_has_no_statistics_and_keeps_identity():
    model = network().eval()
    mkor = make(model, update_every=1)
    seen = setting.watch(mkor.optimizer)
    _, copies = backward(model, batches(1)[0])
    assert mkor.statistics() == {}
    mkor.step()
    assert same_bits(seen[0], copies)
    assert all(same_bits(f, torch.eye(len(f))) for f in flat(mkor.factors))


# ---- Zero and not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("variant", ["leaky", "exact", "paper"])
@pytest.mark.parametrize("factor", [0.0, math.inf, math.nan])
def test_gradients_that_cannot_be_scaled_pass_through(backend, factor, variant, fused):
    model = network(backend.device)
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0), variant=variant, fused=fused,
                update_every=1)  # fmt: skip
    given = batches(4, device=backend.device)
    train(mkor, model, given[:2])
    before = {name: own["L"].clone() for name, own in mkor.factors.items()}
    seen = setting.watch(mkor.optimizer)
    (loss_of(model, given[2]) * factor).backward()
    copies = values([p.grad for p in model.parameters()])
    mkor.step()
    mkor.zero_grad()
    assert same_bits(seen[0], copies)
    for name, left in before.items():
        dropped = mkor.counters[name]["L"]["dropped"]
        assert dropped == (factor != 0)  # the activations are finite: the right factors go on
        assert mkor.counters[name]["R"]["dropped"] == 0
        if factor != 0 or variant != "leaky":
            assert same_bits(mkor.factors[name]["L"], left)
    with torch.no_grad():  # SGD has 0 * nan in its weights now
        for p, q in zip(model.parameters(), network(backend.device).parameters(), strict=True):
            p.copy_(q)
    train(mkor, model, given[3:])
    assert all(f.isfinite().all() for f in flat(mkor.factors))
    assert all(g.isfinite().all() for g in seen[1])
    assert not any(same_bits(mkor.factors[name]["L"], left) for name, left in before.items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("spoil", ["weight", "bias"])
def test_a_gradient_with_one_bad_element_passes_whole(spoil, bad):
    model = network()
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0))
    train(mkor, model, batches(1))
    seen = setting.watch(mkor.optimizer)
    loss_of(model, batches(2)[1]).backward()
    getattr(model.body, spoil).grad.view(-1)[3] = bad
    copies = {p: p.grad.clone() for p in model.parameters()}
    mkor.step()
    found = dict(zip(model.parameters(), seen[0], strict=True))
    own = {model.body.weight, model.body.bias}
    for p, copy in copies.items():
        if p in own or p in set(model.norm.parameters()):
            assert same_bits(found[p], copy)
        else:
            assert not same_bits(found[p], copy)


def test_activations_that_are_not_finite_leave_the_right_factor():
    model = chain(6, 5, 4)
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0), update_every=1)
    given = batches(2, shape=(6,))
    train(mkor, model, given[:1])
    before = flat(mkor.factors)
    given[1][0][2, 3] = math.inf
    train(mkor, model, given[1:])
    assert same_bits(flat(mkor.factors)[1], before[1])
    assert mkor.counters["0"]["R"]["dropped"] == 1


def test_a_gradient_too_small_or_large_to_square_is_scaled_or_passes():
    for scale in (1e-30, 1e30):
        model = network()
        mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0))
        train(mkor, model, batches(1))
        seen = setting.watch(mkor.optimizer)
        loss_of(model, batches(2)[1]).backward()
        for p in model.parameters():
            p.grad.mul_(scale)
        copies = values([p.grad for p in model.parameters()])
        mkor.step()
        for found, copy in zip(seen[0], copies, strict=True):
            assert found.isfinite().all()
            assert found.double().norm() < 100 * copy.double().norm()
            assert found.double().norm() > 0.01 * copy.double().norm()


# ---- Parameters and layers that take no part -----------------------------------------------------


class Odd(nn.Module):
    """A layer that runs, one that never does, one whose weight is used without it, and others."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.table = nn.Embedding(9, 6)
        self.runs = nn.Linear(6, 5)
        self.never = nn.Linear(6, 5)
        self.bypassed = nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.runs(self.table(x)).tanh()
        return nn.functional.linear(x, self.bypassed.weight, self.bypassed.bias) * self.scale


def test_layers_without_gradients_or_statistics_are_left():
    model = Odd()
    mkor = make(model, update_every=1)
    assert mkor.layers == ("runs", "never", "bypassed")
    handed = []
    mkor.optimizer.register_step_pre_hook(lambda *_: handed.append([p.grad for p in params]))
    params = [model.table.weight, model.scale, model.never.weight, model.never.bias]
    weight = model.runs.weight.detach().clone()
    for _ in range(2):
        model(torch.arange(8)).square().sum().backward()
        grads, outside = [p.grad for p in params], model.bypassed.weight.grad.clone()
        assert set(mkor.statistics()) == {"runs"}
        mkor.step()
        assert grads[2:] == [None, None]
        assert all(a is b for a, b in zip(handed.pop(), grads, strict=True))
        assert same_bits(model.bypassed.weight.grad, outside)
        mkor.zero_grad()
    for name in ("never", "bypassed"):
        assert all(same_bits(f, torch.eye(len(f))) for f in flat(mkor.factors[name]))
    assert not any(same_bits(f, torch.eye(len(f))) for f in flat(mkor.factors["runs"]))
    assert not same_bits(weight, model.runs.weight)


def test_a_step_without_any_gradient_does_nothing():
    model = network()
    mkor = make(model)
    before = values(model.parameters())
    mkor.step()
    train(mkor, model, batches(1))
    assert not same_bits(values(model.parameters()), before)


def test_a_weight_without_gradient_leaves_its_bias_alone():
    model = chain(6, 5, 4)
    model[0].weight.requires_grad_(True)
    mkor = make(model)
    seen = setting.watch(mkor.optimizer)
    loss_of(model, batches(1, shape=(6,))[0]).backward()
    model[0].weight.grad = None
    copy = model[0].bias.grad.clone()
    mkor.step()
    assert seen[0][0] is None
    assert same_bits(seen[0][1], copy)


def test_empty_batches_do_no_harm():
    model = chain(6, 5, 4)
    mkor = make(model, update_every=1)
    model(torch.zeros(0, 6)).sum().backward()
    assert mkor.statistics() == {}
    mkor.step()
    mkor.zero_grad()
    assert all(same_bits(f, torch.eye(len(f))) for f in flat(mkor.factors))
    train(mkor, model, batches(2, shape=(6,)))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(0, 5), (6, 0)], ids=str)
def test_layers_of_width_zero(sizes, bias):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty = nn.Linear(*sizes, bias=bias)
            self.last = nn.Linear(6, 4)

        def forward(self, x):
            return self.last(x) + self.empty(x[:, : sizes[0]]).sum(dim=1, keepdim=True)

    model = Wide()
    mkor = make(model, update_every=1)
    losses = train(mkor, model, batches(3, shape=(6,)))
    assert all(math.isfinite(loss) for loss in losses)
    assert all(f.isfinite().all() for f in flat(mkor.factors))
    assert not same_bits(mkor.factors["last"]["L"], torch.eye(4))


def test_layers_of_width_one():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1), nn.Linear(1, 4))
    mkor = MKOR(model, setting.sgd(model), update_every=1)
    losses = train(mkor, model, batches(5, shape=(1,)))
    assert all(math.isfinite(loss) for loss in losses)
    assert mkor.factors["0"]["L"].shape == (1, 1)
    assert mkor.factors["2"]["R"].shape == (2, 2)
