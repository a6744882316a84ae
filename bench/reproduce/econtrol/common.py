# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments of this folder share, beside what all do: methods, ranks in one process."""

import sys
from pathlib import Path

import torch

from largebatch.compression import EF21, Dense, EControl, ErrorFeedback, traffic

sys.path.insert(0, str(Path(__file__).parents[1]))  # shared.py is beside this folder

# After Okabe and Ito, whom the colour-blind can tell apart; with momentum dashed as well.
STYLES = {
    "SGD": dict(color="#555555"),
    "SGD-M": dict(color="#000000", linestyle="--"),
    "no feedback": dict(color="#e69f00"),
    "EC": dict(color="#d55e00"),
    "EF21": dict(color="#56b4e9"),
    "EF21-SGDM": dict(color="#0072b2", linestyle="--"),
    "EControl": dict(color="#cc79a7"),
    "EControl-M": dict(color="#009e73", linestyle="--"),
}


def methods(compressor, momentum=0.1, **options):
    """Return the methods with feedback, by name; EControl's gain is the default, delta/2."""
    return {
        "EC": ErrorFeedback(compressor, **options),
        "EF21": EF21(compressor, **options),
        "EF21-SGDM": EF21(compressor, momentum=momentum, **options),
        "EControl": EControl(compressor, **options),
        "EControl-M": EControl(compressor, momentum=momentum, **options),
    }


def uncompressed(values):
    """Return SGD as a method: all of the gradient is sent."""
    return ErrorFeedback(Dense(values=values), min_numel=0)


class Ranks:
    """Ranks in one process: what each would do by itself, with payloads handed over as they are.

    Runs that do not know of each other, with other seeds or learning rates, are the tensors that a
    rank has: one call encodes for all of them. As in DistributedDataParallel the first gradients
    are sent whole, and the state begins with them.

    Attributes
    ----------
    sent : int
        Bytes of the payloads of a rank for one run, up to now.
    """

    def __init__(self, method):
        self.method, self.states, self.sent = method, [], 0

    def step(self, grads):
        """Take gradients ``[ranks, runs, numel]`` in fp64; return the update, ``[runs, numel]``."""
        if not self.states:
            return self._start(grads)
        payloads = [self.method.encode(s, list(g)) for s, g in zip(self.states, grads, strict=True)]
        received = torch.stack(payloads)
        updates = [self.method.decode(state, received) for state in self.states]
        self.sent += received.shape[1] // grads.shape[1]  # records are alike
        return torch.stack(updates[0])

    def _start(self, grads):
        mean = grads.mean(dim=0)
        for rank, own in enumerate(grads):
            state = self.method.init(list(own), rank=rank, world=len(grads))
            for role, values in (("shifts", own), ("momenta", own), ("means", mean)):
                if getattr(state, role):
                    setattr(state, role, list(values.clone()))
            self.states.append(state)
        self.sent += traffic(uncompressed("float64"), [mean[0]], len(grads)).payload
        return mean


def rounded(results):
    """Return the same with floats of six digits."""
    if isinstance(results, float):
        return float(f"{results:.6g}")
    if isinstance(results, dict):
        return {key: rounded(value) for key, value in results.items()}
    return [rounded(r) for r in results] if isinstance(results, list | tuple) else results
