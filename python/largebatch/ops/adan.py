# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan as one function, for tensors that this process may hold only parts of."""

import torch

from .. import _C
from .._versions import mark_written
from ._library import as_tensors, define, hyper_parameters

_HYPER = ("lr", "betas", "eps", "weight_decay", "max_grad_norm", "no_prox", "maximize")
_HYPER_SCHEMA = (
    "float lr, float[] betas, float eps, float weight_decay, float? max_grad_norm, bool no_prox, "
    "bool maximize, Tensor? grad_sq_sum, Tensor? grad_scale, Tensor? found_inf"
)


def adan_step(
    params,
    grads,
    exp_avgs,
    exp_avg_diffs,
    exp_avg_sqs,
    neg_pre_grads,
    steps,
    *,
    copies=(),
    grad_sq_sum=None,
    grad_scale=None,
    found_inf=None,
    **hyper,
):
    r"""Do one Adan step: averages, weights, previous gradients and step counters forward.

    The equations are those of :class:`largebatch.optim.Adan`. Elements do not depend on each other
    but for the gradient norm: with `grad_sq_sum` added up over the ranks that hold the other parts
    of the tensors (one all-reduce of one number), the sharded step equals the whole one; without
    clipping, as it is.

    Parameters
    ----------
    params : list of T arrays
        fp32, fp16, bf16 or fp64, any shape, dense. Written.
    grads : list of T arrays
        Laid out like `params`; fp16 and bf16 also with fp32 params, fp32 also with 16-bit ones.
        Read.
    exp_avgs, exp_avg_diffs, exp_avg_sqs : list of T arrays
        m, v and n, laid out like `params`; fp32, or fp64 with fp64 params. Written.
    neg_pre_grads : list of T arrays
        The gradient of the step before, clipped and unscaled, times -1; like the averages. Not
        looked at in a tensor's first step. Written.
    steps : list of T arrays
        fp32, one element each: the steps taken before. Written.
    copies : list of T arrays, optional
        fp16 or bf16, laid out like `params`, which are then the fp32 masters: get `params` rounded
        to nearest, ties to even.
    grad_sq_sum : Tensor, optional
        One float64: the sum of squares of all gradients as given (still scaled), of all ranks and
        groups. None: that of `grads`.
    grad_scale, found_inf : Tensor, optional
        One float32 each, as ``torch.amp.GradScaler`` has them. Gradients are divided by
        `grad_scale`. Nothing is written if `found_inf` is not 0 or, while one of the two is given,
        clipping is on and the gradient norm is not finite.
    **hyper
        All of `lr`, `betas`, `eps`, `weight_decay`, `max_grad_norm`, `no_prox`, `maximize`, with
        the meaning they have in :class:`largebatch.optim.Adan`; `lr` is a number.

    Raises
    ------
    TypeError, ValueError
        One line naming the argument and the tensor, before anything is written.

    Notes
    -----
    Same bits on every run.

    Examples
    --------
    >>> total = multi_tensor_sq_sum(g).sum(); torch.distributed.all_reduce(total)
    >>> adan_step(p, g, m, v, n, neg_q, t, grad_sq_sum=total, **hyper)
    """
    *lists, copies = as_tensors(
        "adan_step",
        params=params,
        grads=grads,
        exp_avgs=exp_avgs,
        exp_avg_diffs=exp_avg_diffs,
        exp_avg_sqs=exp_avg_sqs,
        neg_pre_grads=neg_pre_grads,
        steps=steps,
        copies=copies,
    )
    arguments = hyper_parameters("adan_step", hyper, _HYPER)
    if lists[0]:
        torch.ops.largebatch.adan_step(
            *lists, copies, *arguments, grad_sq_sum, grad_scale, found_inf
        )


def _step(params, grads, exp_avgs, exp_avg_diffs, exp_avg_sqs, neg_pre_grads, steps, copies, *rest):
    *arguments, grad_sq_sum, grad_scale, found_inf = rest
    states = exp_avgs, exp_avg_diffs, exp_avg_sqs, neg_pre_grads
    _C.adan_step(
        _C.AdanPlan(),
        params,
        grads,
        *states,
        steps,
        copies,
        list(range(len(copies))),
        [0] * len(params),
        [dict(zip(_HYPER, arguments, strict=True))],
        grad_sq_sum=grad_sq_sum,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )
    mark_written([*params, *(t for state in states for t in state), *steps, *copies])


define(
    "adan_step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_diffs, Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] neg_pre_grads, "
    f"Tensor(f!)[] steps, Tensor(g!)[] copies, {_HYPER_SCHEMA}) -> ()",
    _step,
    lambda *_: None,
)
