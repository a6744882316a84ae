# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of four processes that train, two sequences at a time over two ranks each; see test_training.

A transformer block is enough of a model: embedding, attention, output.
"""

import sys
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from largebatch.sequence import (
    UlyssesAttention,
    UlyssesPlan,
    gather_lengths,
    position_ids,
    sequence_parallel_loss,
    shard_sequence,
    shift_labels,
)
from tests.sequence import setting

WORLD, SP, TOKENS, VOCABULARY, HEADS, DIM = 4, 2, 10, 11, (4, 2), 4
LENGTHS = [4, 6]
LR = 0.5


class Model(torch.nn.Module):
    """Predicts bytes from those before, in float64."""

    def __init__(self, attend):
        super().__init__()
        width = HEADS[0] * DIM
        self.attend = attend
        self.embed = torch.nn.Embedding(VOCABULARY, width)
        self.place = torch.nn.Embedding(TOKENS, width)
        self.qkv = torch.nn.Linear(width, (HEADS[0] + 2 * HEADS[1]) * DIM)
        self.out = torch.nn.Linear(width, VOCABULARY)
        self.double()

    def forward(self, tokens, positions):
        x = self.embed(tokens) + self.place(positions)
        q, k, v = self.qkv(x).unflatten(-1, (-1, DIM)).split([HEADS[0], *[HEADS[1]] * 2], dim=2)
        return self.out(x + self.attend(q, k, v).flatten(2))


def data(step):
    """Return tokens and labels of four sequences; some labels count for nothing."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (4, TOKENS), generator=generator)
    labels = shift_labels(tokens)
    labels[0, :3] = -100
    labels[2, 2:] = -100  # no label on the second rank of that sequence
    return tokens, labels


def alone():
    """Return the parameters after three steps of one process, and the losses."""
    torch.manual_seed(0)
    model, losses = Model(setting.attend("bshd")), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for step in range(3):
        tokens, labels = data(step)
        loss = F.cross_entropy(model(tokens, torch.arange(TOKENS)).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [p.detach() for p in model.parameters()], losses


def together(reducer, reduce, wrap=None):
    """Return the same of all of them; `reduce` makes of gradients what that reducer does."""
    mesh = init_device_mesh("cpu", (WORLD // SP, SP), mesh_dim_names=("dp", "sp"))
    plan = UlyssesPlan(mesh["sp"], *HEADS, LENGTHS)
    torch.manual_seed(0)
    model, losses = Model(UlyssesAttention(setting.attend("bshd"), plan)), []
    wrapped = model if wrap is None else wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    row = mesh.get_local_rank("dp")
    factor = {"sum": 1, "mean": WORLD, "deepspeed": WORLD // SP}[reducer]
    for step in range(3):
        tokens, labels = (shard_sequence(x[2 * row : 2 * row + 2], plan) for x in data(step))
        logits = wrapped(tokens, position_ids(plan))
        loss = sequence_parallel_loss(logits, labels, plan, reducer=reducer)
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():
            reduce(p.grad, mesh)
        optimizer.step()
        mean = loss.detach() / factor
        dist.all_reduce(mean)
        losses.append(mean)
    return [p.detach() for p in model.parameters()], losses


def add(grad, mesh):
    dist.all_reduce(grad)


def add_and_average(grad, mesh):
    """What DeepSpeed's ZeRO does with sequence parallelism."""
    dist.all_reduce(grad, group=mesh["sp"].get_group())
    dist.all_reduce(grad, group=mesh["dp"].get_group())
    grad /= WORLD // SP


def nothing(grad, mesh):
    """DistributedDataParallel has averaged already."""


def lengths(rank):
    """Return the lengths of all ranks, gathered once."""
    return gather_lengths(rank + 3)


def groups(rank):
    """Return what is said of groups that cannot be."""
    mesh = init_device_mesh("cpu", (WORLD // SP, SP), mesh_dim_names=("dp", "sp"))
    found = []
    for group in (mesh, dist.new_group([0, 1])):
        try:
            UlyssesPlan(group, *HEADS)
            found.append(None)
        except ValueError as error:
            found.append(str(error))
    return found


def main(rank, folder):
    with setting.ranks(rank, folder):
        found = {
            "alone": alone(),
            "sum": together("sum", add),
            "mean": together("mean", nothing, partial(DistributedDataParallel)),
            "deepspeed": together("deepspeed", add_and_average),
            "wrong": together("sum", nothing, partial(DistributedDataParallel)),
            "lengths": lengths(rank),
            "groups": groups(rank),
        }
    torch.save(found, f"{folder}/{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
