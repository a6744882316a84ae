# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR as an optimizer: which layers it takes, when it updates, what it shares and counts."""

import math

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, MKOR
from tests.helpers import same_bits, values
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import LAYERS, batches, chain, flat, loss_of, make, network, train

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- Layers --------------------------------------------------------------------------------------


def test_takes_linear_layers_and_convolutions():
    model = network()
    mkor = make(model)
    assert mkor.layers == LAYERS
    assert {name: {s: len(f) for s, f in own.items()} for name, own in mkor.factors.items()} == {
        "stem": {"L": 4, "R": 19},
        "conv": {"L": 3, "R": 24},
        "body": {"L": 11, "R": 31},
        "head": {"L": 4, "R": 11},
    }
    assert all(same_bits(f, torch.eye(len(f))) for f in flat(mkor.factors))


def test_factors_are_live_views():
    model = network()
    mkor = make(model, update_every=1)
    held = mkor.factors["body"]["R"]
    train(mkor, model, batches(1))
    assert same_bits(held, mkor.factors["body"]["R"])
    assert not same_bits(held, torch.eye(31))
    held.mul_(0.5)
    assert same_bits(held, mkor.factors["body"]["R"])


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ("head", ("stem", "conv", "body")),
        ("^b", ("stem", "conv", "head")),
        ("o", ("stem", "head")),
        (lambda name, module: isinstance(module, nn.Conv2d), ("body", "head")),
        (lambda name, module: name == "stem", ("conv", "body", "head")),
    ],
    ids=["search", "anchored", "letter", "by module", "by name"],
)
def test_skip_leaves_layers_to_the_optimizer(skip, left):
    model = network()
    mkor = make(model, skip=skip)
    seen = setting.watch(mkor.optimizer)
    assert mkor.layers == left
    assert tuple(mkor.factors) == left
    loss_of(model, batches(1)[0]).backward()
    copies = values([p.grad for p in model.parameters()])
    mkor.step()
    for (name, _), found, copy in zip(model.named_parameters(), seen[0], copies, strict=True):
        assert same_bits(found, copy) == (name.split(".")[0] not in left)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.attention(x, x, x)[0]).mean(dim=1)


def test_the_output_projection_of_attention_is_left_out():
    model = Attention()
    mkor = make(model, update_every=1)
    assert mkor.layers == ("out",)
    train(mkor, model, batches(2, shape=(5, 8)))


def test_frozen_weights_and_those_the_optimizer_has_not_are_left_out():
    model = network()
    model.stem.weight.requires_grad_(False)
    held = [p for name, p in model.named_parameters() if not name.startswith("body")]
    mkor = make(model, torch.optim.SGD(held, lr=0.1))
    assert mkor.layers == ("conv", "head")
    train(mkor, model, batches(2))


def test_a_frozen_bias_is_not_folded_and_g_is_captured():
    model = network()
    expected = setting.statistics(model, batches(1)[0])["body"]
    model.body.bias.requires_grad_(False)
    mkor = make(model)
    assert mkor.factors["body"]["R"].shape == (30, 30)
    loss_of(model, batches(1)[0]).backward()
    found = mkor.statistics()["body"]
    assert same_bits(found["a"], expected["a"][:-1])
    assert setting.largest_error([found["g"]], [expected["g"]]) < 1e-6


def test_layers_whose_weight_is_computed_are_left_out():
    model = chain(6, 5, 4)
    nn.utils.parametrizations.weight_norm(model[0])
    mkor = make(model, update_every=1)
    assert mkor.layers == ("2",)
    train(mkor, model, batches(2, shape=(6,)))


def test_subclasses_are_taken():
    class Scaled(nn.Linear):
        def forward(self, input):
            return super().forward(input) * 2

    model = nn.Sequential(Scaled(6, 5), nn.Tanh(), nn.Linear(5, 4))
    mkor = make(model, update_every=1)
    assert mkor.layers == ("0", "2")
    train(mkor, model, batches(2, shape=(6,)))


@pytest.mark.parametrize("kind", [dict, list])
def test_modules_by_name(kind):
    model = network()
    modules = kind([("first", model.stem), ("last", model.head)])
    mkor = MKOR(modules, setting.sgd(model))
    assert mkor.layers == ("first", "last")
    train(mkor, model, batches(1))
    assert not same_bits(mkor.factors["first"]["L"], torch.eye(4))


def test_containers_by_name():
    parts = {"encoder": chain(6, 5, 3), "decoder": chain(3, 6)}
    params = [p for part in parts.values() for p in part.parameters()]
    mkor = MKOR(parts, torch.optim.SGD(params, lr=0.1))
    assert mkor.layers == ("encoder.0", "encoder.2", "decoder.0")


def test_the_prefix_of_a_compiled_model_is_stripped():
    compiled = torch.compile(network(), backend="eager")
    assert make(compiled).layers == LAYERS


@pytest.mark.parametrize(
    ("large", "shapes"),
    [
        ("skip_side", {"stem": (4, None), "conv": (3, None), "body": (11, None), "head": (4, 11)}),
        ("skip_layer", {"head": (4, 11)}),
        (
            "block",
            {
                "stem": (4, [10, 9]),
                "conv": (3, [12, 12]),
                "body": (11, [11, 11, 9]),
                "head": (4, 11),
            },
        ),
    ],
)
def test_large_dimensions(large, shapes):
    model = network()
    mkor = make(model, max_factor_dim=14, large_dims=large)

    def size(factor):
        return factor if factor is None else (
            len(factor) if torch.is_tensor(factor) else [len(f) for f in factor]
        )  # fmt: skip

    found = {
        name: tuple(size(own.get(side)) for side in "LR") for name, own in mkor.factors.items()
    }
    assert found == shapes
    train(mkor, model, batches(2))


# ---- Schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "due"),
    [
        (dict(update_every=1), range(9)),
        (dict(update_every=3), (0, 3, 6)),
        (dict(update_every=4, warmup_steps=3), (0, 1, 2, 4, 8)),
        (dict(), (0,)),
        (dict(warmup_steps=5), range(5)),
    ],
    ids=str,
)
def test_factors_change_in_steps_that_are_due(options, due):
    model = network()
    mkor = make(model, **options)
    changed, measured = [], []
    for step, batch in enumerate(batches(9)):
        before = flat(mkor.factors)
        loss_of(model, batch).backward()
        if mkor.statistics():
            measured.append(step)
        mkor.step()
        assert mkor.statistics() == {}
        mkor.zero_grad()
        if not same_bits(flat(mkor.factors), before):
            changed.append(step)
    assert changed == list(due)
    assert measured == list(due)


@pytest.mark.parametrize("on", ["wrapper", "optimizer before", "optimizer"])
def test_schedulers_see_their_own_rates(on):
    model = network()
    optimizer = setting.sgd(model, lr=0.1)

    def schedule(target):
        return torch.optim.lr_scheduler.LambdaLR(target, lambda step: 1 / (1 + step))

    scheduler = schedule(optimizer) if on == "optimizer before" else None
    mkor = make(model, optimizer)
    scheduler = scheduler or schedule(mkor if on == "wrapper" else optimizer)
    rates = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    for batch in batches(4):
        train(mkor, model, [batch])
        scheduler.step()
    assert rates == [0.1 * (1 / (1 + step)) for step in range(4)]
    twin = network()
    by_hand = make(twin, setting.sgd(twin, lr=0.1))
    for batch, rate in zip(batches(4), rates, strict=True):
        by_hand.param_groups[0]["lr"] = rate
        train(by_hand, twin, [batch])
    assert same_bits(list(twin.parameters()), list(model.parameters()))


# ---- An optimizer --------------------------------------------------------------------------------


def test_is_an_optimizer_that_shares_groups_and_state():
    model = network()
    optimizer = setting.sgd(model)
    mkor = make(model, optimizer)
    train(mkor, model, batches(2))
    assert isinstance(mkor, torch.optim.Optimizer)
    assert mkor.optimizer is optimizer
    assert mkor.param_groups is optimizer.param_groups
    assert mkor.state is optimizer.state
    assert mkor.defaults == optimizer.defaults
    assert len(mkor.state) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert not mkor.first_order


def test_step_returns_the_loss_of_a_closure_called_once_with_gradients_enabled():
    model, calls = network(), []
    mkor = make(model)

    def closure():
        assert torch.is_grad_enabled()
        mkor.zero_grad()
        calls.append(loss_of(model, batches(1)[0]))
        calls[-1].backward()
        return calls[-1]

    assert mkor.step(closure) is calls[0]
    assert len(calls) == 1
    twin = network()
    by_hand = make(twin)
    train(by_hand, twin, batches(1))
    assert same_bits(list(model.parameters()), list(twin.parameters()))
    assert same_bits(flat(mkor.factors), flat(by_hand.factors))


def test_groups_may_be_added_and_split_a_layer():
    model = network()
    weights = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": rest, "lr": 0.02}], lr=0.02)
    mkor, twin = make(model, optimizer), network()
    by_hand = make(twin, torch.optim.SGD(twin.parameters(), lr=0.02))
    extra = nn.Parameter(torch.ones(3))
    mkor.add_param_group({"params": [extra], "lr": 0.5})
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 4, 1]
    for batch in batches(2):
        extra.grad = torch.ones(3)
        train(mkor, model, [batch])
        train(by_hand, twin, [batch])
    assert same_bits(extra.detach(), torch.zeros(3))
    assert same_bits(list(model.parameters()), list(twin.parameters()))


# ---- Counters ------------------------------------------------------------------------------------

NONE = {"dropped": 0, "stabilized": 0, "reset": 0}


def test_counters_say_what_happened_to_each_factor():
    model = network()
    mkor = make(model, variant="exact", update_every=1, stabilizer_threshold=0.9)
    assert mkor.counters == {name: {"L": NONE, "R": NONE} for name in LAYERS}
    train(mkor, model, batches(1))  # the norm of I is above 0.9
    assert all(type(n) is int for own in mkor.counters["stem"].values() for n in own.values())
    once = NONE | {"stabilized": 1}
    assert mkor.counters == {name: {"L": once, "R": once} for name in LAYERS}
    mkor.factors["body"]["R"].neg_()  # not positive any more
    loss_of(model, batches(1)[0]).backward()
    model.stem.bias.grad.fill_(math.inf)
    mkor.step()
    assert mkor.counters["body"]["R"] == once | {"reset": 1}
    assert same_bits(mkor.factors["body"]["R"], torch.eye(31))
    assert mkor.counters["stem"]["L"] == once | {"dropped": 1}
    assert mkor.counters["stem"]["R"]["dropped"] == 0


def test_a_leaky_factor_that_is_not_positive_is_reset():
    model = network()
    mkor = make(model, update_every=1)
    mkor.factors["head"]["L"].neg_()
    train(mkor, model, batches(1))
    assert mkor.counters["head"] == {"L": NONE | {"reset": 1}, "R": NONE}
    assert same_bits(mkor.factors["head"]["L"], torch.eye(4))


def test_counters_of_sides_that_are_there():
    model = network()
    mkor = make(model, LAMB(model.parameters(), lr=0.01), sides="R")
    assert mkor.counters == {name: {"R": NONE} for name in LAYERS}
    assert all(own.keys() == {"R"} for own in mkor.factors.values())
