# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Dot products of halves of gradients, plain or as an optimizer of Adam's kind would scale them."""

from dataclasses import dataclass, field

import torch

from .. import ops, reference
from ._sharding import Shards, local


@dataclass
class Dots:
    """Dot products of the halves of some parameters, and the module each belongs to."""

    owners: list = field(default_factory=list)  # [T] modules
    parts: list = field(default_factory=list)  # [t, 3] each, T together, on any device
    shards: Shards = field(default_factory=Shards)

    def by_module(self, num_modules, device):
        """Return ``[num_modules, 3]``: each module's sums, over all ranks that hold parts of it."""
        empty = torch.zeros(0, 3, dtype=torch.float64, device=device)
        sums = self.shards.reduce(torch.cat([empty, *(part.to(device) for part in self.parts)]))
        order = sorted(range(len(self.owners)), key=self.owners.__getitem__)
        counts = [self.owners.count(module) for module in range(num_modules)]
        # Slices, not index_add: its order on a GPU is not fixed.
        ordered = sums[torch.tensor(order, dtype=torch.int64, device=device)]
        return torch.stack([rows.sum(dim=0) for rows in ordered.split(counts)])


@dataclass
class Measure:
    """How halves are compared: as they are, or as an optimizer of Adam's kind would scale them."""

    moments: object = None  # param -> (exp_avg_sq or None, beta2, eps); None: as they are
    grad_scale: float | torch.Tensor | None = None  # with moments only; else it cancels
    fused: bool | None = None

    def dots(self, rows, combine):
        """Return the Dots of a list of (param, module, x, y); `combine` as in `half_dots`."""
        dots = Dots()
        batches = {}  # what one call can do
        for param, owner, x, y in rows:
            square, beta2, eps = (None, 0.0, 0.0) if self.moments is None else self.moments(param)
            if square is None and self.moments is not None:
                continue  # the optimizer has not seen a gradient of it yet
            square = None if square is None else local(square)
            x, y, square = (None if t is None else _as_real(t) for t in (x, y, square))
            like = x if square is None else square
            batch = batches.setdefault((y.device, beta2, eps), [])
            batch.append((param, owner, _laid_out(x, like), _laid_out(y, like), square))
        for (device, beta2, eps), batch in batches.items():
            params, owners, x, y, square = map(list, zip(*batch, strict=True))
            for param, owner in zip(params, owners, strict=True):
                dots.shards.add(len(dots.owners), param, param)  # for its placements only
                dots.owners.append(owner)
            dots.parts.append(self._half_dots(device, x, y, combine, square, beta2, eps))
        return dots

    def _half_dots(self, device, x, y, combine, square, beta2, eps):
        function = reference.agvm.half_dots if self.fused is False else ops.half_dots
        if self.moments is None:
            return function(x, y, combine)
        scale = self.grad_scale
        if scale is not None:
            scale = torch.as_tensor(scale, dtype=torch.float32).to(device)
        return function(x, y, combine, exp_avg_sq=square, beta2=beta2, eps=eps, grad_scale=scale)


def second_moments(optimizer, precondition, steps):
    """Return what finds (exp_avg_sq or None, beta2, eps) of a parameter; None to measure without.

    `steps` is how many the optimizer has taken: before the first its state says nothing.
    """
    state = optimizer.state
    known = any("exp_avg_sq" in of_param for of_param in state.values())
    if precondition is False or not (known or precondition):
        return None
    if steps and not known:
        raise ValueError(
            "AGVM: precondition: got True, but the optimizer's state has no exp_avg_sq, expected "
            "one of Adam's kind. Leave it at None."
        )
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}

    def of(param):
        group, square = group_of[param], state.get(param, {}).get("exp_avg_sq")
        if square is None:
            return None, 0.0, 0.0
        return square, float(group["betas"][-1]), group["eps"]

    return of


def _as_real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _laid_out(tensor, like):
    """Return the tensor with the strides of another, copied only if they differ."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
