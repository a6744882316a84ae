# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The two exchanges around attention: tokens of all heads for heads of all tokens, and back.

One message carries q, k and v. Outside of the collective, what a rank sends is copied once on its
way to attention (packing it) and once on the way back (unpacking it); what it receives is
``[S, B, heads]`` as it comes, of which q, k and v are views.
"""

import torch

from .._checks import check_choice, refuse
from .._comm import agree
from ._transport import InFlight
from .plan import UlyssesPlan, device_of

# For each layout of users: dimensions in the order [tokens, batch, heads, dim], and how results of
# heads_to_seq lie in memory. What is computed as [B, H, s, D] is in most models [B, s, H D] next.
_LAYOUTS = {
    "bshd": ((1, 0, 2, 3), "bshd"),
    "sbhd": ((0, 1, 2, 3), "sbhd"),
    "bhsd": ((2, 0, 1, 3), "bshd"),
    "thd": (None, "sbhd"),
}
_DIMS = {"bshd": "B s H D", "sbhd": "s B H D", "bhsd": "B H s D", "thd": "T H D"}


def qkv_to_heads(q, k, v, plan, layout="bshd", *, contiguous=False, async_op=False):
    r"""Give tokens of all heads away for all tokens of some heads.

    Rank p receives :math:`x[t, b, h, :]` of every token t, from the rank that has it, for its q
    heads and the kv heads they attend with. Jacobs et al. 2023, "DeepSpeed Ulysses", arXiv
    2309.14509, section 3.1, the first all-to-all.

    Parameters
    ----------
    q : Tensor
        ``[B, s, Hq, D]`` in layout "bshd": the tokens of this rank, all q heads. Any dtype, any
        strides but 1 in the last dimension.
    k, v : Tensor or None
        ``[B, s, Hkv, D]`` and ``[B, s, Hkv, Dv]``. Do not repeat kv heads first. None, both: only q
        is exchanged, as for cross-attention with keys that every rank has; cut those with
        ``plan.kv_indices``.
    plan : UlyssesPlan
    layout : {"bshd", "sbhd", "bhsd", "thd"}
        Order of the dimensions, here and in the result. thd: a packed stream ``[T, H, D]``; where
        its documents begin (``cu_seqlens``) is a matter of the whole stream, and of attention.
    contiguous : bool
        Copy the results, for attention that refuses strided q, k and v.
    async_op : bool
        Return at once an object whose ``wait()`` returns the result. Send nothing through the group
        in another order on other ranks meanwhile.

    Returns
    -------
    tuple of Tensor
        q, k, v with all S tokens in order and the heads of this rank. They are views of one tensor,
        and on one rank the inputs themselves. Differentiable any number of times; whichever of the
        three need gradients, backward is one exchange.

    Raises
    ------
    TypeError, ValueError
        One line that names the argument, before anything is sent.

    Notes
    -----
    Sends :math:`B s \sum_{p \ne r} (n_p D + m_p (D + D_v))` elements from rank r, for the n_p q and
    m_p kv heads of rank p: :meth:`UlyssesPlan.traffic`. Deterministic: the same bits on every run.

    Examples
    --------
    >>> q, k, v = qkv_to_heads(q, k, v, plan)
    >>> o = heads_to_seq(flash_attn_func(q, k, v, causal=True), plan)
    """
    op = "qkv_to_heads"
    checked(op, plan, lambda: check_qkv(op, q, k, v, plan, layout))
    if plan.world == 1:
        results = tuple(x.contiguous() if contiguous and x is not None else x for x in (q, k, v))
        return _Done(results) if async_op else results
    pending = Sending(q, k, v, plan, layout, 1, contiguous).start(0)
    return pending if async_op else pending.wait()


def heads_to_seq(o, plan, layout="bshd", *, async_op=False):
    r"""Give all tokens of some heads back for the tokens of this rank, of all heads.

    The inverse of what :func:`qkv_to_heads` does to q: the second all-to-all of arXiv 2309.14509.

    Parameters
    ----------
    o : Tensor
        ``[B, S, n, Dv]`` in layout "bshd": all tokens, the q heads of this rank. Sent as it is if
        tokens are outermost in memory, as attention over strided q leaves them; else packed first.
    plan, layout, async_op
        As of :func:`qkv_to_heads`.

    Returns
    -------
    Tensor
        ``[B, s, Hq, Dv]``: contiguous in layout "bshd", "sbhd" and "thd"; in layout "bhsd" a view
        of ``[B, s, Hq, Dv]``, which the output projection takes without a copy. Differentiable any
        number of times.

    Raises
    ------
    TypeError, ValueError
        One line that names the argument, before anything is sent.
    """
    op = "heads_to_seq"
    checked(op, plan, lambda: _check_o(op, o, plan, layout))
    if plan.world == 1:
        return _Done(o) if async_op else o
    pending = Returning(o.shape[-1], plan, layout)
    pending.add(o)
    return pending if async_op else pending.wait()


class Sending:
    """q, k and v, packed: a message for each chunk of heads."""

    def __init__(self, q, k, v, plan, layout, chunks, contiguous):
        tensors = [logical(x, layout) for x in (q, k, v) if x is not None]
        self.kinds = "qkk"[: len(tensors)]
        self.plan, self.layout, self.contiguous = plan, layout, contiguous
        self.counts = plan.counts(chunks, self.kinds)
        self.dims = [x.shape[3] for x in tensors]
        self.tokens, self.batch = tensors[0].shape[:2]
        replicas = [1 if kind == "q" else plan.heads.replicas for kind in self.kinds]
        pack = torch.ops.largebatch.ulysses_pack
        self.messages = dict(enumerate(pack(tensors, chunks, self.counts, replicas)))

    def widths(self, chunk):
        """Return for each rank how many elements of one token it gets, and what they are."""
        length = self.plan.world * len(self.kinds)
        mine = self.counts[chunk * length : (chunk + 1) * length]
        rows = [mine[at : at + len(self.kinds)] for at in range(0, length, len(self.kinds))]
        return [[n * dim for n, dim in zip(row, self.dims, strict=True)] for row in rows]

    def start(self, chunk):
        """Send a chunk, and forget the message."""
        widths, plan, message = self.widths(chunk), self.plan, self.messages.pop(chunk)
        lengths = plan.lengths(self.tokens)
        send = [self.tokens * self.batch * sum(width) for width in widths]
        receive = [length * self.batch * sum(widths[plan.rank]) for length in lengths]
        flight = InFlight(message, plan.transport, send, receive)
        return _Heads(flight, sum(lengths), self.batch, widths[plan.rank], self)


class _Heads:
    """Heads on their way."""

    def __init__(self, flight, tokens, batch, widths, sent):
        self.flight, self.shape, self.widths = flight, (tokens, batch), widths
        self.dims, self.layout, self.contiguous = sent.dims, sent.layout, sent.contiguous
        self.results = None

    def wait(self):
        """Return (q, k, v)."""
        if self.results is None:
            # By split and not by slices: its backward is one cat, which is the message back.
            packed = self.flight.wait().view(*self.shape, sum(self.widths))
            found = []
            for part, dim in zip(packed.split(self.widths, dim=-1), self.dims, strict=True):
                x = physical(part.view(*self.shape, part.shape[-1] // dim, dim), self.layout)
                found.append(x.contiguous() if self.contiguous else x)
            self.results = tuple(found) if len(found) == 3 else (*found, None, None)
            self.flight = None
        return self.results


class Returning:
    """Results of attention on their way back, chunk after chunk."""

    def __init__(self, dim, plan, layout):
        self.dim, self.plan, self.layout = dim, plan, layout
        self.flights, self.counts = [], []
        self.shape = self.results = None

    def add(self, o, chunk=0, chunks=1):
        """Send the heads of a chunk."""
        plan, (tokens, batch, heads, dim) = self.plan, logical(o, self.layout).shape
        x = logical(o, self.layout)
        if x.is_contiguous():
            message = x.reshape(-1)
        else:
            (message,) = torch.ops.largebatch.ulysses_pack([x], 1, [heads], [1])
        counts = [kv * plan.heads.group for kv in plan.chunk_counts(chunk, chunks)]
        lengths = plan.lengths(tokens // plan.world)
        mine = lengths[plan.rank]
        send = [length * batch * heads * dim for length in lengths]
        receive = [mine * batch * count * dim for count in counts]
        self.flights.append(InFlight(message, plan.transport, send, receive))
        self.counts += counts
        self.shape = mine, batch

    def wait(self):
        """Return all heads of the tokens of this rank."""
        if self.results is None:
            messages = [flight.wait() for flight in self.flights]
            memory = _LAYOUTS[self.layout][1]
            unpack = torch.ops.largebatch.ulysses_unpack
            (x,) = unpack(messages, *self.shape, [self.dim], self.counts, [1], memory)
            self.results, self.flights = physical(x, self.layout), None
        return self.results


class _Done:
    """What is there already."""

    def __init__(self, results):
        self.results = results

    def wait(self):
        """Return it."""
        return self.results


def logical(x, layout):
    """Return a view ``[tokens, batch, heads, dim]``."""
    order = _LAYOUTS[layout][0]
    return x.unsqueeze(1) if order is None else x.permute(order)


def physical(x, layout):
    """Return a view of ``[tokens, batch, heads, dim]`` in a layout of users."""
    order = _LAYOUTS[layout][0]
    return x.squeeze(1) if order is None else x.permute([order.index(d) for d in range(4)])


# ---- Checks --------------------------------------------------------------------------------------


def checked(op, plan, check):
    """Check a call. With ``plan.debug`` ranks compare how that went, and what they are to send.

    So that what one rank refuses, or calls in another form, is an error on all of them. `check`
    raises, or returns what has to be the same on all ranks.
    """
    if not isinstance(plan, UlyssesPlan):
        refuse(op, "plan", type(plan).__name__, "a UlyssesPlan", TypeError)
    if not plan.debug or plan.world == 1 or torch.compiler.is_compiling():
        check()
        return
    refused = None
    try:
        call = str(check())  # here only: a compiler takes what becomes text for constant
    except (TypeError, ValueError) as error:
        refused, call = error, f"refused: {error}"
    try:
        agree(op, {"plan": plan.description(), "call": call}, plan.group, device_of(plan.group))
    except ValueError:
        if refused is None:
            raise
    if refused is not None:
        raise refused


def _check_tensor(op, name, x, layout):
    check_choice(op, "layout", layout, tuple(_LAYOUTS))
    if not isinstance(x, torch.Tensor):
        refuse(op, name, type(x).__name__, "a torch tensor", TypeError)
    if x.dim() != len(layout):
        refuse(op, name, list(x.shape), f"{len(layout)} dimensions, [{_DIMS[layout]}]")


def _check_like(op, name, x, q, layout):
    if x.dtype != q.dtype:
        raise TypeError(f"{op}: {name}: has dtype {x.dtype}, expected {q.dtype} like q.")
    if x.device != q.device:
        raise ValueError(f"{op}: {name}: is on {x.device}, expected {q.device} like q.")
    (tokens, batch, *_), (q_tokens, q_batch, *_) = (logical(t, layout).shape for t in (x, q))
    if tokens != q_tokens or batch != q_batch:
        raise ValueError(
            f"{op}: {name}: has shape {list(x.shape)}, expected the tokens and batch of q, "
            f"{list(q.shape)}."
        )


def _check_tokens(op, name, got, expected, what):
    if got != expected:
        raise ValueError(f"{op}: {name}: has {got} tokens, expected {expected}, {what}.")


def check_qkv(op, q, k, v, plan, layout):
    """Refuse what does not fit the plan; return the call, see :func:`checked`."""
    if (k is None) != (v is None):
        refuse(op, "k" if k is None else "v", None, "a tensor, or None for both k and v")
    heads = {"q": plan.q_heads, "k": plan.kv_heads, "v": plan.kv_heads}
    call = [layout]
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x is None and name != "q":
            continue
        _check_tensor(op, name, x, layout)
        _check_like(op, name, x, q, layout)
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{op}: {name}: has strides {list(x.stride())}, expected 1 in the last dimension. "
                "Pass x.contiguous()."
            )
        tokens, batch, count, dim = logical(x, layout).shape
        if count != heads[name]:
            raise ValueError(
                f"{op}: {name}: has {count} heads, shape {list(x.shape)}, expected {heads[name]} "
                "as in the plan."
            )
        if name == "k" and dim != q.shape[-1]:
            raise ValueError(f"{op}: k: has head dim {dim}, expected {q.shape[-1]} like q.")
        call.append((name, x.dtype, "batch", batch, "dim", dim))
    if plan.seq_lens is not None:
        expected = plan.seq_lens[plan.rank]
        _check_tokens(op, "q", tokens, expected, f"seq_lens of rank {plan.rank}")
    else:
        call.append(("tokens", tokens))
    return call


def _check_o(op, o, plan, layout):
    _check_tensor(op, "o", o, layout)
    tokens, batch, heads, dim = logical(o, layout).shape
    expected = plan.heads.q_counts[plan.rank]
    if heads != expected:
        raise ValueError(
            f"{op}: o: has {heads} heads, shape {list(o.shape)}, expected the {expected} that rank "
            f"{plan.rank} attends with."
        )
    if plan.seq_lens is not None:
        _check_tokens(op, "o", tokens, sum(plan.seq_lens), "the sum of seq_lens")
    elif tokens % plan.world:
        raise ValueError(
            f"{op}: o: has {tokens} tokens, expected a multiple of the {plan.world} ranks."
        )
    return layout, "o", o.dtype, "tokens", tokens, "batch", batch, "dim", dim
