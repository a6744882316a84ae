# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Networks, methods, and training with a compression hook."""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from largebatch.compression import (
    DGC,
    EF21,
    BlockTopK,
    EControl,
    ErrorFeedback,
    Quantize,
    RandomK,
    Sign,
    TopK,
)

METHODS = {
    "econtrol": lambda: EControl(TopK(ratio=0.05), min_numel=100),
    "econtrol-m": lambda: EControl(TopK(ratio=0.1, values="bfloat16"), momentum=0.2, min_numel=100),
    "econtrol k": lambda: EControl(TopK(k=30), min_numel=100),
    "ef21": lambda: EF21(BlockTopK(k=4, block=64), min_numel=100),
    "ef21 signs": lambda: EF21(Sign(), momentum=0.3, min_numel=100),
    "feedback": lambda: ErrorFeedback(TopK(ratio=0.05, scope="bucket"), min_numel=100),
    "feedback random": lambda: ErrorFeedback(RandomK(ratio=0.1), min_numel=100),
    "feedback int4": lambda: ErrorFeedback(Quantize(bits=4, block=64), momentum=0.5, min_numel=100),
    "feedback by rate": lambda: ErrorFeedback(
        TopK(k=20), scale_residual_by_lr_ratio=True, min_numel=100
    ),
    "dgc": lambda: DGC(TopK(ratio=0.05), momentum=0.5, min_numel=100),
    "dgc clipped": lambda: DGC(
        TopK(ratio=0.05), momentum=0.5, nesterov=True, masking=False, clip=1e9, min_numel=100
    ),
}
RESUMED = ["econtrol-m", "ef21", "feedback", "feedback random", "feedback int4", "dgc"]
LONG = 300


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 60), nn.Tanh(), nn.Linear(60, 40), nn.Tanh(),
                         nn.Linear(40, 1))  # fmt: skip


def images():
    """Return a network with a convolution whose weight lies in another order of memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (5, 2, 2)), nn.Conv2d(5, 30, 2), nn.Flatten(),
                          nn.Linear(30, 1))  # fmt: skip
    return model.to(memory_format=torch.channels_last)


class Half(nn.Module):
    """The network with weights in bf16."""

    def __init__(self):
        super().__init__()
        self.net = network().bfloat16()

    def forward(self, x):
        return self.net(x.bfloat16()).float()


class Partial(nn.Module):
    """A network of which rank 1 uses one part only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.both, self.first = nn.Linear(20, 10), nn.Linear(20, 10)
        self.top, self.never = nn.Linear(10, 1), nn.Linear(20, 10)

    def forward(self, x):
        y = self.both(x)
        if x[0, 0] < 1000:
            y = y + self.first(x)
        return self.top(y.tanh())


def batch(t, rank):
    """Return the generator that the data of a step of a rank is from."""
    return torch.Generator().manual_seed(10 * t + rank)


def loss_of(model, generator, rank):
    x = torch.randn(32, 20, generator=generator)
    return (model(x)[:, 0] - x[:, rank]).square().mean()


def rate(t):
    return 0.05 if t < 8 else 0.02


class Training:
    """A small network whose ranks see different data, in several buckets."""

    def __init__(
        self, method, rank, build=network, views=False, unused=False, group=None, **options
    ):
        self.model = build()
        self.wrap(group, views, unused)
        if getattr(method, "scale_residual_by_lr_ratio", False):
            options["lr"] = lambda: self.optimizer.param_groups[0]["lr"]
        self.hook = method.hook(self.ddp, process_group=group, **options)
        self.ddp.register_comm_hook(None, self.hook)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.rank, self.losses, self.scaler, self.scale = rank, [], None, 1.0

    def wrap(self, group=None, views=False, unused=False):
        self.ddp = DistributedDataParallel(
            self.model,
            process_group=group,
            bucket_cap_mb=0.006,
            gradient_as_bucket_view=views,
            find_unused_parameters=unused,
        )

    def step(self, t, micro=1, spoil=False, loss_of=loss_of):
        generator = batch(t, self.rank)
        self.optimizer.param_groups[0]["lr"] = rate(t)
        self.optimizer.zero_grad()
        for m in range(micro):
            with self.ddp.no_sync() if m < micro - 1 else nullcontext():
                loss = loss_of(self.ddp, generator, self.rank)
                if spoil:
                    loss = loss * torch.inf
                (self.scaler.scale(loss) if self.scaler else loss * self.scale).backward()
        self.losses.append(loss.item())
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        if all(g.isfinite().all() for g in grads):
            torch._foreach_div_(grads, self.scale)
            self.optimizer.step()

    def steps(self, times, **options):
        for t in times:
            self.step(t, **options)
        return self

    def result(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def roles(self):
        """Return {name: {role: tensor}}, copied."""
        state = self.hook.state
        return {
            name: {role: t.clone() for role, t in state[p].items()}
            for name, p in self.model.named_parameters()
            if p in state
        }


def error_of(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
