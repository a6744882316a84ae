# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan in a training loop: handwritten digits in batches of a third of the data set.

Needs scikit-learn for the data: pip install scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import Adan, param_groups

BATCH, EPOCHS, WARMUP = 512, 20, 6  # warm-up in steps

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32, device=device).view(-1, 1, 8, 8)
labels = torch.tensor(labels, device=device)
order = torch.randperm(len(images), device=device)
train, test = order[:1500], order[1500:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    nn.Flatten(), nn.Linear(64 * 9, 10),
).to(device)  # fmt: skip

# Biases and norms: no decay. The recipe of Adan's authors for the rest is 0.02, at every size.
optimizer = Adan(param_groups(model, weight_decay=0.02), lr=0.02, max_grad_norm=5.0)
steps = EPOCHS * len(train.split(BATCH))
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min((step + 1) / WARMUP, (1 - step / steps) ** 2)
)

for epoch in range(1, EPOCHS + 1):
    model.train()
    for batch in train[torch.randperm(len(train), device=device)].split(BATCH):
        loss = cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    if epoch % 5 == 0:
        model.eval()
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == labels[test]).float().mean()
        norm = optimizer.grad_norm.item()
        print(
            f"epoch {epoch:2}  loss {loss.item():.3f}  gradient norm {norm:.2f}  "
            f"test accuracy {right.item():.1%}"
        )
