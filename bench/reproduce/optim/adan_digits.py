# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/adan.md: Adan, AdamW and LAMB on scikit-learn's digits in batches of 512.

All train the same small convolutional network for the same number of steps with the same decay,
warm-up and schedule. Each optimizer gets the best of as many learning rates, spaced alike, chosen
by the final loss on a validation part that is neither trained on nor reported. Printed, drawn and
written as JSON beside the figure: loss and accuracy on the test part, mean and range over the
seeds.

    python bench/reproduce/optim/adan_digits.py docs/figures/adan.png
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import LAMB, Adan, param_groups

BATCH, EPOCHS = 512, 20
SEEDS = (0, 1, 2, 3, 4)
WEIGHT_DECAY = 0.02
EVERY = 3  # steps between two points of a curve


def _adan(groups, lr):
    return Adan(groups, lr=lr)


def _adan_no_prox(groups, lr):
    return Adan(groups, lr=lr, no_prox=True)


def _adamw(groups, lr):
    return torch.optim.AdamW(groups, lr=lr)


def _lamb(groups, lr):
    return LAMB(groups, lr=lr)


OPTIMIZERS = {  # constructor, six rates in factors of two, colour, line
    "Adan": (_adan, (0.005, 0.01, 0.02, 0.04, 0.08, 0.16), "#0072b2", "-"),
    "Adan, no_prox": (_adan_no_prox, (0.005, 0.01, 0.02, 0.04, 0.08, 0.16), "#56b4e9", "--"),
    "AdamW": (_adamw, (0.005, 0.01, 0.02, 0.04, 0.08, 0.16), "#d55e00", "-"),
    "LAMB": (_lamb, (0.02, 0.04, 0.08, 0.16, 0.32, 0.64), "#009e73", "-"),
}


def load():
    """Return (images, labels) of the training, validation and test parts."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[part], labels[part]) for part in order.split((1078, 359, 360))]


def network():
    """Return a network of two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 9, 10),
    )  # fmt: skip


def measure(model, part):
    """Return loss and accuracy on (images, labels)."""
    model.eval()
    with torch.no_grad():
        output = model(part[0])
        loss = cross_entropy(output, part[1]).item()
        right = (output.argmax(1) == part[1]).float().mean().item()
    model.train()
    return loss, right


def run(make, lr, seed, parts):
    """Train once; return the final validation loss and the (step, test loss, accuracy) points."""
    torch.manual_seed(seed)
    images, labels = parts[0]
    model = network()
    optimizer = make(param_groups(model, weight_decay=WEIGHT_DECAY), lr)
    steps = EPOCHS * -(-len(images) // BATCH)
    warmup = steps // 10
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 - step / steps) ** 2)
    )
    points = [(0, *measure(model, parts[2]))]
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            scheduler.step()
            if scheduler.last_epoch % EVERY == 0:
                points.append((scheduler.last_epoch, *measure(model, parts[2])))
    return measure(model, parts[1])[0], points


def best(make, rates, parts):
    """Return the rate chosen by validation, and the points of its runs, one list a seed."""
    runs = {lr: [run(make, lr, seed, parts) for seed in SEEDS] for lr in rates}
    lr = min(runs, key=lambda rate: fmean(loss for loss, _ in runs[rate]))
    return lr, [points for _, points in runs[lr]]


def main(path):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)  # the network is small: a second thread only waits
    parts = load()
    chart = Figure(figsize=(5.6, 3.8), dpi=110, layout="constrained")
    axes = chart.subplots()
    results = {}
    print(f"{'':14}{'lr':>7}{'test loss: mean (range)':>30}{'test accuracy: mean (range)':>32}")
    for name, (make, rates, color, line) in OPTIMIZERS.items():
        lr, runs = best(make, rates, parts)
        curves = list(zip(*runs, strict=True))  # [point][seed] -> (step, loss, accuracy)
        steps = [point[0][0] for point in curves]
        losses = [[seed[1] for seed in point] for point in curves]
        accuracies = [100 * seed[2] for seed in curves[-1]]
        final = losses[-1]
        loss = f"{fmean(final):.4f} ({min(final):.4f} to {max(final):.4f})"
        right = f"{fmean(accuracies):.1f}% ({min(accuracies):.1f} to {max(accuracies):.1f})"
        print(f"{name:14}{lr:>7g}{loss:>30}{right:>32}", flush=True)
        low, high = [min(p) for p in losses], [max(p) for p in losses]
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        label = f"{name}, lr {lr:g}"
        axes.plot(steps, [fmean(p) for p in losses], line, color=color, label=label)
        results[name] = {
            "lr": lr,
            "rates": rates,
            "steps": steps,
            "test_loss": losses,
            "test_accuracy": accuracies,
        }
    axes.set_yscale("log")
    axes.set_xlabel(f"steps, batches of {BATCH}")
    axes.set_ylabel("test loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    chart.savefig(path)
    Path(path).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "adan.png")
