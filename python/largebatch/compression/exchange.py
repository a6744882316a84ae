# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a rank, and one exchange of it: the buffers around the kernels."""

import torch

from .. import _C
from .._versions import mark_written


def real_of(dtype):
    """Return the dtype that arithmetic on gradients is done in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


ROLES = {"error": "errors", "shift": "shifts", "momentum": "momenta", "mean": "means"}


class State:
    """What a rank keeps of each tensor: lists, empty where the method has none.

    errors, shifts, momenta : of this rank
    means : the mean of the shifts of all ranks, the same on each
    rank, step : int
    ids : list of int
        What keys the random numbers of each tensor: its position.
    """

    def __init__(self, tensors, roles, rank):
        self.ids = list(range(len(tensors)))
        for role, name in ROLES.items():
            new = [torch.zeros_like(t, dtype=real_of(t.dtype)).detach() for t in tensors]
            setattr(self, name, new if role in roles else [])
        self.rank, self.step, self.exchange = rank, 0, None


def records_of(method, numels, ids=None):
    """Return the records of tensors, in order, and the sizes of what is compressed.

    Small tensors are dense; neighbours that are not are one record where the scope is a bucket.
    """
    compressor, records, sizes, groups = method.compressor, [], [], []
    ids = range(len(numels)) if ids is None else ids
    for t, numel in enumerate(numels):
        small = numel < method.min_numel or numel == 0
        together = groups and compressor.scope == "bucket" and not small and not groups[-1][0]
        if together:
            groups[-1][1].append(t)
        else:
            groups.append((small, [t]))
    for small, group in groups:
        own = [numels[t] for t in group]
        if small:
            records.append({"select": "dense", "id": ids[group[0]]})
            continue
        record = compressor.record(own, ids[group[0]])
        if len(group) == 1 and record["select"] == "topk" and record["k"] == own[0]:
            record = record | {"select": "dense", "indices": "auto", "k": 0}
        records.append(record)
        sizes.append(sum(own))
    return records, sizes


class Exchange:
    """Encodes the gradients of some tensors with their state, and decodes what all ranks sent."""

    def __init__(self, method, state, grads):
        self.like = [(g.shape, g.dtype, g.device) for g in grads]
        self.state, self.shifted = state, method.shifted
        numels = [g.numel() for g in grads]
        records, sizes = records_of(method, numels, state.ids)
        self.plan = _C.CompressionPlan(numels, records)
        self.rule = method.rule(sizes)
        device = grads[0].device if grads else torch.device("cpu")
        self.real = real_of(grads[0].dtype if grads else torch.float32)

        def buffer(*shape, dtype=torch.int64):
            return torch.zeros(shape, dtype=dtype, device=device)

        self._scratch = []
        slots = self.plan.slots
        self.values, self.indices = buffer(slots, dtype=self.real), buffer(slots)
        self.counts = buffer(len(records), 2)
        self.warm = buffer(len(records), 2, dtype=torch.float64)

    def fits(self, grads):
        """Tell whether these are gradients like those it was made for."""
        return self.like == [(g.shape, g.dtype, g.device) for g in grads]

    def encode(self, grads, inv_scale=None, scratch=False):
        """Return the payload. `scratch`: the gradients may be written to."""
        state = self.state
        device = grads[0].device if grads else "cpu"
        own = scratch and all(g.dtype == self.real for g in grads)
        if not (own or self._scratch):  # made once: fresh memory costs as much as the step
            self._scratch = [torch.empty_like(g, dtype=self.real) for g in grads]
        self.keys = grads if own else self._scratch
        payload = torch.empty(self.plan.payload_bytes, dtype=torch.uint8, device=device)
        self.plan.encode(
            grads,
            self.keys,
            state.errors,
            state.shifts,
            state.momenta,
            self.rule | {"inv_scale": inv_scale},
            state.step,
            state.rank,
            self.values,
            self.indices,
            self.counts,
            payload,
            self.warm,
        )
        mark_written([*state.errors, *state.momenta, *(grads if own else [])])
        state.step += 1
        return payload

    def decode(self, payloads, scale=None, skip=False, outs=None):
        """Return the update, in `outs` where given."""
        state = self.state
        if not isinstance(payloads, torch.Tensor):
            payloads = torch.stack(list(payloads))
        if payloads.shape[-1] != self.plan.payload_bytes:
            raise ValueError(
                f"decode: payloads has shape {list(payloads.shape)}, expected payloads of "
                f"{self.plan.payload_bytes} bytes: every rank needs the same method and tensors."
            )
        sums = state.means if self.shifted else self.keys
        if outs is None:
            outs = [
                torch.empty_like(k, dtype=dtype)
                for k, (_, dtype, _) in zip(self.keys, self.like, strict=True)
            ]
        self.nonfinite = torch.zeros(len(payloads), dtype=torch.int64, device=payloads.device)
        self.plan.decode(
            payloads,
            state.rank,
            self.keys,
            state.errors,
            state.shifts,
            state.momenta,
            sums,
            outs,
            self.indices,
            self.rule,
            self.nonfinite,
            scale,
            skip,
            not self.shifted,
        )
        mark_written([*state.errors, *state.shifts, *state.momenta, *state.means, *outs])
        return outs
