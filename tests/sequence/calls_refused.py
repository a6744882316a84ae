# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Calls that are refused, that do not fit those of other ranks, or that will be slow."""

import os
import warnings
from functools import partial

import torch

from largebatch.sequence import UlyssesAttention, UlyssesPlan, heads_to_seq, qkv_to_heads
from tests.sequence.calls_setting import BATCH, DIM, HEADS, LENGTHS, V_DIM, Setting, equal, plain


def bad_calls(world, rank):
    """Return {name: call} of what is refused on every rank."""
    s = Setting(world, rank)
    q, k, v = (x.detach() for x in s.leaves())
    plan = s.plan
    send = partial(qkv_to_heads, plan=plan)
    o = torch.zeros(BATCH, sum(s.lengths), plan.heads.q_counts[rank], V_DIM)
    return {
        "q is no tensor": lambda: send(q.tolist(), k, v),
        "three dimensions": lambda: send(q[0], k, v),
        "layout": lambda: send(q, k, v, layout="hbsd"),
        "dtype of k": lambda: send(q, k.float(), v),
        "device of v": lambda: send(q, k, v.to("meta")),
        "strides": lambda: send(q[..., ::2], k[..., ::2], v),
        "heads of q": lambda: send(q[:, :, :6], k, v),
        "heads of v": lambda: send(q, k, v[:, :, :1]),
        "head dim of k": lambda: send(q, k[..., :4], v),
        "tokens of k": lambda: (
            send(q, torch.cat([k, k], 1)[:, : k.shape[1] + 1], v)
            if k.shape[1]
            else send(q, torch.zeros(BATCH, 1, 2, DIM, dtype=k.dtype), v)
        ),
        "tokens of all": lambda: send(*(torch.zeros(BATCH, 9, h, DIM) for h in (8, 2, 2))),
        "k alone": lambda: send(q, k, None),
        "plan": lambda: send(q, k, v, plan=8),
        "heads of o": lambda: heads_to_seq(o[:, :, :-1], plan),
        "tokens of o": lambda: heads_to_seq(o[:, :-1], plan),
        "q_heads": lambda: UlyssesPlan(None, 8, 3),
        "kv_heads": lambda: UlyssesPlan(None, 8, 0),
        "seq_lens": lambda: UlyssesPlan(None, 8, 2, [4]),
        "a length": lambda: UlyssesPlan(None, 8, 2, [4, -1, 2][:world]),
        "head_chunks": lambda: UlyssesPlan(None, 8, 2, head_chunks=5),
        "transport": lambda: UlyssesPlan(None, 8, 2, transport="pigeon"),
        "group": lambda: UlyssesPlan(7, 8, 2),
        "attn_fn": lambda: UlyssesAttention(None, plan),
        "what attn_fn returns": lambda: UlyssesAttention(lambda q, k, v: q[..., :1], plan)(q, k, v),
    }


def refusals(world, rank):
    """Return what each of them says, and whether the group goes on working."""
    found = {}
    for name, call in bad_calls(world, rank).items():
        try:
            call()
            found[name] = None
        except (TypeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found, equal(plain(world, rank), plain(world, rank))


def disagreements(world, rank):
    """Return what ranks say that are about to send what does not fit, and whether they go on."""
    found = {}

    def attempt(name, call):
        try:
            call()
            found[name] = None
        except (TypeError, ValueError) as error:
            found[name] = str(error)

    odd = rank == 1
    q, k, v = (x.detach() for x in Setting(world, rank).leaves())
    plan = partial(UlyssesPlan, None, *HEADS, debug=True)
    lengths = LENGTHS[world]
    attempt("plan", lambda: qkv_to_heads(q, k, v, plan(None if odd else lengths)))
    attempt(
        "dtype", lambda: qkv_to_heads(*(x.float() if odd else x for x in (q, k, v)), plan(lengths))
    )
    attempt("one is refused", lambda: qkv_to_heads(q[:, :, :6] if odd else q, k, v, plan(lengths)))
    attempt("fits", lambda: qkv_to_heads(q, k, v, plan(lengths)))
    return found


def warned_of(world, rank):
    """Return what plans say that will be slow."""
    found = {}
    split = {2: (12, 3), 3: (12, 4)}[world]
    for name, heads, machine in (
        ("idle", (1, 1), world),
        ("split", split, world),
        ("machines", (8, 2), 1),
        ("quick", (8, 2), world),
        ("unknown", (8, 2), None),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            os.environ.pop("LOCAL_WORLD_SIZE", None)
            if machine is not None:
                os.environ["LOCAL_WORLD_SIZE"] = str(machine)
            UlyssesPlan(None, *heads)
        found[name] = [(str(w.message), w.filename) for w in caught]
    return found
