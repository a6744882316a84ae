# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Region owners: an exchange whose volume does not grow with the number of ranks.

The elements of a bucket are cut into W regions with as many selected ones in each, counted over all
ranks. Each rank

1. sends what it has selected to the owners of the regions (all-to-all),
2. as an owner adds up what it gets, rank after rank, keeps the K/W largest sums, and
3. sends these to all (all-gather).

What an owner has dropped did not count as sent: it stays in the residuals of its senders. So does
what exceeds the room for one region, twice K/W. A rank receives at most

.. math:: 6 K (W - 1) / W \text{ words}

instead of the 2 K (W - 1) of an all-gather, for K selected elements; besides that 32 W counts, and
tensors that are sent whole, which are all-reduced. Li and Hoefler 2022, "Near-Optimal Sparse
Allreduce for Distributed Deep Learning", arXiv:2201.07598; there regions and thresholds are kept
for many steps, here nothing is kept: all of a step is a function of the gradients.

Values go as fp32 (fp64 for fp64 gradients), positions as int32. The hook waits for each collective
before it returns: on a GPU the stream does, on a CPU the backward pass. Local work is some passes
over the bucket in plain torch.
"""

import torch
import torch.distributed as dist

from .. import _comm
from .._checks import refuse
from .._versions import mark_written
from .compressors import BlockTopK, TopK
from .exchange import new_plan

CELLS = 32  # for each rank, of which regions are made


def room(slots, world):
    """Return (pairs from each rank to each owner, pairs from each owner to all)."""
    return max(1, 2 * slots // world), max(1, slots // world)


def received(slots, dense, world, size):
    """Return the bytes that a rank receives in a step with values of `size` bytes."""
    there, back = room(slots, world) if slots > 0 else (0, 0)
    pairs = (world - 1) * (there + back) * (size + 4)
    ring = 2 * (world - 1) * (dense * size + (CELLS + 1) * world * 8) // world
    return pairs + ring


class Regions:
    """The exchange of one bucket by region owners."""

    @staticmethod
    def check(method, checksum):
        """Refuse what has no indices to send, and what is not looked after."""
        if not isinstance(method.compressor, TopK | BlockTopK):
            expected = 'TopK or BlockTopK with exchange="regions"'
            refuse("hook", "compressor", method.compressor, expected)
        if checksum:
            refuse("hook", "checksum", True, 'False with exchange="regions"')

    def __init__(self, exchange, group):
        self.exchange, self.group = exchange, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        device, layout = exchange.device, exchange.plan.layout
        sparse, dense, starts, start = [], [], [], 0
        for record, place in zip(exchange.records, layout, strict=True):
            slots = range(place["first_slot"], place["first_slot"] + place["slots"])
            (dense if record["select"] == "dense" else sparse).extend(slots)
            starts.append(torch.full((place["slots"],), start))
            start += place["numel"]
        self.numel = start
        if self.numel >= 2**31:
            refuse("hook", "exchange", "regions", f'"all_gather" for {start} elements in a bucket')
        self.starts = torch.cat(starts).to(device) if starts else torch.zeros(0).long()
        self.sparse, self.dense = (torch.tensor(s).long().to(device) for s in (sparse, dense))
        self.there, self.back = room(len(sparse), self.world)
        # As new for every step: what comes of one does not depend on another.
        self.top = new_plan([self.numel], [{"select": "topk", "k": min(self.back, self.numel)}])

    def run(self, payload, scale, skip, outs):
        """Exchange what has been encoded; write the update; return [W] counts, not finite."""
        own, real = self.exchange, self.exchange.real
        delta = torch.empty(own.plan.slots, dtype=real, device=own.device)
        indices = torch.empty(own.plan.slots, dtype=torch.int64, device=own.device)
        own.plan.unpack(payload, delta, indices)
        position = indices + self.starts
        ends, counts = self._agree_on_regions(position[self.sparse])
        stop = (counts > 0).any() if skip else torch.zeros((), dtype=torch.bool, device=own.device)
        update = torch.zeros(self.numel + 1, dtype=real, device=own.device)
        kept = torch.zeros(self.numel + 1, dtype=torch.bool, device=own.device)
        sent = torch.zeros(self.numel + 1, dtype=real, device=own.device)
        if len(self.sparse) > 0:
            at, value = position[self.sparse], delta[self.sparse]
            fits, sums = self._reduce(at, value, ends)
            values, places = self._share(sums)
            update[places], kept[places] = values, True
            kept[-1] = False
            mine = kept[at] & fits & ~stop
            sent[at] = torch.where(mine, value, 0)
            kept = torch.zeros_like(kept)
            kept[at] = mine
        if len(self.dense) > 0:
            whole = delta[self.dense]
            sent[position[self.dense]] = torch.where(stop, 0, whole)
            dist.all_reduce(whole, group=self.group)
            update[position[self.dense]] = whole * (1 / self.world)
        update = torch.where(stop, 0, update)
        self._fix_up(sent, kept)
        self._write(update, scale, stop, outs)
        return counts

    def take_back(self, payload, stopped):
        """Put what was sent back into the residuals if `stopped`."""
        torch._foreach_add_(self._errors, [torch.where(stopped, s, 0) for s in self._sent])
        mark_written(self._errors)

    # ---- Collectives -----------------------------------------------------------------------------

    def _agree_on_regions(self, at):
        """Return the ends of the regions, and how many gradients of each rank were not finite."""
        cells = CELLS * self.world
        found = torch.zeros(cells + self.world, dtype=torch.int64, device=self.exchange.device)
        found[:cells] = torch.bincount(at * cells // max(1, self.numel), minlength=cells)
        found[cells + self.rank] = self.exchange.counts[:, 1].sum()
        dist.all_reduce(found, group=self.group)
        upto = found[:cells].cumsum(0)
        share = upto[-1] * torch.arange(1, self.world, device=at.device) // self.world
        cut = torch.searchsorted(upto, share) + 1  # the first cell of the next region
        # Element i is in cell i cells // n: the first one of a cell is ceil(cell n / cells).
        return (cut * self.numel + cells - 1) // cells, found[cells:]

    def _reduce(self, at, value, ends):
        """Send pairs to the owners; return which had room, and the sums of what has come."""
        region = torch.searchsorted(ends, at, right=True)
        first = torch.searchsorted(at, torch.cat([ends.new_zeros(1), ends]))
        place = torch.arange(len(at), device=at.device) - first[region]
        fits = place < self.there
        to = torch.where(fits, region * self.there + place, self.world * self.there)
        values = value.new_zeros(self.world * self.there + 1)
        places = at.new_full((self.world * self.there + 1,), self.numel)
        values[to], places[to] = value, at
        outgoing = _pack(values[:-1].view(self.world, -1), places[:-1].view(self.world, -1))
        incoming = torch.empty_like(outgoing)
        dist.all_to_all_single(incoming, outgoing, group=self.group)
        sums = value.new_zeros(self.numel + 1)
        for row, index in zip(*_unpack(incoming, value.dtype), strict=True):
            sums.index_add_(0, index, row * (1 / self.world))
        return fits, sums[:-1]

    def _share(self, sums):
        """Send the largest sums to all; return those of all owners, places without one at the end.

        A sum of 0 is none: it may be of another region, and what cancels out is not sent.
        """
        count = self.top.slots
        values = sums.new_empty(count)
        places = torch.empty(count, dtype=torch.int64, device=sums.device)
        counts = torch.empty(1, 2, dtype=torch.int64, device=sums.device)
        self.top.select([sums], values, places, counts)
        places = torch.where(values == 0, self.numel, places)
        outgoing = _pack(values.view(1, -1), places.view(1, -1)).view(-1)
        incoming = outgoing.new_empty(self.world * len(outgoing))
        _comm.all_gather(incoming, outgoing, group=self.group)
        values, places = _unpack(incoming.view(self.world, -1), sums.dtype)
        return values.reshape(-1), places.reshape(-1)

    # ---- State -----------------------------------------------------------------------------------

    def _fix_up(self, sent, kept):
        """Take out of the state what was sent."""
        own, name = self.exchange, self.exchange.rule["method"]
        errors, shifts, momenta = own._own()
        parts = self._parts(sent)
        if name == "dgc":  # it has no residual of what is sent whole
            whole = sent.new_zeros(sent.shape, dtype=torch.bool)
            whole[(self.starts + self._slots())[self.dense]] = True
            parts = self._parts(torch.where(whole, 0, sent))
        if errors:
            torch._foreach_sub_(errors, parts)
        if shifts:
            torch._foreach_add_(shifts, parts)
        if name == "dgc" and own.rule["masking"]:
            for m, mask in zip(momenta, self._parts(kept), strict=True):
                m.masked_fill_(mask, 0)
        self._errors, self._sent = errors, parts if errors else []

    def _slots(self):
        """Return the position in its record of each slot of those that are sent whole."""
        places = self.exchange.plan.layout
        parts = [torch.arange(p["slots"]) for p in places]
        return torch.cat(parts).to(self.exchange.device)

    def _write(self, update, scale, stop, outs):
        own = self.exchange
        outs, parts = own._sorted(outs), self._parts(update)
        sums = own._sorted(own.state.means) if own.shifted else parts
        if own.shifted:
            torch._foreach_add_(sums, parts)
        for out, total in zip(outs, sums, strict=True):
            out.copy_(total if scale is None else total * scale.to(total.dtype))
        first = next((out for out in outs if out.numel() > 0), None)
        if first is not None:
            corner = first.view(-1)[:1]
            corner.copy_(torch.where(stop, torch.nan, corner))

    def _parts(self, flat):
        """Return a vector of the bucket as tensors, in the order of the exchange."""
        shapes = [self.exchange.like[t][0] for t in self.exchange.order]
        parts = flat[:-1].split([shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _pack(values, places):
    """Return ``[rows, bytes]`` of values and places."""
    pair = [values.contiguous().view(torch.uint8), places.to(torch.int32).view(torch.uint8)]
    return torch.cat(pair, dim=1)


def _unpack(rows, dtype):
    width = rows.shape[1] // (dtype.itemsize + 4) * dtype.itemsize
    values, places = rows[:, :width].contiguous(), rows[:, width:].contiguous()
    return values.view(dtype), places.view(torch.int32).long()
