# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/compression.md: handwritten digits under DistributedDataParallel, labels apart.

Four gloo processes on the loopback interface train a network of 64-256-10 on scikit-learn's digits,
of which each rank has two or three only. Of each tensor of at least 100 elements 1 % is sent, in
fp32. Drawn are means of three seeds: the loss on all of the training part against steps, with the
range of the seeds, and against bytes the error on the test part, which is the mean of three
neighbouring points too. Bytes are those that a rank sends around a ring, W - 1 payloads in an
all-gather and 2 n b (W - 1)/W in an all-reduce; the sizes are those of the tensors that the hook
hands to the collectives, headers and the first two steps, which are dense, included. SGD-M has an
optimizer with the average of gradients that EF21-SGDM and EControl-M have before compression.

Each method gets the best of the same learning rates, which stay as they are for a whole run: the
one with the least loss on a validation part, neither trained on nor reported, as mean of the last
quarter of a run with a seed of its own.

    python bench/reproduce/econtrol/digits.py docs/figures/econtrol_digits.png
"""

import os
import sys
import tempfile
from pathlib import Path
from statistics import fmean

import common  # leads to shared, too
import shared
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from largebatch import _comm
from largebatch.compression import ErrorFeedback, TopK, traffic

WORLD, BATCH, STEPS, EVERY = 4, 32, 480, 24  # batch of a rank; a point every so many steps
RATES = [2.0**i for i in range(-3, 3)]
TUNING_SEED, SEEDS = 100, (0, 1, 2)
TOP, MIN_NUMEL = TopK(ratio=0.01), 100
METHODS = {
    "SGD": None,  # the all-reduce of DistributedDataParallel
    "SGD-M": None,
    "no feedback": ErrorFeedback(TOP, decay=0.0, min_numel=MIN_NUMEL),
    **common.methods(TOP, min_numel=MIN_NUMEL),
}
ANY = METHODS["EC"]  # their payloads are alike


def network():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))


def load():
    """Return (images, labels) of the training, validation and test parts."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[part], labels[part]) for part in order.split((1077, 360, 360))]


class Ear:
    """Listens to collectives: `sent` is what a rank sends in them around a ring, in bytes."""

    def __init__(self):
        self.sent = 0
        _comm.all_gather = self._listening(_comm.all_gather, 1, WORLD - 1)
        dist.all_reduce = self._listening(dist.all_reduce, 0, 2 * (WORLD - 1) / WORLD)

    def _listening(self, collective, argument, times):
        def call(*args, **kwargs):
            self.sent += args[argument].nbytes * times
            return collective(*args, **kwargs)

        return call


@torch.no_grad()
def scores(model, images, labels):
    """Return (loss, accuracy)."""
    out = model(images)
    return cross_entropy(out, labels).item(), (out.argmax(1) == labels).float().mean().item()


def last(values):
    """Return the mean of the last quarter: results jump from one point to the next."""
    return fmean(values[-(len(values) // 4) :])


def run(ear, name, lr, seed, train, held_out):
    """Train once; return what rank 0 finds every EVERY steps: lists of numbers."""
    rank, method = dist.get_rank(), METHODS[name]
    torch.manual_seed(seed)
    model = network()
    ddp = DistributedDataParallel(model)
    if method is not None:
        ddp.register_comm_hook(None, method.hook(model))
    dense = traffic(ANY, model.parameters(), WORLD).dense
    # The average that the methods with momentum have: 0.9 of the old one, 0.1 of the gradient.
    average = {"momentum": 0.9, "dampening": 0.9} if name == "SGD-M" else {}
    optimizer = torch.optim.SGD(model.parameters(), lr, **average)
    images, labels = train
    mine = labels.argsort(stable=True).tensor_split(WORLD)[rank]
    generator = torch.Generator().manual_seed(WORLD * seed + rank)
    found = {"train_loss": [], "loss": [], "accuracy": [], "sent": []}
    ear.sent = 0
    for step in range(STEPS + 1):
        if step % EVERY == 0 and rank == 0:
            loss, accuracy = scores(model, *held_out)
            sent = step * dense if method is None else ear.sent
            now = (scores(model, *train)[0], loss, accuracy, sent)
            for values, value in zip(found.values(), now, strict=True):
                values.append(value)
        if step == STEPS:
            break
        batch = mine[torch.randint(len(mine), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        cross_entropy(ddp(images[batch]), labels[batch]).backward()
        optimizer.step()
    return found


def child(rank, folder):
    """Tune and run everything as one of the ranks; rank 0 saves what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    ear, results = Ear(), {}
    train, validation, test = load()
    for name in METHODS:
        tuning = {}
        for lr in RATES:
            losses = run(ear, name, lr, TUNING_SEED, train, validation)["loss"]
            tuning[lr] = (last(losses) if rank == 0 else 0.0,)
        chosen = [shared.best(tuning)]
        dist.broadcast_object_list(chosen)  # what rank 0 has found
        lr = chosen[0]
        runs = [run(ear, name, lr, seed, train, test) for seed in SEEDS]
        results[name] = {"lr": lr, "tuning": tuning, "runs": runs}
        if rank == 0:
            print(f"chosen for {name}: lr {lr:g} {shared.at_an_end(lr, RATES)}", flush=True)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


def draw(panels, name, runs):
    """Draw the curves of a method."""
    style = common.STYLES[name]
    losses = list(zip(*(r["train_loss"] for r in runs), strict=True))  # by point
    points = [EVERY * i for i in range(len(losses))]
    low, high = [min(at) for at in losses], [max(at) for at in losses]
    panels[0].fill_between(points, low, high, color=style["color"], alpha=0.12, linewidth=0)
    panels[0].plot(points, [fmean(at) for at in losses], label=name, **style)
    accuracies = zip(*(r["accuracy"] for r in runs), strict=True)
    errors = [100 * (1 - fmean(at)) for at in accuracies]
    smooth = [fmean(three) for three in zip(errors, errors[1:], errors[2:], strict=False)]
    megabytes = [sent / 1e6 for sent in runs[0]["sent"][1:-1]]  # the same for each seed
    panels[1].plot(megabytes[1:], smooth[1:], **style)
    panels[1].plot(megabytes[-1], smooth[-1], "o", color=style["color"], markersize=4)


def main(path):
    """Start the ranks, print a table, write figure and JSON."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as folder:
        processes.spawn(child, (folder,), nprocs=WORLD)
        results = torch.load(Path(folder) / "results.pt")
    expected = traffic(ANY, network().parameters(), WORLD)
    print(f"a step, by traffic(): {expected}")
    print(f"{'':14}{'lr':>6}{'bytes a step':>13}{'test accuracy, %: mean (range)':>34}"
          f"{'train loss':>26}")  # fmt: skip
    chart, panels = shared.figure(2, width=9.2, height=4.3)
    for name, own in results.items():
        runs, sent = own["runs"], own["runs"][0]["sent"]
        own["bytes_a_step"] = (sent[-1] - sent[1]) / (STEPS - EVERY)
        own["test_accuracy"] = [last(r["accuracy"]) for r in runs]
        own["train_loss"] = [last(r["train_loss"]) for r in runs]
        accuracy = shared.spread([100 * a for a in own["test_accuracy"]], ".3g")
        loss = shared.spread(own["train_loss"], ".2g")
        print(f"{name:14}{own['lr']:>6g}{own['bytes_a_step']:>13.0f}{accuracy:>34}{loss:>26}")
        own["tuning"] = {f"lr {lr:g}": score for lr, (score,) in own["tuning"].items()}
        draw(panels, name, runs)
    for axes in panels:
        axes.set_yscale("log")
    panels[0].set_xlabel("steps")
    panels[0].set_ylabel("loss on the training part")
    panels[1].set_xscale("log")
    panels[1].set_xlabel("MB that a rank has sent")
    panels[1].set_ylabel("error on the test part, %")
    panels[1].set_yticks([2, 3, 4, 5, 7, 10, 15], ["2", "3", "4", "5", "7", "10", "15"])
    panels[1].minorticks_off()
    lines, labels = panels[0].get_legend_handles_labels()
    labels = [f"{name}, lr {results[name]['lr']:g}" for name in labels]
    chart.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    settings = {
        "ranks": WORLD, "batch_of_a_rank": BATCH, "steps": STEPS, "a_point_every": EVERY,
        "rates": RATES, "tuning_seed": TUNING_SEED, "seeds": SEEDS,
        "methods": {name: repr(m) for name, m in METHODS.items() if m is not None},
        "traffic": {"compressed": expected.compressed, "dense": expected.dense},
    }  # fmt: skip
    shared.save(chart, path, common.rounded({"settings": settings, "results": results}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "econtrol_digits.png")
