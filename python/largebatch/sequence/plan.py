# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Who attends with which heads, and who has which tokens."""

import os
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from math import gcd
from typing import NamedTuple

import torch
import torch.distributed as dist

from .._checks import check_choice, check_whole, refuse
from .._comm import gather_rows
from ._transport import TRANSPORTS, Transport


@dataclass(frozen=True)
class HeadPlan:
    """The heads of each rank; see :func:`head_plan`."""

    q_counts: tuple  # q heads of each rank
    q_starts: tuple  # the first of them
    group: int  # c: q heads of a rank that attend with one of its kv heads
    replicas: int  # ranks, or places on one, that a kv head is sent to

    @property
    def kv_counts(self):
        """Kv heads of each rank."""
        return tuple(count // self.group for count in self.q_counts)


class Traffic(NamedTuple):
    """Elements that one attention moves; see :meth:`UlyssesPlan.traffic`."""

    buffer_in: int
    buffer_out: int
    forward: int
    backward: int


@lru_cache
def head_plan(ranks, q_heads, kv_heads):
    r"""Return how heads are shared out among ranks, for any number of all three.

    Ranks have consecutive q heads, as many each as there can be; whole groups of those that share a
    kv head, if there is one kv head at least for each rank and the q heads do not come out even.
    Of their groups, all ranks make groups of one size,

    .. math:: c = \gcd(g, n_0, n_1, \dots, o_0, o_1, \dots), \qquad g = H_q / H_{kv}

    for :math:`n_p` q heads from :math:`o_p` on. Rank p then has :math:`n_p / c` kv heads, in
    place j being :math:`\lfloor (o_p + j c) / g \rfloor`. A kv head goes to g / c places.
    """
    share = q_heads // kv_heads
    if kv_heads >= ranks and q_heads % ranks:
        q_counts = [share * count for count in split_lengths(kv_heads, ranks)]
    else:
        q_counts = split_lengths(q_heads, ranks)
    q_starts = [0, *accumulate(q_counts)][:-1]
    group = gcd(share, *q_counts, *q_starts)
    return HeadPlan(tuple(q_counts), tuple(q_starts), group, share // group)


def split_lengths(total, parts):
    """Return `parts` lengths that add up to `total`, the first of them longer by one if need be.

    >>> largebatch.sequence.split_lengths(10, 4)
    [3, 3, 2, 2]
    """
    check_whole("split_lengths", "total", total, "an integer of 0 or more", lambda n: n >= 0)
    check_whole("split_lengths", "parts", parts, "an integer of 1 or more", lambda n: n >= 1)
    return [total // parts + (part < total % parts) for part in range(parts)]


def gather_lengths(length, group=None, device=None):
    """Return the tokens of every rank, for ``UlyssesPlan(seq_lens=...)``: one small all-gather.

    Once for each batch is enough: all layers use the same plan. `device` is one that the group
    gathers from; by default the CPU for gloo, and the current GPU else.
    """
    check_whole("gather_lengths", "length", length, "an integer of 0 or more", lambda n: n >= 0)
    group = process_group("gather_lengths", group)
    device = device_of(group) if device is None else device
    return gather_rows(torch.tensor([length], device=device), group).flatten().tolist()


class UlyssesPlan:
    """Who has which tokens outside of attention, and which heads inside.

    Of a sequence, every rank of a group has some consecutive tokens. For attention they exchange
    them (one all-to-all), so that each has all tokens of some heads, and back (another one): Jacobs
    et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3.1. The plan is the same on all
    ranks, and costs nothing: make one for each model and each set of lengths.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh
        The ranks that share a sequence; of a DeviceMesh, its one dimension (``mesh["sp"]``). None:
        all ranks.
    q_heads, kv_heads : int
        Of the whole model (divided by the tensor parallel size, where there is one). q_heads is a
        multiple of kv_heads. Any number of ranks will do: kv heads are sent to several ranks where
        there are fewer of them, q heads are shared out unevenly where they do not divide, and of
        more ranks than heads some attend with none.
    seq_lens : list of int, optional
        The tokens of each rank; 0 is allowed. None: as many on all ranks, whatever the batch.
    head_chunks : int
        In how many parts :class:`UlyssesAttention` exchanges and attends with the heads of a rank,
        one after the other: less memory, and the exchange of the next part goes on meanwhile.
    debug : bool
        Before each exchange, ranks compare what they are about to send; a difference is an error on
        all of them, and not a hang. One small all-gather each, and waits for the device. By default
        what the environment says in LARGEBATCH_SEQUENCE_DEBUG (0 or 1).
    transport : {"auto", "all_to_all", "send_recv", "all_gather"}
        auto: all_to_all, or for a backend that says it has none, sends and receives, or for one
        that has none either an all-gather, which moves as many times the bytes as there are ranks.

    Attributes
    ----------
    world, rank : int
        Size of the group, and the rank in it.
    q_slice : slice
        The q heads of this rank among all, by which per-head parameters are cut.
    kv_indices : list of int
        The kv heads of this rank among all; with replication the same one on several ranks.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        One line that names the argument.

    Warns
    -----
    UserWarning
        Where it will be slow: ranks without heads, kv heads sent to several ranks although there
        are enough of them, ranks on several machines.

    Examples
    --------
    >>> mesh = init_device_mesh("cuda", (dp, sp), mesh_dim_names=("dp", "sp"))
    >>> plan = largebatch.sequence.UlyssesPlan(mesh["sp"], q_heads=32, kv_heads=8)
    """

    def __init__(
        self,
        group,
        q_heads,
        kv_heads,
        seq_lens=None,
        head_chunks=1,
        *,
        debug=None,
        transport="auto",
    ):
        for name, value in (("q_heads", q_heads), ("kv_heads", kv_heads)):
            check_whole(self, name, value, "an integer of 1 or more", lambda n: n >= 1)
        if q_heads % kv_heads:
            refuse(self, "q_heads", q_heads, f"a multiple of the {kv_heads} kv_heads")
        self.group = process_group("UlyssesPlan", group)
        self.world, self.rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        self.q_heads, self.kv_heads = q_heads, kv_heads
        self.seq_lens = None if seq_lens is None else self._checked(seq_lens)
        self.heads = head_plan(self.world, q_heads, kv_heads)
        most = max(self.heads.kv_counts)
        check_whole(
            self,
            "head_chunks",
            head_chunks,
            f"1 to the {most} kv heads of a rank",
            lambda n: 1 <= n <= most,
        )
        self.head_chunks = head_chunks
        if debug is None:
            debug = os.environ.get("LARGEBATCH_SEQUENCE_DEBUG", "0")
            check_choice(self, "LARGEBATCH_SEQUENCE_DEBUG", debug, ("0", "1"))
        self.debug = bool(int(debug))
        check_choice(self, "transport", transport, ("auto", *TRANSPORTS))
        self.transport = Transport(self.group, transport)
        self._warn()

    @property
    def q_slice(self):
        """The q heads of this rank among all."""
        start = self.heads.q_starts[self.rank]
        return slice(start, start + self.heads.q_counts[self.rank])

    @cached_property
    def kv_indices(self):
        """The kv heads of this rank among all."""
        group, share = self.heads.group, self.q_heads // self.kv_heads
        heads = self.q_slice
        return [head // share for head in range(heads.start, heads.stop, group)]

    def lengths(self, local):
        """Return the tokens of each rank, for `local` of them on this one."""
        return (local,) * self.world if self.seq_lens is None else self.seq_lens

    def shares(self, total):
        """Return the tokens of each rank, of `total` in all."""
        if self.seq_lens is not None:
            if sum(self.seq_lens) != total:
                raise ValueError(
                    f"UlyssesPlan: got {total} tokens, expected {sum(self.seq_lens)}, the sum of "
                    f"seq_lens."
                )
            return self.seq_lens
        if total % self.world:
            raise ValueError(
                f"UlyssesPlan: got {total} tokens, expected a multiple of the {self.world} ranks. "
                f"Pass seq_lens=split_lengths({total}, {self.world})."
            )
        return (total // self.world,) * self.world

    def counts(self, chunks, tensors):
        """Return ``[chunks][ranks][tensors]``: heads in each block of the wire, as one list.

        tensors : str of "q" and "k", one for each.
        """
        found = []
        for chunk in range(chunks):
            for kv in self.chunk_counts(chunk, chunks):
                found += [kv * self.heads.group if kind == "q" else kv for kind in tensors]
        return found

    def chunk_counts(self, chunk, chunks):
        """Return the kv heads of each rank in a chunk."""
        return [split_lengths(count, chunks)[chunk] for count in self.heads.kv_counts]

    def traffic(self, tokens, batch, dim, v_dim=None):
        """Return how many elements one attention moves.

        Parameters
        ----------
        tokens, batch : int
            Of this rank.
        dim, v_dim : int
            Head dim of q and k, and of v (the same by default).

        Returns
        -------
        Traffic
            ``buffer_in`` and ``buffer_out`` are the messages that this rank makes, its own block
            included; ``forward`` and ``backward`` what it sends other ranks in both exchanges.
        """
        v_dim = dim if v_dim is None else v_dim
        lengths, heads, me = self.lengths(tokens), self.heads, self.rank
        widths = [
            q * dim + kv * (dim + v_dim)
            for q, kv in zip(heads.q_counts, heads.kv_counts, strict=True)
        ]
        total, own, q_own = sum(lengths), lengths[me], heads.q_counts[me]
        return Traffic(
            buffer_in=batch * own * sum(widths),
            buffer_out=batch * total * q_own * v_dim,
            forward=batch * (own * (sum(widths) - widths[me]) + q_own * v_dim * (total - own)),
            backward=batch * (widths[me] * (total - own) + own * v_dim * (self.q_heads - q_own)),
        )

    def description(self):
        """Return what has to be the same on all ranks, as text."""
        return (
            f"{self.q_heads} q heads, {self.kv_heads} kv heads, seq_lens {self.seq_lens}, "
            f"head_chunks {self.head_chunks}"
        )

    def __repr__(self):
        """Return the plan as text."""
        return f"UlyssesPlan(rank {self.rank} of {self.world}, {self.description()})"

    def _checked(self, seq_lens):
        if not isinstance(seq_lens, list | tuple):
            refuse(self, "seq_lens", seq_lens, "a list of ints, or None", TypeError)
        if len(seq_lens) != self.world:
            refuse(self, "seq_lens", list(seq_lens), f"{self.world} lengths, one for each rank")
        for r, length in enumerate(seq_lens):
            check_whole(self, f"seq_lens[{r}]", length, "an integer of 0 or more", lambda n: n >= 0)
        return tuple(seq_lens)

    def _warn(self):
        idle = self.world - sum(count > 0 for count in self.heads.q_counts)
        if idle:
            warnings.warn(
                f"UlyssesPlan: {idle} of {self.world} ranks attend with no head, as there are "
                f"{self.q_heads} q heads.",
                stacklevel=3,
            )
        elif self.heads.replicas > 1 and self.kv_heads >= self.world:
            warnings.warn(
                f"UlyssesPlan: each kv head is sent {self.heads.replicas} times, as "
                f"{self.q_heads} q heads and {self.kv_heads} kv heads do not come out even on "
                f"{self.world} ranks.",
                stacklevel=3,
            )
        if _crosses_machines(self.group):
            warnings.warn(
                f"UlyssesPlan: the {self.world} ranks are on several machines, where an all-to-all "
                "is slow. Let the ranks of a sequence be consecutive.",
                stacklevel=3,
            )


def process_group(op, group):
    """Return the process group, of which this process is a rank."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"{op}: group: torch.distributed is not initialised. Call init_process_group first."
        )
    if group is None:
        return dist.group.WORLD
    if hasattr(group, "get_group"):
        if group.ndim != 1:
            raise ValueError(
                f"{op}: group: got a DeviceMesh of {group.ndim} dimensions, expected 1. Pass "
                'mesh["sp"].'
            )
        group = group.get_group()
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(f"{op}: group: this process is no member of it.")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{op}: group: got a {type(group).__name__}, expected a ProcessGroup or a DeviceMesh."
        )
    if dist.get_rank(group) < 0:
        raise ValueError(f"{op}: group: this process is no member of it.")
    return group


def device_of(group):
    """Return a device that the group communicates from."""
    return torch.device("cpu" if "gloo" in dist.get_backend(group) else "cuda")


def _crosses_machines(group):
    """Whether a launcher that says how many ranks a machine has has put these on several."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    return local > 0 and len({rank // local for rank in dist.get_process_group_ranks(group)}) > 1
