# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Factors and vectors to update, the update by its formulas, and rows that lie apart in memory."""

import functools

import numpy as np
import torch

from largebatch import ops

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
DTYPES = [F32, F16, BF16, F64]
VARIANTS = ["leaky", "exact", "paper"]
GAMMA, LEAK, RHO = 0.9, 0.8, 1.5  # none of them the default

# Bounds on the relative error of one update, in the Frobenius norm. In 16 bits that is the rounding
# of what is stored: half a unit in the last place.
ONE = {F64: 1e-15, F32: 4e-7, F16: 2.0**-11 + 1e-6, BF16: 2.0**-8 + 1e-6}

STABILIZER = dict(stabilizer_threshold=2.0, stabilizer_blend=0.4)

# Around the lengths of vectors, warps and tiles; those of BERT with a bias folded in.
SMALL = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257]
LARGE = [511, 512, 513, 1025]
# Of more than 24 MiB, and an odd number of rows.
BEYOND_CACHE = {F64: 1801, F32: 2601, F16: 3603, BF16: 3603}


def orders(backend):
    """Return the orders to try; the executor of CUDA kernels takes its time over large ones."""
    return SMALL if backend.name == "simt" else [*SMALL, *LARGE]


def real(dtype):
    """Return the dtype of the vector of a factor of this one."""
    return F64 if dtype == F64 else F32


@functools.cache
def _spd(d, seed):
    generator = torch.Generator().manual_seed(1000 * d + seed)
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=F64)).Q
    m = (q * torch.logspace(0, -4, d, dtype=F64)) @ q.T
    return (m + m.T) / 2


def spd(d, dtype=F32, device="cpu", seed=0):
    """Return a random positive definite matrix with eigenvalues from 1e-4 to 1."""
    return _spd(d, seed).to(device, dtype, copy=True)


def vector(d, dtype=F32, device="cpu", seed=0, length=1.5):
    """Return a random vector of this length."""
    generator = torch.Generator().manual_seed(1000 * d + seed + 500)
    v = torch.randn(d, generator=generator, dtype=F64)
    return (v * (length / v.norm().clamp(min=1e-300))).to(device, dtype)


def pairs(orders, dtype=F32, device="cpu", seed=0):
    """Return a factor and a vector of each order: two lists."""
    return (
        [spd(d, dtype, device, seed) for d in orders],
        [vector(d, real(dtype), device, seed) for d in orders],
    )


def large(d, dtype=F32, device="cpu"):
    """Return a dense positive definite factor and its vector; quicker than :func:`spd`."""
    generator = torch.Generator().manual_seed(d)
    b = torch.randn(4, d, generator=generator).to(device)
    m = torch.zeros(d, d, device=device)
    for row in b:
        m += torch.outer(row, row)
    m.diagonal().add_(1.0)
    return (m / 16).to(dtype), vector(d, real(dtype), device)


def update(factors, vectors, variant="leaky", **options):
    """Call the operation with the constants of these tests."""
    options = dict(gamma=GAMMA, leak=LEAK, rho=RHO) | options
    return ops.kron_rank1_update(factors, vectors, variant=variant, **options)


def by_formula(m, v, variant, z=None, gamma=GAMMA, leak=LEAK, rho=RHO):
    """Return what becomes of M, by the table of the paper's forms: float64, rounded once.

    In the longest floating-point type of the machine: where terms cancel, float64 would lose more
    here than the kernel may (measured, for gamma = 0.01: 1.4e-15, and 0.7e-15).
    """
    m, v = (x.double().cpu().numpy().astype(np.longdouble) for x in (m, v))
    gamma, leak, rho = (np.longdouble(constant) for constant in (gamma, leak, rho))
    z = leak if variant == "leaky" else z
    if z is not None:
        m = z * m + (1 - z) * np.eye(len(m), dtype=m.dtype)
    u = m @ v
    s = v @ u
    if variant == "leaky":
        alpha, beta = 1, -rho / (1 + rho * s)
    elif variant == "exact":
        alpha, beta = 1 / gamma, -(1 - gamma) / (gamma * (gamma + (1 - gamma) * s))
    else:
        alpha, beta = gamma, (1 - gamma) / (gamma**2 * (1 + gamma * (1 - gamma) * s))
    # u u^T may be beyond the range where its product with beta is not.
    r = np.sqrt(abs(beta)) * u
    return torch.from_numpy((alpha * m + np.sign(beta) * np.outer(r, r)).astype(np.float64))


def error(actual, expected):
    """Return the Frobenius norm of the difference, of the expected norm."""
    expected = expected.double().cpu()
    difference = actual.double().cpu() - expected
    return (difference.norm() / expected.norm().clamp(min=1e-300)).item()


def norm_of(m, kind):
    """Return the norm of a factor as it is stored."""
    sizes = m.double().cpu().abs()
    if sizes.numel() == 0:
        return 0.0
    return (sizes if kind == "max" else sizes.sum(dim=1)).max().item()


def copies(tensors):
    return [t.clone() for t in tensors]


def assert_updated(factors, before, vectors, variant, z=None, bounds=ONE, **constants):
    """Check factors against the formulas, and that they are symmetric."""
    for m, old, v in zip(factors, before, vectors, strict=True):
        expected = by_formula(old, v, variant, z, **constants)
        assert error(m, expected) <= bounds[m.dtype], (len(m), m.dtype, error(m, expected))
        assert symmetric(m)


def symmetric(m):
    """Tell whether M is symmetric in every bit."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[m.element_size()]
    bits = m.contiguous().view(integer)
    return torch.equal(bits, bits.T)


class PaddedRows:
    """Matrices whose rows lie apart, between bytes that are no number: read or written, it shows.

    The analogue of :class:`tests.helpers.Padded` for what has a row stride.
    """

    FILL = 0xFF  # a NaN in every dtype

    def __init__(self, matrices, gap=3, offset=1):
        """Copy `matrices` in, `gap` elements after each row, `offset` off the alignment."""
        self.tensors, self._storages = [], []
        for m in matrices:
            d, item = len(m), m.element_size()
            elements = 64 + offset + d * (d + gap) + 64
            storage = torch.full((elements * item,), self.FILL, dtype=torch.uint8, device=m.device)
            storage = storage.view(m.dtype)
            self._storages.append(storage)
            self.tensors.append(self._inside(storage, d, gap, offset).copy_(m))
        self._place = gap, offset

    @staticmethod
    def _inside(storage, d, gap, offset):
        return storage.as_strided((d, d), (d + gap, 1), 64 + offset)

    def intact(self):
        """Tell whether all bytes around the elements are as they were."""
        for m, storage in zip(self.tensors, self._storages, strict=True):
            rest = storage.clone()
            # Filled by way of integers: a copied NaN may come out as another one.
            integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[m.element_size()]
            self._inside(rest.view(integer), len(m), *self._place).fill_(-1)
            if not (rest.view(torch.uint8) == self.FILL).all():
                return False
        return True
