# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Figure of docs/mkor.md: bytes that a factor update of MKOR sends, against the width of a layer.

Two gloo processes on the loopback interface have a linear layer of width d to d, without and with a
bias, and take steps in each of which the factors are updated. Counted are the bytes that each rank
hands to collectives of ``torch.distributed`` during ``step()``, all of which are listened to, and
those that the interface carries, headers and acknowledgements included, for both ranks together,
less those of as many barriers alone; the least of some repetitions, as others use it too.
Gradients are not averaged here: that is DDP's, and sends 4 d^2 bytes with or without MKOR.

What K-FAC would send is not measured but a formula: 4 d^2 numbers, two covariances and two inverses
(the paper's table), in fp32.

    python bench/reproduce/mkor/wire.py docs/figures/mkor_wire.png
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import common  # noqa: F401, leads to shared
import shared
import torch
import torch.distributed as dist

from largebatch.optim import MKOR

WIDTHS = (64, 128, 256, 512, 1024, 2048)
STEPS, REPEATS = 5, 3
COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_to_all",
    "all_to_all_single", "batch_isend_irecv", "broadcast", "broadcast_object_list", "gather",
    "irecv", "isend", "recv", "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter",
    "send",
)  # fmt: skip


class Ear:
    """Listens to all collectives: counts the bytes of their tensors, and the calls."""

    def __init__(self):
        self.bytes = self.calls = 0
        for name in COLLECTIVES:
            setattr(dist, name, self._listening(getattr(dist, name)))

    def _listening(self, collective):
        def call(tensor, *args, **kwargs):
            self.bytes += tensor.nbytes  # a list of tensors raises: none is sent
            self.calls += 1
            return collective(tensor, *args, **kwargs)

        return call


def steps(optimizer, model, x, count, moving=True):
    """Take steps between barriers; return the bytes that the interface carried meanwhile."""
    before = shared.interface_bytes()
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        dist.barrier()
        if moving:
            optimizer.step()
        dist.barrier()
    return None if before is None else shared.interface_bytes() - before


def measure(ear, width, bias):
    """Return what there is to say of one layer."""
    torch.manual_seed(0)
    model, x = torch.nn.Linear(width, width, bias=bias), torch.randn(8, width)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer = MKOR(model, sgd, update_every=1)
    steps(optimizer, model, x, 1)  # connections are made
    wire = []
    for _ in range(REPEATS):
        idle = steps(optimizer, model, x, STEPS, moving=False)
        ear.bytes = ear.calls = 0
        busy = steps(optimizer, model, x, STEPS)
        wire.append(None if idle is None else (busy - idle) / STEPS)
    handed, calls = ear.bytes / STEPS, ear.calls / STEPS
    optimizer = MKOR(model, sgd, update_every=1000)
    steps(optimizer, model, x, 1)  # the one that updates
    ear.bytes = 0
    steps(optimizer, model, x, STEPS)
    return {
        "width": width, "bias": bias, "handed": handed, "calls": calls,
        "carried": None if wire[0] is None else min(wire),
        "between": ear.bytes, "kfac_formula": 16 * width**2,
    }  # fmt: skip


def child(rank, folder):
    """Measure all widths as one of two ranks; rank 0 saves what it finds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ear = Ear()
    rows = [measure(ear, width, bias) for bias in (True, False) for width in WIDTHS]
    if rank == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def main(path):
    """Start both ranks, print a table, write figure and JSON."""
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank), folder], env=environment) for rank in (0, 1)
        ]
        if any([rank.wait(timeout=600) for rank in ranks]):
            raise SystemExit("one of the ranks failed")
        rows = json.loads((Path(folder) / "rows.json").read_text())
    print(f"{'bytes per update: d':>20}{'bias':>6}{'handed over':>13}{'in calls':>10}"
          f"{'carried':>10}{'between updates':>17}{'K-FAC (formula)':>17}")  # fmt: skip
    for row in rows:
        carried = "?" if row["carried"] is None else f"{row['carried']:.0f}"
        print(f"{row['width']:>20}{'yes' if row['bias'] else 'no':>6}{row['handed']:>13.0f}"
              f"{row['calls']:>10g}{carried:>10}{row['between']:>17}"
              f"{row['kfac_formula']:>17}")  # fmt: skip
    chart, (axes,) = shared.figure()
    formula = [16 * width**2 for width in WIDTHS]
    axes.plot(WIDTHS, formula, "--", color="#555555", label="K-FAC, $4 d^2$ numbers (formula)")
    for bias, color in ((False, "#0072b2"), (True, "#56b4e9")):
        own = [row for row in rows if row["bias"] == bias]
        label = f"MKOR, layer with{'' if bias else 'out'} bias"
        axes.plot(WIDTHS, [row["handed"] for row in own], "o-", color=color, label=label)
        if all(row["carried"] for row in own):
            label = "  on the interface, both ranks"
            axes.plot(WIDTHS, [row["carried"] for row in own], ":", color=color, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes.set_xlabel("width d of a layer")
    axes.set_ylabel("bytes per factor update, fp32")
    axes.legend(frameon=False, fontsize=8)
    shared.save(chart, path, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        child(int(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "mkor_wire.png")
