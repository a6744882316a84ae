# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/ulysses.md: memory and bytes on the wire of a transformer block, by ranks.

1, 2, 4 and 8 gloo processes on the loopback interface take a pre-norm transformer block forward and
backward, in fp32: with Ulysses sequence parallelism, and beside it with Megatron's (Korthikanti et
al. 2022, arXiv 2205.05198: an all-gather before and a reduce-scatter after both attention and
perceptron, whose weights the ranks share). Both have to give the results of one process. The
sequence has either as many tokens for any number of ranks, or as many on each rank.

Memory is that of one rank: by how much the resident memory of the process peaks above its level
before (VmHWM of Linux, as in bench/measure.py), with an allocator that returns all large pieces at
once. So all activations, temporaries and messages are in it, a gradient of one weight at a time
too (a quarter of a MB at most); weights, where their gradients are added up, and the input are not.
The least of some repetitions. What Megatron gathers is kept here for backward by autograd; Megatron
itself keeps a rank's share and gathers once more, for less memory and more bytes.

Bytes are those of the messages that pass the one place from which the library sends: those to other
ranks, and "buffer", with a rank's own block. They have to be what the formulas say, to the byte.
Those of Megatron are counted where it calls its collectives, each rank's share sent once to each of
the others; gloo itself sends twice that in a reduce-scatter. What the interface carries is for all
ranks together, both directions, headers and acknowledgements included, less that of as many
barriers alone; the least of some repetitions, as others use it too.

    python bench/reproduce/ulysses/memory.py docs/figures/ulysses_memory.png
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common  # leads to shared and measure, too
import shared
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import extra_memory
from torch.autograd import Function

from largebatch.sequence import UlyssesAttention, UlyssesPlan
from largebatch.sequence._transport import Transport

RANKS, HEADS, DIM = (1, 2, 4, 8), 8, 16
WIDTH, SIZE = HEADS * DIM, 4  # SIZE: bytes of an fp32
FIXED, PER_RANK = 4096, 1024  # tokens in all, tokens of each rank
KV_HEADS = (8, 2)  # as many as q heads, and shared by four of them
REPEATS = 3
CHUNKS, CHUNKS_RANKS = (1, 2, 4), 2
C10D = torch.ops._c10d_functional

# ---- What counts ---------------------------------------------------------------------------------


class Wire:
    """Counts collectives, bytes that they send other ranks, and those of whole messages."""

    def __init__(self):
        self.clear()

    def clear(self):
        """Start anew."""
        self.calls = self.sent = self.buffer = 0

    def count(self, to_others, in_all):
        """Count a collective; both are numbers of elements."""
        self.calls += 1
        self.sent += SIZE * to_others
        self.buffer += SIZE * in_all

    def listen(self):
        """Count what leaves through Transport.start."""
        start = Transport.start

        def listening(transport, message, send, receive):
            assert message.nbytes == SIZE * sum(send)
            self.count(sum(send) - send[dist.get_rank(transport.group)], sum(send))
            return start(transport, message, send, receive)

        Transport.start = listening

    def found(self):
        """Return what was counted, and start anew."""
        found = {"calls": self.calls, "sent": self.sent, "buffer": self.buffer}
        self.clear()
        return found


WIRE = Wire()


def peak_bytes(run, repeats=REPEATS):
    """Return by how much resident memory peaks above its level before, while `run` runs."""
    found = [extra_memory(torch.device("cpu"), run)[0] for _ in range(repeats)]
    return None if None in found else min(found)


def carried_bytes(run, group):
    """Return what the loopback interface carries for `run` on all ranks, or None."""
    idle, busy = [], []
    for work, found in REPEATS * ((lambda: None, idle), (run, busy)):
        dist.barrier(group)
        before = shared.interface_bytes()
        dist.barrier(group)  # nobody begins before all have looked
        work()
        dist.barrier(group)
        if before is None:
            return None
        found.append(shared.interface_bytes() - before)
    return min(busy) - min(idle)


# ---- Megatron's sequence parallelism -------------------------------------------------------------


class Gather(Function):
    """All-gather of tokens, [s, B, h] -> [S, B, h]; backward is the reduce-scatter."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, world = group, dist.get_world_size(group)
        WIRE.count((world - 1) * x.numel(), world * x.numel())
        gather, wait = C10D.all_gather_into_tensor, C10D.wait_tensor
        return wait(gather(x.contiguous(), world, group.group_name))

    @staticmethod
    def backward(ctx, grad):
        return Scatter.apply(grad, ctx.group), None


class Scatter(Function):
    """Reduce-scatter of partial sums, [S, B, h] -> [s, B, h]; backward is the all-gather."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group, world = group, dist.get_world_size(group)
        WIRE.count((world - 1) * (x.numel() // world), x.numel())
        scatter, wait = C10D.reduce_scatter_tensor, C10D.wait_tensor
        return wait(scatter(x.contiguous(), "sum", world, group.group_name))

    @staticmethod
    def backward(ctx, grad):
        return Gather.apply(grad, ctx.group), None


# ---- The block -----------------------------------------------------------------------------------


def weights_of(kv_heads, part=0, parts=1):
    """Return a block's weights, or the part that a rank has with Megatron: some of the heads."""
    torch.manual_seed(0)
    shapes = {
        "q": (WIDTH, WIDTH), "k": (kv_heads * DIM, WIDTH), "v": (kv_heads * DIM, WIDTH),
        "out": (WIDTH, WIDTH), "expand": (4 * WIDTH, WIDTH), "contract": (WIDTH, 4 * WIDTH),
    }  # fmt: skip
    found = {}
    for name, shape in shapes.items():
        inner = 1 if name in ("out", "contract") else 0  # the dimension of heads, or hidden units
        found[name] = (torch.randn(shape) / shape[1] ** 0.5).chunk(parts, inner)[part]
    found["qkv"] = torch.cat([found.pop(name) for name in "qkv"])
    return {name: x.contiguous().requires_grad_() for name, x in found.items()}


def block(x, weights, kv_heads, attend, before=lambda x: x, after=lambda x: x):
    """Return the output for x [s, B, width]; `before` and `after` attention and perceptron."""
    qkv = F.linear(before(F.layer_norm(x, (WIDTH,))), weights["qkv"])
    heads = qkv.unflatten(-1, (-1, DIM)).permute(1, 2, 0, 3)  # [B, heads, s, DIM]
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    o = attend(q, k, v, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3).flatten(2)
    x = x + after(F.linear(o, weights["out"]))
    hidden = F.gelu(F.linear(before(F.layer_norm(x, (WIDTH,))), weights["expand"]))
    return x + after(F.linear(hidden, weights["contract"]))


class Setting:
    """A block on the ranks of a group, one way or the other, and its input."""

    def __init__(self, way, group, tokens, kv_heads):
        self.group, self.world, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        torch.manual_seed(1)
        self.whole = torch.randn(tokens, 1, WIDTH)
        self.x = self.whole.chunk(self.world)[self.rank].clone().requires_grad_()
        self.way, self.kv_heads = way, kv_heads
        if way == "Ulysses":
            self.plan = UlyssesPlan(group, HEADS, kv_heads)
            attend = UlyssesAttention(F.scaled_dot_product_attention, self.plan, "bhsd")
            self.weights = weights_of(kv_heads)
            self.given = kv_heads, attend
        else:
            self.weights = weights_of(kv_heads, self.rank, self.world)
            self.given = (
                kv_heads // self.world, F.scaled_dot_product_attention,
                lambda x: Gather.apply(x, group), lambda x: Scatter.apply(x, group),
            )  # fmt: skip

    def forward(self):
        return block(self.x, self.weights, *self.given)

    def both(self):
        """Forward and backward; gradients of weights stay this rank's own."""
        self.forward().backward(self.x.detach())

    def check(self):
        """Refuse another output or gradient than that of one process."""
        y = self.forward()
        y.backward(self.x.detach())
        whole = self.whole.clone().requires_grad_()
        weights = weights_of(self.kv_heads)
        expected = block(whole, weights, self.kv_heads, F.scaled_dot_product_attention)
        expected.backward(self.whole)
        for mine, all_ in ((y, expected), (self.x.grad, whole.grad)):
            torch.testing.assert_close(
                mine, all_.chunk(self.world)[self.rank], rtol=1e-4, atol=1e-4
            )


# ---- Measuring -----------------------------------------------------------------------------------


def formulas(way, world, tokens, kv_heads):
    """Return bytes (to other ranks, of whole messages) in one direction of one layer."""
    s = tokens // world
    if way == "Megatron":
        return SIZE * 4 * s * WIDTH * (world - 1), SIZE * 4 * tokens * WIDTH
    q, kv = HEADS // world, max(kv_heads // world, 1)
    width = (q + 2 * kv) * DIM  # of what a rank gets of each token
    to_others = s * (world - 1) * width + q * DIM * (tokens - s)
    if kv_heads == HEADS:  # the paper's 4 N h / P, and what of that goes to others
        assert to_others * world**2 == 4 * tokens * WIDTH * (world - 1)
    return SIZE * to_others, SIZE * (world * s * width + tokens * q * DIM)


def measure(way, group, tokens, kv_heads):
    """Return a row of the results."""
    setting = Setting(way, group, tokens, kv_heads)
    world = setting.world
    row = {"way": way, "ranks": world, "tokens": tokens, "kv_heads": kv_heads}
    WIRE.clear()
    y = setting.forward()
    row["forward"] = WIRE.found()
    y.backward(setting.x.detach())  # makes the gradients, which are not in the peak below
    del y
    row["backward"] = WIRE.found()
    if world > 1:
        sent, buffer = formulas(way, world, tokens, kv_heads)
        expected = {"calls": 2 if way == "Ulysses" else 4, "sent": sent, "buffer": buffer}
        assert row["forward"] == row["backward"] == expected, (row, expected)
    if way == "Ulysses":
        told = setting.plan.traffic(tokens // world, 1, DIM)
        assert row["forward"]["sent"] == SIZE * told.forward
        assert row["backward"]["sent"] == SIZE * told.backward
    row["peak"] = peak_bytes(setting.both)
    row["carried"] = carried_bytes(setting.both, group) if world > 1 else None
    return row


def measure_chunks(group, chunks):
    """Return a row: peaks of attention alone, its inputs not counted."""
    torch.manual_seed(0)
    shape = 1, HEADS, FIXED // dist.get_world_size(group), DIM
    q, k, v, grad = (torch.randn(shape, requires_grad=i < 3) for i in range(4))
    plan = UlyssesPlan(group, HEADS, HEADS, head_chunks=chunks)
    attend = UlyssesAttention(F.scaled_dot_product_attention, plan, "bhsd")

    def forward():
        with torch.no_grad():
            attend(q, k, v, is_causal=True)

    def both():
        attend(q, k, v, is_causal=True).backward(grad)

    both()
    peaks = {name: peak_bytes(run, 8) for name, run in {"forward": forward, "both": both}.items()}
    return {"head_chunks": chunks, **peaks}


def child(rank, folder):
    """Measure all as one of the ranks; rank 0, which is in all groups, saves what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=max(RANKS)
    )
    WIRE.listen()
    rows, chunks = [], []
    for world in RANKS:
        group = dist.new_group(range(world))
        if rank < world:
            ways = [("Ulysses", kv_heads) for kv_heads in KV_HEADS]
            ways += [("Megatron", HEADS)] if world > 1 else []
            for way, kv_heads in ways:
                Setting(way, group, 256, kv_heads).check()
                for tokens in sorted({FIXED, PER_RANK * world}):
                    rows.append(measure(way, group, tokens, kv_heads))
            if world == CHUNKS_RANKS:
                chunks = [measure_chunks(group, count) for count in CHUNKS]
        dist.barrier()
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps({"block": rows, "attention": chunks}))
    dist.destroy_process_group()


def millions(number):
    """Return a number of bytes as text, in MB."""
    return "-" if number is None else f"{number / 1e6:.2f}"


def show(found):
    """Print the tables."""
    columns = "kv heads", "ranks", "tokens", "peak", "sent", "back", "buffer", "all sent", "carried"
    print(f"{'MB':10}" + "".join(f"{name:>10}" for name in columns))
    for row in sorted(found["block"], key=lambda row: (row["way"] == "Megatron", -row["kv_heads"])):
        sent, back = row["forward"]["sent"], row["backward"]["sent"]
        cells = [row["kv_heads"], row["ranks"], row["tokens"]]
        megabytes = row["peak"], sent, back, row["forward"]["buffer"], row["ranks"] * (sent + back)
        cells += [millions(number) for number in (*megabytes, row["carried"])]
        print(f"{row['way']:10}" + "".join(f"{cell:>10}" for cell in cells))
    print(f"\nMB, peak of attention alone: {FIXED} tokens on {CHUNKS_RANKS} ranks")
    print(f"{'head_chunks':>12}{'forward, no gradients':>24}{'forward and backward':>24}")
    for row in found["attention"]:
        numbers = millions(row["forward"]), millions(row["both"])
        print(f"{row['head_chunks']:>12}" + "".join(f"{number:>24}" for number in numbers))


def draw_memory(axes, rows):
    """Draw peaks against ranks; `rows` by (way, ranks, tokens)."""
    for way in ("Ulysses", "Megatron"):
        for style, what, tokens in (
            ("o-", f"{FIXED} tokens in all", lambda p: FIXED),
            ("s--", f"{PER_RANK} tokens a rank", lambda p: PER_RANK * p),
        ):
            found = [(p, rows.get((way, p, tokens(p)))) for p in RANKS]
            points = [(p, row["peak"] / 1e6) for p, row in found if row and row["peak"]]
            label, color = f"{way}, {what}", common.COLORS[way]
            axes.plot(
                [p for p, _ in points], [y for _, y in points], style, color=color, label=label
            )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("peak memory of a rank, MB")
    axes.set_xticks(RANKS, RANKS)


def draw_bytes(axes, rows, title, tokens):
    """Draw bytes against ranks, and formulas as dotted lines, also where nothing is measured."""
    ranks = [2**i for i in range(1, 7)]
    for name, way, what, label, factor in (
        ("Megatron", "Megatron", "sent", "Megatron, to other ranks", lambda p: p - 1),
        ("Ulysses, messages", "Ulysses", "buffer", "Ulysses, messages: $4 N h / P$", lambda p: 1),
        ("Ulysses", "Ulysses", "sent", "  to others: $4 N h (P - 1) / P^2$", lambda p: (p - 1) / p),
    ):
        color, found = common.COLORS[name], RANKS[1:]
        measured = [rows[way, p, tokens(p)]["forward"][what] / 1e6 for p in found]
        axes.plot(found, measured, "s" if what == "buffer" else "o", color=color, label=label)
        formula = [SIZE * 4 * tokens(p) * WIDTH / p * factor(p) / 1e6 for p in ranks]
        axes.plot(ranks, formula, ":", color=color)
    axes.set_yscale("log")
    axes.set_ylabel("MB of a rank, for a layer and direction")
    axes.set_title(title, fontsize=10)
    axes.set_xticks(ranks, ranks)


def draw(found):
    """Return the figure, of as many kv heads as q heads."""
    rows = {(r["way"], r["ranks"], r["tokens"]): r for r in found if r["kv_heads"] == HEADS}
    chart, (memory, fixed, growing) = shared.figure(3, width=13)
    for axes in (memory, fixed, growing):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("ranks P")
    draw_memory(memory, rows)
    draw_bytes(fixed, rows, f"N = {FIXED} tokens in all", lambda p: FIXED)
    draw_bytes(growing, rows, f"{PER_RANK} tokens a rank, N = {PER_RANK} P", lambda p: PER_RANK * p)
    for axes in (memory, fixed, growing):
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    return chart


def main(path):
    """Start all ranks, print tables, write figure and JSON."""
    # What is 32 kB or more is mapped alone, and given back to the system when it is freed.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "MALLOC_MMAP_THRESHOLD_": "32768"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank), folder], env=environment)
            for rank in range(max(RANKS))
        ]
        if any([rank.wait(timeout=600) for rank in ranks]):
            raise SystemExit("one of the ranks failed")
        found = json.loads((Path(folder) / "found.json").read_text())
    show(found)
    shared.save(draw(found["block"]), path, found)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        child(int(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "ulysses_memory.png")
