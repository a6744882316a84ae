# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train with MKOR; started by test_mkor_workers.py."""

import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from largebatch.optim import LAMB, MKOR
from tests.optim import mkor_setting as setting
from tests.optim.mkor_setting import flat, loss_of

WORLD, STEPS = 2, 5
RULE = dict(beta=0.5, interval=1, patience=1, min_steps=2, momentum=0.0)
CURVES = ([9.0, 5.0, 3.0, 2.9, 2.8], [9.0, 8.0, 7.0, 6.0, 5.0])  # only the first levels off


class Partial(nn.Module):
    """A network with layers that only some of the rows go through, by a mark in the input."""

    def __init__(self):
        super().__init__()
        self.net = setting.network()
        self.extra = nn.Linear(4, 4)
        self.bare = nn.Linear(4, 4, bias=False)
        self.patch = nn.Conv2d(2, 4, 3)  # the other rank does not even know its output's size

    def forward(self, x):
        marked = x[:, 0, 0, 0] > 100
        y = self.net(x.clamp(max=100))
        if marked.any():
            rows = self.bare(self.extra(y[marked]).tanh())
            rows = rows + self.patch(x[marked].clamp(max=1)).mean(dim=(2, 3))
            y = y.index_add(0, marked.nonzero()[:, 0], rows)
        return y


def partial_network():
    torch.manual_seed(6)
    return Partial()


def given(micro=1, marked=False):
    """Return the batches of all ranks: [step][micro][rank]."""
    size = 6
    steps = []
    for x, y in setting.batches(STEPS, size * WORLD * micro):
        if marked:
            x[:size, 0, 0, 0] = 200.0
        parts = list(zip(x.split(size), y.split(size), strict=True))
        steps.append([parts[j * WORLD : (j + 1) * WORLD] for j in range(micro)])
    return steps


def result(mkor, model, **others):
    return {
        "params": [p.detach().clone() for p in model.parameters()],
        "factors": flat(mkor.factors),
        **others,
    }


def ddp_of(model, **options):
    return DistributedDataParallel(model, bucket_cap_mb=0.001, **options)


def steps_of(mkor, ddp, batches, before_step=None):
    """Take a step for each of the batches, all micro-batches but the last under no_sync."""
    rank = dist.get_rank()
    for micro in batches:
        for j, parts in enumerate(micro):
            last = j == len(micro) - 1
            with nullcontext() if last else ddp.no_sync():
                (loss_of(ddp, parts[rank]) / len(micro)).backward()
        if before_step is not None:
            before_step(mkor)
        mkor.step()
        mkor.zero_grad()


def train(model, batches, kind="SGD", before_step=None, unused=False, inner=False, **options):
    ddp = ddp_of(model, find_unused_parameters=unused)
    mkor = MKOR(
        model if inner else ddp, setting.backend_of(kind, model), **dict(update_every=2) | options
    )
    steps_of(mkor, ddp, batches, before_step)
    mkor.check_sync()
    return result(mkor, model, layers=list(mkor.layers), state=mkor.state_dict())


# ---- Communication -------------------------------------------------------------------------------

COLLECTIVES = [
    name
    for name in dir(dist)
    if name.startswith(("all_", "broadcast", "reduce", "gather", "scatter", "send", "isend"))
    and callable(getattr(dist, name))
]


@contextmanager
def counted():
    """Yield a list of (function, bytes) of what is called in torch.distributed meanwhile."""
    calls, originals = [], {name: getattr(dist, name) for name in COLLECTIVES}
    modules = (dist, dist.distributed_c10d)

    def wrap(name, function):
        def call(*args, **kwargs):
            tensors = [t for t in (*args, *kwargs.values()) if torch.is_tensor(t)]
            calls.append((name, sum(t.numel() * t.element_size() for t in tensors)))
            return function(*args, **kwargs)

        return call

    for name, function in originals.items():
        for module in modules:
            if hasattr(module, name):
                setattr(module, name, wrap(name, function))
    try:
        yield calls
    finally:
        for name, function in originals.items():
            for module in modules:
                if hasattr(module, name):
                    setattr(module, name, function)


def traffic(early=False, **options):
    """Return what each of the steps sends, besides the gradients that DDP sends by itself."""
    model = setting.network()
    ddp = ddp_of(model)
    mkor = MKOR(ddp, setting.sgd(model), update_every=2, **options)
    found = []
    with counted() as calls:
        for batches in given():
            calls.clear()
            steps_of(mkor, ddp, [batches], (lambda m: m.reduce_statistics()) if early else None)
            found.append(list(calls))
    return found


def local_statistics():
    """Return the statistics of this rank before anything is reduced."""
    model = setting.network()
    mkor = MKOR(model, setting.sgd(model))
    loss_of(model, given()[0][0][dist.get_rank()]).backward()
    return flat(mkor.statistics())


def given_up():
    """Begin to reduce a batch, drop it while the other rank is late, and train without it."""
    results = []
    for drop in (False, True):
        model = setting.network()
        ddp = ddp_of(model)
        mkor = MKOR(ddp, setting.sgd(model), update_every=2)
        steps_of(mkor, ddp, given()[:2])  # DDP waits for the other rank in its first two
        if drop:
            loss_of(ddp, setting.batches(1, 6, seed=9)[0]).backward()
            if dist.get_rank() == 1:
                time.sleep(0.3)
            mkor.reduce_statistics()
            mkor.zero_grad()
        steps_of(mkor, ddp, given()[2:])
        results.append(result(mkor, model))
    return results


def names():
    """Return what layers are called in models wrapped one way and the other."""
    wrapped = [
        torch.compile(ddp_of(setting.network()), backend="eager"),
        ddp_of(torch.compile(setting.network(), backend="eager")),
    ]
    return [list(MKOR(model, setting.sgd(model)).layers) for model in wrapped]


def alone():
    """Train with a process group of one rank: nothing is averaged."""
    groups = [dist.new_group([rank]) for rank in range(WORLD)]
    model = setting.network()
    mkor = MKOR(model, setting.sgd(model), update_every=2, process_group=groups[dist.get_rank()])
    for step in given():
        loss_of(model, step[0][dist.get_rank()]).backward()
        mkor.step()
        mkor.zero_grad()
    mkor.check_sync()
    return result(mkor, model)


def disturbed(side):
    """Change one bit of one factor on one rank; return what each of them is told."""
    model = setting.network()
    ddp = ddp_of(model)
    mkor = MKOR(ddp, setting.sgd(model), update_every=2)
    steps_of(mkor, ddp, given()[:2])
    mkor.check_sync()
    if dist.get_rank() == 1:
        corner = mkor.factors["body"][side][-1:, -1:]
        corner.view(torch.int32).bitwise_xor_(1)
    try:
        mkor.check_sync()
    except RuntimeError as error:
        return str(error)
    return None


def hybrid():
    """Return after which steps each rank has switched, with losses that differ."""
    model = setting.network()
    ddp = ddp_of(model)
    mkor = MKOR(ddp, setting.sgd(model), update_every=1, hybrid=RULE)
    found = []
    for loss, batches in zip(CURVES[dist.get_rank()], given(), strict=True):
        steps_of(mkor, ddp, [batches], lambda m, loss=loss: m.observe_loss(loss))
        found.append(mkor.first_order)
    return result(mkor, model, switched=found)


# ---- Sharded parameters --------------------------------------------------------------------------


WIDTHS = (6, 7, 5, 4)  # of layers, divided by two ranks evenly and unevenly
NARROW = (6, 7, 1, 4)  # the second rank has nothing of the second layer


def sharded_batches():
    return setting.batches(STEPS, 8, shape=(6,))


def fsdp(kind, micro=1, widths=WIDTHS, **options):
    """Train layers that FSDP2 splits by rows, on half of the batch each.

    All micro-batches but the last keep their gradients whole.
    """
    model, mesh = setting.chain(*widths), init_device_mesh("cpu", (WORLD,))
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer, mesh=mesh)
    optimizer = backend_of(kind, model.parameters())
    mkor = MKOR(model, optimizer, sides="R", update_every=2, **options)
    for batch in sharded_batches():
        for j, part in enumerate(zip(*(t.chunk(micro) for t in batch), strict=True)):
            model.set_requires_gradient_sync(j == micro - 1)
            own = [t.chunk(WORLD)[dist.get_rank()] for t in part]
            (loss_of(model, own) / micro).backward()
        grads = [p.grad for p in model.parameters()]
        mkor.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        mkor.zero_grad()
    return {"params": [p.full_tensor() for p in model.parameters()], "factors": flat(mkor.factors)}


def backend_of(kind, params):
    if kind == "SGD":
        return torch.optim.SGD(params, lr=0.02, momentum=0.9, foreach=False)
    return LAMB(params, lr=0.01)


def by_hand(model, mesh, placements):
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            module.register_parameter(
                name, nn.Parameter(distribute_tensor(p.detach(), mesh, placements))
            )
    return model


def refusals():
    """Return what is said to parameters that are sharded in ways that are not supported."""
    line, square = init_device_mesh("cpu", (WORLD,)), init_device_mesh("cpu", (WORLD, 1))
    cases = {
        "both sides": (line, [Shard(0)], "LR"),
        "left side": (line, [Shard(0)], "L"),
        "columns": (line, [Shard(1)], "R"),
        "mesh": (square, [Shard(0), Replicate()], "R"),
    }
    said = {}
    for name, (mesh, placements, sides) in cases.items():
        model = nn.Sequential(nn.Linear(6, 4, bias=False))
        model = by_hand(model, mesh, placements)
        try:
            MKOR(model, torch.optim.SGD(model.parameters(), lr=0.1), sides=sides)
        except ValueError as error:
            said[name] = (str(error), setting.count_hooks(model))
    return said


def main(rank, folder):
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    early = dict(before_step=lambda mkor: mkor.reduce_statistics())
    results = {
        "ddp": train(setting.network(), given()),
        "early": train(setting.network(), given(), **early),
        "inner model": train(setting.network(), given(), inner=True),
        "lamb": train(setting.network(), given(), "LAMB"),
        "exact": train(setting.network(), given(), variant="exact", stats="grad"),
        "accumulating": train(setting.network(), given(3)),
        "accumulating early": train(setting.network(), given(3), **early),
        "partial": train(partial_network(), given(marked=True), unused=True),
        "traffic": [traffic(early) for early in (False, True)],
        "traffic of gradients": traffic(stats="grad"),
        "local": local_statistics(),
        "alone": alone(),
        "disturbed": [disturbed(side) for side in "LR"],
        "hybrid": hybrid(),
        "fsdp SGD": fsdp("SGD"),
        "fsdp LAMB": fsdp("LAMB"),
        "fsdp accumulating": fsdp("SGD", micro=2),
        "fsdp gradients": fsdp("SGD", stats="grad"),
        "refusals": refusals(),
        "given up": given_up(),
        "names": names(),
    }
    try:  # last: should one rank fail, the other one loses its connection
        results["fsdp narrow"] = fsdp("SGD", widths=NARROW)
    except RuntimeError as error:
        results["fsdp narrow"] = {"params": [], "factors": [], "error": str(error)}
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
