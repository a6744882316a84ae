# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion in a training loop, its momentum in 8 bits: predict the next byte of Python source."""

import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import Lion, param_groups

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

# A rate 3 to 10 times below AdamW's, a decay as much above it: every weight moves by lr a step.
optimizer = Lion(param_groups(model, weight_decay=0.1), lr=2e-3, state_dtype="int8")
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
        print(f"step {step:3}  loss {loss.item():.3f} nats/byte")

state = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
weights = sum(p.numel() for p in model.parameters())
print(f"{state / weights:.2f} bytes of state per weight")
