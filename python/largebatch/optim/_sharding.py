# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Sharded parameters: which sums over a tensor have to be added up over which ranks."""

import torch
import torch.distributed

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate
except ImportError:  # torch without distributed, or before 2.5
    DTensor = None


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
