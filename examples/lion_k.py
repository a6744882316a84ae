# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion-K: the same regression under four convex functions, each with weights of another kind.

2000 noisy samples of a linear map, of whose 64 inputs only 8 matter. The weight decay sets the size
of the set that confines the weights, the convex function its shape.
"""

import torch

from largebatch.optim import LionK, kappa

STEPS, BATCH = 600, 256
INPUTS, OUTPUTS, RELEVANT = 64, 16, 8

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
truth = torch.zeros(OUTPUTS, INPUTS, device=device)
truth[:, :RELEVANT] = torch.randn(OUTPUTS, RELEVANT, device=device)
x = torch.randn(2000, INPUTS, device=device)
y = x @ truth.T + torch.randn(2000, OUTPUTS, device=device)

KAPPAS = {
    "box": (kappa.L1(), 0.25),  # |w| <= 4
    "sparse": (kappa.TruncatedL1(e=0.01), 0.25),  # the same box, and a penalty 0.01 |w|
    "rows": (kappa.GroupLasso(axis="row"), 1.0),  # every output's weights: RMS <= 1
    "spectrum": (kappa.Nuclear(), 0.8),  # largest singular value <= 8 / 0.8 = 10
}

print("            error of the weights   weights below 0.01   distance from the feasible set")
for name, (k, weight_decay) in KAPPAS.items():
    weight = torch.nn.Parameter(torch.zeros(OUTPUTS, INPUTS, device=device))
    optimizer = LionK([weight], lr=0.02, weight_decay=weight_decay, kappa=k)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), device=device)
        loss = (x[rows] @ weight.T - y[rows]).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    error = (weight.detach() - truth).norm() / truth.norm()
    zeros = (weight.abs() < 0.01).float().mean()
    distance = k.distance(weight, weight_decay)
    print(f"{name:10}  {error:20.1%}   {zeros:18.1%}   {distance:30.1e}")
