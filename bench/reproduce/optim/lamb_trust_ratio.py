# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/lamb.md: the trust ratio of every matrix while `largebatch demo` trains with LAMB.

The ratio is taken from outside of the optimizer: the norm of a matrix before a step over the norm
of the update u that its state gives after the step.

    python bench/reproduce/optim/lamb_trust_ratio.py docs/figures/lamb.png
"""

import sys

import torch
from matplotlib.figure import Figure

from largebatch.cli.demo import data, train
from largebatch.cli.demo.model import ByteTransformer
from largebatch.optim import LAMB, param_groups

STEPS = 120
COLORS = {  # by what a matrix does
    "bytes": "#000000",
    "positions": "#999999",
    "qkv": "#0072b2",
    "projection": "#56b4e9",
    "expand": "#d55e00",
    "contract": "#e69f00",
    "head": "#009e73",
}


def update_norm(state, weights, group):
    """Return the norm of LAMB's update u of one tensor, from its state after the step."""
    beta1, beta2 = group["betas"]
    step = state["step"].item()
    mean = state["exp_avg"] / (1 - beta1**step)
    deviation = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt()
    return (mean / (deviation + group["eps"]) + group["weight_decay"] * weights).norm().item()


def main(path):
    """Train as the demo does, recording ratios; print the last ones and write the figure."""
    torch.set_num_threads(1)  # two threads wait for each other where a processor is not free
    device = torch.device("cpu")
    settings = train.Settings(
        device, batch=256, micro_batch=64, steps=STEPS, seed=0, layers=2, width=128, context=64
    )
    corpus = data.load()
    torch.manual_seed(settings.seed)
    model = ByteTransformer(settings.layers, settings.width, settings.context)
    recipe = train.RECIPES["lamb"]
    optimizer = LAMB(param_groups(model, recipe.weight_decay), lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: train.schedule(s, STEPS))
    matrices = {n.removesuffix(".weight"): p for n, p in model.named_parameters() if p.ndim > 1}
    ratios = {name: [] for name in matrices}
    draws = torch.Generator().manual_seed(settings.seed)
    for _ in range(STEPS):
        batch = data.sample(corpus.train, settings.batch, settings.context, draws)
        train.accumulate_gradients(model, batch, settings)
        before = {name: p.detach().clone() for name, p in matrices.items()}
        optimizer.step()
        scheduler.step()
        for name, parameter in matrices.items():
            norm = update_norm(optimizer.state[parameter], before[name], optimizer.param_groups[0])
            ratios[name].append(before[name].norm().item() / norm)

    chart = Figure(figsize=(6.4, 4), dpi=110, layout="constrained")
    axes = chart.subplots()
    for name, values in ratios.items():
        kind = name.rsplit(".", 1)[-1]
        second = name.startswith("blocks.1")
        axes.plot(
            range(1, STEPS + 1), values, "--" if second else "-", color=COLORS[kind], label=name
        )
        print(f"{name:22} first {values[0]:.4f}  last {values[-1]:.4f}")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("trust ratio  ‖p‖ / ‖u‖")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    chart.savefig(path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "lamb.png")
