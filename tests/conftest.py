# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The backends, the optimizers and the tolerances that all tests share."""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import largebatch
from largebatch.optim import LAMB, LARS, Adan, Lion, LionK
from tests.helpers import (
    AdanOracle,
    LambOracle,
    LarsOracle,
    LionKOracle,
    LionOracle,
    leaves,
    problem,
)
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
    parser.addoption(
        "--no-backend", action="append", choices=BACKENDS, default=[], help="leave this one out"
    )


def backends(config):
    """Return the backends to run tests on."""
    chosen = config.getoption("backend") or BACKENDS
    return [name for name in chosen if name not in config.getoption("no_backend")]


ALL_OF_SIMT = pytest.StashKey[bool]()  # whether every test of the simt backend is to run


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
    chosen = config.option
    config.stash[ALL_OF_SIMT] = (
        "simt" in backends(config)
        and chosen.keyword in ("", "simt")
        and not chosen.markexpr
        and [Path(argument).resolve() for argument in config.args] == [Path(__file__).parent]
    )


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(metafunc.config), indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """Run the test on every backend; skip, with the reason, those this machine cannot run."""
    with on_backend(request.param, monkeypatch) as chosen:
        yield chosen


@contextmanager
def on_backend(name, monkeypatch):
    """Let the package run on a backend, or skip the test with the reason."""
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


@dataclass(frozen=True, eq=False)
class Family:
    """An optimizer, its oracle, and settings that switch most of its arithmetic on.

    With an entry in OPTIMIZERS an optimizer gets all tests that use the `family` fixture.
    """

    cls: type
    oracle: type
    options: dict
    others: dict  # another value of each hyper-parameter, which alone makes another step
    bad: list  # settings that are refused with a ValueError that names them, one each
    learns: dict  # with these it fits a small model in a hundred steps
    independent: dict  # with these no tensor's step depends on another tensor
    lean: dict  # with these it keeps the least state
    limiting: dict | None = None  # with these it limits the gradient norm to 1, if it can
    decoupled: bool = True  # weight decay does not enter the momentum
    bounded: bool = False  # a gradient that is not finite leaves finite weights, and a bad state

    def __str__(self):
        return self.cls.__name__

    def make(self, params, **over):
        """Return the optimizer with the settings of the family, some of them replaced."""
        return self.cls(params, **{**self.options, **over})

    def reference(self, params, **over):
        """Return the oracle with the same settings as :meth:`make`."""
        return self.oracle(params, **{**self.options, **over})

    def start(self, shapes, steps=4, device="cpu", dtype=None, **over):
        """Return a problem, its parameters and the optimizer of them: (data, params, optimizer)."""
        data = problem(shapes, steps).to(device, dtype, dtype)
        params = leaves(data.to().params)
        return data, params, self.make(params, **over)

    def solve(self, data, steps=None, **over):
        """Return the oracle after the steps of a problem, or the first `steps` of them."""
        oracle = self.reference([p.cpu() for p in data.params], **over)
        for grads in data.grads[:steps]:
            oracle.step([g if g is None else g.cpu() for g in grads])
        return oracle


# What no optimizer takes for a learning rate.
BAD_RATES = [dict(lr=-1e-3), dict(lr=float("nan")), dict(lr=torch.ones(2))]

LION_OTHERS = dict(
    lr=0.03,
    betas=(0.5, 0.7),
    weight_decay=5.0,
    cautious=True,
    maximize=True,
)
LION_BAD = [
    *BAD_RATES,
    dict(betas=(1.0, 0.9)),
    dict(betas=(0.9, 1.0)),
    dict(betas=(-0.1, 0.9)),
    dict(betas=(0.9,)),
    dict(weight_decay=-0.1),
    dict(state_dtype="float16"),
    dict(state_dtype=torch.int8),
    dict(seed=-1),
    dict(seed=2**64),
    dict(seed=0.5),
    dict(seed=True),
]
# A second beta that leaves the momentum of one step in few bits.
LION_LEAN = dict(betas=(0.9, 0.5), state_dtype="bfloat16", stochastic_rounding=False)

OPTIMIZERS = [
    Family(
        LAMB,
        LambOracle,
        options=dict(lr=5e-3, weight_decay=0.02),
        others=dict(
            lr=0.03,
            betas=(0.8, 0.9),
            eps=0.1,
            weight_decay=0.3,
            bias_correction=False,
            grad_averaging=False,
            max_grad_norm=0.01,
            decay="l2",
            adapt="never",
            trust_clip=0.04,
            weight_norm_clip=(2.0, 10.0),
            maximize=True,
        ),
        bad=[
            *BAD_RATES,
            dict(betas=(1.0, 0.9)),
            dict(betas=(0.9, 1.0)),
            dict(betas=(-0.1, 0.9)),
            dict(betas=(0.9,)),
            dict(eps=-1e-8),
            dict(weight_decay=-0.1),
            dict(bias_correction="inside"),
            dict(decay="none"),
            dict(adapt="layer"),
            dict(trust_clip=(2.0, 1.0)),
            dict(trust_clip="tight"),
            dict(weight_norm_clip=(2.0, 1.0)),
            dict(weight_norm_clip=2.0),
            dict(max_grad_norm="one"),
        ],
        learns=dict(lr=0.02),
        independent=dict(max_grad_norm=None),
        lean={},
        limiting=dict(max_grad_norm=1.0),
    ),
    Family(
        LARS,
        LarsOracle,
        options=dict(lr=0.5, weight_decay=0.01, trust_coefficient=0.02),
        others=dict(
            lr=2.0,
            momentum=0.5,
            dampening=0.3,
            weight_decay=0.1,
            nesterov=True,
            trust_coefficient=0.05,
            eps=3.0,
            clip=True,
            lr_in_momentum=True,
            adapt=False,
            maximize=True,
        ),
        bad=[
            *BAD_RATES,
            dict(momentum=-0.9),
            dict(dampening=-0.1),
            dict(weight_decay=-0.1),
            dict(trust_coefficient=-0.001),
            dict(eps=-1e-8),
        ],
        learns=dict(lr=1.0),
        independent={},
        lean=dict(momentum=0.0),
        decoupled=False,  # by its definition: the decay is in the direction that is averaged
    ),
    Family(
        Adan,
        AdanOracle,
        options=dict(lr=5e-3, weight_decay=0.02),
        others=dict(
            lr=0.03,
            betas=(0.8, 0.7, 0.9),
            eps=0.1,
            weight_decay=0.3,
            max_grad_norm=0.01,
            no_prox=True,
            maximize=True,
        ),
        bad=[
            *BAD_RATES,
            dict(betas=(1.0, 0.9, 0.9)),
            dict(betas=(0.9, 1.0, 0.9)),
            dict(betas=(0.9, 0.9, 1.0)),
            dict(betas=(0.9, 0.9, -0.1)),
            dict(betas=(0.9, 0.999)),
            dict(eps=-1e-8),
            dict(weight_decay=-0.1),
            dict(max_grad_norm="one"),
        ],
        learns=dict(lr=0.02),
        independent=dict(max_grad_norm=None),
        lean={},
        limiting=dict(max_grad_norm=1.0),
    ),
    Family(
        Lion,
        LionOracle,
        options=dict(lr=1e-3, weight_decay=0.1),
        others=LION_OTHERS,
        bad=LION_BAD,
        learns=dict(lr=0.01),
        independent={},
        lean=LION_LEAN,
        bounded=True,  # the sign of NaN is 0
    ),
    Family(
        LionK,
        LionKOracle,
        options=dict(lr=1e-2, weight_decay=0.1, kappa={"name": "power", "p": 1.25}),
        others=dict(**LION_OTHERS, kappa={"name": "huber", "e": 0.01}),
        bad=[*LION_BAD, dict(kappa="l3"), dict(kappa={"e": 1.0})],
        learns=dict(lr=0.02),
        independent={},
        lean=LION_LEAN,
    ),
]


@pytest.fixture(params=OPTIMIZERS, ids=str)
def family(request):
    """Run the test on every optimizer of the package."""
    return request.param


@pytest.fixture(params=[family for family in OPTIMIZERS if family.limiting], ids=str)
def limiting(request):
    """Run the test on every optimizer that can limit the gradient norm."""
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
    """Check parameters and all state of an optimizer against its oracle."""
    assert_holds(params, [optimizer.state[p] for p in params], oracle, tolerance)


def assert_holds(params, states, oracle, tolerance="fp32"):
    """Check parameters and their states, in the order of the oracle's, or the first of them.

    Tensors of less than 256 elements are held against the size of a typical element of their kind.
    """
    _assert_kind([p.detach() for p in params], oracle.params[: len(params)], tolerance)
    pairs = list(zip(states, oracle.state, strict=False))
    for state, expected in pairs:
        assert set(expected) <= set(state)
        assert state["step"].item() == expected["step"].item()
    for name in oracle.buffers:
        with_it = [(state[name], expected[name]) for state, expected in pairs if name in expected]
        _assert_kind([a for a, _ in with_it], [e for _, e in with_it], tolerance)


def _assert_kind(actual, expected, tolerance):
    count = max(1, sum(e.numel() for e in expected))
    typical = (sum(e.square().sum().item() for e in expected) / count) ** 0.5
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, tolerance, scale=typical if e.numel() < 256 else 0.0)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Run the test on one thread: two of them would only wait for each other on small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
