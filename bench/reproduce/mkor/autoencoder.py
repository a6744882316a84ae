# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/mkor.md: a deep autoencoder with a narrow middle, with and without MKOR.

Images are random cubic Bezier curves on 16 x 16 pixels; the network is 256-128-64-32-12 and back,
with ReLUs, and the loss the squared error of an image (the sum over pixels). All train for 1000
steps in batches of 256, with a learning rate that decays linearly to 0. Each method gets the best
of as many learning rates, spaced alike, chosen by the loss on a validation part in runs with seeds
of their own; what is printed and drawn is the loss on a test part in runs with other seeds.

"LAMB + dense K-FAC" is what MKOR approximates: whole covariances of inputs and output gradients,
averaged as MKOR averages and inverted every ten steps, with the best of three dampings at each
rate; the rest (the norm of the gradient restored, LAMB) is the same. MKOR-H is MKOR with
`hybrid=True`; the steps after which it switched are printed. LAMB alone is given twice the steps
too. The time is the processor's in a run, evaluations left out; the methods take turns.

    python bench/reproduce/mkor/autoencoder.py docs/figures/mkor_autoencoder.png
"""

import sys
import time
from itertools import pairwise
from statistics import fmean, median

import common  # leads to shared, too
import shared
import torch
from torch import nn

from largebatch.optim import LAMB, MKOR, param_groups
from largebatch.reference import mkor as reference
from largebatch.reference.kfac import kfac_inverses, kfac_update

SIZE, WIDTHS = 16, (256, 128, 64, 32, 12, 32, 64, 128, 256)
TRAIN, HELD_OUT = 24576, 2048
BATCH, STEPS, EVERY = 256, 1000, 20  # and a point of the curve every so many steps
TICKS = (2, 3, 4, 6, 8, 12, 18)
TUNING_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)


def curves(count, seed, width=0.7, points=96):
    """Return `count` images of random curves, ``[count, SIZE ** 2]`` with values in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    corners = SIZE * torch.rand(count, 4, 1, 2, generator=generator) - 0.5
    t = torch.linspace(0, 1, points).view(-1, 1)
    bezier = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    pixels = torch.arange(SIZE, dtype=torch.float32)
    images = []
    for path in (corners * bezier).sum(1).split(512):  # [512, points, 2]
        x, y = (-(((path[..., None] - pixels) / width) ** 2) / 2).unbind(2)
        images.append((x[:, :, None] + y[..., None]).amax(1).exp().flatten(1))
    return torch.cat(images)


def network():
    """Return the autoencoder; middle and output are linear.

    Of torch's default, He's and this initialisation, LAMB and SGD alone do best from this.
    """
    layers = []
    for i, (width, following) in enumerate(pairwise(WIDTHS)):
        linear = nn.Linear(width, following)
        nn.init.xavier_normal_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear] if i in (3, 7) else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def error(model, images):
    """Return the squared error of an image, the mean over images."""
    return (model(images) - images).square().sum() / len(images)


class KFAC:
    """largebatch.reference's dense K-FAC around an optimizer, in fp32 and damped by scale."""

    def __init__(self, model, optimizer, damping, gamma=0.95, update_every=10):
        self.optimizer, self.damping, self.gamma = optimizer, damping, gamma
        self.param_groups, self.zero_grad = optimizer.param_groups, optimizer.zero_grad
        self.update_every, self.steps = update_every, 0
        self.layers = [m for m in model if isinstance(m, nn.Linear)]
        self.rows, self.factors, self.inverses = {}, {}, {}
        for layer in self.layers:
            layer.register_forward_hook(self._forward)

    def _forward(self, layer, inputs, output):
        if torch.is_grad_enabled() and self.steps % self.update_every == 0:
            rows = nn.functional.pad(inputs[0].detach(), (0, 1), value=1.0)
            output.register_hook(lambda grad: self.rows.update({layer: (rows, grad)}))

    def _update(self, layer, rows, grads):
        gamma = self.gamma if layer in self.factors else 0.0  # the first batch counts in full
        orders = grads.shape[1], rows.shape[1]
        L, R = self.factors.setdefault(layer, [torch.zeros(d, d) for d in orders])
        kfac_update(L, R, rows, grads, gamma)
        # Scales go out of the step with its norm; the same damping then fits both.
        scaled = [M / M.diagonal().mean() for M in (L, R)]
        self.inverses[layer] = kfac_inverses(*scaled, self.damping)

    @torch.no_grad()
    def step(self):
        for layer in self.layers:
            if layer in self.rows:
                self._update(layer, *self.rows.pop(layer))
            grad = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
            new = reference.precondition(grad, *self.inverses[layer])
            new = reference.rescale(grad, new)
            layer.weight.grad, layer.bias.grad = new[:, :-1].contiguous(), new[:, -1].contiguous()
        self.optimizer.step()
        self.steps += 1


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr, momentum=0.9)


def lamb(model, lr):
    return LAMB(param_groups(model, weight_decay=0.01), lr=lr)


def mkor(**arguments):
    return lambda model, lr: MKOR(model, lamb(model, lr), **arguments)


def kfac(damping):
    return lambda model, lr: KFAC(model, lamb(model, lr), damping)


DAMPINGS = (1.0, 3.0, 10.0)  # times the mean of the diagonal
METHODS = {  # name: (ways to make it, learning rates, steps)
    "SGD": ({"": sgd}, common.rates(0.02), STEPS),
    "LAMB": ({"": lamb}, common.rates(0.01), STEPS),
    "LAMB, twice the steps": ({"": lamb}, common.rates(0.01), 2 * STEPS),
    "LAMB + MKOR": ({"": mkor()}, common.rates(0.01), STEPS),
    "LAMB + MKOR, right side": ({"": mkor(sides="R")}, common.rates(0.01), STEPS),
    "LAMB + MKOR-H": ({"": mkor(hybrid=True)}, common.rates(0.01), STEPS),
    "LAMB + dense K-FAC": (
        {f"damping {d:g}": kfac(d) for d in DAMPINGS}, common.rates(0.015), STEPS,
    ),
}  # fmt: skip


def run(make, lr, seed, train, held_out, steps=STEPS):
    """Train once; return (losses on `held_out` every EVERY steps, seconds, step of a switch)."""
    torch.manual_seed(seed)
    model = network()
    optimizer = make(model, lr)
    losses, seconds, switched = [], 0.0, None
    for step in range(steps + 1):
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                losses.append(error(model.eval(), held_out).item())
            model.train()
        if step == steps:
            break
        start = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        loss = error(model, train[torch.randint(len(train), (BATCH,))])
        loss.backward()
        if getattr(optimizer, "first_order", None) is False:
            optimizer.observe_loss(loss.item())
        optimizer.step()
        if switched is None and getattr(optimizer, "first_order", False):
            switched = step
        seconds += time.process_time() - start
    return losses, seconds, switched


def tune(ways, grid, steps, train, validation):
    """Return {(way, rate): mean validation loss of the seeds for tuning}."""
    return {
        (way, lr): fmean(
            run(make, lr, seed, train, validation, steps)[0][-1] for seed in TUNING_SEEDS
        )
        for way, make in ways.items()
        for lr in grid
    }


def main(path):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)  # the network is small: a second thread only waits
    train, validation, test = curves(TRAIN, 0), curves(HELD_OUT, 1), curves(HELD_OUT, 2)
    chosen, results = {}, {}
    for name, (ways, grid, steps) in METHODS.items():
        scores = tune(ways, grid, steps, train, validation)
        way, lr = shared.best(scores)
        chosen[name] = ways[way], lr, steps
        results[name] = {"lr": lr, "way": way, "validation": [[*k, v] for k, v in scores.items()]}
        note = shared.at_an_end(lr, grid)
        print(f"chosen for {name}: lr {lr:g} {way} {note}", flush=True)
    runs = {name: [] for name in METHODS}
    for seed in SEEDS:
        for name, (make, lr, steps) in chosen.items():
            runs[name].append(run(make, lr, seed, train, test, steps))
    chart, (axes,) = shared.figure()
    print(f"{'':26}{'test loss: mean (range)':>26}{'seconds':>9}")
    for name, (_, _, steps) in chosen.items():
        losses, seconds, switched = zip(*runs[name], strict=True)
        finals = [curve[-1] for curve in losses]
        note = " ".join(f"{s}" for s in switched if s)
        print(f"{name:26}{shared.spread(finals):>26}{median(seconds):>9.1f}  {note}")
        points = list(range(0, steps + 1, EVERY))
        if steps == STEPS:
            common.band(axes, points, losses, common.COLORS[name], name)
        results[name] |= {
            "test_loss": finals, "seconds": seconds, "switched_after": switched,
            "steps": points, "curves": losses,
        }  # fmt: skip
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.set_xlabel(f"steps, batches of {BATCH}")
    axes.set_ylabel("squared error of a test image")
    axes.legend(frameon=False, fontsize=8)
    shared.save(chart, path, results)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mkor_autoencoder.png")
