# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/compression.md: logistic regression on ranks that see one label each.

With a penalty that is not convex, f_i = mean log(1 + exp(-y <x, row>)) + 0.05 sum x^2 / (1 + x^2).
The rows are random bits, or those of a file; sorted by label and dealt to ten ranks. Each sends 5 %
of its exact gradient. Drawn is the norm of the mean of the ranks' gradients, against steps and
against the bytes of the payloads that a rank has sent, headers included. All is fp64; the first
gradient is sent whole.

Each method gets the best of the same learning rates, powers of two: the first one to reach a norm
of 1e-12, which rounding does not yet blur, or if none does, the one with the least norm, as mean of
the last tenth of the steps. The chosen run is the one drawn: there is nothing random in it. The
gain of EControl is not tuned: half of the contraction delta, the default, and another run with
delta.

    python bench/reproduce/econtrol/logistic.py docs/figures/econtrol_logistic.png

With `--data FILE` the rows are those of a file in LIBSVM's format: the paper's are a9a and w8a.
"""

import argparse
import math

import common  # leads to shared, too
import numpy as np
import shared
import torch

from largebatch.compression import EControl, TopK

RANKS, ROWS, NUMEL, RATIO, PENALTY = 10, 4000, 120, 0.05, 0.05
STEPS, EVERY, REACHED = 2000, 5, 1e-12  # a point of the curves every so many steps
RATES = [2.0**i for i in range(-8, 4)]
TOP = TopK(ratio=RATIO, values="float64")
METHODS = {
    "SGD": common.uncompressed("float64"),
    **common.methods(TOP, min_numel=0),
    "EControl, eta = delta": EControl(TOP, eta=RATIO, min_numel=0),
}


def synthetic():
    """Return (rows, labels) of random bits."""
    random = np.random.default_rng(0)
    X = (random.random((ROWS, NUMEL)) < 0.11).astype(float)
    margin = X @ random.standard_normal(NUMEL) + 0.5 * random.standard_normal(ROWS)
    return X, np.where(margin < 0, -1.0, 1.0)


def from_file(path):
    """Return (rows, labels) of a file in LIBSVM's format."""
    from sklearn.datasets import load_svmlight_file

    X, y = load_svmlight_file(path)
    return X.toarray(), np.where(y > 0, 1.0, -1.0)


class Logistic:
    """The gradients of all ranks at the points of some runs."""

    def __init__(self, X, y):
        order = np.argsort(y, kind="stable")[: len(y) // RANKS * RANKS]
        self.rows = torch.tensor(X[order] * y[order, None]).view(RANKS, -1, X.shape[1])
        self.mean = (self.rows / self.rows.shape[1]).transpose(1, 2).contiguous()

    def gradients(self, x):
        """Return ``[ranks, runs, numel]`` at x, ``[runs, numel]``."""
        weight = torch.sigmoid(-(self.rows @ x.T))
        penalty = 2 * PENALTY * x / (1 + x.square()).square()
        return (penalty - (self.mean @ weight).transpose(1, 2)).contiguous()


def descend(method, problem):
    """Return the norms before each step, ``[STEPS, rates]``, and the bytes sent before it."""
    lr = torch.tensor(RATES, dtype=torch.float64).view(-1, 1)
    x = torch.zeros(len(RATES), problem.rows.shape[2], dtype=torch.float64)
    ranks, norms, sent = common.Ranks(method), [], []
    for _ in range(STEPS):
        grads = problem.gradients(x)
        norms.append(grads.mean(0).norm(dim=1))
        sent.append(ranks.sent)
        x = x - lr * ranks.step(grads)
    return torch.stack(norms), sent


def steps_to(norms, level):
    """Return the first step from which on the norm is never above `level`, or infinity."""
    above = [step for step, norm in enumerate(norms) if not norm <= level]
    first = above[-1] + 1 if above else 0
    return first if first < len(norms) else math.inf


def main(path, data):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)
    problem = Logistic(*(from_file(data) if data else synthetic()))
    chart, panels = shared.figure(2, width=9.2, height=4.3)
    print(f"{'':24}{'lr':>8}{'steps to 1e-12':>16}{'bytes':>10}{'norm at the end':>17}")
    results = {}
    for name, method in METHODS.items():
        norms, sent = descend(method, problem)
        scores = {}
        for lr, column in zip(RATES, norms.T.tolist(), strict=True):
            last = column[-(STEPS // 10) :]
            scores[lr] = (steps_to(column, REACHED), sum(last) / len(last))
        lr = shared.best(scores)
        own = norms[:, RATES.index(lr)].tolist()
        first, end = scores[lr]
        at = sent[first] if first < math.inf else math.inf
        note = shared.at_an_end(lr, RATES)
        print(f"{name:24}{lr:>8g}{first:>16}{at:>10}{end:>17.2g}  {note}", flush=True)
        style = common.STYLES[name.split(",")[0]] | ({"linestyle": ":"} if "," in name else {})
        label = name.replace("eta = delta", "$\\eta$ = $\\delta$")
        points = slice(0, None, EVERY)
        kilobytes = [b / 1000 for b in sent]
        for axes, x in zip(panels, (list(range(STEPS)), kilobytes), strict=True):
            axes.plot(x[points], own[points], label=f"{label}, lr {lr:.3g}", **style)
        results[name] = {
            "method": repr(method), "lr": lr,
            "steps_to_1e-12": first if first < math.inf else None,
            "bytes_to_1e-12": at if at < math.inf else None,
            "norm_at_the_end": {f"lr {rate:g}": score[1] for rate, score in scores.items()},
            "bytes_of_a_step": sent[2] - sent[1], "bytes_of_the_first_step": sent[1],
            "norm": own[points],
        }  # fmt: skip
    panels[0].set_xlabel("steps")
    panels[1].set_xlabel("kB that a rank has sent")
    panels[1].set_xlim(0, 1.05 * results["EF21"]["bytes_of_a_step"] * STEPS / 1000)
    for axes in panels:
        axes.set_yscale("log")
        axes.set_ylabel("norm of the mean gradient")
    lines, labels = panels[0].get_legend_handles_labels()
    chart.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    settings = {
        "data": "a file in LIBSVM's format" if data else "synthetic", "ranks": RANKS,
        "rows": problem.rows.shape[0] * problem.rows.shape[1], "numel": problem.rows.shape[2],
        "penalty": PENALTY, "steps": STEPS, "a_point_every": EVERY, "rates": RATES,
    }  # fmt: skip
    shared.save(chart, path, common.rounded({"settings": settings, "methods": results}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("figure", nargs="?", default="econtrol_logistic.png")
    parser.add_argument("--data", help="a file in LIBSVM's format, as a9a")
    arguments = parser.parse_args()
    main(arguments.figure, arguments.data)
