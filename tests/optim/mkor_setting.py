# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""A small network of all kinds of layers, data, and MKOR around a model by the oracle."""

import copy
from itertools import pairwise

import torch
from torch import nn

from largebatch.optim import LAMB, MKOR
from largebatch.reference import mkor as reference
from tests.helpers import LambOracle, same_bits

LAYERS = ("stem", "conv", "body", "head")


class Net(nn.Module):
    """Convolutions and linear layers, with and without bias, none of them square; and a norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(4, 3, (2, 3), padding=(1, 0), dilation=(2, 1), bias=False)
        self.norm = nn.LayerNorm(30)
        self.body = nn.Linear(30, 11)
        self.head = nn.Linear(11, 4, bias=False)

    def forward(self, x):
        x = self.conv(self.stem(x).tanh()).flatten(1)
        return self.head(self.body(self.norm(x)).tanh())


def network(device="cpu", dtype=torch.float32):
    torch.manual_seed(5)
    return Net().to(device, dtype)


def chain(*sizes, bias=True, between=nn.Tanh):
    """Return linear layers of the sizes, called 0, 2, 4, .., with something between them."""
    torch.manual_seed(7)
    modules = []
    for size in pairwise(sizes):
        modules += [nn.Linear(*size, bias=bias), between()]
    return nn.Sequential(*modules[:-1])


def batches(steps, size=12, device="cpu", dtype=torch.float32, shape=(2, 9, 8), seed=0):
    """Return (inputs, targets) of some steps; inputs have a mean, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            (torch.randn(size, *shape, generator=generator) + 0.4).to(device, dtype),
            torch.randn(size, 4, generator=generator).to(device, dtype),
        )
        for _ in range(steps)
    ]


def loss_of(model, batch):
    x, y = batch
    return 3 * (model(x) - y).square().sum(dim=-1).mean()


def sgd(model, lr=0.01):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def make(model, optimizer=None, **options):
    return MKOR(model, sgd(model) if optimizer is None else optimizer, **options)


def train(mkor, model, given):
    """Take a step for every batch; return the losses."""
    losses = []
    for batch in given:
        loss = loss_of(model, batch)
        loss.backward()
        mkor.step()
        mkor.zero_grad()
        losses.append(loss.item())
    return losses


def statistics(model, batch, **options):
    """Return what a plain eager run of one batch gives."""
    model = copy.deepcopy(model)
    mkor = make(model, **options)
    loss_of(model, batch).backward()
    return mkor.statistics()


def flat(nested):
    """Return the tensors of factors or statistics, nested in dicts and lists, in a fixed order."""
    if torch.is_tensor(nested):
        return [nested.detach().clone()]
    parts = nested.values() if isinstance(nested, dict) else nested
    return [t for part in parts for t in flat(part)]


def watch(optimizer):
    """Return a list to which every step of an optimizer appends copies of the gradients it sees."""
    seen = []

    def hook(optimizer, *_):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([None if p.grad is None else p.grad.detach().clone() for p in params])

    optimizer.register_step_pre_hook(hook)
    return seen


def preconditioned(model, factors, fold_bias=True):
    """Return the gradients that factors make of those of a model, in float64, by parameter."""
    grads = {p: p.grad.double() for p in model.parameters() if p.grad is not None}
    for name, own in factors.items():
        module = model.get_submodule(name)
        held = [module.weight]
        if module.bias is not None and module.bias.requires_grad and fold_bias:
            held.append(module.bias)
        scaled = g = joint([grads[p] for p in held])
        if "L" in own:
            scaled = torch.block_diag(*flat(own["L"])).double() @ scaled
        if "R" in own:
            scaled = scaled @ torch.block_diag(*flat(own["R"])).double()
        scaled = scaled * (g.norm() / scaled.norm())
        grads[held[0]] = scaled[:, : held[0][0].numel()].view_as(held[0])
        if len(held) > 1:
            grads[held[1]] = scaled[:, -1]
    return [grads.get(p) for p in model.parameters()]


def count_hooks(model):
    """Count what is attached to modules and to parameters."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)
    replaced = sum("forward" in vars(m) for m in model.modules())
    tensors = sum(
        len(getattr(p, kind) or ())
        for p in model.parameters()
        for kind in ("_backward_hooks", "_post_accumulate_grad_hooks")
    )
    return modules + replaced + tensors


# ---- The definition ------------------------------------------------------------------------------


class Observer:
    """Statistics of layers by plain hooks, in float64; g from the gradients of outputs alone."""

    def __init__(self, model):
        self.layers = {
            name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
        }
        self.calls = {name: [] for name in self.layers}
        for name, module in self.layers.items():
            module.register_forward_hook(self._hook(name), with_kwargs=True)

    def _hook(self, name):
        def hook(module, args, kwargs, output):
            x = (args[0] if args else kwargs["input"]).detach()
            whole = 4 if isinstance(module, nn.Conv2d) else 2
            single = output.dim() < whole  # without a batch

            def note(grad):
                pair = (x[None], grad[None]) if single else (x, grad)
                self.calls[name].append(pair)

            output.register_hook(note)

        return hook

    def take(self, fold_bias=True):
        """Return {name: {"a": .., "g": ..}} of the calls that a gradient came back from."""
        found = {}
        for name, module in self.layers.items():
            if not self.calls[name]:
                continue
            fold = fold_bias and module.bias is not None
            calls = zip(*self.calls[name], strict=True)
            if isinstance(module, nn.Conv2d):
                pair = reference.conv_statistics(module, *calls, fold)
            else:
                pair = reference.linear_statistics(*calls, fold)
            found[name] = dict(zip("ag", pair, strict=True))
            self.calls[name] = []
        return found


class Reference:
    """MKOR around a float64 twin of a model. Options as MKOR's, and of the oracle."""

    def __init__(self, model, kind, *, stats="auto", fold_bias=True, **options):
        self.model = copy.deepcopy(model).cpu().double()
        self.backend = {"SGD": sgd, "LAMB": Lamb}[kind](self.model)
        self.observer = Observer(self.model)
        self.stats, self.fold = stats, fold_bias
        self.params = [self.held(module) for module in self.observer.layers.values()]
        self.oracle = reference.MKOR([joint(own).shape for own in self.params], **options)

    @property
    def factors(self):
        named = zip(self.observer.layers, self.oracle.factors, strict=True)
        return {name: own for name, own in named if own}

    def held(self, module):
        folded = self.fold and module.bias is not None
        return [module.weight, module.bias] if folded else [module.weight]

    def step(self, batch):
        loss_of(self.model, [t.cpu().double() for t in batch]).backward()
        gradients = [joint([p.grad for p in own]) for own in self.params]
        seen = self.observer.take(self.fold)
        pairs = [(own["a"], own["g"]) for own in seen.values()]
        if self.stats == "grad":
            pairs = [reference.gradient_statistics(g) for g in gradients]
        for own, g in zip(self.params, self.oracle.apply(gradients, pairs), strict=True):
            own[0].grad = g[:, : own[0][0].numel()].reshape(own[0].shape)
            if len(own) > 1:
                own[1].grad = g[:, -1].clone()
        self.backend.step()
        self.backend.zero_grad()


def joint(parts):
    """Return weights and bias, or their gradients, as one matrix."""
    return torch.cat([p.detach().reshape(len(p), -1) for p in parts], dim=1)


class Lamb:
    """The oracle of LAMB, for the parameters of a float64 model."""

    def __init__(self, model):
        self.params = list(model.parameters())
        self.oracle = LambOracle(self.params, lr=0.01)

    def step(self):
        self.oracle.step([p.grad for p in self.params])
        for p, value in zip(self.params, self.oracle.params, strict=True):
            p.data.copy_(value)

    def zero_grad(self):
        for p in self.params:
            p.grad = None


def backend_of(kind, model):
    return sgd(model) if kind == "SGD" else LAMB(model.parameters(), lr=0.01)


def largest_error(actual, expected):
    """Return the largest error of two lists of tensors, each against its largest element."""
    return max(
        (a.detach().cpu().double() - e.cpu()).abs().max().item() / e.abs().max().item()
        for a, e in zip(actual, expected, strict=True)
    )


# ---- Statistics ----------------------------------------------------------------------------------


def assert_same(found, expected, bits=True):
    """Check statistics: bit for bit, or to rounding of numbers of the size of the largest."""
    assert found.keys() == expected.keys()
    for name, own in expected.items():
        assert found[name].keys() == own.keys() == {"a", "g"}
        pair = [found[name][key] for key in own]
        if bits:
            assert same_bits(pair, list(own.values())), name
        else:
            assert largest_error(pair, list(own.values())) < 1e-6, name


def observed(model, backward, fold=True):
    """Return the statistics that plain hooks see of `backward(model)`."""
    twin = copy.deepcopy(model)
    observer = Observer(twin)
    backward(twin)
    return observer.take(fold)


def captured(model, backward, **options):
    mkor = make(model, **options)
    backward(model)
    return mkor.statistics()
