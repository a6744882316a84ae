# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR-H: when it goes on with the wrapped optimizer alone, and that nothing is left then."""

import copy
import gc
import math

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from largebatch.reference.mkor import Hybrid
from tests.helpers import same_bits, snapshot
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import batches, flat, loss_of, make, network, train
from tests.optim.test_mkor_state import tensors_in

pytestmark = pytest.mark.usefixtures("one_thread")

RULE = dict(beta=0.5, interval=2, patience=2, min_steps=4, momentum=0.5)


def curve(kind, steps):
    """Return losses that fall and level off, sooner or later, or in some other way."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(steps, generator=generator).tolist()
    return {
        "levels off": [math.exp(-t / 6) for t in range(steps)],
        "noisy": [math.exp(-t / 9) + 0.05 * e for t, e in enumerate(noise)],
        "straight": [1 - t / steps for t in range(steps)],
        "rises": [1 + t / steps for t in range(steps)],
        "not finite": [math.nan if t % 5 == 3 else math.exp(-t / 6) for t in range(steps)],
        "starts late": [1.0 if t < 12 else math.exp(-(t - 12) / 4) for t in range(steps)],
    }[kind]


def follow(mkor, model, losses, by, batch):
    """Take a step for every loss; return whether each was followed by steps of first order."""
    switched = []
    for loss in losses:

        def closure(loss=loss):
            mkor.zero_grad()
            loss_of(model, batch).backward()
            return torch.tensor(loss)

        if by == "observe_loss":
            closure()
            mkor.observe_loss(loss)
        mkor.step(closure if by == "closure" else None)
        switched.append(mkor.first_order)
    return switched


@pytest.mark.parametrize("by", ["closure", "observe_loss"])
@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        RULE | dict(interval=3, patience=1, min_steps=0),
        RULE | dict(beta=0.1, momentum=0.0, min_steps=9),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "kind", ["levels off", "noisy", "straight", "rises", "not finite", "starts late"]
)  # fmt: skip
def test_switches_when_the_rule_says(kind, rule, by):
    losses = curve(kind, 30)
    oracle = Hybrid(**rule)
    expected = [oracle.observe(loss) for loss in losses]
    model = setting.chain(6, 4)
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0), hybrid=rule)
    found = follow(mkor, model, losses, by, batches(1, shape=(6,))[0])
    assert found == expected
    if kind in ("levels off", "straight"):
        assert found[-1] == (kind == "levels off")


def test_defaults_of_the_rule():
    losses = curve("levels off", 200)
    oracle = Hybrid()
    expected = [oracle.observe(loss) for loss in losses]
    model = setting.chain(6, 4)
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0), hybrid=True)
    assert follow(mkor, model, losses, "closure", batches(1, shape=(6,))[0]) == expected
    assert True in expected


def test_without_a_rule_losses_are_not_looked_at():
    model = setting.chain(6, 4)
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0))
    losses = curve("levels off", 30)
    assert not any(follow(mkor, model, losses, "closure", batches(1, shape=(6,))[0]))


def test_a_loss_may_be_a_tensor_that_needs_a_gradient():
    model = setting.chain(6, 4)
    mkor = make(model, hybrid=RULE)
    for batch in batches(6, shape=(6,)):
        loss = loss_of(model, batch)
        loss.backward()
        mkor.observe_loss(loss)
        mkor.step()
        mkor.zero_grad()
    assert not mkor.first_order


# ---- After the switch ----------------------------------------------------------------------------


def switched(steps=3, **options):
    model = network()
    mkor = make(model, update_every=1, **options)
    mkor.observe_loss(1.0)
    train(mkor, model, batches(steps))
    mkor.switch_to_first_order()
    return model, mkor


def test_the_switch_frees_factors_and_hooks():
    model = network()
    mkor = make(model, update_every=1)
    train(mkor, model, batches(2))
    views = [f for own in mkor.factors.values() for f in own.values()]
    held = [StorageWeakRef(f.untyped_storage()) for f in views]
    loss_of(model, batches(1)[0]).backward()
    del views
    mkor.switch_to_first_order()
    gc.collect()
    assert mkor.first_order
    assert all(ref.expired() for ref in held)
    assert setting.count_hooks(model) == 0
    assert flat(mkor.factors) == []
    assert mkor.statistics() == {}
    mkor.switch_to_first_order()  # once more does nothing


def test_after_the_switch_it_is_the_optimizer_alone():
    given, losses = batches(8), [9.0, 5.0, 4.0]
    model, twin = network(), network()
    rule = dict(beta=1.0, interval=1, patience=1, min_steps=2, momentum=0.0)
    mkor, alone = make(model, update_every=1, hybrid=rule), setting.sgd(twin)
    for batch, loss in zip(given, losses, strict=False):
        assert not mkor.first_order
        mkor.observe_loss(loss)
        train(mkor, model, [batch])
    assert mkor.first_order
    go_on_alike(mkor, model, alone, twin, given[3:])


def go_on_alike(mkor, model, alone, twin, given):
    alone.load_state_dict(copy.deepcopy(mkor.optimizer.state_dict()))
    twin.load_state_dict(model.state_dict())
    train(mkor, model, given)
    train(alone, twin, given)
    assert same_bits(snapshot(alone), snapshot(mkor))


def test_a_switch_by_hand_is_at_once():
    model, mkor = switched()
    twin = network()
    go_on_alike(mkor, model, setting.sgd(twin), twin, batches(3, seed=2))


def test_a_switch_between_backward_and_step_lets_the_gradient_through():
    model = network()
    mkor = make(model, update_every=1)
    train(mkor, model, batches(2))
    seen = setting.watch(mkor.optimizer)
    loss_of(model, batches(1)[0]).backward()
    mkor.switch_to_first_order()
    handed = [p.grad for p in model.parameters()]
    mkor.step()
    assert same_bits(seen[0], handed)


@pytest.mark.parametrize("into", ["fresh", "switched"])
def test_state_after_the_switch_loads(into):
    model, mkor = switched(hybrid=RULE)
    saved, weights = copy.deepcopy((mkor.state_dict(), model.state_dict()))
    assert not any(len(f) == 31 for f in tensors_in(saved["mkor"]) if f.dim() == 2)
    other = network()
    resumed = make(other, update_every=1, hybrid=RULE)
    if into == "switched":
        resumed.switch_to_first_order()
    resumed.load_state_dict(saved)
    other.load_state_dict(weights)
    assert resumed.first_order
    assert setting.count_hooks(other) == 0
    assert flat(resumed.factors) == []
    train(mkor, model, batches(3, seed=4))
    train(resumed, other, batches(3, seed=4))
    assert same_bits(snapshot(resumed), snapshot(mkor))


def test_state_from_before_the_switch_loads_after_it():
    model = network()
    mkor = make(model, update_every=1)
    train(mkor, model, batches(2))
    saved, weights = copy.deepcopy((mkor.state_dict(), model.state_dict()))
    train(mkor, model, batches(3, seed=4))
    other = network()
    resumed = make(other, update_every=1)
    resumed.switch_to_first_order()
    resumed.load_state_dict(saved)
    other.load_state_dict(weights)
    train(resumed, other, batches(3, seed=4))
    assert same_bits(snapshot(resumed), snapshot(mkor))
    assert same_bits(flat(resumed.factors), flat(mkor.factors))


def test_a_switched_one_refuses_the_state_of_other_layers():
    model = setting.chain(6, 5, 4)
    other = make(model, update_every=1)
    train(other, model, batches(1, shape=(6,)))
    _, mkor = switched()
    before = snapshot(mkor)
    with pytest.raises(ValueError, match="MKOR: ") as caught:
        mkor.load_state_dict(other.state_dict())
    assert "\n" not in str(caught.value)
    assert same_bits(snapshot(mkor), before)
    assert mkor.first_order


def test_the_rule_goes_on_where_it_was_saved():
    losses = curve("levels off", 30)
    oracle = Hybrid(**RULE)
    expected = [oracle.observe(loss) for loss in losses]
    batch, found = batches(1, shape=(6,))[0], []
    saved = None
    for start in range(0, 30, 5):
        model = setting.chain(6, 4)
        mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.0), hybrid=RULE)
        if saved is not None:
            mkor.load_state_dict(saved)
        found += follow(mkor, model, losses[start : start + 5], "closure", batch)
        saved = mkor.state_dict()
    assert found == expected
