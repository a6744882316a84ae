# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/lars.md: LARS and SGD on scikit-learn's digits as the batch grows.

Both train the same small convolutional network for the same number of epochs with momentum 0.9,
the same decay, warm-up and schedule. For every batch size each optimizer gets the best of as many
learning rates, spaced alike, chosen by accuracy on a validation part that is neither trained on nor
reported. Printed and drawn: accuracy on the test part, mean and range over the seeds.

    python bench/reproduce/optim/lars_digits.py docs/figures/lars.png
"""

import sys
from statistics import fmean

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import LARS, param_groups

EPOCHS = 12
BATCHES = (32, 128, 512, 1078)  # the last is the whole training part
SEEDS = (0, 1, 2)
WEIGHT_DECAY = 5e-4
RATES = {  # factors of two, six each; no choice falls on an end
    "SGD": (0.1, 0.2, 0.4, 0.8, 1.6, 3.2),
    "LARS": (20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
}
VECTOR_RATE = 0.01  # times LARS's lr: biases and norms have no local rate
COLORS = {"LARS": "#0072b2", "SGD": "#d55e00"}


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


def make(name, model, lr):
    """Return the optimizer; both leave biases and norms without decay."""
    matrices, vectors = param_groups(model, weight_decay=WEIGHT_DECAY)
    if name == "SGD":
        return torch.optim.SGD([matrices, vectors], lr=lr, momentum=0.9)
    return LARS([matrices, {**vectors, "lr": VECTOR_RATE * lr}], lr=lr, momentum=0.9)


def accuracy(model, part):
    """Return the share of right answers on (images, labels)."""
    model.eval()
    with torch.no_grad():
        right = (model(part[0]).argmax(1) == part[1]).float().mean().item()
    model.train()
    return right


def run(name, batch, lr, seed, parts):
    """Train once; return validation and test accuracy."""
    torch.manual_seed(seed)
    images, labels = parts[0]
    model = network()
    optimizer = make(name, model, lr)
    steps = EPOCHS * -(-len(images) // batch)
    warmup = max(1, steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 - step / steps) ** 2)
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            scheduler.step()
    return accuracy(model, parts[1]), accuracy(model, parts[2])


def best(name, batch, parts):
    """Return (rate chosen by validation, its test accuracies over the seeds)."""
    scores = {}
    for lr in RATES[name]:
        results = [run(name, batch, lr, seed, parts) for seed in SEEDS]
        scores[lr] = fmean(v for v, _ in results), [t for _, t in results]
    lr = max(scores, key=lambda rate: scores[rate][0])
    return lr, scores[lr][1]


def main(path):
    """Run everything, print a table and write the figure."""
    torch.set_num_threads(1)  # the network is small: a second thread only waits
    parts = load()
    chart = Figure(figsize=(5.6, 3.8), dpi=110, layout="constrained")
    axes = chart.subplots()
    print(f"{'':6}{'batch':>6}{'steps':>7}{'lr':>8}{'test accuracy: mean (range)':>32}")
    for name in RATES:
        tests = []
        for batch in BATCHES:
            lr, accuracies = best(name, batch, parts)
            tests.append([100 * value for value in accuracies])
            low, mean, high = min(tests[-1]), fmean(tests[-1]), max(tests[-1])
            steps = EPOCHS * -(-len(parts[0][0]) // batch)
            text = f"{mean:.1f}% ({low:.1f} to {high:.1f})"
            print(f"{name:6}{batch:>6}{steps:>7}{lr:>8g}{text:>32}", flush=True)
        axes.fill_between(
            BATCHES, [min(t) for t in tests], [max(t) for t in tests], color=COLORS[name], alpha=0.2
        )
        axes.plot(BATCHES, [fmean(t) for t in tests], "o-", color=COLORS[name], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
    axes.set_xlabel(f"batch size, {EPOCHS} epochs each")
    axes.set_ylabel("test accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower left")
    chart.savefig(path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lars.png")
