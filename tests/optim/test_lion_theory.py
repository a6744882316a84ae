# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What Lion-K's theory promises of weights, checked on whole trainings.

Chen, Liu, Liang, Liu 2024, arXiv 2310.05898. By the reference, and by the optimizer on every
backend.
"""

import itertools
import math

import pytest
import torch

from largebatch.optim import LionK, kappa
from largebatch.optim.kappa.registry import kernel_of
from largebatch.reference import lion
from tests.conftest import backends, on_backend

INF = math.inf
SHAPE = (6, 8)


class Reference:
    """The oracle with one weight tensor, as an optimizer that is given its gradients."""

    def __init__(self, x, dtype=torch.float64, momentum=None, **hyper):
        self.hyper = hyper
        self.x = x.to(dtype, copy=True)
        self.m = torch.zeros_like(self.x) if momentum is None else momentum.to(self.x)
        self.t = torch.zeros(())

    def step(self, gradient, lr):
        lion.lion_step([self.x], [gradient], [self.m], [self.t], lr=lr, **self.hyper)


class Optimizer:
    """The same of LionK; x and m are copies on the CPU."""

    def __init__(self, x, dtype=torch.float64, momentum=None, device="cpu", **hyper):
        self.param = torch.nn.Parameter(x.to(device, dtype, copy=True))
        self.optimizer = LionK([self.param], **hyper)
        m = torch.zeros_like(self.param) if momentum is None else momentum.to(self.param)
        step = torch.zeros((), device=device)
        self.optimizer.state[self.param] = {"step": step, "exp_avg": m.detach()}

    def step(self, gradient, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        self.param.grad = gradient.to(self.param)
        self.optimizer.step()

    @property
    def x(self):
        return self.param.detach().cpu().clone()

    @property
    def m(self):
        return self.optimizer.state[self.param]["exp_avg"].cpu().clone()


def pytest_generate_tests(metafunc):
    if "make" in metafunc.fixturenames:
        chosen = backends(metafunc.config)
        metafunc.parametrize("make", ["reference", *chosen], indirect=True)


@pytest.fixture
def make(request, monkeypatch):
    """Return what makes a training: ``make(x, betas=, weight_decay=, kappa=)``."""
    if request.param == "reference":
        yield Reference
        return
    with on_backend(request.param, monkeypatch) as backend:
        chosen = backends(request.config)

        def training(x, *given, kappa, **hyper):
            if kernel_of(kappa) is None and backend.name not in (chosen[0], "cuda"):
                pytest.skip(f"torch operations step it, the same as on {chosen[0]}")
            return Optimizer(x, *given, kappa=kappa, device=backend.device, **hyper)

        yield training


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# ---- Feasibility ---------------------------------------------------------------------------------

BOUNDED = {
    "l1": kappa.L1(),
    "truncated_l1": kappa.TruncatedL1(0.3),
    "huber": kappa.Huber(0.3),
    "huber relative": kappa.Huber(0.5, relative=True),
    "soft_sign": kappa.SoftSign(0.3),
    "log_cosh": kappa.LogCosh(0.3),
    "entropy": kappa.Entropy(0.3),
    "entropy whole": kappa.Entropy(0.3, axis=None),
    "signed_entropy": kappa.SignedEntropy(0.3, axis="column"),
    "l2": kappa.L2(),
    "l2 none": kappa.L2(scale="none"),
    "lp": kappa.Lp(1.5),
    "l_inf": kappa.LInf(),
    "group_lasso": kappa.GroupLasso(),
    "group_lasso heads": kappa.GroupLasso.heads(3),
    "group_lasso column": kappa.GroupLasso(axis="column", size=4),
    "l2_inf": kappa.L2Inf(),
    "top_k": kappa.TopK(5),
    "sorted_l1": kappa.SortedL1((1.0, 0.5, 0.25)),
    "nuclear": kappa.Nuclear(),
    "nuclear svd": kappa.Nuclear(method="svd"),
    "spectral": kappa.Spectral("huber", e=0.3),
}


def any_gradients(steps):
    """Yield gradients of every size, some of them zero, sparse, of few directions, or repeated."""
    for k in range(steps):
        g = 10.0 ** ((7 * k) % 11 - 5) * gaussian(*SHAPE, seed=k)
        if k % 7 == 3:
            g = torch.zeros_like(g)
        if k % 7 == 4:
            g[1:] = 0
        if k % 7 == 5:
            g = torch.outer(g[:, 0], g[0])
        for _ in range(1 + 3 * (k % 5 == 2)):
            yield g


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BOUNDED)
def test_weights_come_to_the_feasible_set_and_stay(make, name, dtype):
    # x_new is a convex combination of x and a feasible point: its distance shrinks by 1 - lr decay.
    k, weight_decay = BOUNDED[name], 0.5
    far = 50 * gaussian(*SHAPE, seed=1000) + 30
    inside = k.project(far, 1.25 * weight_decay)
    for x in (far, inside):
        training = make(x, dtype, betas=(0.9, 0.99), weight_decay=weight_decay, kappa=k)
        ulp = torch.finfo(dtype).eps * training.x.double().norm()
        start = k.distance(training.x, weight_decay)
        bound = start
        for i, g in enumerate(any_gradients(60)):
            lr = 0.4 / (1 + i / 20)
            training.step(g.to(training.x), lr)
            bound = (1 - lr * weight_decay) * bound + 4 * ulp
            assert k.distance(training.x, weight_decay) <= bound
        assert (x is far) == (start > 10)
        assert bound <= 0.01 * start + 1000 * ulp  # there was something to see


# ---- Lyapunov function ---------------------------------------------------------------------------

MONOTONE = {
    "l1": kappa.L1(),
    "l2": kappa.L2(),
    "l2 none": kappa.L2(scale="none"),
    "huber": kappa.Huber(0.3),
    "log_cosh": kappa.LogCosh(0.3),
    "soft_sign": kappa.SoftSign(0.3),
    "quadratic": kappa.Quadratic(),
    "group_lasso": kappa.GroupLasso(),
    "entropy": kappa.Entropy(0.3),
    "top_k": kappa.TopK(5),
    "nuclear": kappa.Nuclear(method="svd"),
}


def excess(make, k, betas, eta, seed):
    """Train on a random quadratic; return the most by which H rose above what it may, relative."""
    n = math.prod(SHAPE)
    root = gaussian(n, n, seed=seed) / n**0.5
    hessian = root @ root.T
    target = gaussian(n, seed=seed + 1)
    smoothness = torch.linalg.eigvalsh(hessian).max()
    weight_decay = 0.7
    lr = eta / (1 + eta * weight_decay)
    start = k.project(gaussian(*SHAPE, seed=seed + 2), weight_decay)
    momentum = 0.3 * gaussian(*SHAPE, seed=seed + 3)
    training = make(start, momentum=momentum, betas=betas, weight_decay=weight_decay, kappa=k)
    hyper = dict(lr=lr, betas=betas, weight_decay=weight_decay, kappa=k)
    worst, before, previous = -INF, None, None
    for _ in range(60):
        x = training.x.double()
        away = x.view(-1) - target
        h = kappa.lyapunov([x], [training.m], loss=away @ hessian @ away / 2, **hyper)
        if before is not None:
            allowed = smoothness / 2 * (x - previous).square().sum()
            worst = max(worst, ((h - before - allowed) / abs(before)).item())
        before, previous = h, x.clone()
        training.step((hessian @ away).view(SHAPE).to(training.x), lr)
    return worst


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.95, 0.98), (0.9, 0.9), (0.0, 0.5)])
def test_lyapunov_function_decreases(make, name, betas):
    for eta, seed in [(0.5, 0), (0.05, 1), (0.005, 2)]:
        assert excess(make, MONOTONE[name], betas, eta, seed) < 1e-12


@pytest.mark.parametrize("name", ["l1", "l2", "quadratic"])
def test_lyapunov_function_needs_beta1_below_beta2(make, name):
    # So the test above can fail.
    assert max(excess(make, MONOTONE[name], (0.9, 0.5), 0.5, seed) for seed in range(4)) > 1e-3


# ---- Stationary points ---------------------------------------------------------------------------


def settle(make, k, gradient, weight_decay, steps=2500):
    """Train with a learning rate that decays from 0.1 to 1e-6; return the weights."""
    training = make(torch.zeros(SHAPE), betas=(0.9, 0.95), weight_decay=weight_decay, kappa=k)
    for i in range(steps):
        lr = 0.1 * 1e-5 ** (i / steps)
        training.step(gradient(training.x.double()).to(training.x), lr)
    return training.x.double()


CURVATURE = 0.5 + torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)).double()
TARGET = 1.5 * gaussian(*SHAPE, seed=6)


def soft(y, threshold):
    return torch.sign(y) * (y.abs() - threshold).clamp(min=0)


@pytest.mark.parametrize("weight_decay", [0.5, 2.0])
@pytest.mark.parametrize(
    ("k", "free"),
    [
        (kappa.L1(), lambda decay: TARGET),
        (kappa.Huber(0.4), lambda decay: CURVATURE * TARGET / (CURVATURE + 0.4 * decay)),
        (kappa.TruncatedL1(0.4), lambda decay: soft(TARGET, 0.4 / CURVATURE)),
    ],
    ids=["l1", "huber", "truncated_l1"],
)
def test_training_ends_at_the_clipped_closed_form(make, k, free, weight_decay):
    x = settle(make, k, lambda x: CURVATURE * (x - TARGET), weight_decay)
    t = 1 / weight_decay
    expected = free(weight_decay).clamp(-t, t)
    assert (x - expected).abs().max() < 1e-3
    assert 0 < (expected.abs() == t).sum() < expected.numel()


@pytest.mark.parametrize("weight_decay", [0.5, 2.0])
def test_training_with_the_quadratic_ends_at_ridge_regression(make, weight_decay):
    x = settle(make, kappa.Quadratic(), lambda x: CURVATURE * (x - TARGET), weight_decay)
    assert (x - CURVATURE * TARGET / (CURVATURE + weight_decay)).abs().max() < 1e-3


NORMS = [
    kappa.L1(),
    kappa.L2(),
    kappa.Lp(1.5),
    kappa.LInf(),
    kappa.GroupLasso(),
    kappa.GroupLasso("column"),
    kappa.L2Inf(),
    kappa.TopK(5),
    kappa.SortedL1((2.0, 1.5, 1.0, 0.5)),
    kappa.Nuclear(),
]


@pytest.mark.parametrize("k", NORMS, ids=repr)
def test_training_towards_a_point_ends_at_the_nearest_feasible_one(make, k):
    weight_decay = 1.5
    expected = k.project(TARGET, weight_decay)
    x = settle(make, k, lambda x: x - TARGET, weight_decay)
    assert (x - expected).norm() < 2e-3 * expected.norm()
    assert (expected - TARGET).norm() > 0.1 * TARGET.norm()


def test_training_with_the_squared_l1_ends_at_a_clip_of_its_own(make):
    # The penalty is decay/2 max |x|^2: a level that holds all back, as far as it presses.
    weight_decay = 0.8
    low, high = 0.0, TARGET.abs().max().item()
    for _ in range(60):
        level = (low + high) / 2
        presses = (CURVATURE * (TARGET.abs() - level).clamp(min=0)).sum() > weight_decay * level
        low, high = (level, high) if presses else (low, level)
    x = settle(make, kappa.SquaredL1(), lambda x: CURVATURE * (x - TARGET), weight_decay, 6000)
    assert (x - TARGET.clamp(-level, level)).abs().max() < 1e-3
    assert 0.1 < level < 0.9 * TARGET.abs().max()


SMOOTH = [
    kappa.Huber(0.4),
    kappa.SoftSign(0.4),
    kappa.LogCosh(0.4),
    kappa.Power(1.5),
    kappa.Power(3.0),
    kappa.Entropy(0.4),
    kappa.SignedEntropy(0.4),
    kappa.Spectral("huber", e=0.4),
]


@pytest.mark.parametrize("k", SMOOTH, ids=repr)
def test_training_ends_where_decay_balances_the_step(make, k):
    # A minimum of the implicit objective: decay * x = grad K(-grad f(x)).
    weight_decay = 0.8
    x = settle(make, k, lambda x: CURVATURE * (x - TARGET), weight_decay)
    balance = k.subgradient(CURVATURE * (TARGET - x))
    assert (weight_decay * x - balance).norm() < 2e-3 * balance.norm()


def test_the_old_and_the_new_form_of_the_blend_are_one_family():
    # c of the new momentum with b is c of the old one with b * beta2, the rest of g left over.
    for b, beta2 in itertools.product((0.3, 0.9), (0.5, 0.99)):
        m, g = gaussian(5, seed=1), gaussian(5, seed=2)
        new = beta2 * m + (1 - beta2) * g
        assert torch.allclose(
            lion.blend(new, g, b), lion.blend(m, g, b * beta2), rtol=1e-14, atol=1e-14
        )
