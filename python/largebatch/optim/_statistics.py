# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Means of inputs and sums of output gradients of layers, taken while the model is trained."""

from itertools import accumulate

import torch
import torch.distributed as dist

from ._sharding import local


class Statistics:
    """What the hooks of all layers add up between two steps, in one buffer.

    Of each layer: the mean inputs of its calls added up, the number of calls, their output
    positions added up; and, where there is no bias whose gradient it would be, the sum of the rows
    of the output's gradient. The buffer of a rank is summed over all ranks by one all-reduce.

    A call counts when a backward pass comes through its output: once under either kind of
    checkpointing, and not at all without gradients. What a pass has brought is `fresh` until the
    gradient of the weight comes: if that is the first one since gradients were dropped, whoever
    dropped them, it takes the place of the total; else it is added.
    """

    def __init__(self, layers, dtype, device, captures_g):
        self.active = False
        sizes = [
            layer.inputs + 2 + layer.rows * (captures_g and layer.bias is None) for layer in layers
        ]
        starts = accumulate(sizes, initial=0)
        self._at = dict(zip(layers, zip(starts, sizes, strict=False), strict=True))
        self.total = torch.zeros(sum(sizes), dtype=dtype, device=device)
        self.fresh = torch.zeros_like(self.total)
        self._handles = []
        for layer in layers:
            forward, weight = _ForwardHook(self, layer), _WeightHook(self, layer)
            self._handles += [
                layer.module.register_forward_hook(forward, with_kwargs=True),
                layer.weight.register_hook(weight),
            ]

    def __contains__(self, layer):
        return layer in self._at

    def remove(self):
        """Take the hooks off the modules."""
        for handle in self._handles:
            handle.remove()

    def clear(self):
        """Drop what has been added up."""
        self.total.zero_()
        self.fresh.zero_()

    def part(self, buffer, layer):
        """Return what is a layer's in a buffer."""
        start, size = self._at[layer]
        return buffer[start : start + size]

    def settle(self, layer):
        """Take what a backward pass has brought into the total."""
        total, fresh = self.part(self.total, layer), self.part(self.fresh, layer)
        if layer.weight.grad is None:
            total.zero_()
        total.add_(fresh)
        fresh.zero_()

    def all_reduce(self, group):
        """Begin to add up the buffers of all ranks; return what to wait for."""
        self.total.add_(self.fresh)  # of weights that get their gradients in other ways
        self.fresh.zero_()
        return dist.all_reduce(self.total, group=group, async_op=True)

    def vectors(self, layer, ranks, scale, captured_scale):
        """Return {side: vector} of a layer, and a tensor that is not 0 if there are none.

        ranks : how many have been summed. The gradient of the bias is multiplied by `scale`, what
        was captured by `captured_scale`; None for 1.
        """
        sums = self.part(self.total, layer) + self.part(self.fresh, layer)
        a, g = sums.split([layer.inputs + 2, len(sums) - layer.inputs - 2])
        calls, positions = a[-2], a[-1]
        none = calls == 0
        calls, positions = calls + none, positions + none
        right = a[: layer.columns] / calls  # the number of calls comes last: the 1 of a bias
        if len(g):
            left, scale = g / ranks, captured_scale
        else:
            left = None if layer.bias is None else local(layer.bias.grad).to(a.dtype)
        if left is not None:
            left = left * (calls / positions)  # a mean over the output positions
            left = left if scale is None else left / scale
        return {"R": right, "L": left}, none


class _ForwardHook:
    """Takes the mean of a layer's input, to be added when the gradient of its output comes."""

    def __init__(self, statistics, layer):
        self.statistics, self.layer = statistics, layer

    def __call__(self, module, args, kwargs, output):
        statistics, layer = self.statistics, self.layer
        if not (statistics.active and module.training and torch.is_grad_enabled()):
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        if x.numel() == 0:
            return None
        if not isinstance(output, torch.Tensor):
            raise RuntimeError(
                f"MKOR: module {layer.name!r}: got {type(output).__name__} as its output, expected "
                f"a tensor. Leave it out by skip={layer.name!r}."
            )
        sums = statistics.part(statistics.fresh, layer)
        with torch.no_grad():
            mean = layer.mean_input(x.detach(), sums.dtype)
        if torch.compiler.is_compiling():
            return _Tap.apply(output, mean, sums, layer)
        if output.requires_grad:
            output.register_hook(lambda grad: _add(sums, layer, mean, grad))
        return None


class _WeightHook:
    """Settles what has come before the gradient of a weight."""

    def __init__(self, statistics, layer):
        self.statistics, self.layer = statistics, layer

    def __call__(self, grad):
        if self.statistics.active:
            self.statistics.settle(self.layer)


class _Tap(torch.autograd.Function):
    """Hands its input on and adds to the sums when the gradient comes back.

    What a compiled model has in the place of a hook on the output: it breaks no graph. The copy it
    returns, so that it may be changed in place, is left out by the compiler.
    """

    @staticmethod
    def forward(ctx, output, mean, sums, layer):
        """Return the output."""
        ctx.save_for_backward(mean)
        ctx.sums, ctx.layer = sums, layer
        return output.clone()

    @staticmethod
    def backward(ctx, grad):
        """Add to the sums."""
        (mean,) = ctx.saved_tensors
        _add(ctx.sums, ctx.layer, mean, grad)
        return grad, None, None, None


@torch.no_grad()
def _add(sums, layer, mean, grad):
    sums[: len(mean)].add_(mean)
    if len(sums) > len(mean):
        sums[len(mean) :].add_(layer.sum_output(grad, sums.dtype))


def from_gradients(layers, dtype, scale):
    """Return {layer: {side: vector}}: the means over the rows and the columns of gradients."""
    vectors, sharded = {}, {}
    for layer in layers:
        parts = [g for _, g in layer.matrix([local(p.grad) for p in layer.params])]
        matrix = torch.cat([part.to(dtype) for part in parts], dim=1)
        matrix = matrix if scale is None else matrix / scale
        vectors[layer] = {"R": matrix.sum(0) / layer.rows, "L": matrix.mean(1)}
        if layer.sharded:  # these are the sums over the rows of this rank
            sharded.setdefault(layer.weight.device_mesh.get_group(), []).append(layer)
    for group, own in sharded.items():
        sums = torch.cat([vectors[layer]["R"] for layer in own])
        dist.all_reduce(sums, group=group)
        for layer, vector in zip(own, sums.split([layer.columns for layer in own]), strict=True):
            vectors[layer]["R"] = vector
    return vectors


def clip(vector, limit):
    """Return a vector whose finite entries are at most `limit` in absolute value."""
    if limit is None:
        return vector
    return torch.where(vector.isfinite(), vector.clamp(-limit, limit), vector)
