# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What MKOR refuses, in one line that names what is wrong, and that it leaves no trace then."""

import math

import pytest
import torch
from torch import nn

from largebatch.optim import MKOR
from tests.helpers import same_bits, snapshot
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import batches, chain, loss_of, make, network

pytestmark = pytest.mark.usefixtures("one_thread")


def refused(model, error, pattern, optimizer=None, **options):
    """Check that construction fails with one line, and that the model is as it was."""
    modules = model if isinstance(model, nn.Module) else nn.ModuleList(dict(model).values())
    if optimizer is None:
        optimizer = torch.optim.SGD([p for p in modules.parameters() if p.requires_grad], lr=0.1)
    before = setting.count_hooks(modules)
    with pytest.raises(error, match="MKOR: .*" + pattern) as caught:
        MKOR(model, optimizer, **options)
    assert "\n" not in str(caught.value)
    assert setting.count_hooks(modules) == before == 0


# ---- Models --------------------------------------------------------------------------------------


def test_a_model_without_layers():
    refused(nn.Sequential(nn.LayerNorm(3), nn.Conv1d(2, 3, 1)), ValueError, "no .*Linear")
    refused(network(), ValueError, "no .*Linear", skip=".")
    refused(network(), ValueError, "no layer", max_factor_dim=2, large_dims="skip_layer")


def test_layers_of_which_the_optimizer_has_none():
    model = network()
    refused(model, ValueError, "no .*Linear", torch.optim.SGD(network().parameters(), lr=0.1))
    for p in model.parameters():
        p.requires_grad_(p is model.norm.weight)
    refused(model, ValueError, "no .*Linear")


def test_tied_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.ahead = nn.Linear(4, 4)
            self.encode = nn.Linear(6, 4)
            self.decode = nn.Linear(6, 4, bias=False)
            self.decode.weight = self.encode.weight

    refused(Tied(), ValueError, "encode.*decode")
    assert make(Tied(), skip="code").layers == ("ahead",)
    layer = nn.Linear(4, 4)
    refused([("one", layer), ("two", layer)], ValueError, "one.*two")


def test_weights_tied_to_an_embedding():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight  # two modules that share a weight
    refused(model, ValueError, "0.*2|2.*0")
    assert make(model, skip="2").layers == ("1",)


def test_grouped_convolutions():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 3, groups=2))
    refused(model, ValueError, "1.*groups")
    assert make(model, skip="1").layers == ("0",)


# ---- Arguments -----------------------------------------------------------------------------------

EXACT, PAPER = dict(variant="exact"), dict(variant="paper")
LIMIT = 1 / (0.95 + 0.95**-3)  # 0.4726

BAD = {
    "variant": (dict(variant="KFAC"), ValueError, "variant"),
    "gamma": (EXACT | dict(gamma=1.0), ValueError, "gamma"),
    "gamma low": (EXACT | dict(gamma=0.0), ValueError, "gamma"),
    "gamma nan": (EXACT | dict(gamma=math.nan), ValueError, "gamma"),
    "leak": (dict(leak=1.5), ValueError, "leak"),
    "leak low": (dict(leak=-0.1), ValueError, "leak"),
    "leak nan": (dict(leak=math.nan), ValueError, "leak"),
    "rho": (dict(rho=0.0), ValueError, "rho"),
    "rho inf": (dict(rho=math.inf), ValueError, "rho"),
    "rho sign": (dict(rho=-1.0), ValueError, "rho"),
    "update_every": (dict(update_every=0), ValueError, "update_every"),
    "update_every kind": (dict(update_every=2.5), (TypeError, ValueError), "update_every"),
    "warmup_steps": (dict(warmup_steps=-1), ValueError, "warmup_steps"),
    "sides": (dict(sides="RL"), ValueError, "sides"),
    "no sides": (dict(sides=""), ValueError, "sides"),
    "stats": (dict(stats="hooks"), ValueError, "stats"),
    "max_factor_dim": (dict(max_factor_dim=0), ValueError, "max_factor_dim"),
    "large_dims": (dict(large_dims="split"), ValueError, "large_dims"),
    "factor_dtype": (dict(factor_dtype=torch.int8), (TypeError, ValueError), "factor_dtype"),
    "factor_dtype kind": (dict(factor_dtype="half"), (TypeError, ValueError), "factor_dtype"),
    "matmul_dtype": (dict(matmul_dtype=torch.int8), (TypeError, ValueError), "matmul_dtype"),
    "stat_clip": (dict(stat_clip=0.0), ValueError, "stat_clip"),
    "stat_clip nan": (dict(stat_clip=math.nan), ValueError, "stat_clip"),
    "norm": (EXACT | dict(stabilizer_norm="l2"), ValueError, "stabilizer_norm"),
    "threshold": (EXACT | dict(stabilizer_threshold=0.0), ValueError, "stabilizer_threshold"),
    "threshold nan": (PAPER | dict(stabilizer_threshold=math.nan), ValueError, "stabilizer_thr"),
    "threshold of leaky": (dict(stabilizer_threshold=2.0), ValueError, "stabilizer_threshold"),
    "blend": (EXACT | dict(stabilizer_blend=0.95), ValueError, "stabilizer_blend.*0.95"),
    "blend low": (EXACT | dict(stabilizer_blend=-0.1), ValueError, "stabilizer_blend"),
    "blend default": (EXACT | dict(gamma=0.9), ValueError, "stabilizer_blend.*0.9"),
    "blend of paper": (PAPER | dict(stabilizer_blend=LIMIT + 1e-6), ValueError, "stabilizer_blend"),
    "blend of gamma": (PAPER | dict(gamma=0.5), ValueError, "stabilizer_blend"),
    "hybrid": (dict(hybrid=dict(betas=0.1)), (TypeError, ValueError), "hybrid.*betas"),
    "hybrid kind": (dict(hybrid=3), (TypeError, ValueError), "hybrid"),
    "hybrid interval": (dict(hybrid=dict(interval=0)), ValueError, "hybrid.*interval"),
    "hybrid patience": (dict(hybrid=dict(patience=0)), ValueError, "hybrid.*patience"),
    "hybrid momentum": (dict(hybrid=dict(momentum=1.0)), ValueError, "hybrid.*momentum"),
    "hybrid beta": (dict(hybrid=dict(beta=math.nan)), ValueError, "hybrid.*beta"),
    "hybrid min_steps": (dict(hybrid=dict(min_steps=-1)), ValueError, "hybrid.*min_steps"),
    "skip": (dict(skip=3), TypeError, "skip"),
    "skip expression": (dict(skip="("), ValueError, "skip"),
    "grad_scale": (dict(grad_scale=2.0), TypeError, "grad_scale"),
    "optimizer": (dict(optimizer=[1, 2]), TypeError, "optimizer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_get_one_line(name):
    over, error, pattern = BAD[name]
    refused(network(), error, pattern, **over)


@pytest.mark.parametrize(
    "options",
    [
        EXACT | dict(stabilizer_blend=0.949),
        PAPER | dict(stabilizer_blend=LIMIT - 1e-6),
        PAPER | dict(gamma=0.5, stabilizer_blend=0.1),
        EXACT | dict(stabilizer_blend=0.0),
        dict(leak=0.0),
    ],
    ids=str,
)
def test_settings_at_the_limit_are_taken(options):
    make(network(), **options)


@pytest.mark.parametrize("model", [[nn.Linear(2, 2)], "model", {"a": 3}, None, {}, []], ids=str)
def test_what_is_no_model(model):
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=r"MKOR: .*model") as caught:
        MKOR(model, optimizer)
    assert "\n" not in str(caught.value)


def test_two_modules_of_one_name():
    model = network()
    named = [("same", model.body), ("same", model.head)]
    refused(named, ValueError, "same", setting.sgd(model))


# ---- Later ---------------------------------------------------------------------------------------


def test_hooks_are_left_where_they_were_by_others():
    model = network()
    model.body.register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(ValueError, match="MKOR: "):
        make(model, variant="none")
    assert setting.count_hooks(model) == 1
    mkor = make(model)
    mkor.switch_to_first_order()
    assert setting.count_hooks(model) == 1


def test_sparse_gradients_of_other_parameters_pass():
    model = nn.Sequential(nn.Embedding(9, 6, sparse=True), nn.Linear(6, 4))
    mkor = make(model, torch.optim.SGD(model.parameters(), lr=0.1))
    model(torch.arange(5)).square().sum().backward()
    assert model[0].weight.grad.is_sparse
    mkor.step()


@pytest.mark.parametrize("call", ["step", "reduce_statistics", "check_sync"])
def test_calls_on_one_process_without_distributed(call):
    model = chain(6, 5, 4)
    mkor = make(model)
    loss_of(model, batches(1, shape=(6,))[0]).backward()
    before = snapshot(mkor)
    getattr(mkor, call)()
    assert same_bits(snapshot(mkor), before) == (call != "step")
