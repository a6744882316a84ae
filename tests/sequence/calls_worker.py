# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of the processes that call the exchanges in every way; started by test_calls.py.

Each function of RUNS is run by all of them, and what it returns is saved under its name.
"""

import sys
import warnings
from functools import partial

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from largebatch import sequence
from largebatch.sequence import (
    UlyssesAttention,
    UlyssesPlan,
    _transport,
    heads_to_seq,
    qkv_to_heads,
)
from tests.ops.ulysses_setting import OTHERS, REALS
from tests.sequence import setting
from tests.sequence.calls_refused import disagreements, refusals, warned_of
from tests.sequence.calls_setting import BATCH, DIM, HEADS, LENGTHS, V_DIM, Setting, equal, plain
from tests.sequence.counting import Copied, Sent

DTYPES = REALS + OTHERS


# ---- What is right -------------------------------------------------------------------------------


def dtypes(world, rank):
    """Return for each dtype whether every bit came through, there and back."""
    found = {}
    for dtype in DTYPES:
        bits = torch.randint(0, 256, (2, sum(LENGTHS[world]), 4, 16), dtype=torch.uint8)
        x = (bits % 2 if dtype == torch.bool else bits).view(dtype)
        own = setting.mine(x, LENGTHS[world], rank)
        plan = UlyssesPlan(None, 4, 4, LENGTHS[world])
        q, k, v = qkv_to_heads(own, own, own, plan)
        back = heads_to_seq(v, plan)
        expected = x[:, :, plan.q_slice]
        bytes_ = [t.contiguous().view(torch.uint8) for t in (q, expected, k, expected, back, own)]
        found[str(dtype)] = equal(bytes_[0::2], bytes_[1::2])
    return found


def second_derivatives(world, rank):
    """Return gradients of the squared gradients, and those of one process."""
    s = Setting(world, rank)

    def twice(call, inputs, weight):
        o = call(*inputs)
        first = torch.autograd.grad((o * weight).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    found = twice(s.attend(), s.leaves(), s.own_grad())
    whole = [x.clone().requires_grad_() for x in s.whole]
    expected = twice(setting.attend("bshd"), whole, s.grad)
    return found, [setting.mine(x, s.lengths, rank) for x in expected]


def gradients_of_any_strides(world, rank):
    """Return whether an expanded and a transposed gradient do what their copies do."""
    s, same = Setting(world, rank), []
    shape = s.own_grad().shape
    for grad in (
        torch.ones((), dtype=torch.float64).expand(shape),
        s.own_grad().transpose(1, 3).contiguous().transpose(1, 3),
        s.own_grad().flip(0)[::1],
    ):
        results = []
        for one in (grad, grad.contiguous()):
            inputs = s.leaves()
            results.append(torch.autograd.grad(s.attend()(*inputs), inputs, one))
        same.append(equal(*results))
    return all(same)


def some_need_gradients(world, rank):
    """Return whether one without need changes no gradient of the others, and the messages."""
    s = Setting(world, rank)
    expected = s.run(s.attend(), *s.leaves())[1:]
    same, messages = [], []
    for without in range(3):
        inputs = s.leaves()
        inputs[without].requires_grad_(False)
        with Sent() as sent:
            s.attend()(*inputs).backward(s.own_grad())
        messages.append(len(sent.messages))
        same.append(
            all(
                x.grad is None or torch.equal(x.grad, e)
                for x, e in zip(inputs, expected, strict=True)
            )
        )
        same.append(inputs[without].grad is None)
    return all(same), messages


def results_that_nobody_uses(world, rank):
    """Return whether gradients of q alone are right when k and v are exchanged for nothing."""
    s = Setting(world, rank)
    inputs = s.leaves()
    q, _, _ = qkv_to_heads(*inputs, s.plan)
    grad = torch.randn(1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q.backward(grad.expand(q.shape))
    return [
        torch.equal(inputs[0].grad, grad.expand(inputs[0].shape)),
        *(not x.grad.any() for x in inputs[1:]),
    ]


def only_queries(world, rank):
    """Return whether q goes alone, to keys that all ranks have."""
    s = Setting(world, rank)
    q, none, nothing = qkv_to_heads(s.leaves()[0], None, None, s.plan)
    keys = [x[:, :, s.plan.kv_indices] for x in s.whole[1:]]
    o = heads_to_seq(setting.attend("bshd", causal=False)(q, *keys), s.plan)
    expected = setting.attend("bshd", causal=False)(*s.whole)
    error = (o - setting.mine(expected, s.lengths, rank)).abs()
    return (error.max().item() if error.numel() else 0.0), none is nothing is None


def per_head(world, rank):
    """Return whether what is given for each head comes to the heads of this rank."""
    s = Setting(world, rank, head_chunks=2 if world == 2 else 1, heads=(8, 4))
    slopes = torch.arange(8.0)
    seen = []

    def attn_fn(q, k, v, slopes, scale):
        seen.append((slopes, scale))
        return torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype) + slopes[:, None]

    o = UlyssesAttention(attn_fn, s.plan)(*s.leaves(), per_head={"slopes": slopes}, scale=3)
    expected = slopes.double()[:, None].expand(o.shape)
    return torch.equal(o, expected), all(scale == 3 for _, scale in seen)


# ---- What is the same ----------------------------------------------------------------------------


def ways(world, rank):
    """Return what each way of calling leads to: names of those that differ from the plain one."""
    expected = plain(world, rank)
    s = Setting(world, rank)

    def asynchronous(q, k, v):
        pending = qkv_to_heads(q, k, v, s.plan, async_op=True)
        q, k, v = pending.wait()
        assert pending.wait()[0] is q
        return heads_to_seq(setting.attend("bshd")(q, k, v), s.plan, async_op=True).wait()

    def on(transport):
        other = UlyssesPlan(None, *HEADS, s.lengths, transport=transport)
        return UlyssesAttention(setting.attend("bshd"), other)

    debug = UlyssesPlan(None, *HEADS, s.lengths, debug=True)
    calls = {
        "again": s.attend(),
        "contiguous": s.attend(contiguous=True),
        "async": asynchronous,
        "send_recv": on("send_recv"),
        "all_gather": on("all_gather"),
        "debug": UlyssesAttention(setting.attend("bshd"), debug),
        "checkpoint": partial(checkpoint, s.attend(), use_reentrant=False),
        "keep_exchanged": partial(
            checkpoint, s.attend(), use_reentrant=False, context_fn=sequence.keep_exchanged
        ),
    }
    return [name for name, call in calls.items() if not equal(s.run(call, *s.leaves()), expected)]


def chunks(world, rank):
    """Return results with the heads of a rank at once, and in chunks."""
    heads = (12, 12)
    return [plain(world, rank, heads=heads, head_chunks=count) for count in (1, 2, 3)]


def backends_without_all_to_all(world, rank):
    """Return whether what others are used for gives the same, and the warnings."""
    expected, found = plain(world, rank), []
    s = Setting(world, rank)

    def refused(what):
        def refuse(*args):
            raise RuntimeError(f"Backend odd does not support {what}")

        return refuse

    before = _transport.Transport._all_to_all, _transport.Transport._send_recv
    try:
        for kinds in (("alltoall_base",), ("alltoall_base", "send")):
            _transport.Transport._all_to_all = refused(kinds[0])
            if len(kinds) > 1:
                _transport.Transport._send_recv = refused(kinds[1])
            plan = UlyssesPlan(None, *HEADS, s.lengths)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                attend = UlyssesAttention(setting.attend("bshd"), plan)
                same = equal(s.run(attend, *s.leaves()), expected)
            told = [str(w.message) for w in caught if "UlyssesPlan" in str(w.message)]
            found.append((same, plan.transport.kind, told))
    finally:
        _transport.Transport._all_to_all, _transport.Transport._send_recv = before
    return found


def compiled(world, rank):
    """Return whether a compiled attention gives the same, and how often it was compiled."""
    same, counts = [], []
    for lengths in (None, LENGTHS[world]):
        plan = UlyssesPlan(None, *HEADS, lengths)
        attend = UlyssesAttention(setting.attend("bshd"), plan)
        graphs = []

        def backend(graph, inputs, graphs=graphs):
            graphs.append(graph)
            return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

        compiled = torch.compile(attend, fullgraph=True, backend=backend, dynamic=True)
        for batch in (7, 9, 1, 10):  # at first no other dimension's size, which it would be tied to
            tokens = lengths[rank] if lengths else 4
            draw = [
                torch.randn(batch, tokens, h, d, dtype=torch.float64)
                for h, d in ((8, DIM), (2, DIM), (2, V_DIM), (8, V_DIM))
            ]
            results = []
            for call in (attend, compiled):
                inputs = [x.clone().requires_grad_() for x in draw[:3]]
                o = call(*inputs)
                results.append([o, *torch.autograd.grad(o, inputs, draw[3])])
            same.append(
                all(torch.allclose(x, y, rtol=0, atol=1e-13) for x, y in zip(*results, strict=True))
            )
        counts.append(len(graphs))
        torch._dynamo.reset()
    return all(same), counts


# ---- What it costs -------------------------------------------------------------------------------


def traffic(world, rank):
    """Return messages, bytes to other ranks, and what the plan says, forward and backward."""
    s = Setting(world, rank)
    inputs = s.leaves()
    with Sent() as forward:
        o = s.attend()(*inputs)
    with Sent() as backward:
        o.backward(s.own_grad())
    told = s.plan.traffic(s.lengths[rank], BATCH, DIM, V_DIM)
    buffers = [sum(send) * size for send, size in forward.messages]
    return forward.off_rank(rank), backward.off_rank(rank), buffers, told._asdict()


def copies(world, rank):
    """Return bytes that are written outside of the collectives, and those of the payloads."""
    found = {}
    for heads in ((8, 8), (8, 2)):
        for batch, seq_major in ((1, False), (2, True), (2, False)):
            s = Setting(world, rank, heads=heads, batch=batch)
            inputs = [x.detach() for x in s.leaves()]
            with Copied() as there:
                q, _, _ = qkv_to_heads(*inputs, s.plan)
            o = q[..., :V_DIM].contiguous()
            if seq_major:
                o = o.transpose(0, 1).contiguous().transpose(0, 1)
            with Copied() as back:
                result = heads_to_seq(o, s.plan)
            payload = s.plan.traffic(s.lengths[rank], batch, DIM, V_DIM).buffer_in * 8
            sizes = payload, result.nbytes, o.nbytes
            found[heads, batch, seq_major] = there.bytes, back.bytes, *sizes
    return found


def recomputation(world, rank):
    """Return how many all-to-alls a checkpointed attention does, forward and backward."""

    class Collectives(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops._c10d_functional.all_to_all_single.default
            return func(*args, **(kwargs or {}))

    counts = []
    for options in (None, {}, {"context_fn": sequence.keep_exchanged}):
        s = Setting(world, rank)
        call = s.attend()
        if options is not None:
            call = partial(checkpoint, call, use_reentrant=False, **options)
        # What follows needs the result, so that it is computed again as a whole.
        with Collectives() as seen:
            inputs = s.leaves()
            o = call(*inputs)
            o.backward(s.own_grad())
        counts.append(seen.count)
    return counts


RUNS = [
    warned_of,
    dtypes,
    second_derivatives,
    gradients_of_any_strides,
    some_need_gradients,
    results_that_nobody_uses,
    only_queries,
    per_head,
    ways,
    chunks,
    backends_without_all_to_all,
    compiled,
    traffic,
    copies,
    recomputation,
    refusals,
    disagreements,
]


def main(rank, folder):
    with setting.ranks(rank, folder) as world:
        found = {}
        for run in RUNS:
            found[run.__name__] = run(world, rank)
            dist.barrier()
    torch.save(found, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
