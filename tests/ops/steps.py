# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer steps that exist as operations: a table that test_steps.py runs over."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch

from largebatch import ops
from largebatch.optim import LAMB, LARS, Adan, LionK, kappa
from largebatch.reference import adan, lamb, lars, lion
from tests.helpers import ADAN_DEFAULTS, LAMB_DEFAULTS, LARS_DEFAULTS, problem

SHAPES = [(40, 30), (0,), (700,), (1,), (16385,)]


@dataclass(frozen=True, eq=False)
class Step:
    """A step that is one operation; one of two phases overrides what differs."""

    op: str  # name of the operation; of the second one of two
    optimizer: type
    reference: ModuleType
    hyper: dict
    variants: dict  # name -> hyper-parameters that are other ones
    states: dict[str, Callable]  # argument -> that state from weight and gradient, mid-run
    limits: bool = False  # it takes grad_sq_sum, and `hyper` limits the gradient norm
    typical: dict = field(default_factory=dict)  # argument -> size of an element that may cancel

    def __str__(self):
        return self.op

    def tensors(self, device="cpu", shapes=SHAPES, steps=3, dtype=torch.float32, grad_dtype=None):
        """Return the lists of a step in progress, by argument name."""
        data = problem(shapes, steps=1).to(device, dtype, grad_dtype or dtype)
        state = torch.float64 if dtype == torch.float64 else torch.float32
        pairs = [
            (p.to(state), g.to(state)) for p, g in zip(data.params, data.grads[0], strict=True)
        ]
        return dict(
            params=data.params,
            grads=data.grads[0],
            **{name: [make(p, g) for p, g in pairs] for name, make in self.states.items()},
            steps=[torch.full((), float(steps), device=device) for _ in shapes],
        )

    def used(self, lists, hyper):
        """Return the lists as these hyper-parameters want them: without the states they lack."""
        return lists

    def __call__(self, module, lists, hyper, **rest):
        """Take the whole step by `ops` or by the reference; return the sums of its first phase."""
        return getattr(module, self.op)(**lists, **hyper, **rest)

    def under_scaler(self, lists):
        """Return what it needs besides, under a scaler."""
        return {}

    def over_ranks(self, parts, **limit):
        """Take the step on parts of the same tensors, as ranks that hold them would."""
        for part in parts:
            self(ops, part, self.hyper, **limit)

    def refuse(self, lists, hyper):
        """Call the first operation that looks at all lists and hyper-parameters."""
        self(ops, lists, hyper)

    def calls(self, lists, copies):
        """Yield (operation, positional, keyword) of the calls that opcheck is to look at."""
        yield self.op, (*lists.values(), copies), self.flat()

    def flat(self):
        """Return the hyper-parameters, and no scaler, as the operation's schema has them."""
        hyper = {k: list(v) if isinstance(v, tuple) else v for k, v in self.hyper.items()}
        inputs = ("grad_sq_sum",) * self.limits + ("grad_scale", "found_inf")
        return hyper | dict.fromkeys(inputs)


class LambStep(Step):
    """LAMB: moments, then weights."""

    def second(self, lists):
        return {name: given for name, given in lists.items() if name != "grads"}

    def __call__(self, module, lists, hyper, copies=(), **rest):
        sums = module.lamb_moments(**lists, **hyper, **rest)
        module.lamb_apply(**self.second(lists), sums=sums, copies=copies, **hyper, **rest)
        return sums

    def under_scaler(self, lists):
        return dict(grad_sq_sum=ops.multi_tensor_sq_sum(lists["grads"]).sum())

    def over_ranks(self, parts, **limit):
        sums = sum(ops.lamb_moments(**part, **self.hyper, **limit) for part in parts)
        for part in parts:
            ops.lamb_apply(**self.second(part), sums=sums, **self.hyper, **limit)

    def refuse(self, lists, hyper):
        ops.lamb_moments(**lists, **hyper)

    def calls(self, lists, copies):
        yield "lamb_moments", tuple(lists.values()), self.flat()
        sums = ops.lamb_moments(**lists, **self.hyper)
        yield "lamb_apply", (*self.second(lists).values(), sums, copies), self.flat()

    def flat(self):
        return super().flat() | dict(bias_correction="on")  # no unions of types


class LarsStep(Step):
    """LARS: norms, then momentum and weights."""

    def used(self, lists, hyper):
        return lists if hyper["momentum"] else lists | dict(momentum_buffers=[])

    def norms(self, module, lists, grad_scale=None):
        return module.lars_norms(lists["params"], lists["grads"], grad_scale=grad_scale)

    def __call__(self, module, lists, hyper, grad_scale=None, **rest):
        sums = self.norms(module, lists, grad_scale)
        module.lars_apply(**lists, sums=sums, grad_scale=grad_scale, **hyper, **rest)
        return sums

    def over_ranks(self, parts):
        sums = sum(self.norms(ops, part) for part in parts)
        for part in parts:
            ops.lars_apply(**part, sums=sums, **self.hyper)

    def refuse(self, lists, hyper):
        sums = torch.ones(len(lists["params"]), 2, dtype=torch.float64)
        ops.lars_apply(**lists, sums=sums, **hyper)

    def calls(self, lists, copies):
        yield "lars_norms", (lists["params"], lists["grads"], None), {}
        sums = self.norms(ops, lists)
        yield "lars_apply", (*lists.values(), sums, copies), self.flat()


class LionStep(Step):
    """Lion, in one phase; the kappa is JSON in the schema."""

    def flat(self):
        own = dict(kappa=json.dumps(self.hyper["kappa"].as_dict()), scales=[], tensor_ids=[])
        return super().flat() | own


LAMB_STEP = LambStep(
    "lamb_apply",
    LAMB,
    lamb,
    hyper=LAMB_DEFAULTS | dict(lr=0.02, weight_decay=0.1),
    variants={
        "defaults": {},
        "l2": dict(decay="l2"),
        "outside": dict(decay="outside", adapt="always"),
        "deepspeed": dict(bias_correction="outside", trust_clip=(0.01, 10.0), max_grad_norm=None),
        "bounds": dict(trust_clip=0.1, weight_norm_clip=(0.1, 2.0), adapt=True),
        "never": dict(adapt=False, bias_correction=False, maximize=True),
    },
    states=dict(exp_avgs=lambda p, _: 0.01 * p, exp_avg_sqs=lambda p, _: 0.001 * p.square()),
    limits=True,
)
LARS_STEP = LarsStep(
    "lars_apply",
    LARS,
    lars,
    hyper=LARS_DEFAULTS | dict(lr=0.5, weight_decay=0.1, trust_coefficient=0.02),
    variants={
        "defaults": {},
        "dampening": dict(dampening=0.3),
        "nesterov": dict(nesterov=True),
        "paper": dict(lr_in_momentum=True),
        "larc": dict(clip=True, lr=0.01),
        "no momentum": dict(momentum=0.0),
        "plain": dict(adapt=False, maximize=True, lr=0.05),
    },
    states=dict(momentum_buffers=lambda p, _: 0.1 * p),
)
ADAN_STEP = Step(
    "adan_step",
    Adan,
    adan,
    hyper=ADAN_DEFAULTS | dict(lr=0.02, weight_decay=0.1, max_grad_norm=1.0),
    variants={
        "clip": {},
        "no clip": dict(max_grad_norm=None),
        "no prox": dict(no_prox=True, maximize=True),
        "betas": dict(betas=(0.5, 0.0, 0.9), eps=0.1),
    },
    states=dict(
        exp_avgs=lambda _, g: 0.1 * g,
        exp_avg_diffs=lambda p, _: 0.01 * p,
        exp_avg_sqs=lambda p, _: 1e-4 + 0.01 * p.square(),
        neg_pre_grads=lambda p, g: 0.2 * p - g,
    ),
    limits=True,
    typical=dict(params=0.02, exp_avg_diffs=1e-3),
)
LION_STEP = LionStep(
    "lion_step",
    LionK,
    lion,
    hyper=dict(
        lr=0.02,
        betas=(0.9, 0.99),
        weight_decay=0.1,
        kappa=kappa.Huber(0.02),
        stochastic_rounding=False,
        seed=0,
        maximize=False,
    ),
    variants={
        "huber": {},
        "l1": dict(kappa=kappa.L1(), lr=1e-3),
        "truncated l1": dict(kappa=kappa.TruncatedL1(0.01), maximize=True),
        "soft sign": dict(kappa=kappa.SoftSign(0.01), betas=(0.95, 0.98)),
        "log cosh": dict(kappa=kappa.LogCosh(0.01), betas=(0.0, 0.5)),
        "power": dict(kappa=kappa.Power(1.5), weight_decay=0.0),
        "quadratic": dict(kappa=kappa.Quadratic(), stochastic_rounding=True, seed=3),
    },
    states=dict(exp_avgs=lambda p, _: 0.1 * p),
)
STEPS = [LAMB_STEP, LARS_STEP, ADAN_STEP, LION_STEP]
