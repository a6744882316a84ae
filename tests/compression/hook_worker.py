# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of two processes that train with a compression hook; started by test_hook_workers.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from largebatch import _comm
from largebatch.compression import DGC, EF21, EControl, ErrorFeedback, TopK
from tests.compression.hook_setting import (
    LONG,
    METHODS,
    RESUMED,
    Half,
    Partial,
    Training,
    batch,
    error_of,
    images,
    loss_of,
    network,
)

WORLD, CLIP = 2, 0.1


class Wire:
    """Watches what is gathered, and may change it."""

    def __init__(self, spoil=None):
        self.sizes, self._spoil = [], spoil

    def __enter__(self):
        self._before = _comm.all_gather

        def watched(payloads, payload, **options):
            self.sizes.append(payload.numel() * payload.element_size())
            work = self._before(payloads, payload, **options)
            if self._spoil is not None and payload.dtype == torch.uint8:
                work.wait()
                payloads[self._spoil] ^= 1
            return work

        _comm.all_gather = watched
        return self

    def __exit__(self, *_):
        _comm.all_gather = self._before


# ---- What is done --------------------------------------------------------------------------------


def methods(rank):
    found = {}
    for name, make in METHODS.items():
        training = Training(make(), rank, views=name == "ef21")
        training.steps(range(12), micro=1 + (name == "dgc"))
        found[name] = (training.result(), training.roles())
    found["channels last"] = (Training(METHODS["ef21"](), rank, images).steps(range(12)).result(),)
    half = Training(METHODS["econtrol"](), rank, Half).steps(range(12))
    found["half"] = (half.result(), half.roles())
    long = Training(METHODS["econtrol"](), rank).steps(range(LONG))
    long.hook.check_sync()
    return found | {"long": (long.result(), long.losses)}


def resumed(rank, folder):
    found = {}
    for name in RESUMED:
        straight = Training(METHODS[name](), rank).steps(range(6))
        saved = {k: v.clone() for k, v in straight.model.state_dict().items()}
        torch.save(straight.hook.state_dict(), Path(folder) / f"state{rank}.pt")
        straight.steps(range(6, 12))
        again = Training(METHODS[name](), rank)
        again.hook.load_state_dict(torch.load(Path(folder) / f"state{rank}.pt"))
        again.model.load_state_dict(saved)
        found[name] = (straight.result(), again.steps(range(6, 12)).result())
    return found


def scaled(rank):
    """Train with losses as they are, and with a scale that changes."""
    plain = Training(METHODS["econtrol-m"](), rank).steps(range(10))
    other = Training(METHODS["econtrol-m"](), rank, loss_scale=lambda: other.scale)
    for t in range(10):
        other.scale = 2.0 ** (t % 3 + 3)
        other.step(t)
    dgc = DGC(TopK(ratio=0.05), clip=0.1, min_numel=100)
    clipped = [Training(dgc, rank).steps(range(6)).result()]
    third = Training(dgc, rank, loss_scale=lambda: 8)
    third.scale = 8.0
    clipped.append(third.steps(range(6)).result())
    return [plain.result(), other.result()], [plain.roles(), other.roles()], clipped


def clipped(rank):
    """Return the momentum, which is the gradient, after a step that is clipped."""
    dgc = DGC(TopK(ratio=0.05), momentum=0.0, masking=False, clip=CLIP, min_numel=100)
    return Training(dgc, rank).steps(range(3)).roles()


def with_scaler(rank):
    """Train with a GradScaler, some gradients of rank 1 not finite, the first of them at once."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=4)
    training = Training(METHODS["feedback"](), rank, loss_scale=scaler)
    training.scaler, found = scaler, []
    for t in range(10):
        before = training.result()
        training.step(t, spoil=rank == 1 and t in (1, 5))
        found.append((torch.equal(before, training.result()), scaler.get_scale()))
    return found, training.result(), training.hook.nonfinite


def skipped(rank):
    """Return the state around a step that is skipped, of several buckets."""
    found = {}
    for name in ("feedback", "econtrol", "dgc clipped"):
        training = Training(METHODS[name](), rank).steps(range(4))
        before, state = training.result(), training.roles()
        spoilt = training.model[4].weight if rank == 1 else None
        handle = spoilt.register_hook(lambda g: g * torch.inf) if rank == 1 else None
        training.step(4)
        if handle:
            handle.remove()
        counts = training.hook.nonfinite
        found[name] = (before, training.result(), state, training.roles(), counts)
    return found


def unused(rank):
    """Return the state around steps in which rank 1 has not used a layer."""

    def loss(model, generator, rank):
        x = torch.randn(32, 20, generator=generator)
        x[0, 0] += 2000.0 * (rank == 1)
        return (model(x)[1:, 0] - x[1:, rank]).square().mean()

    found = {}
    for name, method in (
        ("econtrol", EControl(TopK(ratio=0.1), min_numel=50)),
        ("bucket", ErrorFeedback(TopK(ratio=0.1, scope="bucket"), min_numel=50)),
        ("dgc", DGC(TopK(ratio=0.1), min_numel=50)),
    ):
        training = Training(method, rank, Partial, unused=True, freeze_unused=True)
        training.steps(range(5))  # both ranks use it
        before = training.roles()
        training.steps(range(5, 8), loss_of=loss)
        found[name] = (before, training.roles(), training.result())
    return found


def refused(rank):
    def two_models():
        training = Training(METHODS["ef21"](), rank)
        other = DistributedDataParallel(network())
        other.register_comm_hook(None, training.hook)
        loss_of(other, batch(0, rank), rank).backward()

    def twice():
        training = Training(METHODS["ef21"](), rank)
        training.ddp.register_comm_hook(None, training.hook)

    def options():
        Training(METHODS["ef21"](), rank, start_step=2 + rank).step(0)

    def method():
        Training(EControl(TopK(k=5), eta=0.001 * (1 + rank), min_numel=100), rank).step(0)

    def compressor():
        Training(EF21(TopK(ratio=0.05 + 0.01 * rank), min_numel=100), rank).step(0)

    def raises():
        training = Training(METHODS["feedback"](), rank, nonfinite="raise").steps(range(3))
        training.step(3, spoil=rank == 1)

    def changed():
        training = Training(METHODS["ef21"](), rank, checksum=True).steps(range(4))
        with Wire(spoil=-20):
            training.step(4)

    calls = [two_models, twice, options, method, compressor, raises, changed]
    return {call.__name__: error_of(call) for call in calls}


def wire(rank):
    """Return the bytes of each collective in two steps that are compressed."""
    found = {}
    for name in ("econtrol", "ef21", "feedback int4"):
        training = Training(METHODS[name](), rank).steps(range(3))
        with Wire() as seen:
            training.steps(range(3, 5))
        found[name] = seen.sizes
    return found


def started_late(rank):
    """Return what is there after the last dense step has a gradient that is not finite."""
    training = Training(METHODS["econtrol"](), rank)
    for t in range(6):
        training.step(t, spoil=rank == 0 and t == 1)
        if t == 2:
            begun = training.hook.started
    return begun, training.hook.started, training.roles(), training.result()


def dropped(rank):
    training = Training(METHODS["econtrol"](), rank, nonfinite="drop").steps(range(3))
    training.step(3, spoil=rank == 1)
    return training.result(), training.hook.nonfinite


def sparse(rank):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.top = nn.Embedding(30, 20, sparse=True), nn.Linear(20, 10)

        def forward(self, x):
            return self.top(self.words(x)).mean(dim=1)

    def loss(model, generator, rank):
        return model(torch.randint(30, (4, 6), generator=generator)).square().mean()

    training = Training(METHODS["ef21"](), rank, Words)
    training.hook.method.min_numel = 10
    results = []
    for t in range(5):
        generator = batch(t, rank)
        training.optimizer.zero_grad()
        loss(training.ddp, generator, rank).backward()
        training.optimizer.step()
        results.append(training.model.words.weight.detach().clone())
    return results, list(training.roles())


def epochs(rank):
    """Return the bytes of a step of each epoch of a warm-up."""
    method = DGC(TopK(ratio=0.02), warmup=(0.5, 0.1), min_numel=100)
    training = Training(method, rank).steps(range(3))
    found = []
    for epoch in range(3):
        method.set_epoch(epoch)
        training.step(3 + 2 * epoch)
        with Wire() as seen:
            training.step(4 + 2 * epoch)
        found.append(sum(seen.sizes))
    return found, training.result()


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    results = {
        "methods": methods(rank),
        "resumed": resumed(rank, folder),
        "scaled": scaled(rank),
        "clipped": clipped(rank),
        "scaler": with_scaler(rank),
        "skipped": skipped(rank),
        "unused": unused(rank),
        "wire": wire(rank),
        "late": started_late(rank),
        "dropped": dropped(rank),
        "sparse": sparse(rank),
        "epochs": epochs(rank),
        "checksum": Training(METHODS["ef21"](), rank, checksum=True).steps(range(12)).result(),
        "refused": refused(rank),
    }
    dist.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
