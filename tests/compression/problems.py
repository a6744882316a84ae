# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Problems on which compressed gradient descent is known to converge, or not to.

All ranks of a run are in one process, as the rows of one plan: each a record of its own, so that
one call compresses for all of them and another one decodes. Runs that are alike, with other seeds
or numbers of ranks, share a plan too.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

CSGD = dict(method="none")
EC = dict(method="feedback")
EF21 = dict(method="ef21")


def econtrol(eta):
    return dict(method="econtrol", eta=eta)


class Ranks:
    """The state of ranks that have one vector each, and a step of all of them."""

    def __init__(self, plan_type, method, record, rows, numel, device="cpu", dtype=torch.float64):
        def vectors(used=True):
            matrix = torch.zeros(rows if used else 0, numel, dtype=dtype, device=device)
            return matrix, list(matrix)

        def integers(*shape, dtype=torch.int64):
            return torch.zeros(shape, dtype=dtype, device=device)

        # Numbers that values are rounded by differ between ranks.
        self.plan = plan_type([numel] * rows, [{"id": i} | record for i in range(rows)])
        self.method, self.steps = method, 0
        name = method["method"]
        self.key, self._keys = vectors()
        self.error, errors = vectors(name in ("feedback", "econtrol"))
        self.shift, shifts = vectors(name in ("ef21", "econtrol"))
        self.momentum, momenta = vectors(method.get("beta") is not None)
        self.sent, self._sent = vectors()
        self._states = errors, shifts, momenta
        self._values = torch.zeros(self.plan.slots, dtype=dtype, device=device)
        self._indices, self._counts = integers(self.plan.slots), integers(rows, 2)
        self._payload = integers(1, self.plan.payload_bytes, dtype=torch.uint8)
        self._nonfinite = integers(1)
        on_cpu = torch.device(device).type == "cpu"
        self._host = None if on_cpu else torch.zeros(rows, numel, dtype=dtype)
        self.grads = (self.key if on_cpu else self._host).numpy()  # to be written before a step

    def step(self):
        """Return what is decoded of every rank: ``[rows, numel]``, an array."""
        if self._host is not None:
            self.key.copy_(self._host)
        keys, plan, method = self._keys, self.plan, self.method
        plan.encode(
            keys,
            keys,
            *self._states,
            method,
            self.steps,
            0,
            self._values,
            self._indices,
            self._counts,
            self._payload[0],
            None,
        )
        # As a world of one rank: the sum of each tensor is what its record decodes to.
        plan.decode(
            self._payload,
            0,
            keys,
            *self._states,
            self._sent,
            [],
            self._indices,
            method,
            self._nonfinite,
            None,
            False,
            True,
        )
        self.steps += 1
        return self.sent.cpu().numpy()


class Descent:
    """Runs of x <- x - lr u, u being the mean of what the ranks of the run sent, or H.

    Parameters
    ----------
    plan_type : type
    method, record : dict
    start : array
        ``[runs, numel]``
    run_of : array
        ``[rows]``: the run that a rank is in.
    lr : float
    """

    def __init__(self, plan_type, method, record, start, run_of, lr, **where):
        self.ranks = Ranks(plan_type, method, record, len(run_of), start.shape[1], **where)
        dtype = self.ranks.grads.dtype
        self.x, self.H = start.astype(dtype), np.zeros_like(start, dtype=dtype)
        self.run_of, self.lr = run_of, lr
        members = np.arange(len(start))[:, None] == run_of
        self.mean = (members / members.sum(axis=1, keepdims=True)).astype(dtype)
        self.shifted = self.ranks.shift.numel() > 0

    def step(self):
        """Move by the gradients in ``ranks.grads``."""
        update = self.mean @ self.ranks.step()
        if self.shifted:
            self.H += update
            update = self.H
        self.x -= self.lr * update

    def follow(self, problem, steps, until=None):
        """Take steps on a problem; stop early if `until` of x says so. Return ``self``."""
        for t in range(steps):
            problem.gradients(self.x, t, self.ranks.grads)
            self.step()
            if until is not None and t % 100 == 99 and until(self.x):
                break
        return self

    @property
    def state(self):
        """All that steps depend on: a list of tensors."""
        ranks = self.ranks
        own = [ranks.error, ranks.shift, ranks.momentum, ranks.sent]
        return [torch.from_numpy(self.x), torch.from_numpy(self.H), *(s.cpu() for s in own)]


class Crossed:
    """Three ranks whose largest coordinate points the wrong way: top-1 alone diverges."""

    def __init__(self):
        self.a = np.array([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]])
        self.start, self.run_of = np.ones((1, 3)), np.zeros(3, int)

    def gradients(self, x, t, out):
        np.multiply(2 * (self.a @ x[0])[:, None], self.a, out=out)
        out += x / 2


class LeastSquares:
    r"""f_i = |a_i x - b_i|^2 / 2 with optima that are apart by about `zeta`, one run per seed."""

    def __init__(self, zeta=100.0, ranks=5, numel=300, seeds=4):
        i = np.arange(1, ranks + 1)
        a = i / np.sqrt(ranks)
        b = np.stack(
            [
                np.random.default_rng(seed).standard_normal((ranks, numel)) * (zeta / i)[:, None]
                for seed in range(seeds)
            ]
        )
        self.optimum = np.einsum("i,sin->sn", a, b) / np.square(a).sum()
        self.start = self.optimum + 1 / np.sqrt(numel)
        self.run_of = np.repeat(np.arange(seeds), ranks)
        self.slope = np.tile(np.square(a), seeds)[:, None]
        self.offset = (a[:, None] * b).reshape(-1, numel)

    def gradients(self, x, t, out):
        np.multiply(self.slope, x[self.run_of], out=out)
        out -= self.offset

    def at_optimum(self):
        """Return the same problem, with gradients less those at the optimum."""
        other = object.__new__(LeastSquares)
        other.__dict__ |= self.__dict__
        other.offset = self.slope * self.optimum[self.run_of]
        return other

    def distance(self, x):
        """Return the squared distance of each run from its optimum."""
        return np.square(x - self.optimum).sum(axis=1)


class NoisyBowl:
    """|x|^2 / 2 in two dimensions, with the noise that EF21 cannot average; runs of any size."""

    BLOCK = 500  # steps whose noise is drawn at a time

    def __init__(self, worlds, seed=0):
        self.start = np.tile([0.0, -0.01], (len(worlds), 1))
        self.run_of = np.repeat(np.arange(len(worlds)), worlds)
        self.points = np.sqrt(0.3) * np.array([[2.0, 0], [0, 1], [-2, -1]])
        self.random = np.random.default_rng(seed)

    def gradients(self, x, t, out):
        if t % self.BLOCK == 0:
            draws = self.random.integers(3, size=(self.BLOCK, len(self.run_of)))
            self.noise = self.points[draws]
        np.add(x[self.run_of], self.noise[t % self.BLOCK], out=out)


class Targets:
    """f_i = |x - b_i|^2 / 2: what the ranks that are there agree on is the mean of their b."""

    def __init__(self, ranks=8, numel=100):
        self.b = 5 * np.random.default_rng(0).standard_normal((ranks, numel))
        self.start, self.run_of = np.zeros((1, numel)), np.zeros(ranks, int)

    def without_last(self):
        other = object.__new__(Targets)
        other.b, other.start, other.run_of = self.b[:-1], self.start, self.run_of[:-1]
        return other

    def gradients(self, x, t, out):
        np.subtract(x, self.b, out=out)

    def distance(self, x):
        return np.linalg.norm(x[0] - self.b.mean(axis=0))


class Logistic:
    """Logistic regression with a penalty that is not convex, on ranks that see few labels.

    Rows are sorted by label and split over the ranks.
    """

    PENALTY = 0.05

    def __init__(self, X, y, ranks=10):
        order = np.argsort(y, kind="stable")[: len(y) // ranks * ranks]
        self.parts = [(X[rows], y[rows][:, None]) for rows in np.split(order, ranks)]
        self.start, self.run_of = np.zeros((1, X.shape[1])), np.zeros(ranks, int)

    @classmethod
    def synthetic(cls, numel=120, rows=4000, seed=0):
        random = np.random.default_rng(seed)
        X = (random.random((rows, numel)) < 0.11).astype(float)
        margin = X @ random.standard_normal(numel) + 0.5 * random.standard_normal(rows)
        return cls(X, np.where(margin < 0, -1.0, 1.0))

    @classmethod
    def from_libsvm(cls, name):
        """Read a file of the LIBSVM collection from the directory LARGEBATCH_LIBSVM_DATA."""
        datasets = pytest.importorskip("sklearn.datasets")
        path = Path(os.environ.get("LARGEBATCH_LIBSVM_DATA", "")) / name
        if "LARGEBATCH_LIBSVM_DATA" not in os.environ or not path.exists():
            pytest.skip(f"needs {name} of the LIBSVM collection in LARGEBATCH_LIBSVM_DATA")
        X, y = datasets.load_svmlight_file(str(path))
        return cls(X.tocsr(), np.where(y > 0, 1.0, -1.0))

    def gradients_of_all(self, descents):
        """Write the gradients of one-run descents: the data is read once for all of them."""
        x = np.concatenate([d.x for d in descents]).T  # [numel, descents]
        penalty = 2 * self.PENALTY * x / np.square(1 + np.square(x))
        for rank, (X, y) in enumerate(self.parts):
            weight = y / (1 + np.exp(y * (X @ x)))
            grads = penalty - (X.T @ weight) / len(y)
            for column, descent in enumerate(descents):
                descent.ranks.grads[rank] = grads[:, column]
