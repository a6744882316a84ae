# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR's statistics over several backward passes, skipped steps, loss scaling and compilation."""

import math

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB
from tests.helpers import same_bits, snapshot
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import (
    assert_same,
    batches,
    captured,
    chain,
    flat,
    loss_of,
    make,
    network,
    observed,
    statistics,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, OTHER = batches(2)


# ---- Accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [2, 3, 4])
def test_equal_micro_batches_are_one_batch(micro):
    def backward(model):
        for x, y in zip(BATCH[0].chunk(micro), BATCH[1].chunk(micro), strict=True):
            (loss_of(model, (x, y)) / micro).backward()

    expected = statistics(network(), BATCH)
    assert_same(captured(network(), backward), expected, bits=False)


def test_ragged_micro_batches_are_averaged_one_by_one():
    sizes = (1, 7, 4)

    def backward(model):
        for x, y in zip(BATCH[0].split(sizes), BATCH[1].split(sizes), strict=True):
            (loss_of(model, (x, y)) / 3).backward()

    assert_same(captured(network(), backward), observed(network(), backward), bits=False)


@pytest.mark.parametrize("bias", [True, False])
def test_micro_batches_of_several_shapes(bias):
    # The gradient of a bias does not know which call it came from: g is over the mean of the P.
    def backward(model):
        for size in (8, 5):
            x = BATCH[0][..., :size]
            model(x).square().sum().backward()

    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=bias))
    found, expected = captured(model, backward)["0"], observed(model, backward)["0"]
    assert setting.largest_error([found["a"]], [expected["a"]]) < 1e-6
    if not bias:
        twin = nn.Sequential(nn.Conv2d(2, 4, 3))
        twin.load_state_dict({"0.weight": model[0].weight, "0.bias": torch.zeros(4)})
        other = captured(twin, backward)["0"]
        assert setting.largest_error([found["g"]], [other["g"]]) < 1e-6


def test_statistics_may_be_read_at_any_time():
    model = network()
    mkor = make(model, update_every=1)
    loss_of(model, OTHER).backward()
    mkor.statistics()
    loss_of(model, BATCH).backward()
    expected = mkor.statistics()
    assert_same(mkor.statistics(), expected)
    twin = network()
    other = make(twin, update_every=1)
    for batch in (OTHER, BATCH):
        loss_of(twin, batch).backward()
    for optimizer in (mkor, other):
        optimizer.step()
    assert same_bits(flat(mkor.factors), flat(other.factors))


KINDS = {"SGD": setting.sgd, "LAMB": lambda model: LAMB(model.parameters(), lr=0.01)}

# ---- Steps that are not taken --------------------------------------------------------------------

DROPS = {
    "zero_grad": lambda mkor, model: mkor.zero_grad(),
    "to zero": lambda mkor, model: mkor.zero_grad(set_to_none=False),
    "of the model": lambda mkor, model: model.zero_grad(),
    "of the optimizer": lambda mkor, model: mkor.optimizer.zero_grad(),
}


@pytest.mark.parametrize("name", DROPS)
@pytest.mark.parametrize("micro", [1, 2])
def test_a_batch_that_was_dropped_leaves_nothing(name, micro):
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    for _ in range(micro):
        loss_of(model, OTHER).backward()
    DROPS[name](mkor, model)
    loss_of(model, BATCH).backward()
    assert_same(mkor.statistics(), expected)


@pytest.mark.parametrize("name", ["zero_grad", "of the model"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_step_that_the_scaler_skips(kind, name):
    expected = statistics(network(), BATCH)
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1000)
    mkor = make(model, kind(model), grad_scale=scaler.get_scale, update_every=1)
    before = [*snapshot(mkor)[: len(list(model.parameters()))], *flat(mkor.factors)]
    scaler.scale(loss_of(model, OTHER)).backward()
    model.stem.bias.grad[1] = math.inf
    scaler.step(mkor)
    scaler.update()
    DROPS[name](mkor, model)
    assert scaler.get_scale() == 1
    assert same_bits([*model.parameters(), *flat(mkor.factors)], [
        *network().parameters(), *before[-len(flat(mkor.factors)):]])  # fmt: skip
    assert all(n == 0 for own in mkor.counters.values() for c in own.values() for n in c.values())
    scaler.scale(loss_of(model, BATCH)).backward()
    assert_same(mkor.statistics(), expected)
    scaler.step(mkor)
    assert not same_bits(flat(mkor.factors), before[-len(flat(mkor.factors)) :])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_scaling_the_loss_changes_nothing(backend, kind):
    model, twin = network(backend.device), network(backend.device)
    scaler = torch.amp.GradScaler(backend.device.type, init_scale=1024.0, growth_interval=2)
    mkor = make(model, kind(model), grad_scale=scaler.get_scale, update_every=1)
    plain = make(twin, kind(twin), update_every=1)
    for batch in batches(5, device=backend.device):
        for half in ([t[:6] for t in batch], [t[6:] for t in batch]):
            scaler.scale(loss_of(model, half) / 2).backward()
            (loss_of(twin, half) / 2).backward()
        scaler.step(mkor)
        scaler.update()
        mkor.zero_grad()
        plain.step()
        plain.zero_grad()
    assert scaler.get_scale() > 1024
    assert setting.largest_error(flat(mkor.factors), flat(plain.factors)) < 1e-6
    assert setting.largest_error(list(model.parameters()), list(twin.parameters())) < 1e-6


@pytest.mark.parametrize("unscaled", [False, True])
def test_gradients_may_be_unscaled_and_clipped_before_the_step(unscaled):
    found = []
    for scaled in (False, True):
        model = network()
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
        mkor = make(model, grad_scale=scaler.get_scale, update_every=1)
        for batch in batches(2):
            scaler.scale(loss_of(model, batch)).backward()
            if unscaled:
                scaler.unscale_(mkor)
            scaler.step(mkor)
            scaler.update()
            mkor.zero_grad()
        found.append([*model.parameters(), *flat(mkor.factors)])
    assert setting.largest_error(*found) < 1e-6


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_captured_g_of_unscaled_gradients_needs_to_know_the_scale(kind):
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    mkor = make(model, kind(model))
    scaler.scale(loss_of(model, BATCH)).backward()
    scaler.unscale_(mkor)
    with pytest.raises(RuntimeError, match=r"MKOR: .*conv.*grad_scale=scaler\.get_scale") as caught:
        scaler.step(mkor)
    assert "\n" not in str(caught.value)
    assert same_bits(list(model.parameters()), list(network().parameters()))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_scale_that_it_is_not_told_is_asked_for_or_known(kind):
    model, twin = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    mkor, plain = make(model, kind(model)), make(twin, kind(twin))
    scaler.scale(loss_of(model, BATCH)).backward()
    try:
        scaler.step(mkor)
    except RuntimeError as error:
        assert "grad_scale=scaler.get_scale" in str(error)
        return
    train(plain, twin, [BATCH])
    assert setting.largest_error(flat(mkor.factors), flat(plain.factors)) < 1e-6
    assert setting.largest_error(list(model.parameters()), list(twin.parameters())) < 1e-6


def test_layers_with_bias_do_not_need_the_scale():
    found = []
    for scaled in (False, True):
        model = chain(6, 5, 4)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=scaled)
        mkor = make(model, update_every=1)
        for batch in batches(2, shape=(6,)):
            scaler.scale(loss_of(model, batch)).backward()
            scaler.step(mkor)
            scaler.update()
            mkor.zero_grad()
        found.append([*model.parameters(), *flat(mkor.factors)])
    assert setting.largest_error(*found) < 1e-6


# ---- Compilation ---------------------------------------------------------------------------------


class Residual(nn.Module):
    """With an in-place activation on the outputs of layers, as residual networks have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 6, bias=False)
        self.last = nn.Linear(6, 4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.last(self.act(self.second(self.act(self.first(x)))) + x)


@pytest.fixture
def compiler():
    """Return a backend of torch.compile that counts the graphs it is given."""
    torch._dynamo.reset()
    lower = torch._dynamo.lookup_backend("aot_eager")

    def counting(graph, inputs):
        counting.graphs += 1
        return lower(graph, inputs)

    counting.graphs = 0
    yield counting
    torch._dynamo.reset()


MODELS = {"plain": lambda: chain(6, 8, 4, between=nn.ReLU), "in place": Residual}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_compiled_models_have_the_same_statistics(compiler, build):
    given = batches(1, shape=(6,))[0]
    expected = statistics(build(), given)
    model = build()
    mkor = make(model)
    loss_of(torch.compile(model, backend=compiler), given).backward()
    assert compiler.graphs > 0
    assert_same(mkor.statistics(), expected, bits=False)


@pytest.mark.parametrize("name", ["zero_grad", "of the model"])
def test_compiled_models_forget_a_batch_that_was_dropped(compiler, name):
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    compiled = torch.compile(model, backend=compiler)
    loss_of(compiled, OTHER).backward()
    DROPS[name](mkor, model)
    loss_of(compiled, BATCH).backward()
    assert_same(mkor.statistics(), expected, bits=False)


def test_compiled_training_is_the_same_and_settles(compiler):
    model, twin = network(), network()
    mkor, plain = make(model, update_every=3), make(twin, update_every=3)
    compiled = torch.compile(model, backend=compiler)
    given, graphs = batches(10), []
    for batch in given:
        train(mkor, compiled, [batch])
        train(plain, twin, [batch])
        graphs.append(compiler.graphs)
    assert 0 < graphs[3] == graphs[-1]  # steps that measure and steps that do not are both seen
    assert setting.largest_error(list(model.parameters()), list(twin.parameters())) < 1e-5
    assert setting.largest_error(flat(mkor.factors), flat(plain.factors)) < 1e-5


def test_compiled_evaluation_does_not_count(compiler):
    model = network()
    mkor = make(model)
    expected = statistics(network(), BATCH)
    compiled = torch.compile(model, backend=compiler)
    with torch.no_grad():
        compiled(OTHER[0])
    compiled.eval()
    compiled(OTHER[0])
    compiled.train()
    loss_of(compiled, BATCH).backward()
    assert_same(mkor.statistics(), expected, bits=False)
