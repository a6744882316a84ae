# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR's statistics: the same however layers are called, and only of calls that train."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import (
    LAYERS,
    assert_same,
    batches,
    captured,
    flat,
    loss_of,
    make,
    network,
    observed,
    statistics,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = batches(1)[0]
FLAT = batches(1, shape=(6,))[0]


# ---- Ways to call a layer ------------------------------------------------------------------------


class Block(nn.Module):
    """A biased and an unbiased layer, called in some way."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4, bias=False)
        self.call = call

    def forward(self, x):
        return self.call(self, x)

    def plain(self, x):
        return self.second(self.first(x).relu()).relu()


def in_place(self, x):
    return torch.relu_(self.second(torch.relu_(self.first(x))))


def by_keyword(self, x):
    return self.second(input=self.first(input=x).relu()).relu()


def checkpointed(reentrant):
    def call(self, x):
        return checkpoint(self.plain, x, use_reentrant=reentrant)

    return call


def nested(self, x):
    def inner(x):
        return checkpoint(self.first, x, use_reentrant=False).relu()

    return self.second(checkpoint(inner, x, use_reentrant=False)).relu()


class Renamed(nn.Linear):
    """A layer whose input goes by another name."""

    def forward(self, x):
        return super().forward(x)


def test_keywords_of_any_name():
    model = Block(lambda self, x: self.second(self.first(x=x).relu()).relu())
    model.first.__class__ = Renamed
    mkor = make(model)
    loss_of(model, FLAT).backward()
    assert_same(mkor.statistics(), statistics(Block(Block.plain), FLAT))


@pytest.mark.parametrize("needs_grad", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize(
    "call",
    [in_place, by_keyword, checkpointed(False), checkpointed(True), nested],
    ids=["in place", "keyword", "checkpoint", "reentrant checkpoint", "nested checkpoints"],
)
def test_statistics_do_not_depend_on_how_a_layer_is_called(call, needs_grad):
    x, y = FLAT
    x = x.clone().requires_grad_(needs_grad)
    if call.__qualname__.startswith("checkpointed") and not needs_grad:
        call = checkpointed(False)  # the other kind needs an input with a gradient
    expected = statistics(Block(Block.plain), (x.detach().requires_grad_(needs_grad), y))
    model = Block(call)
    mkor = make(model)
    loss_of(model, (x, y)).backward()
    assert_same(mkor.statistics(), expected)


def test_modules_called_in_evaluation_and_without_gradients_do_not_count():
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    other = batches(1, seed=9)[0]

    def disturb():
        with torch.no_grad():
            model(other[0])
        with torch.inference_mode():
            model(other[0])
        model.eval()
        model(other[0])
        model.train()

    disturb()
    loss = loss_of(model, BATCH)
    disturb()
    loss.backward()
    disturb()
    assert_same(mkor.statistics(), expected)


def test_a_backward_pass_in_evaluation_does_not_count():
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    loss_of(model, BATCH).backward()
    model.eval()
    x = batches(1, seed=9)[0][0].requires_grad_()
    torch.autograd.grad(model(x).sum(), x)  # as attacks and saliency maps do
    model.train()
    assert_same(mkor.statistics(), expected)


def test_a_forward_pass_without_backward_does_not_count():
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    kept = model(batches(1, seed=9)[0][0])
    model(batches(1, seed=8)[0][0])
    loss_of(model, BATCH).backward()
    model(batches(1, seed=7)[0][0])
    assert_same(mkor.statistics(), expected)
    del kept


def test_a_module_called_twice_averages_a_and_adds_g():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.biased, self.bare = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x):
            for _ in range(2):
                x = self.bare(self.biased(x).tanh()).tanh()
            return self.bare(x[:5])  # a third call of one of them, with fewer rows

    def backward(model):
        model(FLAT[0]).square().sum().backward()

    assert_same(captured(Twice(), backward), observed(Twice(), backward), bits=False)


@pytest.mark.parametrize("other", [False, True], ids=["same loss", "two losses"])
def test_two_backward_passes_through_one_graph(other):
    def backward(model):
        out = model(BATCH[0])
        out.square().sum().backward(retain_graph=True)
        (out.sin() if other else out.square()).sum().backward()

    model = network()
    assert_same(captured(model, backward), observed(network(), backward), bits=False)


def test_inputs_under_autocast_are_taken_as_they_come():
    def backward(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(BATCH[0])
        (out.float() - BATCH[1]).square().sum().backward()

    found, expected = captured(network(), backward), observed(network(), backward)
    assert {t.dtype for t in flat(found)} == {torch.float32}
    assert_same({n: found[n] for n in ("conv", "head")}, {n: expected[n] for n in ("conv", "head")},
                bits=False)  # fmt: skip
    for name in ("stem", "body"):  # whose g autograd has summed in bfloat16
        assert setting.largest_error([found[name]["a"]], [expected[name]["a"]]) < 1e-6
        assert setting.largest_error([found[name]["g"]], [expected[name]["g"]]) < 2e-2


# ---- What it costs -------------------------------------------------------------------------------


class Counter(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_steps_that_are_not_due_cost_nothing():
    model, plain = network(), network()
    mkor = make(model, update_every=2)
    train(mkor, model, [BATCH])
    found = []
    for own in (model, plain):
        with Counter() as counter:
            loss_of(own, BATCH).backward()
        found.append(counter.count)
    assert found[0] == found[1]
    mkor.step()
    mkor.zero_grad()
    with Counter() as counter:
        loss_of(model, BATCH).backward()
    assert counter.count > found[0]  # it does see what is done


def test_activations_are_not_kept():
    model = network()
    mkor = make(model)
    held = []
    for name in LAYERS:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(
            lambda module, args: held.append(StorageWeakRef(args[0].untyped_storage()))
        )
        module.register_forward_hook(
            lambda module, args, output: held.append(StorageWeakRef(output.untyped_storage()))
        )
    loss_of(model, BATCH).backward()
    assert set(mkor.statistics()) == set(LAYERS)
    assert [ref.expired() for ref in held] == [False] + [True] * 7  # the first is the batch


# ---- Copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_does_not_count(copied):
    expected = statistics(network(), BATCH)
    model = network()
    mkor = make(model)
    average = copied(model)
    loss_of(average, batches(1, seed=9)[0]).backward()
    assert mkor.statistics() == {}
    loss_of(model, BATCH).backward()
    loss_of(average, batches(1, seed=8)[0]).backward()
    assert_same(mkor.statistics(), expected)
    train(mkor, model, batches(2))


def test_two_of_them_on_one_model_see_the_same():
    model = network()
    first, second = make(model), make(model, update_every=3)
    loss_of(model, BATCH).backward()
    assert_same(first.statistics(), second.statistics())
