# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The factors of MKOR's layers, their updates, and the gradients they precondition."""

import math
from dataclasses import dataclass

import torch

from .. import ops
from ..reference import kron as reference
from ..reference.norm import squared_sums
from ._sharding import local

NAMES = ("dropped", "stabilized", "reset")  # of the columns of the counters


def padded(order, device):
    """Return the order a factor is stored in: on a GPU such that tensor cores find it aligned."""
    return math.ceil(order / 16) * 16 if device.type == "cuda" else order


class Side:
    """One side of the layers of one shape: their factors, stacked, in one or more blocks each.

    What lies beyond the order of a factor is zero and meets zeros of the gradient.
    """

    def __init__(self, count, order, block, dtype, device):
        self.blocks = max(1, math.ceil(order / block))
        self.size = max(1, math.ceil(order / self.blocks))  # of all blocks but the last
        starts = range(0, max(1, order), self.size)
        self.spans = [slice(start, min(start + self.size, order)) for start in starts]
        width = padded(self.size, device)
        self.stack = torch.zeros(count * self.blocks, width, width, dtype=dtype, device=device)
        self.identity = True  # as far as is known without asking the device
        for i in range(count):
            for factor in self.factors(i):
                factor.copy_(torch.eye(len(factor)))

    def factors(self, i):
        """Return the blocks of a layer, without padding: views."""
        first = i * self.blocks
        lengths = [span.stop - span.start for span in self.spans]
        return [self.stack[first + b, :n, :n] for b, n in enumerate(lengths)]

    def multiply(self, index, x, out):
        """Write the products of factors and the x of the layers at `index`, or of all for None."""
        stack = self.stack
        if index is not None:
            blocks = [i * self.blocks + b for i in index for b in range(self.blocks)]
            stack = stack[torch.tensor(blocks, device=stack.device)]
        stack = stack.to(x.dtype)
        if self.blocks == 1:
            torch.bmm(stack, x, out=out)
            return
        for b, span in enumerate(self.spans):
            n = span.stop - span.start
            out[:, span] = torch.bmm(stack[b :: self.blocks, :n, :n], x[:, span])
        out[:, self.spans[-1].stop :] = 0


class ShapeGroup:
    """Layers of one shape and dtype on one device: preconditioned by two batched products."""

    def __init__(self, layers, sides, settings):
        self.layers = layers
        first = layers[0]
        self.device = first.weight.device
        self.dtype = real_dtype(first.weight.dtype, settings.factor_dtype)
        self.product_dtype = settings.matmul_dtype or self.dtype
        self.sides = {}
        for name, order in (("L", first.rows), ("R", first.columns)):
            if name in sides and (order <= settings.block or settings.large_dims == "block"):
                self.sides[name] = Side(
                    len(layers), order, settings.block, settings.factor_dtype, self.device
                )
        self.outputs = {}  # parameter -> what its gradient becomes

    def precondition(self, scratch, fused):
        """Return {parameter: gradient for the step} of the layers that have gradients."""
        present = [i for i, layer in enumerate(self.layers) if has_gradients(layer)]
        sides = {name: side for name, side in self.sides.items() if not side.identity}
        if not present or not sides:
            return {}
        layers = [self.layers[i] for i in present]
        index = None if len(present) == len(self.layers) else present
        rows, columns = layers[0].local_rows, layers[0].columns
        shape = len(layers), padded(rows, self.device), padded(columns, self.device)
        given, x, y = scratch.take(3, shape, self.dtype, self.device)
        if shape[1:] != (rows, columns):
            given.zero_()
        self._gather(layers, given)
        product = self._multiply(sides, index, given.to(self.product_dtype), x, y).to(self.dtype)
        scale, valid = _rescale(layers, given, product, fused)
        torch.mul(product, scale[:, None, None], out=x)
        torch.where(valid[:, None, None], x, given, out=y)
        return self._scatter(layers, y)

    def _multiply(self, sides, index, product, x, y):
        """Return M_L G M_R, in x or y if they are of the dtype of products."""
        if product.dtype != x.dtype:
            x, y = torch.empty_like(product), torch.empty_like(product)
        if "L" in sides:
            sides["L"].multiply(index, product, x)
            product = x
        if "R" in sides:
            # The other way round, M_R x^T: symmetric factors are symmetric bit for bit.
            sides["R"].multiply(index, product.mT, y.mT)
            product = y
        return product

    def _gather(self, layers, given):
        to, of = [], []
        for i, layer in enumerate(layers):
            for columns, grad in layer.matrix([local(p.grad) for p in layer.params]):
                to.append(given[i, : len(grad), columns])
                of.append(grad)
        torch._foreach_copy_(to, of)

    def _scatter(self, layers, result):
        to, of, grads = [], [], {}
        for i, layer in enumerate(layers):
            outputs = [self._output(p) for p in layer.params]
            start = 0
            for p, output in zip(layer.params, outputs, strict=True):
                own = local(output)
                width = own.shape[1:].numel()
                of.append(result[i, : len(own), start : start + width].view(own.shape))
                to.append(own)
                grads[p] = output
                start += width
        torch._foreach_copy_(to, of)
        return grads

    def _output(self, param):
        """Return the tensor that stands in for a parameter's gradient, the same in every step."""
        output, grad = self.outputs.get(param), param.grad
        if output is None or output.dtype != grad.dtype or output.stride() != grad.stride():
            output = self.outputs[param] = torch.empty_like(grad)
        return output


class Scratch:
    """Memory that the groups use one after the other."""

    def __init__(self):
        self._blocks = {}

    def take(self, count, shape, dtype, device):
        """Return tensors of a shape, whose contents are anything."""
        need = count * math.prod(shape)
        block = self._blocks.get((dtype, device))
        if block is None or block.numel() < need:
            block = self._blocks[dtype, device] = torch.empty(need, dtype=dtype, device=device)
        return block[:need].view(count, *shape).unbind()


@dataclass(eq=False)
class Row:
    """The factor of one side of a layer, and where its blocks are in the list of the kernel."""

    layer: object
    name: str  # of the side
    side: Side
    index: int  # of the layer in the stack
    all: object  # the Factors it is one of
    at: slice

    @property
    def blocks(self):
        """Return the blocks: views, as are the other two."""
        return self.side.factors(self.index)

    @property
    def norms(self):
        """Return the norm of each block."""
        return self.all.norms[self.at]

    @property
    def counters(self):
        """Return the counters of each block."""
        return self.all.counters[self.at]

    @property
    def shapes(self):
        """Return the shapes of the blocks."""
        return [list(m.shape) for m in self.blocks]

    def checksum(self):
        """Return the sum of the bits of the factor as integers, an int64 tensor."""
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = [m.contiguous().view(kinds[m.element_size()]) for m in self.blocks]
        return sum(b.sum(dtype=torch.int64) for b in bits)


class Factors:
    """All factors of one device, as the kernel takes them: one list, with norms and counters."""

    def __init__(self, groups, settings):
        self._settings = settings
        self.rows, count = [], 0
        for group in groups:
            for i, layer in enumerate(group.layers):
                for name, side in group.sides.items():
                    at = slice(count, count + side.blocks)
                    self.rows.append(Row(layer, name, side, i, self, at))
                    count = at.stop
        self.norms = torch.ones(count, device=groups[0].device)
        self.counters = torch.zeros(count, 3, dtype=torch.int64, device=groups[0].device)

    def update(self, vectors, skip, found_inf=None):
        """Update every factor.

        Parameters
        ----------
        vectors : dict
            {layer: {"L": g, "R": a}}; a layer that is missing keeps its factors.
        skip : dict
            {layer: 0-dim tensor}: not 0 where the device is to leave them.
        found_inf : Tensor, optional
            One element: not 0 to leave all of them.
        """
        one, zero = self.norms.new_ones(()), self.norms.new_zeros(())
        matrices, pieces, flags = [], [], []
        for row in self.rows:
            blocks = row.blocks
            matrices += blocks
            vector = vectors.get(row.layer, {}).get(row.name)
            flag = one if vector is None else skip.get(row.layer, zero)
            flags += [flag.to(one)] * len(blocks)
            if vector is None:
                pieces += [m.new_zeros(len(m), dtype=real_dtype(m.dtype)) for m in blocks]
            else:
                pieces += [vector[span].contiguous() for span in row.side.spans]
                row.side.identity = False
        flags = torch.stack(flags)
        if found_inf is not None:
            flags = torch.maximum(flags, found_inf.to(flags).reshape(()))
        fused = self._settings.fused is not False
        update = ops.kron_rank1_update if fused else reference.kron_rank1_update
        update(
            matrices,
            pieces,
            norms=self.norms,
            counters=self.counters,
            skip=flags,
            **self._settings.update,
        )


def has_gradients(layer):
    """Tell whether a step has all of a layer's gradients."""
    return all(p.grad is not None for p in (layer.weight, layer.bias) if p is not None)


def real_dtype(*dtypes):
    """Return the dtype of arithmetic on numbers of some dtypes: fp32, or fp64 with fp64."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _rescale(layers, given, product, fused):
    """Return what gives each product the norm of its gradient, and where there is such a number."""
    matrices = [*given.unbind(), *product.unbind()]
    sums = squared_sums(matrices) if fused is False else ops.multi_tensor_sq_sum(matrices)
    if layers[0].sharded:
        torch.distributed.all_reduce(sums, group=layers[0].weight.device_mesh.get_group())
    before, after = sums.sqrt().split(len(layers))
    scale = before / after
    valid = before.isfinite() & after.isfinite() & (before > 0) & (after > 0)
    return scale.to(given.dtype), valid
