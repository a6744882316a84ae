# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/mkor.md: time of a step, and loss, against how often the factors are updated.

Time: the small BERT of bert_bytes.py, LAMB alone and around it MKOR with `update_every` from 1 to
100, in one process on one thread. They take turns, a block of 20 steps each, or of `update_every`
if that is more; what is printed is the median over the blocks of a step's mean. What a step is made
of is from single steps: preconditioning is what `step()` takes longer than LAMB's where no update
is due, an update what it takes longer still where one is; forward and backward pass, with and
without statistics to take, are timed beside. All is the time of the processor.

Loss: the autoencoder of autoencoder.py, at the one learning rate given, which is the best for
`update_every=10`, the default: the others are not tuned. Range over three seeds.

    python bench/reproduce/mkor/frequency.py docs/figures/mkor_frequency.png
"""

import sys
import time
from statistics import fmean, median

import autoencoder
import bert_bytes
import common  # leads to shared, too
import shared
import torch

from largebatch.cli.demo import data

EVERY = (1, 2, 5, 10, 20, 50, 100)
BLOCK, ROUNDS = 20, 20
RATE, SEEDS = 0.02, (0, 1, 2)  # of the autoencoder


class Trained:
    """A small BERT and its optimizer, of which steps are timed."""

    def __init__(self, make, every, text):
        torch.manual_seed(0)
        self.model = bert_bytes.Encoder(bert_bytes.LAYERS, bert_bytes.WIDTH, bert_bytes.CONTEXT)
        self.optimizer, self.every = make(self.model, 0.01), every
        self.generator, self.text = torch.Generator().manual_seed(0), text
        self.steps, self.blocks, self.length = 0, [], max(BLOCK, every or 0)
        self.passes, self.updates = ([], []), ([], [])  # without, with an update of the factors

    def step(self):
        """Take a step; return its seconds."""
        self.optimizer.zero_grad()
        batch = bert_bytes.draw(self.text, bert_bytes.BATCH, self.generator)
        start = time.process_time()
        bert_bytes.loss(self.model, *batch).backward()
        middle = time.process_time()
        self.optimizer.step()
        end = time.process_time()
        due = self.every is not None and self.steps % self.every == 0
        self.passes[due].append(middle - start)
        self.updates[due].append(end - middle)
        self.steps += 1
        return end - start

    def block(self):
        self.blocks.append(fmean(self.step() for _ in range(self.length)))


def times():
    """Return the optimizers, timed in turn, by `update_every`; that of LAMB alone is None."""
    text = data.load().train
    trained = {None: Trained(bert_bytes.lamb, None, text)}
    for every in EVERY:
        trained[every] = Trained(bert_bytes.mkor(update_every=every), every, text)
    for one in trained.values():
        one.block()
        for measured in (one.blocks, *one.passes, *one.updates):
            measured.clear()  # the first steps allocate
    for _ in range(ROUNDS):
        for one in trained.values():
            if len(one.blocks) * one.length < BLOCK * ROUNDS:
                one.block()
    return trained


def shares(trained):
    """Return medians in ms of what a step is made of: {name: ms}."""
    kinds = {None: (trained[None],), "mkor": [trained[e] for e in EVERY]}

    def middle(kind, what, due):
        return 1e3 * median(s for one in kinds[kind] for s in getattr(one, what)[due])

    lamb = middle(None, "updates", 0)
    without, moving = (middle("mkor", "updates", due) for due in (0, 1))
    return {
        "passes, LAMB": middle(None, "passes", 0),
        "passes, no update due": middle("mkor", "passes", 0),
        "passes, update due": middle("mkor", "passes", 1),
        "LAMB.step": lamb,
        "preconditioning": without - lamb,
        "factor update": moving - without,
    }


def final_losses():
    """Return {update_every: test losses of the autoencoder, one a seed}."""
    train = autoencoder.curves(autoencoder.TRAIN, 0)
    test = autoencoder.curves(autoencoder.HELD_OUT, 2)
    return {
        every: [
            autoencoder.run(autoencoder.mkor(update_every=every), RATE, seed, train, test)[0][-1]
            for seed in SEEDS
        ]
        for every in EVERY
    }


def draw(alone, rows):
    """Return the figure."""
    chart, (left, right) = shared.figure(2, width=8.4, height=3.6)
    left.axhline(alone, color=common.COLORS["LAMB"], linestyle="--", label="LAMB alone")
    color = common.COLORS["LAMB + MKOR"]
    left.plot(EVERY, [row["milliseconds"] for row in rows], "o-", color=color, label="LAMB + MKOR")
    left.set_ylim(0, 1.15 * max(row["milliseconds"] for row in rows))
    left.set_ylabel("ms a step, small BERT")
    left.legend(frameon=False, loc="lower left")
    by_seed = list(zip(*(row["loss"] for row in rows), strict=True))
    common.band(right, EVERY, by_seed, color, "LAMB + MKOR", marker="o")
    right.set_ylabel("squared error, autoencoder")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(EVERY, [str(every) for every in EVERY])
        axes.minorticks_off()
        axes.set_xlabel("update_every")
    return chart


def main(path):
    """Run everything, print a table, write figure and JSON."""
    torch.set_num_threads(1)
    trained = times()
    parts = shares(trained)
    for name, milliseconds in parts.items():
        print(f"{name:24}{milliseconds:>8.2f} ms")
    alone = 1e3 * median(trained[None].blocks)
    print(f"\n{'update_every':24}{'ms a step':>10}{'over LAMB':>11}"
          f"{'loss of the autoencoder':>28}")  # fmt: skip
    print(f"{'LAMB alone':24}{alone:>10.2f}", flush=True)
    losses = final_losses()
    rows = []
    for every in EVERY:
        milliseconds = 1e3 * median(trained[every].blocks)
        rows.append({"update_every": every, "milliseconds": milliseconds, "loss": losses[every]})
        print(f"{every:<24}{milliseconds:>10.2f}{100 * (milliseconds / alone - 1):>10.1f}%"
              f"{shared.spread(losses[every]):>28}")  # fmt: skip
    chart = draw(alone, rows)
    shared.save(chart, path, {"lamb_milliseconds": alone, "parts": parts, "rows": rows})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mkor_frequency.png")
