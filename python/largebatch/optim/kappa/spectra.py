# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
r"""Functions of the singular values; they are matrix products and step through torch ops.

A tensor of more than two dimensions is the matrix of its rows, ``[n, rest]``; one of less than two
is a single row.
"""

import math
from dataclasses import dataclass

import torch

from ._base import Kappa, check_scale, number, one_of, refuse, unit
from .elementwise import L1, Huber, Power

# x -> a x + b x^3 + c x^5 on every singular value. The first three numbers are those of Jordan et
# al. 2024, "Muon": steep at 0; what has once come to [0.68, 1.21] stays there.
_STEEP = 3.4445, -4.7750, 2.0315
_STEEP_STEPS = 8  # brings up to there what is at least 1e-4 of the Frobenius norm
# (15 x - 10 x^3 + 3 x^5) / 8 is flat at 1 up to the second derivative: three times from 0.68 or
# 1.21 leaves 1e-9 and 1e-13.
_FLAT = 15 / 8, -10 / 8, 3 / 8
_FLAT_STEPS = 3


def matrix(v):
    """Return the matrix that a tensor stands for."""
    return v.reshape(1, -1) if v.dim() < 2 else v.flatten(1)


def polar_factor(v):
    """Return the U V^T of a matrix by Newton-Schulz iterations, in its own dtype; 0 for zeros.

    Singular values below about 1e-4 of the Frobenius norm come out between 0 and 1.
    """
    x, _ = unit(v.reshape(1, -1))
    norm = x.square().sum().sqrt()
    x = (x / torch.where(norm == 0, 1.0, norm)).to(v.dtype).reshape(v.shape)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for a, b, c in [_STEEP] * _STEEP_STEPS + [_FLAT] * _FLAT_STEPS:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.T


class _Singular(Kappa):
    """K is s times a K of the singular values, s with scale "rms" the root of the longer side."""

    def scale_factor(self, shape):
        """Return s: the root of the larger of rows and columns, so that U V^T has RMS about 1."""
        if self.scale == "none":
            return 1.0
        if len(shape) < 2:
            shape = (1, *shape)
        return max(shape[0], math.prod(shape[1:])) ** 0.5

    def _of_values(self):
        """Return the K of the vector of singular values."""
        raise NotImplementedError

    def _subgradient(self, v):
        """Return U h'(sigma) V^T, without the singular values that are but rounding."""
        x = matrix(v)
        largest = x.abs().max()
        finite = torch.isfinite(largest)
        x = torch.where(finite, x / torch.where(largest == 0, 1.0, largest), 0.0)  # or svd raises
        u, sigma, vt = _svd(x)
        noise = torch.finfo(sigma.dtype).eps * max(x.shape) * sigma[0]
        slopes = self._of_values().subgradient(sigma * largest)
        u = (u * torch.where(sigma > noise, slopes, 0.0)) @ vt
        return torch.where(finite, u, torch.nan).reshape(v.shape)

    def _value(self, v):
        return self._of_values().value(torch.linalg.svdvals(matrix(v)))

    def _conjugate(self, z, tolerance):
        return self._of_values().conjugate(torch.linalg.svdvals(matrix(z)), tolerance=tolerance)

    def _project(self, z):
        u, sigma, vt = _svd(matrix(z))
        bounded = self._of_values().project(sigma, 1.0)
        near = ((u * bounded) @ vt).reshape(z.shape)
        return torch.where((sigma == bounded).all(), z, near)


def _svd(x):
    return torch.linalg.svd(x, full_matrices=False)


@dataclass(frozen=True)
class Nuclear(_Singular):
    r"""Orthogonalised momentum (Muon): K = s times the sum of the singular values.

    u = s U V^T of v = U S V^T. K* = 0 where no singular value exceeds s: weights end where
    sigma_max(X) <= s t, t = 1 / weight_decay; s = sqrt(max(rows, columns)). Matrix products.
    Jordan et al. 2024, "Muon".

    Parameters
    ----------
    scale : {"rms", "none"}
    method : {"newton_schulz", "svd"}
        Newton-Schulz: eleven iterations in the dtype of v, at least float32; to rounding for
        singular values above about 1e-4 of the Frobenius norm, those below come out between 0 and
        s, which keeps the bound. (Muon's own five iterations end between 0.7 and 1.2 s.)

    Examples
    --------
    >>> Nuclear(scale="none", method="svd").subgradient(torch.tensor([[3.0, 0.0], [0.0, -2.0]]))
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """

    scale: str = "rms"
    method: str = "newton_schulz"
    name = "nuclear"

    def _check(self):
        check_scale(self)
        one_of(self, "method", self.method, ("newton_schulz", "svd"))

    def _of_values(self):
        return L1()

    def _subgradient(self, v):
        if self.method == "svd":
            return super()._subgradient(v)
        return polar_factor(matrix(v)).reshape(v.shape)


@dataclass(frozen=True)
class Spectral(_Singular):
    r"""K = s times the sum of h(sigma) over the singular values; u = s U h'(sigma) V^T.

    ``kind="huber"``: h' = min(sigma/e, 1), K* = (e s / 2) times the sum of (sigma/s)^2 where no
    singular value exceeds s: weights end where sigma_max(X) <= s t, t = 1 / weight_decay, under
    that penalty. ``kind="power"``: h' = sigma^(p-1), K* = s times the sum of (sigma/s)^q / q: a
    soft penalty on the spectrum (Schatten norm), no bound. s = sqrt(max(rows, columns)). Matrix
    products, by an SVD.

    Parameters
    ----------
    kind : {"huber", "power"}
    e : float
        > 0, in units of the momentum's singular values; of "huber" only.
    p : float
        > 1; of "power" only.
    scale : {"rms", "none"}

    Examples
    --------
    >>> kappa = Spectral("huber", e=4.0, scale="none")
    >>> kappa.subgradient(torch.tensor([[8.0, 0.0], [0.0, 2.0]]))
    tensor([[1.0000, 0.0000],
            [0.0000, 0.5000]])
    """

    kind: str = "huber"
    e: float | None = None
    p: float | None = None
    scale: str = "rms"
    name = "spectral"

    def _check(self):
        one_of(self, "kind", self.kind, ("huber", "power"))
        used, unused, above = ("e", "p", 0) if self.kind == "huber" else ("p", "e", 1)
        self._set(used, number(self, used, getattr(self, used), above=above))
        if getattr(self, unused) is not None:
            refuse(self, unused, getattr(self, unused), f"None with kind={self.kind!r}")
        check_scale(self)

    def _of_values(self):
        return Huber(self.e) if self.kind == "huber" else Power(self.p)
