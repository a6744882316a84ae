# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded parameters: which sums over a tensor have to be added up over which ranks."""

import math

import torch
import torch.distributed
from torch.nn import Parameter

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
except ImportError:  # torch without distributed, or before 2.5
    DTensor = None

PLAIN = Parameter, torch.Tensor  # types of tensors that are whole, in one memory


def local(tensor):
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if DTensor is not None and isinstance(tensor, DTensor) else tensor


class Shards:
    """The sharded tensors of a batch, by the mesh dimensions they are split over."""

    def __init__(self):
        self._rows = {}  # (mesh, mesh dimensions) -> positions in the batch

    def __bool__(self):
        return bool(self._rows)

    def add(self, position, param, grad):
        """Note a parameter; return what this rank holds of it and of its gradient."""
        if DTensor is None or not isinstance(param, DTensor):
            return param, grad
        mesh, placements = param.device_mesh, param.placements
        if any(isinstance(placement, Partial) for placement in placements):
            raise ValueError(
                f"params[{position}] has placements {placements}: a parameter that is a pending "
                "sum cannot be updated. Redistribute it to Shard or Replicate."
            )
        if not isinstance(grad, DTensor) or grad.placements != placements:
            grad = grad.redistribute(mesh, placements)
        split = tuple(d for d, p in enumerate(placements) if not isinstance(p, Replicate))
        self._rows.setdefault((mesh, split), []).append(position)
        return param.to_local(), grad.to_local()

    def part(self, rows):
        """Return the shards of some of the batch's tensors, as a batch of their own."""
        part = Shards()
        for key, own in self._rows.items():
            kept = [i for i, row in enumerate(rows) if row in own]
            if kept:
                part._rows[key] = kept
        return part

    def splits(self, position):
        """Tell whether ranks hold different parts of a parameter."""
        return any(split and position in rows for (_, split), rows in self._rows.items())

    def reduce(self, sums):
        """Add up rows of `sums`, [T] or [T, 2], over the ranks that hold parts of the tensor.

        One all-reduce of a short vector for each mesh dimension that tensors are split over.
        """
        for (mesh, split), rows in self._rows.items():
            index = torch.tensor(rows, device=sums.device)
            part = sums[index]
            for dimension in split:
                torch.distributed.all_reduce(part, group=mesh.get_group(dimension))
            sums[index] = part
        return sums


def shard_index(param):
    """Return which part of a parameter this rank holds: equal on replicas, 0 if it is whole."""
    index = 0
    for dimension, size in split_over(param):
        index = index * size + param.device_mesh.get_local_rank(dimension)
    return index


def zeros_by_block(param, block):
    """Return fp32 zeros, one for each `block` elements in memory of what a rank holds.

    Of a sharded parameter it is a DTensor, of which every rank holds as many as the rank with the
    largest part needs: evenly, as checkpoints of distributed tensors want it.
    """
    split = split_over(param)
    shape = list(param.shape)
    for dimension, size in split:
        dim = param.placements[dimension].dim
        shape[dim] = -(-shape[dim] // size)
    zeros = torch.zeros(-(-math.prod(shape) // block), dtype=torch.float32, device=param.device)
    if DTensor is None or not isinstance(param, DTensor):
        return zeros
    placements = [Replicate()] * param.device_mesh.ndim
    for dimension, _ in split:
        placements[dimension] = Shard(0)
    return DTensor.from_local(zeros, param.device_mesh, placements, run_check=False)


def split_over(param):
    """Return (mesh dimension, ranks along it) of those that a parameter is split over."""
    if DTensor is None or not isinstance(param, DTensor):
        return []
    return [
        (dimension, param.device_mesh.size(dimension))
        for dimension, placement in enumerate(param.placements)
        if not isinstance(placement, Replicate)
    ]


class Gathered:
    """A convex function of a sharded tensor: of the whole, which is gathered and dealt out again.

    Temporary memory of some times the whole tensor on every rank, and as much traffic as it has.
    """

    def __init__(self, kappa, param):
        self.even = getattr(kappa, "even", True)
        self._kappa, self._param = kappa, param

    def subgradient(self, c):
        """Return this rank's part of the subgradient at the whole c, of which it is given its."""
        param, mesh = self._param, self._param.device_mesh
        shape, stride = param.shape, param.stride()
        if c.dim() > len(shape):  # real and imaginary part
            shape, stride = (*shape, 2), (*(2 * s for s in stride), 1)
        whole = DTensor.from_local(
            c, mesh, param.placements, run_check=False, shape=torch.Size(shape), stride=stride
        ).full_tensor()
        everywhere = [Replicate()] * mesh.ndim
        u = DTensor.from_local(self._kappa.subgradient(whole), mesh, everywhere, run_check=False)
        return u.redistribute(mesh, param.placements).to_local()


def holds_whole_slices(param, axis, size):
    """Tell whether every rank holds whole groups of `size` consecutive slices along an axis."""
    split = split_over(param)
    if not split:
        return True
    dimension, ranks = split[0]
    placement = param.placements[dimension]
    if len(split) > 1 or type(placement) is not Shard or placement.dim != axis:
        return False
    return -(-param.shape[axis] // ranks) % size == 0
