# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/lion-k.md: two weights on their way into the feasible sets of some kappas.

Each panel trains two weights with LionK on the same noisy quadratic, whose minimum lies outside of
every set, from three points far outside. The set is drawn by projecting far points onto it. Printed
and written to JSON: the distance to the set after some steps against the bound (1 - lr decay)^k of
the distance at the start, and the distance of the end to the minimum of f(x) + K*(decay x) / decay,
found by a scan of the plane.

    python bench/reproduce/optim/lion_k_trajectories.py docs/figures/lion_k.png
"""

import json
import math
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure

from largebatch.optim import LionK, kappa

STEPS, LR, WEIGHT_DECAY, NOISE = 400, 0.03, 1.0, 0.3
STARTS = (-2.6, 2.4), (2.2, -2.6), (-2.4, -2.2)
HESSIAN = torch.tensor([[1.0, 0.3], [0.3, 0.5]])
TARGET = torch.tensor([1.9, 1.2])
SHOWN = 0, 10, 30, 100, 400  # steps in the table
COLORS = "#0072b2", "#d55e00", "#009e73"
KAPPAS = {
    "l1 (Lion)": kappa.L1(),
    "huber, e = 1": kappa.Huber(1.0),
    "truncated l1, e = 0.8": kappa.TruncatedL1(0.8),
    "l2": kappa.L2(scale="none"),
    "lp, p = 4": kappa.Lp(4.0, scale="none"),
    "l_inf": kappa.LInf(scale="none"),
    "sorted l1, w = (1, 0.4)": kappa.SortedL1((1.0, 0.4)),
    "entropy, T = 0.5": kappa.Entropy(0.5),
}


def rate(step):
    """Return the learning rate: constant for half of the steps, then a line to 0."""
    return LR * min(1.0, 2 * (1 - step / STEPS))


def train(k, start, noise):
    """Return the weights before the first step and after each, ``[STEPS + 1, 2]``."""
    x = torch.nn.Parameter(torch.tensor(start))
    optimizer = LionK([x], lr=LR, weight_decay=WEIGHT_DECAY, kappa=k)
    path = [x.detach().clone()]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(step)
        x.grad = HESSIAN @ (x.detach() - TARGET) + noise[step]
        optimizer.step()
        path.append(x.detach().clone())
    return torch.stack(path)


def outline(k):
    """Return corners of the feasible set, in order: the projections of far points around it."""
    angles = torch.linspace(0, 2 * math.pi, 121).tolist()
    far = [torch.tensor([1e3 * math.cos(a), 1e3 * math.sin(a)]) for a in angles]
    return torch.stack([k.project(x, WEIGHT_DECAY) for x in far])


def minimum(k):
    """Return the minimum of the implicit objective: a scan, then finer ones around the best."""
    center, width = torch.zeros(2, dtype=torch.float64), 1.2
    hessian, target = HESSIAN.double(), TARGET.double()
    for _ in range(8):
        best, found = math.inf, center
        for dx in torch.linspace(-width, width, 9).tolist():
            for dy in torch.linspace(-width, width, 9).tolist():
                x = k.project(center + torch.tensor([dx, dy]), WEIGHT_DECAY)
                penalty = k.conjugate(WEIGHT_DECAY * x).item() / WEIGHT_DECAY
                value = ((x - target) @ hessian @ (x - target)).item() / 2 + penalty
                if value < best:
                    best, found = value, x
        center, width = found, width / 3
    return center


def distances(k, path):
    """Return the distance to the feasible set and its bound, at the steps shown."""
    start, bound, rows = k.distance(path[0], WEIGHT_DECAY).item(), 1.0, []
    for step in range(STEPS + 1):
        if step in SHOWN:
            rows.append((k.distance(path[step], WEIGHT_DECAY).item(), bound * start))
        bound *= 1 - rate(step) * WEIGHT_DECAY
    return rows


def draw(axes, name, k, paths, best):
    """Draw one panel."""
    edge = outline(k)
    axes.fill(edge[:, 0], edge[:, 1], facecolor="#dddddd", edgecolor="#888888")
    for path, color in zip(paths, COLORS, strict=True):
        axes.plot(path[:, 0], path[:, 1], color=color, linewidth=1)
        axes.plot(*path[0], "o", color=color, markersize=4)
    axes.plot(*TARGET, "+", color="black")
    axes.plot(*best, "x", color="black")
    axes.set_title(name, fontsize=9)
    axes.set_xlim(-3, 3)
    axes.set_ylim(-3, 3)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)


def main(path):
    """Run everything, print a table and write the figure and its numbers."""
    torch.set_num_threads(1)  # two weights
    noise = NOISE * torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0))
    chart = Figure(figsize=(9.2, 4.9), dpi=110, layout="constrained")
    panels = chart.subplots(2, 4).flat
    print(f"{'':24}distance to the feasible set (its bound) after k steps")
    print(
        f"{'':24}" + "".join(f"{f'k = {step}':>18}" for step in SHOWN) + f"{'end to minimum':>18}"
    )
    results = {}
    for axes, (name, k) in zip(panels, KAPPAS.items(), strict=True):
        paths = [train(k, start, noise) for start in STARTS]
        best = minimum(k)
        rows = distances(k, paths[0])
        ends = [(path[-1] - best).norm().item() for path in paths]
        cells = "".join(f"{f'{d:.2g} ({b:.2g})':>18}" for d, b in rows)
        print(f"{name:24}{cells}{max(ends):>18.1e}", flush=True)
        results[name] = {
            "kappa": k.as_dict(),
            "steps": SHOWN,
            "distance": [d for d, _ in rows],
            "bound": [b for _, b in rows],
            "minimum": best.tolist(),
            "ends": [path[-1].tolist() for path in paths],
        }
        draw(axes, name, k, paths, best)
    chart.savefig(path)
    Path(path).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lion_k.png")
