# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LAMB in its two phases, for tensors that this process may hold only parts of."""

import torch

from .. import _C
from .._versions import mark_written
from ._library import as_tensors, define, hyper_parameters

_HYPER = (
    "lr", "betas", "eps", "weight_decay", "bias_correction", "grad_averaging", "max_grad_norm",
    "decay", "adapt", "trust_clip", "weight_norm_clip", "maximize",
)  # fmt: skip
_HYPER_SCHEMA = (
    "float lr, float[] betas, float eps, float weight_decay, str bias_correction, "
    "bool grad_averaging, float? max_grad_norm, str decay, str adapt, float[]? trust_clip, "
    "float[]? weight_norm_clip, bool maximize, "
    "Tensor? grad_sq_sum, Tensor? grad_scale, Tensor? found_inf"
)


def lamb_moments(
    params,
    grads,
    exp_avgs,
    exp_avg_sqs,
    steps,
    *,
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
    **hyper,
):
    r"""Do the first phase of a LAMB step: moments and step counters forward, norms measured.

    Between the phases only the sums need to be complete: add them up over the ranks that hold the
    other parts of the tensors (one all-reduce of 2 T numbers), and the sharded step equals the
    whole one. The equations are those of :class:`largebatch.optim.LAMB`.

    Parameters
    ----------
    params : list of T arrays
        fp32, fp16, bf16 or fp64, any shape, dense. Read.
    grads : list of T arrays
        Laid out like `params`; fp16 and bf16 also with fp32 params, fp32 also with 16-bit ones.
        Read.
    exp_avgs, exp_avg_sqs : list of T arrays
        Laid out like `params`; fp32, or fp64 with fp64 params. Written.
    steps : list of T arrays
        fp32, one element each: the steps taken before. Written.
    grad_sq_sum : Tensor, optional
        One float64: the sum of squares of all gradients as given (still scaled), of all ranks and
        groups. None: that of `grads`.
    grad_scale, found_inf : Tensor, optional
        One float32 each, as ``torch.amp.GradScaler`` has them. Gradients are divided by
        `grad_scale`. Nothing is written, and the result is zero, if `found_inf` is not 0 or, while
        one of the two is given, clipping is on and the gradient norm is not finite.
    **hyper
        All of `lr`, `betas`, `eps`, `weight_decay`, `bias_correction`, `grad_averaging`,
        `max_grad_norm`, `decay`, `adapt`, `trust_clip`, `weight_norm_clip`, `maximize`, with the
        meaning they have in :class:`largebatch.optim.LAMB`; `lr` is a number.

    Returns
    -------
    Tensor
        ``[T, 2]`` float64: :math:`\sum p^2` and :math:`\sum u^2` of each tensor. Same bits on every
        run.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor, before anything is written.

    Examples
    --------
    >>> sums = lamb_moments(p, g, m, v, t, grad_sq_sum=total, **hyper)
    >>> torch.distributed.all_reduce(sums)
    >>> lamb_apply(p, m, v, t, sums, grad_sq_sum=total, **hyper)
    """
    lists = as_tensors(
        "lamb_moments",
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        exp_avg_sqs=exp_avg_sqs,
        steps=steps,
    )
    arguments = _flat("lamb_moments", hyper)
    if not lists[0]:
        return torch.zeros(0, 2, dtype=torch.float64)
    return torch.ops.largebatch.lamb_moments(*lists, *arguments, grad_sq_sum, grad_scale, found_inf)


def lamb_apply(
    params,
    exp_avgs,
    exp_avg_sqs,
    steps,
    sums,
    *,
    copies=(),
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
    **hyper,
):
    r"""Do the second phase of a LAMB step: the update, from the moments and the complete sums.

    Arguments as for :func:`lamb_moments`; `params` and `copies` are written, the rest is read.

    Parameters
    ----------
    sums : Tensor
        ``[T, 2]`` float64: the result of :func:`lamb_moments`, complete for every tensor.
    copies : list of T arrays, optional
        fp16 or bf16, laid out like `params`, which are then the fp32 masters: get `params` rounded
        to nearest, ties to even.
    grad_sq_sum : Tensor, optional
        As in the first phase; needed when clipping under a loss scaler, so that both phases skip
        or neither does.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor, before anything is written.

    Examples
    --------
    >>> sums = lamb_moments(p, g, m, v, t, **hyper)
    >>> lamb_apply(p, m, v, t, sums, **hyper)
    """
    *lists, copies = as_tensors(
        "lamb_apply",
        params=params,
        exp_avgs=exp_avgs,
        exp_avg_sqs=exp_avg_sqs,
        steps=steps,
        copies=copies,
    )
    arguments = _flat("lamb_apply", hyper)
    if lists[0]:
        torch.ops.largebatch.lamb_apply(
            *lists, sums, copies, *arguments, grad_sq_sum, grad_scale, found_inf
        )


def _flat(op, hyper):
    """Hyper-parameters as the schema has them, which knows no unions."""
    values = dict(zip(_HYPER, hyper_parameters(op, hyper, _HYPER), strict=True))
    correction = values["bias_correction"]
    values["bias_correction"] = {True: "on", False: "off"}.get(correction, correction)
    values["adapt"] = {True: "always", False: "never"}.get(values["adapt"], values["adapt"])
    if isinstance(values["trust_clip"], int | float):
        values["trust_clip"] = (0.0, float(values["trust_clip"]))
    return list(values.values())


def _group(arguments):
    return dict(zip(_HYPER, arguments, strict=True))


def _moments(params, grads, exp_avgs, exp_avg_sqs, steps, *rest):
    *arguments, grad_sq_sum, grad_scale, found_inf = rest
    sums = torch.zeros(len(params), 2, dtype=torch.float64, device=params[0].device)
    _C.lamb_step(
        _C.LambPlan(),
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        [],
        [],
        [0] * len(params),
        [_group(arguments)],
        phases="first",
        sums=sums,
        grad_sq_sum=grad_sq_sum,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    mark_written([*exp_avgs, *exp_avg_sqs, *steps])
    return sums


def _moments_fake(params, *_):
    return params[0].new_empty(len(params), 2, dtype=torch.float64)


def _apply(params, exp_avgs, exp_avg_sqs, steps, sums, copies, *rest):
    *arguments, grad_sq_sum, grad_scale, found_inf = rest
    _C.lamb_step(
        _C.LambPlan(),
        params,
        [],
        exp_avgs,
        exp_avg_sqs,
        steps,
        copies,
        list(range(len(copies))),
        [0] * len(params),
        [_group(arguments)],
        phases="second",
        sums=sums,
        grad_sq_sum=grad_sq_sum,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    mark_written([*params, *copies])


define(
    "lamb_moments(Tensor[] params, Tensor[] grads, Tensor(a!)[] exp_avgs, "
    f"Tensor(b!)[] exp_avg_sqs, Tensor(c!)[] steps, {_HYPER_SCHEMA}) -> Tensor",
    _moments,
    _moments_fake,
)
define(
    "lamb_apply(Tensor(a!)[] params, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, Tensor[] steps, "
    f"Tensor sums, Tensor(b!)[] copies, {_HYPER_SCHEMA}) -> ()",
    _apply,
    lambda *_: None,
)
