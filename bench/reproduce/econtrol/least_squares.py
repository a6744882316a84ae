# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/compression.md: least squares on ranks whose data is more or less apart.

Rank i of five has f_i = |a_i x - b_i|^2 / 2 in 300 dimensions, with a_i = i / sqrt(5) and
b_i ~ N(0, zeta^2 / i^2 I); x begins at the optimum + 1 / sqrt(300), a squared distance of 1. Ten
percent of the elements are sent, in fp64 like all else; the first gradient is sent whole.

Left: exact gradients, zeta = 100, the squared distance to the optimum; a band, where there is one
to be seen, is the range of the seeds. Right: gradients with a noise of norm 10 (a standard
deviation of 10 / sqrt(300) for each element), the squared distance as the mean over the last half
of the steps, a mark a seed. EControl has its default gain, half of the contraction delta, and on
the right delta as well.

Learning rates are not tuned but the same for all, as floors depend on them: 0.05 on the left, 0.02
on the right.

    python bench/reproduce/econtrol/least_squares.py docs/figures/econtrol_least_squares.png
"""

import sys
from statistics import fmean

import common  # leads to shared, too
import shared
import torch

from largebatch.compression import EControl, TopK

RANKS, NUMEL, K, SEEDS = 5, 300, 30, 8
EXACT_LR, EXACT_STEPS, EVERY = 0.05, 1500, 10  # and a point of the curves every so many steps
NOISY_LR, NOISY_STEPS, NOISE = 0.02, 3000, 10.0
ZETAS = (0.0, 100.0)
TOP = TopK(k=K, values="float64")
METHODS = {"SGD": common.uncompressed("float64")} | common.methods(TOP, min_numel=0)
GAIN = {"EControl, eta = delta": EControl(TOP, eta=K / NUMEL, min_numel=0)}


def marks(color):
    """Return the styles of marks for each zeta."""
    return [
        dict(s=22, marker=m, color=color, facecolor=f) for m, f in (("o", "none"), ("x", color))
    ]


class LeastSquares:
    """One run for each zeta and seed."""

    def __init__(self, zetas, seeds=SEEDS):
        i = torch.arange(1, RANKS + 1, dtype=torch.float64).view(-1, 1, 1)
        self.a = i / RANKS**0.5
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        draws = [
            torch.randn(RANKS, NUMEL, generator=generator, dtype=torch.float64)
            for generator in generators
        ]
        unit = torch.stack(draws, dim=1) / i  # [ranks, seeds, numel]
        self.b = torch.cat([zeta * unit for zeta in zetas], dim=1)  # [ranks, runs, numel]
        self.optimum = (self.a * self.b).sum(0) / self.a.square().sum()

    def gradients(self, x):
        return self.a * (self.a * x - self.b)

    def distance(self, x):
        return (x - self.optimum).square().sum(-1)


def descend(method, problem, lr, steps, noise=0.0):
    """Return the squared distances before each step and after the last: ``[steps + 1, runs]``."""
    x = problem.optimum + NUMEL**-0.5
    random = torch.Generator().manual_seed(0)  # every method gets the same noise
    distances, ranks = [problem.distance(x)], common.Ranks(method)
    for _ in range(steps):
        grads = problem.gradients(x)
        if noise:
            draws = torch.randn(grads.shape, generator=random, dtype=grads.dtype)
            grads += noise / NUMEL**0.5 * draws
        x = x - lr * ranks.step(grads)
        distances.append(problem.distance(x))
    return torch.stack(distances)


def exact(axes):
    """Draw the left panel; return its numbers."""
    problem, results = LeastSquares(ZETAS[1:]), {}
    points = list(range(0, EXACT_STEPS + 1, EVERY))
    print(f"exact gradients, lr {EXACT_LR}: after {EXACT_STEPS} steps, mean (range)")
    for name, method in METHODS.items():
        curves = descend(method, problem, EXACT_LR, EXACT_STEPS)[::EVERY]
        low, high = curves.amin(1).tolist(), curves.amax(1).tolist()
        mean = curves.log().mean(1).exp().tolist()  # the axis has logarithms too
        style = common.STYLES[name]
        axes.fill_between(points, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(points, mean, label=name, **style)
        results[name] = {"geometric_mean": mean, "least": low, "most": high}
        print(f"{name:24}{shared.spread(curves[-1].tolist(), '.3g')}", flush=True)
    axes.set_yscale("log")
    axes.set_xlabel("steps")
    axes.set_ylabel("squared distance to the optimum")
    axes.set_title(f"exact gradients, $\\zeta$ = {ZETAS[1]:g}, lr {EXACT_LR}", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    return {"steps": points, "methods": results}


def noisy(axes):
    """Draw the right panel; return its numbers."""
    problem, results = LeastSquares(ZETAS), {}
    methods = METHODS | GAIN
    print(f"noise {NOISE:g}, lr {NOISY_LR}: mean (range)")
    for row, (name, method) in enumerate(methods.items()):
        curves = descend(method, problem, NOISY_LR, NOISY_STEPS, NOISE)
        floors = curves[NOISY_STEPS // 2 + 1 :].mean(0).view(len(ZETAS), SEEDS).tolist()
        results[name] = floors
        color = common.STYLES[name.split(",")[0]]["color"]
        for own, style, up in zip(floors, marks(color), (0.15, -0.15), strict=True):
            axes.scatter(own, [row - up] * SEEDS, **style)
            at, text = (max(own), row - up), f"{fmean(own):.3g}"
            axes.annotate(text, at, (7, -3), textcoords="offset points", fontsize=7)
        cells = [f"{shared.spread(own, '.3g'):>28}" for own in floors]
        print(f"{name:28}{''.join(cells)}", flush=True)
    for style, zeta in zip(marks("black"), ZETAS, strict=True):
        axes.scatter([], [], label=f"$\\zeta$ = {zeta:g}", **style)
    axes.set_yticks(
        range(len(methods)),
        [name.replace("eta = delta", "$\\eta$ = $\\delta$") for name in methods],
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.06, 1000)
    axes.set_xlabel("squared distance, mean of the last half of the steps")
    axes.set_title(f"gradients with noise, lr {NOISY_LR}", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return {"zeta": ZETAS, "floors": results}


def main(path):
    """Run everything, print tables, write figure and JSON."""
    torch.set_num_threads(1)  # tensors are small
    chart, panels = shared.figure(2, width=9.2, height=3.9)
    results = {
        "settings": {
            "ranks": RANKS, "numel": NUMEL, "k": K, "seeds": SEEDS, "noise": NOISE,
            "steps": {"exact": EXACT_STEPS, "noisy": NOISY_STEPS},
            "lr": {"exact": EXACT_LR, "noisy": NOISY_LR},
            "methods": {name: repr(method) for name, method in (METHODS | GAIN).items()},
        },
        "exact": exact(panels[0]),
        "noisy": noisy(panels[1]),
    }  # fmt: skip
    shared.save(chart, path, common.rounded(results))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "econtrol_least_squares.png")
