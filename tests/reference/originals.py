# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The published LAMB formulas, each in the form of its source, in NumPy float64.

Second opinions on the oracle, so nothing here is shared with it or with one another. Each function
takes the whole model, ``update(ps, gs, ms, vs, t, lr)`` with t counted from 1, and returns new
``(ps, ms, vs)``.
"""

import numpy as np

BETA1, BETA2 = 0.9, 0.999


def paper(ps, gs, ms, vs, t, lr, decay=0.01, eps=1e-6, corrected=True):
    """You et al., Algorithm 2; ``corrected=False`` is the third version of the paper."""
    out = []
    for x, g, m, v in zip(ps, gs, ms, vs, strict=True):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        m_hat = m / (1 - BETA1**t) if corrected else m
        v_hat = v / (1 - BETA2**t) if corrected else v
        direction = m_hat / (np.sqrt(v_hat) + eps) + decay * x
        norm_x, norm_d = np.linalg.norm(x), np.linalg.norm(direction)
        trust = norm_x / norm_d if norm_x > 0 and norm_d > 0 else 1.0
        out.append((x - lr * trust * direction, m, v))
    return tuple(map(list, zip(*out, strict=True)))


def paper_v3(ps, gs, ms, vs, t, lr):
    return paper(ps, gs, ms, vs, t, lr, corrected=False)


def nvlamb(ps, gs, ms, vs, t, lr, decay=0.01, eps=1e-6, limit=1.0):
    """NVIDIA apex, FusedLAMB(use_nvlamb=True): global clip first, then every tensor adapted."""
    total = np.sqrt(sum(np.sum(g * g) for g in gs))
    clip = total / limit if total > limit else 1.0
    return paper(ps, [g / clip for g in gs], ms, vs, t, lr, decay, eps)


def lambc(ps, gs, ms, vs, t, lr, decay=0.01, eps=1e-6, limit=1.0):
    """Fong et al. 2020: the ratio bounded by 1 from above, after apex's clip."""
    total = np.sqrt(sum(np.sum(g * g) for g in gs))
    out = []
    for x, g, m, v in zip(ps, gs, ms, vs, strict=True):
        g = g / max(total / limit, 1.0)
        m = m + (1 - BETA1) * (g - m)
        v = v + (1 - BETA2) * (g * g - v)
        step = (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + eps) + decay * x
        bound = min(np.linalg.norm(x) / np.linalg.norm(step), 1.0)
        out.append((x - lr * bound * step, m, v))
    return tuple(map(list, zip(*out, strict=True)))


def deepspeed(ps, gs, ms, vs, t, lr, decay=0.0, eps=1e-8, low=0.01, high=10.0):
    """DeepSpeed FusedLamb: raw moments, bounded ratio, bias correction on the step size."""
    step_size = lr * np.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    out = []
    for x, g, m, v in zip(ps, gs, ms, vs, strict=True):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        update = m / (np.sqrt(v) + eps) + decay * x
        norm_x, norm_u = np.sqrt(np.sum(x * x)), np.sqrt(np.sum(update * update))
        coeff = 1.0
        if norm_x != 0 and norm_u != 0:
            coeff = min(max(norm_x / norm_u, low), high)
        out.append((x - step_size * coeff * update, m, v))
    return tuple(map(list, zip(*out, strict=True)))


PRESETS = {"paper_v3": paper_v3, "nvlamb": nvlamb, "lambc": lambc, "deepspeed": deepspeed}
