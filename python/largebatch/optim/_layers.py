# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model MKOR takes, and how each of them looks as a matrix."""

import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from ._sharding import DTensor, local, split_over

# What wrappers put into the names of modules.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(eq=False)
class Layer:
    """A linear map: gradients ``[rows, columns]``, the last column the bias where it is folded."""

    name: str
    module: nn.Module
    weight: nn.Parameter
    bias: nn.Parameter | None  # if it is trained: then its gradient is g
    folded: bool

    @property
    def rows(self):
        """The order of the left factor; of sharded weights, of the whole."""
        return self.weight.shape[0]

    @property
    def inputs(self):
        """Return how many numbers come in: to one output position, for a convolution."""
        return self.weight.shape[1:].numel()

    @property
    def columns(self):
        """The order of the right factor."""
        return self.inputs + self.folded

    @property
    def params(self):
        """Return the parameters that make up the matrix."""
        return [self.weight, self.bias] if self.folded else [self.weight]

    @property
    def sharded(self):
        """Tell whether ranks hold different rows."""
        return bool(split_over(self.weight))

    @property
    def local_rows(self):
        """Return how many rows this rank holds."""
        return local(self.weight).shape[0]

    def matrix(self, tensors):
        """Return ``[(columns of the matrix, tensor as a matrix)]`` of tensors like `params`."""
        pairs = [(slice(0, self.inputs), tensors[0])]
        if self.folded:
            pairs.append((slice(self.inputs, self.inputs + 1), tensors[1]))
        return [(columns, t.reshape(len(t), t.shape[1:].numel())) for columns, t in pairs]

    def mean_input(self, x, dtype):
        """Return the mean row of the input and a 1, and how many output positions a row is of.

        Of a convolution: im2col is linear, so it is done once, to the mean image.
        """
        if isinstance(self.module, nn.Conv2d):
            image = (x if x.dim() == 4 else x[None]).mean(0, keepdim=True, dtype=dtype)
            unfolded = _unfold(self.module, image)
            mean, positions = unfolded[0].mean(1), unfolded.shape[2]
        else:
            rows = x if x.dim() > 1 else x[None]
            mean, positions = rows.mean(tuple(range(rows.dim() - 1)), dtype=dtype), 1
        return torch.cat([mean, mean.new_tensor([1, positions])])

    def sum_output(self, grad, dtype):
        """Return the sum of the rows of a gradient of the output."""
        if isinstance(self.module, nn.Conv2d):
            return grad.sum((0, 2, 3) if grad.dim() == 4 else (1, 2), dtype=dtype)
        rows = grad if grad.dim() > 1 else grad[None]
        return rows.sum(tuple(range(rows.dim() - 1)), dtype=dtype)


def _unfold(conv, image):
    padding = conv.padding
    if conv.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        image = functional.pad(image, conv._reversed_padding_repeated_twice, mode=mode)
        padding = 0
    return functional.unfold(image, conv.kernel_size, conv.dilation, padding, conv.stride)


def find_layers(model, optimizer, *, fold_bias, skip, sides):
    """Return the layers of a model that the optimizer trains, in order.

    Raises
    ------
    TypeError, ValueError
        One line naming the module and why it cannot be taken.
    """
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    modules = _named(model)
    owners = {}  # of each parameter: the names of the modules that have it
    for name, module in modules:
        for p in module._parameters.values():
            owners.setdefault(p, []).append(name)
    layers = []
    for name, module in modules:
        if not _is_candidate(module) or _skips(skip, name, module):
            continue
        weight, bias = (module._parameters.get(key) for key in ("weight", "bias"))
        if weight is None or not weight.requires_grad or weight not in trained:
            continue
        if weight.numel() == 0:
            continue
        if bias is not None and not (bias.requires_grad and bias in trained):
            bias = None
        if any(name == layer.name for layer in layers):
            raise ValueError(
                f"MKOR: model: got two modules called {name!r}, expected names of their own."
            )
        layer = Layer(name, module, weight, bias, folded=bias is not None and fold_bias)
        _check(layer, [other for other in owners[weight] if other != name], sides)
        layers.append(layer)
    if not layers:
        raise ValueError(
            f"MKOR: model: got no layer to precondition among {len(modules)} modules, expected an "
            "nn.Linear or nn.Conv2d whose weight the optimizer trains. See model and skip."
        )
    return layers


def _named(model):
    """Return [(name, module)] of all modules, each once, by names that no wrapper is part of."""
    if isinstance(model, nn.Module):
        pairs = [("", model)]
    else:
        try:
            pairs = [(name, m) for name, m in (model.items() if isinstance(model, dict) else model)]
        except (TypeError, ValueError):
            pairs = [(None, None)]
    if not all(isinstance(n, str) and isinstance(m, nn.Module) for n, m in pairs):
        raise TypeError(
            f"MKOR: model: got {type(model).__name__}, expected a torch.nn.Module, or a dict or "
            "list of names and modules. Pass list(model.named_modules()) of an iterator."
        )
    names, given = {}, {}
    for prefix, root in pairs:
        other = given.setdefault(root, prefix)
        if other != prefix:
            raise ValueError(
                f"MKOR: model: got one module as {other!r} and as {prefix!r}, expected it once."
            )
        found = dict(root.named_modules(prefix=prefix))
        for full, module in found.items():
            names.setdefault(module, _clean(full, found))
    return [(name, module) for module, name in names.items()]


def _clean(full, modules):
    """Return a name without the parts that wrappers put into it."""
    kept, path = [], ""
    for part in full.split(".") if full else ():
        inside = isinstance(modules.get(path), nn.parallel.DistributedDataParallel)
        if part not in _WRAPPERS and not (inside and part == "module"):
            kept.append(part)
        path = f"{path}.{part}" if path else part
    return ".".join(kept) or "(root)"


def _is_candidate(module):
    # The subclass is MultiheadAttention.out_proj, whose forward, and so its hooks, never run.
    bypassed = nn.modules.linear.NonDynamicallyQuantizableLinear
    return isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, bypassed)


def _skips(skip, name, module):
    if skip is None:
        return False
    return re.search(skip, name) is not None if isinstance(skip, str) else skip(name, module)


def _check(layer, others, sides):
    def fail(problem, hint):
        raise ValueError(f"MKOR: module {layer.name!r}: {problem}. {hint}")

    leave_out = f"Leave it out by skip={layer.name!r}."
    if getattr(layer.module, "groups", 1) != 1:
        fail(f"got a convolution of {layer.module.groups} groups, expected 1", leave_out)
    if others:
        fail(f"its weight is also that of {others[0]!r}, expected one of its own", leave_out)
    if DTensor is None or not isinstance(layer.weight, DTensor):
        return
    placements = layer.weight.placements
    if len(placements) != 1 or not (placements[0].is_shard(0) or placements[0].is_replicate()):
        fail(
            f"got placements {placements}, expected Shard(0) on a mesh of one dimension", leave_out
        )
    if layer.sharded and sides != "R":
        fail(
            f"its weight is sharded and sides is {sides!r}, expected 'R', which needs no rows of "
            "other ranks",
            "Pass sides='R'.",
        )
