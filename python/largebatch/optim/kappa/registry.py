# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""From a name or plain data to the object."""

import functools
from dataclasses import MISSING, fields

from . import elementwise, entropies, groups, norms, ordered, spectra
from ._base import AXES

KINDS = {
    cls.name: cls
    for cls in (
        elementwise.L1,
        elementwise.TruncatedL1,
        elementwise.Huber,
        elementwise.SoftSign,
        elementwise.LogCosh,
        elementwise.Power,
        elementwise.Quadratic,
        entropies.Entropy,
        entropies.SignedEntropy,
        norms.L2,
        norms.Lp,
        norms.LInf,
        groups.GroupLasso,
        groups.L2Inf,
        norms.SquaredL1,
        ordered.TopK,
        ordered.SortedL1,
        spectra.Nuclear,
        spectra.Spectral,
    )
}

_CLASSES = frozenset(KINDS.values())

# What a bare name means where the constructor requires a parameter. Thresholds are relative: no
# absolute one would suit all models.
DEFAULTS = {
    "truncated_l1": dict(e=0.1, relative=True),
    "huber": dict(e=1.0, relative=True),
    "soft_sign": dict(e=1.0, relative=True),
    "log_cosh": dict(T=1.0, relative=True),
    "power": dict(p=1.5),
    "lp": dict(p=1.5),
}


def get(spec):
    """Return the convex function that a name, a dict or an object means.

    Parameters
    ----------
    spec : str, dict or object
        A name: ``"l1"``, ``"quadratic"``, ``"l2"``, ``"l_inf"``, ``"group_lasso"``, ``"l2_inf"``,
        ``"squared_l1"``, ``"nuclear"`` with the defaults of their classes; ``"truncated_l1"``
        (e=0.1), ``"huber"``, ``"soft_sign"`` (e=1) and ``"log_cosh"`` (T=1), all relative;
        ``"power"`` and ``"lp"`` (p=1.5). ``"entropy"``, ``"signed_entropy"``, ``"top_k"``,
        ``"sorted_l1"`` and ``"spectral"`` have none and need a dict or an object.
        A dict: the name under ``"name"`` and the constructor's parameters, as ``as_dict()`` gives.
        An object: a built-in, or one of your own with ``subgradient(v)``; set ``even = False`` on
        it if K(-v) is not K(v), ``elementwise = True`` if it acts on each element alone.

    Raises
    ------
    ValueError
        For an unknown name or a parameter out of range.
    TypeError
        For unknown or missing parameters, a class, or an object without ``subgradient``.

    Examples
    --------
    >>> get("huber")
    Huber(e=1.0, relative=True)
    >>> get({"name": "huber", "e": 0.01})
    Huber(e=0.01, relative=False)
    """
    if isinstance(spec, str):
        return _build(spec, DEFAULTS.get(spec, {}))
    if isinstance(spec, dict):
        given = dict(spec)
        return _build(given.pop("name", None), given)
    if isinstance(spec, type):
        raise TypeError(
            f"kappa: got the class {spec.__name__}, expected an object. Pass {spec.__name__}(...)."
        )
    if not callable(getattr(spec, "subgradient", None)):
        raise TypeError(
            f"kappa: got {type(spec).__name__}, expected a name, a dict with one, or an object "
            "with subgradient(v). See largebatch.optim.kappa."
        )
    return spec


def is_builtin(k):
    """Tell whether an object is one of those here, and not of a class of the user's own."""
    return type(k) in _CLASSES


@functools.lru_cache(maxsize=256)
def kernel_of(k):
    """Return what the kernels of Lion know of a built-in; None if it has none.

    (name, parameter, relative, axis or -1 for the whole tensor, size, scale is "rms").
    """
    if k.kernel is None:
        return None
    parameter = next((getattr(k, name) for name in ("e", "T", "p") if hasattr(k, name)), 0.0)
    axis = getattr(k, "axis", None)
    return (
        k.kernel,
        parameter,
        getattr(k, "relative", False),
        -1 if axis is None else AXES.get(axis, axis),
        getattr(k, "size", 1),
        getattr(k, "scale", "none") == "rms",
    )


def _build(name, parameters):
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"kappa: name got {name!r}, expected one of {', '.join(KINDS)}.")
    cls = KINDS[name]
    known = [field.name for field in fields(cls)]
    unknown = [key for key in parameters if key not in known]
    if unknown:
        expected = f"parameters among {', '.join(known)}" if known else "no parameters"
        raise TypeError(f"kappa: {name} got {unknown[0]!r}, expected {expected}.")
    for field in fields(cls):
        if field.default is MISSING and field.name not in parameters:
            raise TypeError(
                f"kappa: {name} needs {field.name}. Pass a dict: "
                f"{{'name': {name!r}, {field.name!r}: ...}}."
            )
    return cls(**parameters)
