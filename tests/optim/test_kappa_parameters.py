# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The convex functions of Lion-K: their parameters, names and plain data; the Lyapunov function."""

import io
import math
from types import SimpleNamespace

import pytest
import torch

from largebatch.optim import kappa
from tests.optim.test_kappa import ALL, every

INF = math.inf

# ---- Parameters ----------------------------------------------------------------------------------

BAD_NUMBERS = [0, -1.0, math.nan, INF, "1", None, True, torch.tensor(1.0)]
BAD = [
    *[(cls, "e", dict(e=bad)) for cls in (kappa.TruncatedL1, kappa.Huber, kappa.SoftSign)
      for bad in BAD_NUMBERS],
    *[(cls, "T", dict(T=bad)) for cls in (kappa.LogCosh, kappa.Entropy, kappa.SignedEntropy)
      for bad in BAD_NUMBERS],
    *[(cls, "p", dict(p=bad)) for cls in (kappa.Power, kappa.Lp) for bad in [*BAD_NUMBERS, 1]],
    *[(kappa.Huber, "relative", dict(e=1.0, relative=bad)) for bad in (1, "yes", None)],
    *[(kappa.GroupLasso, "axis", dict(axis=bad)) for bad in ("rows", -1, 0.0, None, True)],
    *[(kappa.Entropy, "axis", dict(T=1.0, axis=bad)) for bad in ("rows", -1, 0.0, True)],
    *[(cls, "size", dict(size=bad)) for cls in (kappa.GroupLasso, kappa.L2Inf)
      for bad in (0, -2, 1.0, True, None)],
    *[(cls, "scale", dict(scale=bad)) for cls in (kappa.L2, kappa.LInf, kappa.GroupLasso,
      kappa.L2Inf, kappa.Nuclear) for bad in ("RMS", None, 1.0)],
    (kappa.Lp, "scale", dict(p=2, scale="max")),
    (kappa.Nuclear, "method", dict(method="qr")),
    *[(kappa.TopK, "k", dict(k=bad)) for bad in (0, -1, 2.0, True, None)],
    *[(kappa.SortedL1, "weights", dict(weights=bad))
      for bad in ((), (0.0,), (1.0, 2.0), (1.0, -1.0), (math.nan,), "1", 1.0, (True,))],
    (kappa.Spectral, "kind", dict(kind="l1")),
    (kappa.Spectral, "e", dict(kind="huber")),
    (kappa.Spectral, "e", dict(kind="huber", e=0.0)),
    (kappa.Spectral, "p", dict(kind="power", p=1.0)),
    (kappa.Spectral, "p", dict(kind="huber", e=1.0, p=2.0)),
    (kappa.Spectral, "scale", dict(e=1.0, scale="frobenius")),
]  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "parameters"), BAD)
def test_bad_parameters_are_refused(cls, name, parameters):
    with pytest.raises(ValueError, match=f"^{cls.__name__}: {name} got [^\n]*, expected [^\n]*$"):
        cls(**parameters)


@every
def test_weight_decay_is_checked(k):
    for bad in (-1.0, math.nan, INF, "1"):
        with pytest.raises(ValueError, match="weight_decay got"):
            k.distance(torch.ones(2), bad)


@every
def test_plain_data_there_and_back(k):
    file = io.BytesIO()
    torch.save(k.as_dict(), file)
    file.seek(0)
    data = torch.load(file, weights_only=True)
    assert kappa.get(data) == k
    assert kappa.get(k) is k
    assert hash(kappa.get(data)) == hash(k)


def test_names():
    assert kappa.get("l1") == kappa.L1()
    assert kappa.get("huber") == kappa.Huber(1.0, relative=True)
    assert kappa.get("truncated_l1") == kappa.TruncatedL1(0.1, relative=True)
    assert kappa.get("soft_sign") == kappa.SoftSign(1.0, relative=True)
    assert kappa.get("log_cosh") == kappa.LogCosh(1.0, relative=True)
    assert kappa.get("power") == kappa.Power(1.5) and kappa.get("lp") == kappa.Lp(1.5)
    assert kappa.get({"name": "huber", "e": 0.1}) == kappa.Huber(0.1)
    assert kappa.get({"name": "group_lasso", "size": 4}) == kappa.GroupLasso(size=4)
    assert kappa.get("nuclear") == kappa.Nuclear()


def test_names_of_the_kernels():
    names = {k.name: k.kernel for k in ALL.values()}
    torch_only = {"top_k", "sorted_l1", "nuclear", "spectral"}
    assert names == {"l1": "l1"} | {n: None if n in torch_only else n for n in names}
    assert len(names) == 19


@pytest.mark.parametrize("name", ["entropy", "signed_entropy", "top_k", "sorted_l1"])
def test_names_without_a_default_say_what_they_need(name):
    with pytest.raises(TypeError, match=rf"kappa: {name} needs (T|k|weights)\. Pass a dict"):
        kappa.get(name)


def test_unknown_names_are_refused():
    for spec in ("lion", "", {"name": "lion"}, {"e": 1.0}, {"name": ["l1"]}):
        with pytest.raises(ValueError, match=r"^kappa: name got .*, expected one of l1, [^\n]*\.$"):
            kappa.get(spec)
    with pytest.raises(TypeError, match="kappa: huber got 'T', expected parameters among e, rel"):
        kappa.get({"name": "huber", "T": 1.0})
    with pytest.raises(TypeError, match="kappa: l1 got 'e', expected no parameters"):
        kappa.get({"name": "l1", "e": 1.0})


def test_objects_of_the_user():
    own = SimpleNamespace(subgradient=torch.sign)
    assert kappa.get(own) is own
    with pytest.raises(TypeError, match=r"got the class L1.*Pass L1\(\.\.\.\)"):
        kappa.get(kappa.L1)
    for bad in (None, 3, torch.sign, SimpleNamespace(subgradient=1)):
        with pytest.raises(TypeError, match=r"kappa: got .* subgradient\(v\)"):
            kappa.get(bad)


def test_parameters_cannot_change():
    with pytest.raises(AttributeError):
        kappa.Huber(1.0).e = 2.0


# ---- Lyapunov function ---------------------------------------------------------------------------


def test_lyapunov_by_hand():
    # eta = 0.4 / (1 - 0.4 * 0.5) = 0.5; weight = 0.5 * 0.9 / (0.5 * 0.5 * 0.1 + 0.01)
    x, m = torch.tensor([[1.0, -2.0], [0.3, 0.1]], dtype=torch.float64)
    h = kappa.lyapunov(
        [x], [m], loss=torch.tensor(7.0), lr=0.4, betas=(0.9, 0.99), weight_decay=0.5, kappa="l1"
    )
    bracket = 0.4 + 0.5 * (0.3 - 0.2)
    assert abs(h - (7 + 0.45 / 0.035 * bracket)) < 1e-12
    assert h.dtype == torch.float64 and h.shape == ()
    quadratic = kappa.lyapunov(
        [x], [m], loss=7, lr=0.4, betas=(0.9, 0.99), weight_decay=0.5, kappa=kappa.Quadratic()
    )
    conjugate, value = (0.25 + 1) / 2, 0.05
    bracket = conjugate + value + 0.5 * (0.3 - 0.2)
    assert abs(quadratic - (7 + conjugate / 0.5 + 0.45 / 0.035 * bracket)) < 1e-12


def test_lyapunov_is_infinite_outside():
    given = dict(loss=0.0, lr=0.1, betas=(0.9, 0.99), weight_decay=1.0)
    assert kappa.lyapunov([torch.tensor([1.1])], [torch.zeros(1)], kappa="l1", **given) == INF
    assert kappa.lyapunov([torch.tensor([1.0])], [torch.zeros(1)], kappa="l1", **given) == 0


def test_lyapunov_of_a_kind_that_is_not_even_turns_the_momentum():
    x, m = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([2.0, -1.0]).double()
    k = kappa.Entropy(1.0, axis=None)
    h = kappa.lyapunov([x], [m], loss=0, lr=0.5, betas=(0.5, 0.5), weight_decay=1.0, kappa=k)
    conjugate, value = -math.log(2), math.log(math.exp(-2) + math.exp(1))
    assert abs(h - (conjugate + 0.5 * (conjugate + value + 0.5))) < 1e-12


def test_lyapunov_refuses():
    given = dict(loss=0.0, lr=0.1, betas=(0.9, 0.99), weight_decay=1.0, kappa="l1")
    one = [torch.ones(1)]
    for bad in (
        dict(weight_decay=0.0),
        dict(weight_decay=INF),
        dict(lr=-0.1),
        dict(lr=1.0),  # lr * weight_decay = 1: no eta
        dict(betas=(0.9, 1.0)),
        dict(betas=(0.9,)),
        dict(kappa="huber"),  # relative
    ):
        with pytest.raises(ValueError, match=" got "):
            kappa.lyapunov(one, one, **{**given, **bad})
    with pytest.raises(TypeError, match=r"has no value\(\)"):
        kappa.lyapunov(one, one, **{**given, "kappa": SimpleNamespace(subgradient=torch.sign)})
