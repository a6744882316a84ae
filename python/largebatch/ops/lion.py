# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion and Lion-K as one function, for tensors that this process may hold only parts of."""

import functools
import json

import torch

from .. import _C
from .._versions import mark_written
from ._library import as_tensors, define, hyper_parameters

_HYPER = (
    "lr", "betas", "weight_decay", "kappa", "stochastic_rounding", "seed", "maximize",
)  # fmt: skip
_HYPER_SCHEMA = (
    "float lr, float[] betas, float weight_decay, str kappa, bool stochastic_rounding, int seed, "
    "bool maximize, int[] tensor_ids, Tensor? grad_scale, Tensor? found_inf"
)

# Those with a kernel, and their parameter.
_KAPPAS = {
    "l1": None,
    "truncated_l1": "e",
    "huber": "e",
    "soft_sign": "e",
    "log_cosh": "T",
    "power": "p",
    "quadratic": None,
}


def lion_step(
    params,
    grads,
    exp_avgs,
    steps,
    *,
    copies=(),
    scales=(),
    tensor_ids=(),
    grad_scale=None,
    found_inf=None,
    **hyper,
):
    r"""Do one step of Lion, or of Lion-K with an elementwise K: momentum, weights and step forward.

    The equations are those of :class:`largebatch.optim.Lion` and :class:`largebatch.optim.LionK`,
    the order in which they are evaluated that of ``largebatch.reference.lion``. Elements do not
    depend on each other, so a rank may call this with whatever parts of the tensors it holds, and
    the parts together get the bits that the whole would get (int8 momenta if they are cut at
    multiples of 128, random bits if the parts are told apart by `tensor_ids`: those differ then).

    Parameters
    ----------
    params : list of T arrays
        fp32, fp16, bf16 or fp64, any shape, dense. Written.
    grads : list of T arrays
        Laid out like `params`; fp16 and bf16 also with fp32 params, fp32 also with 16-bit ones.
        Read.
    exp_avgs : list of T arrays
        m, laid out like `params`, zeros before the first step: fp32, bf16 or int8, fp64 with fp64
        params. Written.
    steps : list of T arrays
        fp32, one element each: the steps taken before. Written.
    copies : list of T arrays, optional
        fp16 or bf16, laid out like `params`, which are then the fp32 masters: get `params` rounded
        to nearest, ties to even.
    scales : list of arrays, optional
        For the int8 ones of `exp_avgs`, in their order (others may be None): [ceil(numel / 128)]
        fp32 each, zeros before the first step. Written.
    tensor_ids : list of T ints, optional
        What tells the random bits of tensors apart, modulo 2^64; by default 0 .. T - 1.
    grad_scale, found_inf : Tensor, optional
        One float32 each, as ``torch.amp.GradScaler`` has them. Gradients are divided by
        `grad_scale`. Nothing is written if `found_inf` is not 0.
    **hyper
        All of `lr`, `betas`, `weight_decay`, `kappa`, `stochastic_rounding`, `seed`, `maximize`,
        with the meaning they have in :class:`largebatch.optim.LionK`; `lr` is a number. `kappa` is
        a name or an object of ``largebatch.optim.kappa``, or its ``as_dict()``, of those with a
        kernel: l1, quadratic, power and, with thresholds that are not relative, truncated_l1,
        huber, soft_sign and log_cosh. ``largebatch.reference.lion.lion_step`` takes every K.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor, before anything is written.

    Notes
    -----
    Same bits on every run, and on every backend.

    Examples
    --------
    >>> lion_step(p, g, m, t, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, kappa="l1",
    ...           stochastic_rounding=True, seed=0, maximize=False)
    """
    *lists, copies, scales = as_tensors(
        "lion_step",
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        steps=steps,
        copies=copies,
        scales=[scale for scale in scales if scale is not None],
    )
    arguments = dict(zip(_HYPER, hyper_parameters("lion_step", hyper, _HYPER), strict=True))
    arguments["kappa"] = _as_json(arguments["kappa"])
    arguments["seed"] = _signed("seed", arguments["seed"])
    ids = [_signed(f"tensor_ids[{i}]", value) for i, value in enumerate(tensor_ids)]
    if lists[0]:
        torch.ops.largebatch.lion_step(
            *lists, copies, scales, *arguments.values(), ids, grad_scale, found_inf
        )


def _as_json(kappa):
    """Return a kappa as the schema has it: its dict as JSON."""
    if hasattr(kappa, "as_dict"):
        kappa = kappa.as_dict()
    if isinstance(kappa, str):
        kappa = {"name": kappa}
    if not isinstance(kappa, dict):
        raise TypeError(
            f"lion_step: kappa: got a {type(kappa).__name__}, expected a name, a dict with one, or "
            "an object of largebatch.optim.kappa. largebatch.reference.lion.lion_step takes any."
        )
    text = json.dumps(kappa, default=repr)
    _kernel(text)
    return text


@functools.lru_cache(maxsize=256)
def _kernel(text):
    """Return what the kernel knows of a kappa in JSON: as ``kernel_of``, and not cautious."""
    given = json.loads(text)
    name = given.get("name") if isinstance(given, dict) else None
    if not isinstance(name, str) or name not in _KAPPAS or given.get("relative"):
        raise ValueError(
            f"lion_step: kappa: got {text}, expected one with a kernel: {', '.join(_KAPPAS)}, none "
            "of them relative. largebatch.reference.lion.lion_step takes any."
        )
    key = _KAPPAS[name]
    parameters = {k: v for k, v in given.items() if k not in ("name", "relative")}
    if set(parameters) != ({key} - {None}):
        expected = f"the parameter {key!r} alone" if key else "no parameters"
        raise ValueError(f"lion_step: kappa: got {text}, expected {expected}.")
    if key is None:
        return name, 0.0, False, -1, 1, False, False
    least = 1 if name == "power" else 0
    value = parameters[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < 1e308:
        raise ValueError(f"lion_step: kappa: got {text}, expected a finite {key} > {least}.")
    return name, float(value), False, -1, 1, False, False


def _signed(label, value):
    """Return a number modulo 2^64 as the 64 bits that a schema has room for."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"lion_step: {label}: got {value!r}, expected an integer.")
    return (value + 2**63) % 2**64 - 2**63


def _step(params, grads, exp_avgs, steps, copies, scales, *rest):
    *arguments, tensor_ids, grad_scale, found_inf = rest
    group = dict(zip(_HYPER, arguments, strict=True))
    group["seed"] %= 2**64
    coded = [row for row, m in enumerate(exp_avgs) if m.dtype == torch.int8]
    _C.lion_step(
        _C.LionPlan(),
        params,
        grads,
        exp_avgs,
        scales,
        coded,
        steps,
        copies,
        list(range(len(copies))),
        [value % 2**64 for value in tensor_ids] or list(range(len(params))),
        [0] * len(params),
        [group],
        [_kernel(group["kappa"])],
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    mark_written([*params, *exp_avgs, *steps, *copies, *scales])


define(
    "lion_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] steps, "
    f"Tensor(d!)[] copies, Tensor(e!)[] scales, {_HYPER_SCHEMA}) -> ()",
    _step,
    lambda *_: None,
)
