# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/agvm.md: variances of modules without and with AGVM, on scikit-learn's digits.

A network with three modules is trained with momentum SGD in batches of 512, in four micro-batches:
a convolutional backbone, a linear head that names the digit, and one that finds the four edges of
its ink. The variance of a module's update is mu^2 phi; without AGVM mu is 1, and phi is measured
all the same, by an AGVM whose clamp leaves no room. Each of the two gets the best of as many
learning rates, chosen by the loss on a validation part that is neither trained on nor reported.
Printed, drawn and written as JSON beside the figure.

    python bench/reproduce/optim/agvm_variances.py docs/figures/agvm.png
"""

import json
import sys
from pathlib import Path
from statistics import fmean, geometric_mean

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from largebatch.optim import AGVM

BATCH, MICRO, STEPS, WARMUP = 512, 4, 400, 40
INTERVAL = 2  # and so 180 measurements: with a momentum of 0.97 the factors need a hundred
SEEDS = (0, 1, 2, 3, 4)
RATES = (0.05, 0.1, 0.2, 0.4)
NO_ROOM, ROOM = (1.0, 1.0), (0.5, 10.0)
RUNS = {"SGD": NO_ROOM, "SGD with AGVM": ROOM}
COLORS = {"backbone": "#555555", "digit": "#0072b2", "edges": "#d55e00"}


def load():
    """Return (images, labels, edges) of the training, validation and test parts."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    ink = (images[:, 0] > 0.5).float()
    sides = [ink.amax(dim) for dim in (1, 2)]  # by column, by row: [N, 8]
    first_last = [s.argmax(1) for s in sides] + [7 - s.flip(1).argmax(1) for s in sides]
    edges = torch.stack(first_last, dim=1).float() / 7
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(labels)
    return [(images[p], labels[p], edges[p]) for p in order.split((1078, 359, 360))]


class Network(nn.Module):
    """A backbone and two heads, none of which knows of the other."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.digit = nn.Linear(32 * 9, 10)
        self.edges = nn.Linear(32 * 9, 4)

    def losses(self, images, labels, edges):
        """Return the two losses, and how many digits are named rightly."""
        features = self.backbone(images)
        named = self.digit(features)
        right = (named.argmax(1) == labels).float().mean()
        return cross_entropy(named, labels), mse_loss(self.edges(features), edges), right


@torch.no_grad()
def measure(model, part):
    """Return the sum of the losses, and the accuracy in percent."""
    model.eval()
    named, found, right = model.losses(*part)
    model.train()
    return (named + found).item(), 100 * right.item()


def run(clamp, lr, seed, parts):
    """Train once; return validation loss, test results, and {module: [(step, phi, mu)]}."""
    torch.manual_seed(seed)
    model = Network()
    modules = dict(model.named_children())
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    agvm = AGVM(sgd, modules, anchor="backbone", interval=INTERVAL, warmup=WARMUP, clamp=clamp)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        agvm, lambda step: min((step + 1) / WARMUP, 1 - step / STEPS)
    )
    curves = {name: [] for name in modules}
    while scheduler.last_epoch < STEPS:
        rows = torch.randperm(len(parts[0][0]))[: BATCH * 2]
        for batch in rows.split(BATCH):
            for micro in batch.split(BATCH // MICRO):
                named, found, _ = model.losses(*(t[micro] for t in parts[0]))
                ((named + found) / MICRO).backward()
                agvm.micro_batch()
            step = scheduler.last_epoch
            agvm.step()
            agvm.zero_grad()
            scheduler.step()
            if step >= WARMUP and (step - WARMUP) % INTERVAL == 0:
                for name, phi in agvm.variances.items():
                    curves[name].append((step, phi.item(), agvm.factors[name].item()))
    return measure(model, parts[1])[0], measure(model, parts[2]), curves


def ratios(curves, name):
    """Return the variance of a module's updates, relative to the backbone's, when measured."""
    return [
        mu**2 * phi / own[1]
        for (_, phi, mu), own in zip(curves[name], curves["backbone"], strict=True)
    ]


def smooth(values, width=20):
    """Return geometric means over as many measurements as the factors remember, about."""
    return [geometric_mean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]


def spread(numbers, digits):
    low, high = min(numbers), max(numbers)
    return f"{fmean(numbers):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main(path):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)  # the network is small: a second thread only waits
    parts = load()
    chart = Figure(figsize=(8.4, 3.6), dpi=110, layout="constrained")
    results = {}
    for axes, (title, clamp) in zip(chart.subplots(1, 2, sharey=True), RUNS.items(), strict=True):
        runs = {lr: [run(clamp, lr, seed, parts) for seed in SEEDS] for lr in RATES}
        lr = min(RATES, key=lambda rate: fmean(loss for loss, _, _ in runs[rate]))
        chosen = runs[lr]
        losses = [test[0] for _, test, _ in chosen]
        accuracies = [test[1] for _, test, _ in chosen]
        print(
            f"{title}: lr {lr:g}, test loss {spread(losses, 4)}, accuracy {spread(accuracies, 1)}"
        )
        axes.set_title(f"{title}, lr {lr:g}", fontsize=10)
        results[title] = {"lr": lr, "test_loss": losses, "test_accuracy": accuracies}
        for name, color in COLORS.items():
            curves = [smooth(ratios(c, name)) for _, _, c in chosen]
            steps = [step for step, _, _ in chosen[0][2][name]]
            thirds = [[geometric_mean(ratios(c, name)[60 * k : 60 * k + 60]) for _, _, c in chosen]
                      for k in range(3)]  # fmt: skip
            mu = [c[name][-1][2] for _, _, c in chosen]
            update = "  ".join(spread(third, 2) for third in thirds)
            print(f"  {name:9} update, by thirds {update}  last mu {spread(mu, 2)}")
            points = list(zip(*curves, strict=True))
            axes.fill_between(
                steps, list(map(min, points)), list(map(max, points)), color=color, alpha=0.15,
                linewidth=0,
            )  # fmt: skip
            axes.plot(steps, list(map(geometric_mean, points)), color=color, label=name)
            results[title][name] = {"last_mu": mu, "update_by_thirds": thirds, "steps": steps,
                                    "update_mean": list(map(geometric_mean, points))}  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel(f"steps, batches of {BATCH}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    chart.axes[0].set_ylabel("variance of the update, backbone = 1")
    chart.axes[0].legend(frameon=False)
    chart.savefig(path)
    Path(path).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "agvm.png")
