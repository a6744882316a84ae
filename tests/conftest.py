# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The backends, the optimizers and the tolerances that all tests share."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import largebatch
from largebatch.optim import LAMB, LARS, Adan
from tests.helpers import AdanOracle, LambOracle, LarsOracle
from tests.simt import build as simt

# ---- Backends ------------------------------------------------------------------------------------

# simt: the CUDA kernels, run on the CPU by tests/simt.
BACKENDS = ("cpu-base", "cpu-avx2", "cpu-avx512", "simt", "cuda")


@dataclass(frozen=True)
class Backend:
    """One compiled path of the library."""

    name: str
    device: torch.device


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        choices=BACKENDS,
        help="run tests on this backend only, of those that run on several (may be repeated)",
    )


ALL_OF_SIMT = pytest.StashKey[bool]()  # whether every test of the simt backend is to run


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    chosen = config.option
    config.stash[ALL_OF_SIMT] = (
        "simt" in (chosen.backend or BACKENDS)
        and chosen.keyword in ("", "simt")
        and not chosen.markexpr
        and [Path(argument).resolve() for argument in config.args] == [Path(__file__).parent]
    )


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("backend") or BACKENDS
        metafunc.parametrize("backend", chosen, indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """Run the test on every backend; skip, with the reason, those this machine cannot run."""
    name = request.param
    if name == "cuda":
        if not (largebatch._C.cuda_available() and torch.cuda.is_available()):
            pytest.skip(f"no CUDA backend: {largebatch.build_info()}")
        yield Backend(name, torch.device("cuda"))
        return
    if name == "simt":
        use_simt(monkeypatch)
        yield Backend(name, torch.device("cpu"))
        return
    isa = name.removeprefix("cpu-")
    if isa not in largebatch._C.cpu_isas():
        pytest.skip(f"this CPU runs {largebatch._C.cpu_isas()}, not {isa}")
    before = largebatch._C.cpu_isa()
    largebatch._C.set_cpu_isa(isa)
    yield Backend(name, torch.device("cpu"))
    largebatch._C.set_cpu_isa(before)


def use_simt(monkeypatch):
    """Let the extension be the build of it whose kernels the executor runs, until the test ends."""
    extension = simt.extension()
    for name, value in vars(extension).items():
        if not name.startswith("__"):
            monkeypatch.setattr(largebatch._C, name, value)
    for family in OPTIMIZERS:
        plan = family.cls._plan_type.__name__
        monkeypatch.setattr(family.cls, "_plan_type", getattr(extension, plan))


# ---- Optimizers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """An optimizer, its oracle, and settings that switch most of its arithmetic on."""

    cls: type
    oracle: type
    options: dict
    independent: dict  # with these no tensor's step depends on another tensor
    lean: dict  # with these it keeps the least state

    def __hash__(self):
        return hash(self.cls)

    def __str__(self):
        return self.cls.__name__

    def make(self, params, **over):
        """Return the optimizer with the settings of the family, some of them replaced."""
        return self.cls(params, **{**self.options, **over})

    def reference(self, params, **over):
        """Return the oracle with the same settings as :meth:`make`."""
        return self.oracle(params, **{**self.options, **over})


OPTIMIZERS = [
    Family(
        LAMB,
        LambOracle,
        options=dict(lr=5e-3, weight_decay=0.02),
        independent=dict(max_grad_norm=None),
        lean={},
    ),
    Family(
        LARS,
        LarsOracle,
        options=dict(lr=0.5, weight_decay=0.01, trust_coefficient=0.02),
        independent={},
        lean=dict(momentum=0.0),
    ),
    Family(
        Adan,
        AdanOracle,
        options=dict(lr=5e-3, weight_decay=0.02, max_grad_norm=1.0),
        independent=dict(max_grad_norm=None),
        lean={},
    ),
]


@pytest.fixture(params=OPTIMIZERS, ids=str)
def family(request):
    """Run the test on every optimizer of the package."""
    return request.param


# ---- Tolerances ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the L2 error relative to the norm and on the largest error relative to the max."""

    relative_l2: float
    largest: float


TOLERANCES = {
    # Ten fp32 steps measured 1e-7 and 2.5e-7 from float64: five to ten times that, and far below
    # what one wrong factor, order or rounded constant would leave.
    "fp32": Tolerance(1e-6, 2e-6),
    # A hundred fp32 steps measured 2.5e-7 and 1.4e-6.
    "fp32, 100 steps": Tolerance(2e-6, 4e-6),
    # float64 weights in float64 arithmetic: rounding of ten steps, and sums in another order.
    "fp64": Tolerance(1e-12, 1e-12),
    # Two float64 evaluations of one formula that differ in the order of operations only.
    "formula": Tolerance(1e-13, 1e-13),
}


def assert_close(actual, expected, tolerance="fp32", scale=0.0):
    """Check tensors, or lists of them, against the oracle.

    `scale` is the size of an element that errors may be compared with where cancellation leaves
    less: a sum of ten terms of size 1 that comes out at 1e-3 cannot have seven digits.
    """
    if isinstance(actual, list | tuple):
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, tolerance, scale)
        return
    bound = TOLERANCES[tolerance]
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    e = expected.detach().double().cpu()
    error = actual.detach().double().cpu() - e
    l2 = max(e.norm().item(), scale * e.numel() ** 0.5)
    largest = max(e.abs().max().item(), scale)
    assert error.norm().item() <= bound.relative_l2 * l2, f"relative L2 {error.norm() / l2:.2e}"
    assert error.abs().max().item() <= bound.largest * largest, (
        f"largest {error.abs().max() / largest:.2e}"
    )


def assert_matches(optimizer, params, oracle, tolerance="fp32"):
    """Check parameters and all state of an optimizer against its oracle.

    Tensors of less than 256 elements are held against the size of a typical element of their kind.
    """
    held = [p.detach() for p in params]
    _assert_kind(held, oracle.params[: len(held)], tolerance)
    for p, expected in zip(params, oracle.state, strict=False):
        assert set(expected) <= set(optimizer.state[p])
        assert optimizer.state[p]["step"].item() == expected["step"].item()
    for name in oracle.buffers:
        pairs = [
            (optimizer.state[p][name], expected[name])
            for p, expected in zip(params, oracle.state, strict=False)
            if name in expected
        ]
        _assert_kind([a for a, _ in pairs], [e for _, e in pairs], tolerance)


def _assert_kind(actual, expected, tolerance):
    count = max(1, sum(e.numel() for e in expected))
    typical = (sum(e.square().sum().item() for e in expected) / count) ** 0.5
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, tolerance, scale=typical if e.numel() < 256 else 0.0)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
