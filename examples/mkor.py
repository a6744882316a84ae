# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR in a training loop: LAMB on handwritten digits, its gradients preconditioned.

Needs scikit-learn for the data: pip install scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from largebatch.optim import LAMB, MKOR, param_groups

BATCH, EPOCHS = 512, 40

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32, device=device).view(-1, 1, 8, 8)
labels = torch.tensor(labels, device=device)
order = torch.randperm(len(images), device=device)
train, test = order[:1500], order[1500:]

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(inplace=True),
    nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(inplace=True),
    nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(inplace=True), nn.Linear(64, 10),
).to(device)  # fmt: skip

# MKOR takes the place of the optimizer it is given: in schedulers, loss scalers, checkpoints. Its
# factors are updated in every tenth step, and in each of the first ten. With hybrid it goes on with
# LAMB alone once the loss falls slowly; it is told the loss for that.
lamb = LAMB(param_groups(model, weight_decay=0.01), lr=0.04)
optimizer = MKOR(
    model, lamb, update_every=10, warmup_steps=10, hybrid={"interval": 10, "min_steps": 40}
)
steps = EPOCHS * len(train.split(BATCH))
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
print("preconditioned:", ", ".join(optimizer.layers))

for epoch in range(1, EPOCHS + 1):
    for batch in train[torch.randperm(len(train), device=device)].split(BATCH):
        optimizer.zero_grad()
        loss = cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.observe_loss(loss)
        optimizer.step()
        scheduler.step()
    if epoch % 10 == 0:
        model.eval()
        with torch.no_grad():
            right = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
        model.train()
        way = "LAMB alone" if optimizer.first_order else "preconditioned"
        print(f"epoch {epoch}  loss {loss.item():.4f}  accuracy {right:.1%}  {way}")
