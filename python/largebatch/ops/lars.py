# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LARS in its two phases, for tensors that this process may hold only parts of."""

import torch

from .. import _C
from .._versions import mark_written
from ._library import as_tensors, define, hyper_parameters

_HYPER = (
    "lr", "momentum", "dampening", "weight_decay", "nesterov", "trust_coefficient", "eps", "clip",
    "lr_in_momentum", "adapt", "maximize",
)  # fmt: skip
_HYPER_SCHEMA = (
    "float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
    "float trust_coefficient, float eps, bool clip, bool lr_in_momentum, bool adapt, "
    "bool maximize, Tensor? grad_scale, Tensor? found_inf"
)
# What the first phase does not depend on, for a call of it alone.
_ANY = dict.fromkeys(_HYPER, 0.0)


def lars_norms(params, grads, *, grad_scale=None):
    r"""Do the first phase of a LARS step: measure the norms. Nothing is written.

    Between the phases only the sums need to be complete: add them up over the ranks that hold the
    other parts of the tensors (one all-reduce of 2 T numbers), and the sharded step equals the
    whole one.

    Parameters
    ----------
    params : list of T arrays
        fp32, fp16, bf16 or fp64, any shape, dense.
    grads : list of T arrays
        Laid out like `params`; fp16 and bf16 also with fp32 params, fp32 also with 16-bit ones.
    grad_scale : Tensor, optional
        One float32: gradients are divided by it.

    Returns
    -------
    Tensor
        ``[T, 2]`` float64: :math:`\sum p^2` and :math:`\sum g^2`, the latter unscaled, of each
        tensor. Same bits on every run.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor.

    Examples
    --------
    >>> sums = lars_norms(p, g)
    >>> torch.distributed.all_reduce(sums)
    >>> lars_apply(p, g, buffers, t, sums, **hyper)
    """
    params, grads = as_tensors("lars_norms", params=params, grads=grads)
    if not params:
        return torch.zeros(0, 2, dtype=torch.float64)
    return torch.ops.largebatch.lars_norms(params, grads, grad_scale)


def lars_apply(
    params,
    grads,
    momentum_buffers,
    steps,
    sums,
    *,
    copies=(),
    grad_scale=None,
    found_inf=None,
    **hyper,
):
    r"""Do the second phase of a LARS step: momentum, weights and step counters forward.

    The equations are those of :class:`largebatch.optim.LARS`.

    Parameters
    ----------
    params : list of T arrays
        As for :func:`lars_norms`. Written.
    grads : list of T arrays
        As for :func:`lars_norms`. Read.
    momentum_buffers : list of T arrays, or empty with momentum 0
        Laid out like `params`; fp32, or fp64 with fp64 params. Written.
    steps : list of T arrays
        fp32, one element each: the steps taken before. Written.
    sums : Tensor
        ``[T, 2]`` float64: the result of :func:`lars_norms`, complete for every tensor. Read.
    copies : list of T arrays, optional
        fp16 or bf16, laid out like `params`, which are then the fp32 masters: get `params` rounded
        to nearest, ties to even.
    grad_scale, found_inf : Tensor, optional
        One float32 each, as ``torch.amp.GradScaler`` has them. Nothing is written if `found_inf` is
        not 0.
    **hyper
        All of `lr`, `momentum`, `dampening`, `weight_decay`, `nesterov`, `trust_coefficient`,
        `eps`, `clip`, `lr_in_momentum`, `adapt`, `maximize`, with the meaning they have in
        :class:`largebatch.optim.LARS`; `lr` is a number.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor, before anything is written.

    Examples
    --------
    >>> sums = lars_norms(p, g)
    >>> lars_apply(p, g, buffers, t, sums, **hyper)
    """
    *lists, copies = as_tensors(
        "lars_apply",
        params=params,
        grads=grads,
        momentum_buffers=momentum_buffers,
        steps=steps,
        copies=copies,
    )
    arguments = hyper_parameters("lars_apply", hyper, _HYPER)
    if lists[0]:
        torch.ops.largebatch.lars_apply(*lists, sums, copies, *arguments, grad_scale, found_inf)


def _norms(params, grads, grad_scale):
    sums = torch.zeros(len(params), 2, dtype=torch.float64, device=params[0].device)
    _C.lars_step(
        _C.LarsPlan(),
        params,
        grads,
        [],
        [],
        [],
        [],
        [],
        [0] * len(params),
        [_ANY],
        phases="first",
        sums=sums,
        grad_scale=grad_scale,
    )
    return sums


def _norms_fake(params, *_):
    return params[0].new_empty(len(params), 2, dtype=torch.float64)


def _apply(params, grads, momentum_buffers, steps, sums, copies, *rest):
    *arguments, grad_scale, found_inf = rest
    _C.lars_step(
        _C.LarsPlan(),
        params,
        grads,
        momentum_buffers,
        list(range(len(momentum_buffers))),
        steps,
        copies,
        list(range(len(copies))),
        [0] * len(params),
        [dict(zip(_HYPER, arguments, strict=True))],
        phases="second",
        sums=sums,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    mark_written([*params, *momentum_buffers, *steps, *copies])


define(
    "lars_norms(Tensor[] params, Tensor[] grads, Tensor? grad_scale) -> Tensor",
    _norms,
    _norms_fake,
)
define(
    "lars_apply(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
    f"Tensor(c!)[] steps, Tensor sums, Tensor(d!)[] copies, {_HYPER_SCHEMA}) -> ()",
    _apply,
    lambda *_: None,
)
