# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a rank, and one exchange of it: the buffers around the kernels."""

import torch

from .. import _C
from .._versions import mark_written

# Of a record's header, as in docs/compression.md: its bytes, and where two of its fields, u32, are.
HEADER, NONFINITE_AT, CRC_AT = 64, 56, 60


def new_plan(numels, records):
    """Return the engine for tensors of these sizes."""
    return _C.CompressionPlan(numels, records)


def real_of(dtype):
    """Return the dtype that arithmetic on gradients is done in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


ROLES = {"error": "errors", "shift": "shifts", "momentum": "momenta", "mean": "means"}


class State:
    """What a rank keeps of each tensor: lists, empty where the method has none.

    errors, shifts, momenta : of this rank
    means : the mean of the shifts of all ranks, the same on each
    rank, world, step, count : int
        `count` is the number of tensors.
    """

    def __init__(self, tensors, roles, rank, world=1):
        for role, name in ROLES.items():
            new = [torch.zeros_like(t, dtype=real_of(t.dtype)).detach() for t in tensors]
            setattr(self, name, new if role in roles else [])
        self.rank, self.world, self.step, self.count = rank, world, 0, len(tensors)
        self.lr, self.exchange = None, None


def groups_of(method, numels, together=()):
    """Return [(small, positions)]: which tensors are one record, the small ones last.

    Where the scope is a bucket, what is not small is one record; but those `together`, lists of
    positions, are records of their own.
    """
    small = [t for t, n in enumerate(numels) if n < method.min_numel or n == 0]
    rest = [t for t in range(len(numels)) if t not in set(small)]
    if method.compressor.scope == "tensor":
        groups = [[t] for t in rest]
    else:
        apart = {t for group in together for t in group}
        left = [t for t in rest if t not in apart]
        groups = [*(list(group) for group in together), *([left] if left else [])]
    return [*((False, group) for group in groups), *((True, [t]) for t in small)]


def records_of(method, numels, ids=None, together=()):
    """Return the records of tensors, and the groups of tensors that each is of."""
    records, groups = [], groups_of(method, numels, together)
    ids = range(len(numels)) if ids is None else ids
    for small, group in groups:
        own = [numels[t] for t in group]
        record = {"select": "dense", "id": ids[group[0]]}
        if not small:
            record = method.compressor.record(own, ids[group[0]])
        if len(group) == 1 and record["select"] == "topk" and record["k"] == own[0]:
            record = record | {"select": "dense", "indices": "auto", "k": 0}
        records.append(record)
    return records, groups


def sizes_of(method, numels):
    """Return the sizes that a contraction is guaranteed for: of tensors, or of a bucket of all."""
    large = [n for n in numels if n >= method.min_numel and n > 0]
    return large if method.compressor.scope == "tensor" or not large else [sum(large)]


class Exchange:
    """Encodes the gradients of some tensors with their state, and decodes what all ranks sent.

    Parameters
    ----------
    method : Method
    state : State
        Or anything with its lists of tensors and its rank.
    grads : list of Tensors
    ids : list of int, optional
        What each tensor is called to the random numbers, by default its position.
    rule : dict, optional
        What ``method.rule`` gave for all tensors that there are.
    together : lists of positions
        See :func:`groups_of`.
    """

    def __init__(self, method, state, grads, ids=None, rule=None, together=()):
        self.like = [(g.shape, g.dtype, g.device) for g in grads]
        self.state, self.shifted, self.compressor = state, method.shifted, method.compressor
        numels = [g.numel() for g in grads]
        self.records, self.groups = records_of(method, numels, ids, together)
        self.small = {t for small, group in self.groups if small for t in group}
        self.order = [t for _, group in self.groups for t in group]
        self.plan = new_plan([numels[t] for t in self.order], self.records)
        self.rule = method.rule(sizes_of(method, numels)) if rule is None else rule
        self.device = grads[0].device if grads else torch.device("cpu")
        self.real = real_of(grads[0].dtype if grads else torch.float32)
        slots = self.plan.slots
        self.values, self.indices = self._buffer(slots, dtype=self.real), self._buffer(slots)
        self.counts = self._buffer(len(self.records), 2)
        self.warm = self._buffer(len(self.records), 2, dtype=torch.float64)
        self.regions = None  # where the hook exchanges by regions
        self._scratch, self._zeros, self._frozen = [], {}, ()

    def _buffer(self, *shape, dtype=torch.int64):
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def fits(self, method, grads):
        """Tell whether these are gradients like those it was made for."""
        alike = self.like == [(g.shape, g.dtype, g.device) for g in grads]
        return alike and self.compressor == method.compressor

    def encode(self, grads, factor=None, scratch=False, frozen=()):
        """Return the payload.

        factor : Tensor, optional
            What the gradients are multiplied by.
        scratch : bool
            The gradients may be written to.
        frozen : sequence of int
            Tensors that are not to take part: their gradients are 0, nothing is sent of them, and
            their state stays as it is, until :meth:`decode` has been called.
        """
        own = scratch and all(g.dtype == self.real for g in grads)
        if not (own or self._scratch):  # made once: fresh memory costs as much as the step
            self._scratch = [torch.empty_like(g, dtype=self.real) for g in grads]
        self.keys = grads if own else self._scratch
        self._frozen = frozen
        payload = torch.empty(self.plan.payload_bytes, dtype=torch.uint8, device=self.device)
        errors, shifts, momenta = self._own()
        self.plan.encode(
            self._sorted(grads),
            self._sorted(self.keys),
            errors,
            shifts,
            momenta,
            self.rule | {"inv_scale": factor},
            self.state.step,
            self.state.rank,
            self.values,
            self.indices,
            self.counts,
            payload,
            self.warm,
        )
        mark_written([*errors, *momenta, *(grads if own else [])])
        return payload

    def decode(self, payloads, scale=None, skip=False, outs=None):
        """Return the update, in `outs` where given."""
        if not isinstance(payloads, torch.Tensor):
            payloads = torch.stack(list(payloads))
        if payloads.shape[-1] != self.plan.payload_bytes:
            raise ValueError(
                f"decode: payloads has shape {list(payloads.shape)}, expected payloads of "
                f"{self.plan.payload_bytes} bytes: every rank needs the same method and tensors."
            )
        if outs is None:
            outs = [torch.empty(shape, dtype=dtype, device=d) for shape, dtype, d in self.like]
        sums = self.state.means if self.shifted else self.keys
        errors, shifts, momenta = self._own()
        self.nonfinite = self._buffer(len(payloads))
        self.plan.decode(
            payloads,
            self.state.rank,
            self._sorted(self.keys),
            errors,
            shifts,
            momenta,
            self._sorted(sums),
            self._sorted(outs),
            self.indices,
            self.rule,
            self.nonfinite,
            scale,
            skip,
            not self.shifted,
        )
        mark_written([*errors, *shifts, *momenta, *self.state.means, *outs])
        return outs

    def take_back(self, payload, stopped):
        """Put what was sent back into the residuals if `stopped`, a bool on the device.

        Not where a gradient was not finite: there :meth:`decode` has taken nothing out.
        """
        payload = payload.clone()
        field = payload[NONFINITE_AT : NONFINITE_AT + 4].view(torch.int32)
        field.copy_(torch.where(stopped, field, 1))  # decode stops if it is not 0
        errors = self.state.errors
        none, rule = [], {"method": "none"}
        sums = self._own()[0]
        self.plan.decode(
            payload.unsqueeze(0), -1, none, none, none, none, sums, none, None, rule,
            self._buffer(1), None, True, False,
        )  # fmt: skip
        if self.rule["method"] == "dgc":  # it has no residual of what is sent whole
            for t in self.small:
                errors[t].zero_()
        mark_written(errors)

    def _own(self):
        """Return the lists of this rank's state, with zeros for what is frozen."""
        lists = []
        for role in ("errors", "shifts", "momenta"):
            tensors = list(getattr(self.state, role))
            for t in self._frozen if tensors else ():
                key = role, t
                if key not in self._zeros:
                    self._zeros[key] = torch.zeros_like(tensors[t])
                tensors[t] = self._zeros[key]
            lists.append(self._sorted(tensors))
        return lists

    def _sorted(self, tensors):
        return [tensors[t] for t in self.order] if tensors else []
