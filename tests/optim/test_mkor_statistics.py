# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR's statistics of layers, by their definition."""

import copy

import pytest
import torch
from torch import nn

from tests.helpers import same_bits
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import (
    LAYERS,
    assert_same,
    batches,
    captured,
    chain,
    loss_of,
    make,
    network,
    observed,
)

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = batches(1)[0]


# ---- The definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
def test_statistics_are_those_of_plain_hooks(backend, fold):
    model = network(backend.device)
    batch = [t.to(backend.device) for t in BATCH]
    found = captured(model, lambda m: loss_of(m, batch).backward(), fold_bias=fold)
    expected = observed(network(), lambda m: loss_of(m, BATCH).backward(), fold)
    assert tuple(found) == LAYERS
    assert found["body"]["a"].shape == (31 if fold else 30,)
    assert_same(found, expected, bits=False)


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3),
        dict(kernel_size=(2, 3), stride=(2, 1)),
        dict(kernel_size=3, padding=2, dilation=2),
        dict(kernel_size=(3, 1), padding=(1, 0), stride=2),
        dict(kernel_size=1),
        dict(kernel_size=(2, 4), padding="same"),
        dict(kernel_size=2, padding="valid"),
        dict(kernel_size=3, padding=1, padding_mode="circular"),
        dict(kernel_size=3, padding=(2, 1), padding_mode="reflect"),
        dict(kernel_size=3, padding=1, padding_mode="replicate", bias=False),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("unbatched", [False, True])
def test_convolutions_unfold_then_average(options, unbatched):
    model = nn.Sequential(nn.Conv2d(2, 4, **options), nn.Tanh())
    x = BATCH[0][0] if unbatched else BATCH[0]

    def backward(model):
        model(x).square().sum().backward()

    expected = observed(model, backward)
    assert_same(captured(model, backward), expected, bits=False)


def test_the_gradient_of_the_bias_is_the_captured_g():
    class Added(nn.Module):
        """A layer whose bias is added outside of it."""

        def __init__(self, layer):
            super().__init__()
            self.layer = copy.deepcopy(layer)
            self.bias, self.layer.bias = self.layer.bias, None

        def forward(self, x):
            bias = self.bias if isinstance(self.layer, nn.Linear) else self.bias[:, None, None]
            return self.layer(x) + bias

    model, twin = network(), network()
    for name in ("stem", "body"):
        twin.set_submodule(name, Added(twin.get_submodule(name)))
    found = captured(model, lambda m: loss_of(m, BATCH).backward())
    other = captured(twin, lambda m: loss_of(m, BATCH).backward())
    positions = 5 * 4  # of the stem's output
    assert same_bits(found["body"]["g"], model.body.bias.grad)
    assert setting.largest_error([found["stem"]["g"]], [model.stem.bias.grad / positions]) < 1e-6
    for name in ("stem", "body"):
        unbiased = other[f"{name}.layer"]
        assert same_bits(unbiased["a"], found[name]["a"][:-1])
        assert setting.largest_error([unbiased["g"]], [found[name]["g"].double()]) < 1e-6


@pytest.mark.parametrize("shape", [(6,), (5, 6), (3, 4, 6), (2, 3, 1, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_all_dimensions_but_the_last(shape, bias):
    model = chain(6, 5, 4, bias=bias)
    x = torch.randn(shape) + 0.3

    def backward(model):
        model(x).square().sum().backward()

    assert_same(captured(model, backward), observed(model, backward), bits=False)


def test_clipping_is_of_the_average():
    model = chain(6, 5, 4)
    x = torch.full((4, 6), 3.0)
    x[0, 0], x[:, 1], x[1, 2] = 300.0, -150.0, torch.inf
    found = captured(model, lambda m: m(x).sum().backward())
    assert found["0"]["a"].tolist() == [(300 + 9) / 4, -100.0, torch.inf, 3.0, 3.0, 3.0, 1.0]
    twin = chain(6, 5, 4)
    found = captured(twin, lambda m: m(x).sum().backward(), stat_clip=None)
    assert found["0"]["a"][1] == -150


def test_statistics_of_the_gradient():
    model = network()
    found = captured(model, lambda m: loss_of(m, BATCH).backward(), stats="grad")
    body = torch.cat([model.body.weight.grad, model.body.bias.grad[:, None]], dim=1).double()
    conv = model.conv.weight.grad.view(3, 24).double()
    for name, g in (("body", body), ("conv", conv)):
        for key, dim in (("a", 0), ("g", 1)):
            error = (found[name][key] - g.mean(dim)).abs().max()
            assert error < 1e-6 * g.abs().mean(dim).max()


def test_statistics_of_the_gradient_need_no_hooks():
    model = network()
    make(model, stats="grad")
    assert setting.count_hooks(model) == 0
