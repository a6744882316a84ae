# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Ulysses sequence parallelism: a transformer over bytes, ranks share each of its long sequences.

    torchrun --nproc-per-node 2 examples/long_context.py
    torchrun --nproc-per-node 4 examples/long_context.py --kv-heads 2 --check --double

On CPUs over gloo, or with a GPU for each process over NCCL; by plain python with one process. The
losses are those of one process up to rounding: --check trains it beside, on whole sequences.
"""

import argparse
import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

from largebatch import sequence
from largebatch.cli.demo.data import load, sample

LAYERS, HEADS, DIM = 2, 8, 16
WIDTH = HEADS * DIM

parser = argparse.ArgumentParser()
for name, default in dict(steps=40, length=1024, batch=4, kv_heads=4, head_chunks=1).items():
    parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
for name in ("--check", "--double"):
    parser.add_argument(name, action="store_true")
options = parser.parse_args()

gpu = torch.cuda.is_available()
alone = {} if "RANK" in os.environ else dict(store=dist.HashStore(), rank=0, world_size=1)
dist.init_process_group("nccl" if gpu else "gloo", **alone)
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_default_dtype(torch.float64 if options.double else torch.float32)
device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if gpu else torch.device("cpu")
if gpu:
    torch.cuda.set_device(device)


class Block(nn.Module):
    """Attention with rotary positions, then a perceptron: only `attend` mixes tokens."""

    def __init__(self, attend, positions):
        super().__init__()
        self.attend, self.heads = attend, [HEADS, options.kv_heads, options.kv_heads]
        angles = positions[:, None] * 1e4 ** -torch.linspace(0, 1, DIM // 2)
        self.cos, self.sin = angles.cos().to(device), angles.sin().to(device)
        self.qkv = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, sum(self.heads) * DIM))
        self.out = nn.Linear(WIDTH, WIDTH)
        wide = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), *wide)

    def rotated(self, x):
        """Return q or k, turned by the position of the token in the whole sequence."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=-1)

    def forward(self, x):
        """Map [B, s, width] to the same shape."""
        qkv = self.qkv(x).unflatten(-1, (-1, DIM)).transpose(1, 2)  # [B, heads, s, DIM]
        q, k, v = qkv.split(self.heads, dim=1)
        o = self.attend(self.rotated(q), self.rotated(k), v, is_causal=True, enable_gqa=True)
        x = x + self.out(o.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


def transformer(attend, positions):
    """Return a model, the same for the same seed, and its optimizer."""
    torch.manual_seed(0)
    blocks = [Block(attend, positions) for _ in range(LAYERS)]
    last = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)
    model = nn.Sequential(nn.Embedding(256, WIDTH), *blocks, *last).to(device)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def learn(loss, optimizer):
    """Take a step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# Each rank has a share of the tokens, of any length, and attends with a share of the heads.
lengths = sequence.split_lengths(options.length, world)
plan = sequence.UlyssesPlan(None, HEADS, options.kv_heads, lengths, options.head_chunks)
attend = sequence.UlyssesAttention(scaled_dot_product_attention, plan, layout="bhsd")
model, optimizer = transformer(attend, sequence.position_ids(plan))
ddp = DistributedDataParallel(model)  # averages gradients: hence reducer="mean"
one, one_optimizer = transformer(scaled_dot_product_attention, torch.arange(options.length))

text, generator = load().train, torch.Generator().manual_seed(0)  # the same on all ranks
for step in range(1, options.steps + 1):
    windows = sample(text, options.batch, options.length, generator).to(device)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    tokens, labels = (sequence.shard_sequence(x, plan) for x in (inputs, targets))
    loss = sequence.sequence_parallel_loss(ddp(tokens), labels, plan, reducer="mean")
    learn(loss, optimizer)
    mean = loss.detach() / world
    dist.all_reduce(mean)
    line = f"step {step:2}  loss {mean.item():.6f} nats/byte"
    if options.check:
        one_loss = cross_entropy(one(inputs).flatten(0, 1), targets.flatten())
        learn(one_loss, one_optimizer)
        pairs = zip(model.parameters(), one.parameters(), strict=True)
        off = max((a - b).abs().max().item() for a, b in pairs)
        worst = torch.tensor([abs(mean.item() - one_loss.item()), off], device=device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        line += "  one process: loss {:.1e} off, parameters {:.1e}".format(*worst.tolist())
    if rank == 0 and (options.check or step % 5 == 0):
        print(line, flush=True)
dist.barrier()
# While Python ends, a thread of gloo must not let go of a tensor: threads end with their group, and
# the group when nobody has it any more.
del ddp, model, optimizer, attend, plan, loss
gc.collect()
dist.destroy_process_group()
