# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM in a training loop: two heads on one backbone, each with a learning rate of its own.

Handwritten digits are named and their ink is counted, in batches of four micro-batches. Needs
scikit-learn for the data: pip install scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from largebatch.optim import AGVM

BATCH, MICRO, EPOCHS, WARMUP = 512, 4, 40, 12  # warm-up in steps

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32, device=device).view(-1, 1, 8, 8)
labels = torch.tensor(labels, device=device)
ink = images.mean(dim=(1, 2, 3))[:, None]
order = torch.randperm(len(images), device=device)
train, test = order[:1500], order[1500:]

model = nn.ModuleDict(
    {
        "backbone": nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(),
        ),
        "digit": nn.Linear(32 * 9, 10),
        "ink": nn.Linear(32 * 9, 1),
    }
).to(device)  # fmt: skip

# The modules are those of the dict; what they are compared with is the backbone, whose rate stays.
sgd = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
optimizer = AGVM(sgd, dict(model.items()), anchor="backbone", interval=2, warmup=WARMUP)
steps = EPOCHS * len(train.split(BATCH))
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min((step + 1) / WARMUP, (1 - step / steps) ** 2)
)

for epoch in range(1, EPOCHS + 1):
    for batch in train[torch.randperm(len(train), device=device)].split(BATCH):
        for micro in batch.chunk(MICRO):
            features = model["backbone"](images[micro])
            loss = cross_entropy(model["digit"](features), labels[micro])
            loss = loss + mse_loss(model["ink"](features), ink[micro])
            (loss / MICRO).backward()
            optimizer.micro_batch()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    if epoch % 10 == 0:
        model.eval()
        with torch.no_grad():
            named = model["digit"](model["backbone"](images[test])).argmax(1)
        model.train()
        right = (named == labels[test]).float().mean().item()
        factors = {name: round(mu.item(), 2) for name, mu in optimizer.factors.items()}
        print(f"epoch {epoch}  loss {loss.item():.3f}  factors {factors}  accuracy {right:.1%}")
