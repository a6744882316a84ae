# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Runs that other implementations of Adan began go on here as they would have there."""

import copy

import pytest
import torch

from largebatch.optim import Adan
from tests.conftest import assert_close, assert_matches
from tests.helpers import AdanOracle, leaves, problem, run, same_bits, timm_optimizer

SHAPES = [(40, 25), (170,), (0,), (8, 4, 3)]
HYPER = dict(lr=0.01, betas=(0.9, 0.8, 0.95), eps=1e-3, weight_decay=0.3)


def data64():
    return problem(SHAPES, steps=8).to(dtype=torch.float64, grad_dtype=torch.float64)


def goes_on(peer, params, data, backend, **over):
    """Check that five steps of a peer and three of ours are eight of the peer's."""
    run(peer, params, data.to().grads[:5])
    saved = copy.deepcopy(peer.state_dict())
    ours = leaves([p.detach().to(backend.device, copy=True) for p in params])
    optimizer = Adan(ours, **over)
    optimizer.load_state_dict(saved)
    run(peer, params, data.to().grads[5:])  # a copy: some peers write to gradients
    run(optimizer, ours, data.to(backend.device).grads[5:])
    assert_close(ours, [p.detach() for p in params], "fp64")
    for p in ours:
        assert set(optimizer.state[p]) == {"step", *AdanOracle.buffers}
        assert optimizer.state[p]["step"].item() == 8
    again = Adan(leaves([p.detach().clone() for p in ours]))
    again.load_state_dict(optimizer.state_dict())  # ours is not taken for a peer's
    for p, q in zip(ours, again.param_groups[0]["params"], strict=True):
        mine, theirs = optimizer.state[p], again.state[q]
        assert same_bits([mine[k] for k in sorted(mine)], [theirs[k] for k in sorted(theirs)])


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("no_prox", [False, True])
def test_timm(backend, no_prox, foreach):
    data = data64()
    params = leaves(data.to().params)
    peer = timm_optimizer("adan", "Adan")(params, no_prox=no_prox, foreach=foreach, **HYPER)
    goes_on(peer, params, data, backend)


def test_timm_after_its_restart(backend):
    data = data64()
    params = leaves(data.to().params)
    peer = timm_optimizer("adan", "Adan")(params, **HYPER)
    run(peer, params, data.grads[:4])
    peer.restart_opt()
    ours = leaves([p.detach().to(backend.device, copy=True) for p in params])
    optimizer = Adan(ours)
    optimizer.load_state_dict(copy.deepcopy(peer.state_dict()))
    run(peer, params, data.grads[4:])
    run(optimizer, ours, data.to(backend.device).grads[4:])
    assert_close(ours, [p.detach() for p in params], "fp64")


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decouple", [False, True])
def test_pytorch_optimizer(backend, decouple, foreach):
    peers = pytest.importorskip("pytorch_optimizer")
    data = data64()
    params = leaves(data.to().params)
    peer = peers.Adan(params, weight_decouple=decouple, foreach=foreach, **HYPER)
    goes_on(peer, params, data, backend)


@pytest.mark.parametrize("foreach", [False, True])
def test_pytorch_optimizer_that_maximizes(backend, foreach):
    # After its first step its previous gradient has the sign that the update saw. It keeps
    # `maximize` out of its groups, so ours must be told.
    peers = pytest.importorskip("pytorch_optimizer")
    data = data64()
    params = leaves(data.to().params)
    peer = peers.Adan(params, maximize=True, foreach=foreach, **HYPER)
    goes_on(peer, params, data, backend, maximize=True)


def test_the_authors(backend):
    # State by parameter, an int `step` by group, and settings of theirs that mean nothing here.
    data = problem(SHAPES, steps=8)
    hyper = HYPER | dict(max_grad_norm=1.5, no_prox=True)
    oracle = AdanOracle(data.params, **hyper)
    for grads in data.grads[:5]:
        oracle.step(grads)
    names = ("exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad")
    checkpoint = {
        "state": {i: {k: s[k].float() for k in names} for i, s in enumerate(oracle.state)},
        "param_groups": [dict(params=[0, 1, 2, 3], step=5, foreach=True, fused=False, **hyper)],
    }
    params = leaves([p.float().to(backend.device) for p in oracle.params])
    optimizer = Adan(params)
    optimizer.load_state_dict(checkpoint)
    optimizer.param_groups[0]["fused"] = None
    for grads in data.grads[5:]:
        oracle.step(grads)
        run(optimizer, params, [[g.to(backend.device) for g in grads]])
    assert_matches(optimizer, params, oracle)


def optimi_step(p, state, g, k, lr, betas, eps, weight_decay):
    """Adan as optimi computes it: averages that are correct at every step, the decay at the end.

    With beta_hat = (beta - beta^k) / (1 - beta^k) in the place of beta, an average of k gradients
    is that of Adam divided by 1 - beta^k.
    """
    hats = [(b - b**k) / (1 - b**k) for b in betas]
    d = g + state["prev_grad"] if k > 1 else torch.zeros_like(g)
    values = g, d, (g + betas[1] * d) ** 2
    for name, hat, value in zip(
        ("exp_avg", "exp_avg_diff", "exp_avg_sq"), hats, values, strict=True
    ):
        state[name] = hat * state[name] + (1 - hat) * value
    state["prev_grad"] = -g
    u = (state["exp_avg"] + betas[1] * state["exp_avg_diff"]) / (state["exp_avg_sq"].sqrt() + eps)
    return (p - lr * u) / (1 + lr * weight_decay)


@pytest.mark.parametrize("step_of", ["group", "parameter"])
@pytest.mark.parametrize("decouple_lr", [False, True])
def test_optimi(backend, step_of, decouple_lr):
    data = data64()
    ps = [p.clone() for p in data.params]
    names = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "prev_grad")
    states = [{name: torch.zeros_like(p) for name in names} for p in ps]
    decay = HYPER["weight_decay"] / (0.04 if decouple_lr else 1)

    def step(k):
        for i, g in enumerate(data.grads[k - 1]):
            ps[i] = optimi_step(ps[i], states[i], g, k, **HYPER | dict(weight_decay=decay))

    for k in range(1, 6):
        step(k)
    counter = {"step": torch.tensor(5, dtype=torch.int32)}
    beta1, beta2, beta3 = HYPER["betas"]
    group = dict(
        params=[0, 1, 2, 3], lr=HYPER["lr"], beta1=beta1, beta2=beta2, beta3=beta3,
        eps=HYPER["eps"], weight_decay=HYPER["weight_decay"], decouple_lr=decouple_lr, max_lr=0.04,
        adam_wd=True, kahan_sum=False, foreach=False, triton=False, gradient_release=False,
        setup=True, **(counter if step_of == "group" else {}),
    )  # fmt: skip
    own = counter if step_of == "parameter" else {}
    checkpoint = {
        "state": {i: {**s, **own, "kahan_comp": None} for i, s in enumerate(states)},
        "param_groups": [group],
    }
    params = leaves([p.to(backend.device, copy=True) for p in ps])
    optimizer = Adan(params)
    optimizer.load_state_dict(checkpoint)
    assert "betas" not in checkpoint["param_groups"][0]  # what is given is not written
    for k in range(6, 9):
        step(k)
    run(optimizer, params, data.to(backend.device).grads[5:])
    assert_close(params, ps, "fp64")
    for p, state in zip(params, states, strict=True):
        assert_close(optimizer.state[p]["neg_pre_grad"], state["prev_grad"], "fp64")
        corrected = optimizer.state[p]["exp_avg_diff"] / (1 - beta2**8)
        assert_close(corrected, state["exp_avg_diff"], "fp64")


@pytest.mark.parametrize("name", ["caution", "adanorm", "use_gc"])
def test_settings_without_a_counterpart_are_refused(name):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Adan([p])
    run(optimizer, [p], [[torch.ones(3)]])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][name] = False
    optimizer.load_state_dict(saved)
    saved["param_groups"][0][name] = True
    with pytest.raises(ValueError, match=name):
        optimizer.load_state_dict(saved)
