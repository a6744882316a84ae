# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LAMB in a training loop: predict the next byte of Python source from the sixteen before it."""

import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import LAMB, param_groups

CONTEXT, BATCH, STEPS, WARMUP = 16, 4096, 120, 12

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
text = torch.frombuffer(bytearray(b"".join(s.read_bytes() for s in sources)), dtype=torch.uint8)

model = nn.Sequential(
    nn.Embedding(256, 32),
    nn.Flatten(),
    nn.Linear(CONTEXT * 32, 256),
    nn.LayerNorm(256),
    nn.GELU(),
    nn.Linear(256, 256),
).to(device)

# Biases and norms: no decay, trust ratio 1. Matrices: decay 0.01, step scaled to their norm.
optimizer = LAMB(param_groups(model, weight_decay=0.01), lr=0.02)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
)

for step in range(1, STEPS + 1):
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1))
    windows = text[starts + torch.arange(CONTEXT + 1)].long().to(device)
    loss = cross_entropy(model(windows[:, :-1]), windows[:, -1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 20 == 0:
        norm = optimizer.grad_norm.item()
        print(f"step {step:3}  loss {loss.item():.3f} nats/byte  gradient norm {norm:.2f}")
