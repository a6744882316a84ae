# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Attention over a sequence that ranks share, around any function that attends on one."""

import torch

from .._checks import refuse
from .exchange import Returning, Sending, check_qkv, checked, logical
from .plan import UlyssesPlan


class UlyssesAttention(torch.nn.Module):
    r"""Attends with all tokens, of which each rank gives and gets its own.

    .. code-block:: text

        all-to-all (q, k, v)  ->  attn_fn on all tokens, some heads  ->  all-to-all (o)

    Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv 2309.14509, section 3.1. Two collectives forward
    and two backward, for each of ``plan.head_chunks``.

    Parameters
    ----------
    attn_fn : callable
        ``attn_fn(q, k, v, *args, **kwargs)`` returns o ``[B, S, n, Dv]`` for q ``[B, S, n, D]``, k
        and v ``[B, S, m, D]``, in `layout`, where m divides n: FlashAttention,
        ``scaled_dot_product_attention`` with ``enable_gqa=True`` (layout "bhsd"), any other. Masks
        are those of the whole sequence. It is not called on ranks without heads.
    plan : UlyssesPlan
    layout : {"bshd", "sbhd", "bhsd", "thd"}
        Of what comes in and goes out, and of what `attn_fn` takes and returns.
    contiguous : bool
        Copy q, k and v, for an `attn_fn` that refuses strided ones.

    Notes
    -----
    Positions: apply rotary embeddings before, with :func:`position_ids`. Dropout: seed `attn_fn`
    differently on each rank, else all heads of a group of ranks drop the same.

    With head_chunks C, the exchange of a chunk goes on while the one before is attended with, and
    no more than two chunks of q, k and v are there at a time. What q, k and v are sent from is
    packed, and what o comes in is unpacked, in one pass for all chunks.

    Examples
    --------
    >>> attend = UlyssesAttention(flash_attn_func, plan)
    >>> o = attend(q, k, v, causal=True)  # [B, s, Hq, D], tokens of this rank
    """

    def __init__(self, attn_fn, plan, layout="bshd", *, contiguous=False):
        super().__init__()
        if not callable(attn_fn):
            refuse(self, "attn_fn", type(attn_fn).__name__, "a callable", TypeError)
        if not isinstance(plan, UlyssesPlan):
            refuse(self, "plan", type(plan).__name__, "a UlyssesPlan", TypeError)
        self.attn_fn, self.plan, self.layout, self.contiguous = attn_fn, plan, layout, contiguous

    def forward(self, q, k, v, *args, per_head=None, **kwargs):
        """Return o, the tokens of this rank.

        Parameters
        ----------
        q, k, v : Tensor
            As of :func:`qkv_to_heads`.
        per_head : dict, optional
            Tensors ``[Hq, ...]`` with something for each q head (ALiBi slopes, sinks): `attn_fn`
            gets them by these names, cut to the heads it has.
        *args, **kwargs
            Given to `attn_fn` as they are.
        """
        op, plan, per_head = "UlyssesAttention", self.plan, per_head or {}
        checked(op, plan, lambda: check_qkv(op, q, k, v, plan, self.layout))
        for name, x in per_head.items():
            if x.shape[0] != plan.q_heads:
                refuse(op, f"per_head[{name!r}]", list(x.shape), f"[{plan.q_heads}, ...]")
        if plan.world == 1:
            if self.contiguous:
                q, k, v = (x.contiguous() for x in (q, k, v))
            return self.attn_fn(q, k, v, *args, **per_head, **kwargs)

        chunks, first = plan.head_chunks, plan.q_slice.start
        sending = Sending(q, k, v, plan, self.layout, chunks, self.contiguous)
        returning = Returning(v.shape[-1], plan, self.layout)
        coming = sending.start(0)
        for chunk in range(chunks):
            here = coming
            coming = sending.start(chunk + 1) if chunk + 1 < chunks else None
            q, k, v = here.wait()
            heads = logical(q, self.layout).shape[2]
            own = {name: x[first : first + heads] for name, x in per_head.items()}
            returning.add(self._attend(q, k, v, args, {**own, **kwargs}), chunk, chunks)
            first += heads
        return returning.wait()

    def _attend(self, q, k, v, args, kwargs):
        if logical(q, self.layout).shape[2] == 0:
            # Without heads v has the shape of o, and the graph goes on through it: else this rank
            # would not take part in backward, where the others wait for it.
            return v
        o = self.attn_fn(q, k, v, *args, **kwargs)
        expected = [*q.shape[:-1], v.shape[-1]]
        if not isinstance(o, torch.Tensor) or list(o.shape) != expected:
            got = list(o.shape) if isinstance(o, torch.Tensor) else type(o).__name__
            raise ValueError(f"UlyssesAttention: attn_fn returned {got}, expected {expected}.")
        return o
