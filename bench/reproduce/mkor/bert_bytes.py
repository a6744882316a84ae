# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/mkor.md: how many steps a small BERT needs with LAMB, MKOR and MKOR-H.

A bidirectional transformer (two layers of width 96) learns to tell hidden bytes of the Python
standard library's sources from the bytes around: 15 in 100 are hidden, all of them behind one
symbol, in windows of 32, 64 windows a batch. The question is the paper's: in how many steps do MKOR
and MKOR-H reach the loss that LAMB reaches in 400? A shorter run is not the beginning of a longer
one: the schedule (warm-up over a tenth, then a line to 0) is made shorter with it, and LAMB itself
is given the shorter schedules too, which the paper's comparison lacks.

All get the best of as many learning rates for the shortest and for the longest run; the one between
takes that of the longest. They are chosen by the loss on one half of the validation bytes in runs
with a seed of their own; what is printed and drawn is the loss on the other half with other seeds.
Steps between the lengths tried are by a line through the losses of the seed; "-" is not reached.
The time is the processor's for one step, the median of each run's mean.

    python bench/reproduce/mkor/bert_bytes.py docs/figures/mkor_bert_bytes.png
"""

import math
import platform
import sys
import time
from itertools import pairwise
from statistics import fmean, median

import common  # leads to shared, too
import shared
import torch
import torch.nn.functional as F

from largebatch.cli.demo import data, model
from largebatch.cli.demo.train import schedule
from largebatch.optim import LAMB, MKOR, param_groups

LAYERS, WIDTH, CONTEXT, BATCH = 2, 96, 32, 64
MASK, SHARE = 1, 0.15  # no source has the byte 1
LENGTHS = (240, 320, 400)
RATES = common.rates(0.014, count=5)
TUNING_SEED, SEEDS = 100, (0, 1, 2)
WINDOWS = 1024


class Encoder(model.ByteTransformer):
    """The demo's transformer with attention to both sides."""

    def forward(self, text, hidden):
        """Return logits ``[hidden bytes, 256]`` for bytes ``[batch, context]``."""
        x = self.bytes(text.masked_fill(hidden, MASK)) + self.positions.weight
        for block in self.blocks:
            x = attend(block, x)
            x = x + block.contract(F.gelu(block.expand(block.mlp_norm(x))))
        return self.head(self.norm(x[hidden]))


def attend(block, x):
    """Return x with a block's attention added, which is causal in the demo."""
    qkv = block.qkv(block.attention_norm(x)).unflatten(2, (3, block.heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v)
    return x + block.projection(mixed.transpose(1, 2).flatten(2))


def loss(encoder, text, hidden):
    """Return the mean cross-entropy of the hidden bytes, in nats."""
    return F.cross_entropy(encoder(text, hidden), text[hidden])


def draw(text, batch, generator):
    """Return windows ``[batch, CONTEXT]`` and which of their bytes are hidden."""
    windows = data.sample(text, batch, CONTEXT - 1, generator)
    return windows, torch.rand(windows.shape, generator=generator) < SHARE


def lamb(encoder, lr):
    return LAMB(param_groups(encoder, weight_decay=0.01), lr=lr)


def mkor(**arguments):
    """Return how to make MKOR, which leaves the head over the vocabulary out as its authors do."""
    return lambda encoder, lr: MKOR(encoder, lamb(encoder, lr), skip="^head$", **arguments)


METHODS = {"LAMB": lamb, "LAMB + MKOR": mkor(), "LAMB + MKOR-H": mkor(hybrid=True)}


def run(make, lr, steps, seed, text, held_out):
    """Train once; return (bits per hidden byte of `held_out`, seconds a step, step of a switch)."""
    torch.manual_seed(seed)
    encoder = Encoder(LAYERS, WIDTH, CONTEXT)
    optimizer = make(encoder, lr)
    generator = torch.Generator().manual_seed(seed)
    switched, start = None, time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step, steps)
        optimizer.zero_grad()
        value = loss(encoder, *draw(text, BATCH, generator))
        value.backward()
        if getattr(optimizer, "first_order", None) is False:
            optimizer.observe_loss(value.detach())
        optimizer.step()
        if switched is None and getattr(optimizer, "first_order", False):
            switched = step
    seconds = (time.process_time() - start) / steps
    with torch.no_grad():
        return loss(encoder, *held_out).item() / math.log(2), seconds, switched


def reached(target, losses):
    """Return in how many steps losses at LENGTHS come down to a target, or None."""
    if losses[0] <= target:
        return LENGTHS[0]
    for (early, above), (late, below) in pairwise(zip(LENGTHS, losses, strict=True)):
        if below <= target < above:
            return round(early + (late - early) * (above - target) / (above - below))
    return None


def main(path):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)  # the model is small: a second thread only waits
    corpus = data.load()
    fixed = torch.Generator().manual_seed(0)
    halves = corpus.validation.split(-(-len(corpus.validation) // 2))
    chosen_on, reported_on = (draw(half, WINDOWS, fixed) for half in halves)
    results, rates = {"python": platform.python_version()}, {}
    for name, make in METHODS.items():
        results[name] = {"validation": []}
        for steps in (LENGTHS[0], LENGTHS[-1]):
            scores = {
                lr: run(make, lr, steps, TUNING_SEED, corpus.train, chosen_on)[0] for lr in RATES
            }
            lr = rates[name, steps] = shared.best(scores)
            results[name]["validation"] += [[steps, *item] for item in scores.items()]
            note = shared.at_an_end(lr, RATES)
            print(f"chosen for {name}, {steps} steps: lr {lr:g} {note}", flush=True)
    runs = {}
    for seed in SEEDS:
        for steps in LENGTHS:
            for name, make in METHODS.items():
                lr = rates.get((name, steps), rates[name, LENGTHS[-1]])
                found = run(make, lr, steps, seed, corpus.train, reported_on)
                runs.setdefault((name, steps), []).append(found)
    target = fmean(bits for bits, _, _ in runs["LAMB", LENGTHS[-1]])
    chart, (axes,) = shared.figure()
    axes.axhline(target, color="#888888", linestyle=":", linewidth=1)
    print(f"bits per hidden byte: mean (range); LAMB reaches {target:.3f}")
    head = "".join(f"{f'{steps} steps':>24}" for steps in LENGTHS)
    print(f"{'':14}{head}{'steps to LAMB':>24}{'ms a step':>11}  switched")
    for name in METHODS:
        by_seed = list(zip(*(runs[name, steps] for steps in LENGTHS), strict=True))
        losses = [[bits for bits, _, _ in own] for own in by_seed]
        needed = [reached(target, own) for own in losses]
        cells = [shared.spread(at, ".3f") for at in zip(*losses, strict=True)]
        cells.append(shared.spread(needed, ".0f") if None not in needed else
                     ", ".join("-" if n is None else str(n) for n in needed))  # fmt: skip
        milliseconds = 1e3 * median(s for own in by_seed for _, s, _ in own)
        switched = [[step for _, _, step in own] for own in by_seed]
        text = "".join(f"{cell:>24}" for cell in cells) + f"{milliseconds:>11.1f}"
        print(f"{name:14}{text}  {switched if name.endswith('-H') else ''}")
        common.band(axes, LENGTHS, losses, common.COLORS[name], name, marker="o")
        results[name] |= {
            "lr": [rates.get((name, n), rates[name, LENGTHS[-1]]) for n in LENGTHS],
            "steps": LENGTHS, "bits": losses, "steps_to_lamb": needed,
            "milliseconds": milliseconds, "switched_after": switched,
        }  # fmt: skip
    axes.set_xticks(LENGTHS)
    axes.set_xlabel(f"steps of the whole schedule, batches of {BATCH} x {CONTEXT} bytes")
    axes.set_ylabel("bits per hidden byte, after the last step")
    axes.legend(frameon=False)
    shared.save(chart, path, results)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mkor_bert_bytes.png")
