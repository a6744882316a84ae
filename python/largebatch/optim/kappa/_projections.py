# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Nearest points of convex sets, float64. Sets given by rows treat every row by itself."""

import torch

_HALVINGS = 1100  # of an interval of doubles: ends earlier, when no number is left in between


def simplex(rows):
    """Return the nearest rows that are >= 0 and sum to 1."""
    ordered = rows.sort(dim=1, descending=True).values
    excess = ordered.cumsum(dim=1) - 1
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    support = (ordered * count > excess).sum(dim=1, keepdim=True)
    theta = excess.gather(1, support - 1) / support
    return (rows - theta).clamp(min=0)


def l1_ball(rows):
    """Return the nearest rows whose magnitudes sum to at most 1."""
    magnitude = rows.abs()
    inside = magnitude.sum(dim=1, keepdim=True) <= 1
    return torch.where(inside, rows, torch.sign(rows) * simplex(magnitude))


def l2_ball(rows, norms):
    """Return the nearest rows of norm at most 1, given their norms ``[rows, 1]``."""
    return rows / norms.clamp(min=1)


def lq_ball(y, q):
    """Return the nearest vector with q-norm at most 1, 1 < q < inf, by bisection.

    Optimality says x + mu x^(q-1) = |y| elementwise for some mu >= 0: bisect for mu, and within
    that for every x.
    """
    magnitude = y.abs()
    if not lq_norm(magnitude, q) > 1:
        return y

    def shrunk(mu):
        low, high = torch.zeros_like(magnitude), magnitude
        for _ in range(60):
            x = (low + high) / 2
            above = x + mu * x ** (q - 1) > magnitude
            low, high = torch.where(above, low, x), torch.where(above, x, high)
        return (low + high) / 2

    high = 1.0
    while lq_norm(shrunk(high), q) > 1:
        high *= 2
    mu = bisect(lambda mu: lq_norm(shrunk(mu), q) > 1, 0.0, high)
    return torch.sign(y) * shrunk(mu)


def lq_norm(x, q):
    """Return the q-norm of all elements."""
    largest = x.abs().max()
    return largest * ((x.abs() / torch.where(largest == 0, 1.0, largest)) ** q).sum() ** (1 / q)


def capped_l1_ball(y, k):
    """Return the nearest vector with max |z| <= 1 and sum |z| <= k."""
    magnitude = y.abs()
    theta = 0.0
    if magnitude.clamp(max=1).sum() > k:
        theta = bisect(
            lambda theta: (magnitude - theta).clamp(0, 1).sum() > k, 0.0, magnitude.max().item()
        )
    return torch.sign(y) * (magnitude - theta).clamp(0, 1)


def signed_permutahedron(y, weights):
    """Return the nearest vector whose j largest magnitudes sum to at most w1 + .. + wj, all j.

    Moreau: y minus the proximal point of the sorted l1 norm, which is an isotonic regression of
    sorted |y| - w, cut off at 0 (Bogdan et al. 2015, arXiv 1407.3824).
    """
    magnitude, order = y.abs().sort(descending=True)
    proximal = torch.empty_like(y)
    proximal[order] = decreasing(magnitude - weights).clamp(min=0)
    return torch.sign(y) * (y.abs() - proximal)


def decreasing(y):
    """Return the nearest vector that does not increase: pool adjacent violators."""
    sums, counts = [], []
    for value in y.tolist():
        total, count = value, 1
        while sums and sums[-1] * count <= total * counts[-1]:
            total += sums.pop()
            count += counts.pop()
        sums.append(total)
        counts.append(count)
    means = y.new_tensor([s / c for s, c in zip(sums, counts, strict=True)])
    return means.repeat_interleave(torch.tensor(counts, device=y.device))


def bisect(too_small, low, high):
    """Return where a decreasing condition turns from true to false, to the last bit."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if too_small(middle):
            low = middle
        else:
            high = middle
    return high
