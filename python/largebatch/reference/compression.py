# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Gradient compression in plain PyTorch: what a rank does in a step, with all its tensors.

Ranks encode what they have to say, exchange the payloads, and decode all of them:

1. the gradient is taken in and the keys selected from (:mod:`~largebatch.reference.feedback`), and
   what is selected is packed (:mod:`~largebatch.reference.wire`);
2. each rank corrects its state by what the others will decode of its own payload, and adds the mean
   of all payloads to sums that are the same on every rank, bit for bit.

:class:`Plan` has the interface of the compiled one.
"""

import torch

from .draw import random_indices, strided_indices
from .feedback import accumulate, fix_up, select, select_blocks, select_from
from .record import make_record
from .wire import drawn_indices, header, pack, unpack

__all__ = ["Plan", "accumulate", "fix_up", "random_indices", "select", "strided_indices"]


class Plan:
    """The sizes of tensors and, in records, how each is compressed.

    Tensors are contiguous. The arrays of a call that are not of tensors have a part for every
    record, in order.

    Parameters
    ----------
    numels : sequence of T ints
    records : sequence of G dicts
        Each of the next `tensors` tensors:

        ``tensors``
            1 (default) unless `select` is "topk", "threshold", "random" or "strided".
        ``select``
            "dense", "topk", "block", "threshold", "random" or "strided".
        ``k``
            Elements kept: of the record; of every block; the most that a threshold keeps.
        ``block``
            Elements of a block.
        ``tau``
            The threshold.
        ``values``
            "float32" (default), "float16", "bfloat16", "float64", "int8", "int4", "int2" or "sign".
        ``scale_block``
            Slots that share a scale, default 2048.
        ``rounding``
            "stochastic" (default) or "nearest", of the integer values.
        ``indices``
            "auto" (default), "abs32", "blk16" or "blk12".
        ``seed``, ``id``
            Of the random numbers.

    Examples
    --------
    >>> plan = Plan([4], [{"select": "topk", "k": 1}])
    >>> plan.slots, plan.payload_bytes
    (1, 96)
    >>> error, sums, payload = torch.zeros(4), torch.zeros(4), torch.empty(96, dtype=torch.uint8)
    >>> values, indices = torch.empty(1), torch.empty(1, dtype=torch.int64)
    >>> method, counts = {"method": "feedback"}, torch.empty(1, 2, dtype=torch.int64)
    >>> key = torch.tensor([1.0, -2.0, 0.5, 0.0])  # the gradient, and then the key
    >>> plan.encode(
    ...     [key], [key], [error], [], [], method, 0, 0, values, indices, counts, payload, None
    ... )
    >>> world, nonfinite = payload.unsqueeze(0), torch.empty(1, dtype=torch.int64)
    >>> plan.decode(world, 0, [key], [error], [], [], [sums], [], indices, method, nonfinite)
    >>> error, sums
    (tensor([1.0000, 0.0000, 0.5000, 0.0000]), tensor([ 0., -2.,  0.,  0.]))
    """

    def __init__(self, numels, records):
        self.numels = list(numels)
        self.records = []
        tensor = slot = offset = 0
        for options in records:
            numel = sum(self.numels[tensor : tensor + options.get("tensors", 1)])
            where = dict(first_tensor=tensor, first_slot=slot, offset=offset)
            record = make_record(numel, options, **where)
            self.records.append(record)
            tensor, slot = tensor + record.tensors, slot + record.slots
            offset += record.bytes
        if tensor != len(self.numels):
            raise ValueError(f"Plan: records are of {tensor} tensors, numels of {len(self.numels)}")
        self.slots = slot
        self.payload_bytes = offset

    @property
    def layout(self):
        """Where each record lies: a list of dicts."""
        places = "offset bytes scales_at values_at indices_at numel slots first_slot indices"
        return [{name: getattr(r, name) for name in places.split()} for r in self.records]

    @torch.no_grad()
    def select(self, tensors, values, indices, counts, warm=None, step=0):
        """Select from tensors. Dense records get no values and no indices.

        Parameters
        ----------
        tensors : sequence of T Tensors
            Of one floating dtype. Not written.
        values, indices : Tensor
            ``[slots]``, of the dtype of the tensors and int64, written; a slot that a threshold
            leaves empty gets 0 and the number of elements of the record.
        counts : Tensor
            ``[G, 2]`` int64, written: what there was to select, and 0.
        warm : ignored
            The compiled plan looks for the threshold near that of the last call.
        step : int
            Keys the indices that are drawn at random.
        """
        for g, record in enumerate(self.records):
            found = record.slots
            if record.select != "dense":
                x = self._flat(record, tensors)
                picked, found = self._choose(record, x, step)
                slots = _slots(record)
                indices[slots] = picked
                values[slots] = torch.cat([x, x.new_zeros(1)])[picked]
            counts[g, 0], counts[g, 1] = found, 0

    def encode(
        self,
        grads,
        keys,
        errors,
        shifts,
        momenta,
        method,
        step,
        rank,
        values,
        indices,
        counts,
        payload,
        warm=None,
    ):
        """Take gradients in, select from the keys, and pack what is selected.

        Parameters
        ----------
        grads : sequence of T Tensors
            Of one floating dtype.
        keys : sequence of T Tensors
            In R, written; may be those of `grads`.
        errors, shifts, momenta : sequence of T Tensors
            In R, written; empty where the method has none.
        method : dict
            ``method`` and the other arguments of :func:`accumulate`, and ``masking``.
        step, rank : int
        values, indices : Tensor
            ``[slots]``, written as in :meth:`select`, in R.
        counts : Tensor
            ``[G, 2]`` int64, written: what there was to select, and gradients that were left out.
        payload : Tensor
            ``[payload_bytes]`` uint8, written.
        warm : ignored
        """
        options = {name: x for name, x in method.items() if name not in ("method", "masking")}
        guarded = []
        for record in self.records:
            total = 0
            for t in range(record.first_tensor, record.first_tensor + record.tensors):
                key, left_out = accumulate(
                    method["method"],
                    grads[t].view(-1),
                    *_state(t, errors, shifts, momenta),
                    **options,
                    dense=record.select == "dense",
                )
                keys[t].view(-1).copy_(key)
                total += int(left_out.sum())
            guarded.append(total)
        self.select(keys, values, indices, counts, warm, step)
        counts[:, 1] = torch.tensor(guarded, dtype=torch.int64)
        self.pack(keys, values, indices, counts, step, rank, payload)

    @torch.no_grad()
    def pack(self, keys, values, indices, counts, step, rank, payload):
        """Pack what is selected: the last part of :meth:`encode`."""
        for record, nonfinite in zip(self.records, counts[:, 1].tolist(), strict=True):
            slots = _slots(record)
            dense = record.select == "dense"
            sent = self._flat(record, keys) if dense else values[slots]
            out = payload[record.offset :][: record.bytes]
            pack(record, sent, None if dense else indices[slots], nonfinite, step, rank, out)

    @torch.no_grad()
    def unpack(self, payload, values, indices):
        """Decode a payload: values, in R, and indices of all slots, written."""
        for record in self.records:
            slots = _slots(record)
            values[slots], indices[slots] = self._unpack(record, payload, values.dtype)

    @torch.no_grad()
    def decode(
        self,
        payloads,
        rank,
        keys,
        errors,
        shifts,
        momenta,
        sums,
        outs,
        indices,
        method,
        nonfinite,
        scale=None,
        skip=False,
        zero=False,
    ):
        """Correct the state of a rank by what it sent, and add the mean of what all ranks sent.

        Parameters
        ----------
        payloads : Tensor
            ``[W, payload_bytes]`` uint8.
        rank : int
            Whose state it is; -1 for none: state and `keys` may be empty then.
        keys : sequence of T Tensors
            Those of dense records get what is decoded of them.
        errors, shifts, momenta : sequence of T Tensors
            As in :meth:`encode`.
        sums : sequence of T Tensors
            In R, added to: rank after rank, each times R(1/W).
        outs : sequence of T Tensors
            Written: sums, times `scale`, of any floating dtype. May be empty, or those of `sums`.
        indices : ignored
            The compiled plan does not decode those of its own rank again.
        method : dict
            As in :meth:`encode`.
        nonfinite : Tensor
            ``[W]`` int64, written: how many gradients each rank left out.
        scale : Tensor, optional
            ``[1]`` float32.
        skip : bool
            If any rank left a gradient out, change no state and add nothing, and put NaN at the
            front of the first of `outs` that has an element.
        zero : bool
            Sums are 0 at first.
        """
        for w, payload in enumerate(payloads):
            fields = [header(payload[r.offset :]) for r in self.records]
            nonfinite[w] = sum(f["nonfinite"] for f in fields)
        stop = skip and bool((nonfinite > 0).any())
        if rank >= 0 and not stop:
            self._correct(payloads[rank], keys, errors, shifts, momenta, method)
        for total in sums if zero else ():
            total.zero_()
        for payload in () if stop else payloads:
            self._add(payload, sums, 1 / len(payloads))
        for out, total in zip(outs, sums, strict=False):
            out.copy_(total if scale is None else total * scale.to(total.dtype))
        first = next((out for out in outs if out.numel() > 0), None)
        if stop and first is not None:
            first.view(-1)[0] = torch.nan

    # ---- Parts -----------------------------------------------------------------------------------

    def _correct(self, payload, keys, errors, shifts, momenta, method):
        name, masking = method["method"], method.get("masking", True)
        for record in self.records:
            dense = record.select == "dense"
            decoded, indices = self._unpack(record, payload, keys[record.first_tensor].dtype)
            for t, there, local in self._by_tensor(record, indices):
                part = decoded[there]
                if dense:
                    keys[t].view(-1).copy_(part)
                state = _state(t, errors, shifts, momenta)
                fix_up(name, part, None if dense else local, *state, masking=masking)

    def _add(self, payload, sums, weight):
        for record in self.records:
            dtype = sums[record.first_tensor].dtype
            decoded, indices = self._unpack(record, payload, dtype)
            share = decoded * torch.tensor(weight, dtype=dtype)
            for t, there, local in self._by_tensor(record, indices):
                total = sums[t].view(-1)
                total[local] = total[local] + share[there]

    def _choose(self, record, x, step):
        """Return the indices of a record that is not dense, and how many there were to select."""
        if record.select == "threshold":
            return select_from(x, record.tau, record.slots)
        if record.select == "topk":
            return select(x, record.slots), record.slots
        if record.select == "block":
            return select_blocks(x, record.kept, record.block), record.slots
        return drawn_indices(record, step), record.slots

    def _unpack(self, record, payload, dtype):
        return unpack(record, payload[record.offset :][: record.bytes], dtype)

    def _flat(self, record, tensors):
        """Return the tensors of a record as one vector."""
        own = tensors[record.first_tensor : record.first_tensor + record.tensors]
        return own[0].view(-1) if len(own) == 1 else torch.cat([x.view(-1) for x in own])

    def _by_tensor(self, record, indices):
        """Yield, for each tensor of a record, which slots are its, and their indices in it."""
        start = 0
        for t in range(record.first_tensor, record.first_tensor + record.tensors):
            stop = start + self.numels[t]
            there = (indices >= start) & (indices < stop)
            yield t, there, indices[there] - start
            start = stop


def _slots(record):
    return slice(record.first_slot, record.first_slot + record.slots)


def _state(t, errors, shifts, momenta):
    return [role[t].view(-1) if role else None for role in (errors, shifts, momenta)]
