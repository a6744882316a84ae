# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR's state: saved, loaded, copied, and kept whole when a step fails."""

import copy
import io
import pickle

import pytest
import torch

from largebatch.optim import LAMB
from tests.helpers import same_bits, snapshot, values
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import batches, chain, flat, loss_of, make, network, train

pytestmark = pytest.mark.usefixtures("one_thread")


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def tensors_in(state):
    """Return the tensors in a state, however it nests them."""
    if torch.is_tensor(state):
        return [state]
    if not isinstance(state, dict | list | tuple):
        return []
    parts = state.values() if isinstance(state, dict) else state
    return [t for part in parts for t in tensors_in(part)]


def everything(mkor):
    return snapshot(mkor) + flat(mkor.factors)


def optimizer_of(kind, model):
    return {
        "SGD": lambda: setting.sgd(model),
        "AdamW": lambda: torch.optim.AdamW(model.parameters(), lr=0.01),
        "LAMB": lambda: LAMB(model.parameters(), lr=0.01),
    }[kind]()


OPTIONS = {
    "leaky": {},
    "exact": dict(variant="exact", stabilizer_threshold=1.3, stabilizer_norm="inf"),
    "paper": dict(variant="paper"),
    "half": dict(factor_dtype=torch.float16),
    "right": dict(sides="R", stats="grad", warmup_steps=2),
    "blocks": dict(max_factor_dim=14, large_dims="block"),
    "hybrid": dict(hybrid=dict(interval=2, min_steps=1000)),
}


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "LAMB"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_resumes_bit_for_bit_at_any_step(kind, at):
    resume(kind, at, update_every=3, warmup_steps=2)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("at", [3, 4])
def test_resumes_bit_for_bit_with_any_setting(name, at):
    resume("SGD", at, **dict(update_every=2) | OPTIONS[name])


def resume(kind, at, **options):
    model, given = network(), batches(8)
    mkor = make(model, optimizer_of(kind, model), **options)

    def go_on(mkor, model, given):
        for batch in given:
            loss = loss_of(model, batch)
            loss.backward()
            if "hybrid" in options:
                mkor.observe_loss(loss.item())
            mkor.step()
            mkor.zero_grad()

    go_on(mkor, model, given[:at])
    saved = through_a_file(mkor.state_dict())
    weights = through_a_file(model.state_dict())
    go_on(mkor, model, given[at:])
    fresh = setting.Net()
    fresh.load_state_dict(weights)
    resumed = make(fresh, optimizer_of(kind, fresh), **options)
    resumed.load_state_dict(saved)
    assert resumed.state_dict().keys() == saved.keys()
    go_on(resumed, fresh, given[at:])
    assert same_bits(everything(resumed), everything(mkor))
    assert resumed.counters == mkor.counters


def test_saved_state_is_a_copy():
    model, given = network(), batches(3)
    mkor = make(model, update_every=1)
    train(mkor, model, given[:1])
    saved = mkor.state_dict()
    own = saved["mkor"]
    before = copy.deepcopy(own)
    train(mkor, model, given[1:])
    assert same_bits(tensors_in(own), tensors_in(before))
    assert not same_bits(tensors_in(own), tensors_in(mkor.state_dict()["mkor"]))


def test_saved_state_is_the_optimizer_s_too():
    model = network()
    mkor = make(model)
    train(mkor, model, batches(2))
    saved = mkor.state_dict()
    alone = setting.sgd(model)
    alone.load_state_dict(saved)
    assert same_bits(snapshot(alone), snapshot(mkor))


def test_loading_forgets_pending_statistics():
    model, given = network(), batches(4)
    mkor = make(model, update_every=2)
    train(mkor, model, given[:2])
    saved, weights = copy.deepcopy(mkor.state_dict()), copy.deepcopy(model.state_dict())
    train(mkor, model, given[2:])
    expected = everything(mkor)
    train(mkor, model, given[:1])
    train(mkor, model, given[:1])
    loss_of(model, given[3]).backward()
    model.load_state_dict(weights)
    for p in model.parameters():
        p.grad = None
    mkor.load_state_dict(saved)
    assert mkor.statistics() == {}
    train(mkor, model, given[2:])
    assert same_bits(everything(mkor), expected)


def test_factors_are_cast_to_the_dtype_they_are_loaded_into():
    model = network()
    mkor = make(model)
    train(mkor, model, batches(1))
    half = make(network(), factor_dtype=torch.float16)
    half.load_state_dict(mkor.state_dict())
    assert same_bits(flat(half.factors), [f.half() for f in flat(mkor.factors)])


def test_views_of_factors_stay_live_after_loading():
    model = network()
    mkor = make(model)
    train(mkor, model, batches(1))
    other = make(network())
    held = other.factors["body"]["R"]
    other.load_state_dict(mkor.state_dict())
    assert same_bits(held, mkor.factors["body"]["R"])


# ---- What is refused -----------------------------------------------------------------------------


OTHERS = {
    "layers": (lambda: make(network(), skip="head"), "head"),
    "more layers": (lambda: make(chain(30, 11, 4)), "stem|conv|body|head|0"),
    "shapes": (lambda: make(widened()), "body"),
    "sides": (lambda: make(network(), sides="R"), "stem"),
    "folding": (lambda: make(network(), fold_bias=False), "stem"),
    "blocks": (lambda: make(network(), max_factor_dim=14, large_dims="block"), "stem"),
    "variant": (lambda: make(network(), variant="exact"), "leaky"),
}


def widened():
    model = network()
    model.norm, model.body = torch.nn.LayerNorm(30), torch.nn.Linear(30, 13)
    model.head = torch.nn.Linear(13, 4, bias=False)
    return model


@pytest.mark.parametrize("name", OTHERS)
def test_state_of_something_else_is_refused(name):
    build, pattern = OTHERS[name]
    model = network()
    mkor = make(model)
    train(mkor, model, batches(1))
    other = build()
    before = flat(other.factors)
    with pytest.raises(ValueError, match=rf"MKOR: .*({pattern})") as caught:
        other.load_state_dict(mkor.state_dict())
    assert "\n" not in str(caught.value)
    assert same_bits(flat(other.factors), before)
    assert not other.state  # of the optimizer: nothing is loaded by halves


def test_state_of_the_optimizer_alone_is_refused():
    model = network()
    mkor = make(model)
    train(mkor, model, batches(1))
    before = everything(mkor)
    with pytest.raises(ValueError, match=r"MKOR: state_dict.*'mkor'") as caught:
        mkor.load_state_dict(mkor.optimizer.state_dict())
    assert "\n" not in str(caught.value)
    assert same_bits(everything(mkor), before)


# ---- Copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_alike(copied):
    model, given = network(), batches(5)
    mkor = make(model, update_every=2)
    train(mkor, model, given[:2])
    twin, other = copied((model, mkor))
    train(mkor, model, given[2:])
    train(other, twin, given[2:])
    assert other is not mkor
    assert same_bits(everything(other), everything(mkor))


# ---- Steps that fail -----------------------------------------------------------------------------


class Failing(torch.optim.SGD):
    fail = False

    def step(self, closure=None):
        if self.fail:
            raise KeyboardInterrupt
        return super().step(closure)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "hybrid"])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_step_that_failed_can_be_taken_again(name, at):
    results = []
    for fails in (False, True):
        model, given = network(), batches(4)
        optimizer = Failing(model.parameters(), lr=0.02, momentum=0.9)
        mkor = make(model, optimizer, **dict(update_every=2) | OPTIONS[name])
        train(mkor, model, given[:at])
        loss_of(model, given[at]).backward()
        if fails:
            before = values(model.parameters())
            for _ in range(2):
                optimizer.fail = True
                with pytest.raises(KeyboardInterrupt):
                    mkor.step()
            optimizer.fail = False
            assert same_bits(list(model.parameters()), before)
        mkor.step()
        mkor.zero_grad()
        counters = mkor.counters
        train(mkor, model, given[at + 1 :])
        results.append(everything(mkor))
        results.append([torch.tensor(n) for own in counters.values() for c in own.values()
                        for n in c.values()])  # fmt: skip
    assert same_bits(results[0], results[2])
    assert same_bits(results[1], results[3])


def closure_of(mkor, model, batch):
    def closure():
        mkor.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("hybrid", [None, dict(interval=2, min_steps=1000)], ids=["mkor", "hybrid"])
def test_a_step_that_failed_can_be_taken_again_with_its_closure(hybrid):
    results = []
    for fails in (False, True):
        model, given = network(), batches(4)
        optimizer = Failing(model.parameters(), lr=0.02, momentum=0.9)
        mkor = make(model, optimizer, update_every=2, hybrid=hybrid)
        for step, batch in enumerate(given):
            closure = closure_of(mkor, model, batch)
            if fails and step == 2:
                optimizer.fail = True
                with pytest.raises(KeyboardInterrupt):
                    mkor.step(closure)
                optimizer.fail = False
            mkor.step(closure)
        results.append(everything(mkor))
        if hybrid is not None:
            results[-1] += [torch.tensor(list(mkor.state_dict()["mkor"]["hybrid"].values()))]
    assert same_bits(*results)


def test_a_step_that_failed_under_a_scaler_can_be_taken_again():
    results = []
    for fails in (False, True):
        model, given = network(), batches(3)
        optimizer = Failing(model.parameters(), lr=0.02, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        mkor = make(model, optimizer, update_every=1, grad_scale=scaler.get_scale)
        for step, batch in enumerate(given):
            scaler.scale(loss_of(model, batch)).backward()
            if fails and step == 1:
                optimizer.fail = True
                with pytest.raises(KeyboardInterrupt):
                    scaler.step(mkor)
                optimizer.fail = False
            scaler.step(mkor)
            scaler.update()
            mkor.zero_grad()
        results.append(everything(mkor))
    assert same_bits(*results)
