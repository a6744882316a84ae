# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LARS as a ``torch.optim`` optimizer."""

from .. import _C
from ..reference import lars as reference
from ._multi_tensor import MultiTensorOptimizer


class LARS(MultiTensorOptimizer):
    r"""Layer-wise adaptive rate scaling: momentum SGD with a local learning rate for every tensor.

    .. math::
        r &= \text{trust}\,\frac{\lVert p \rVert}{\lVert g \rVert + \lambda \lVert p \rVert
             + \epsilon}, \qquad d = r\,(g + \lambda p) \\
        b &= \mu b + (1 - \text{dampening})\, d, \qquad p = p - \eta\, b

    You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional Networks", arXiv 1708.03888,
    Algorithm 1. Deviations from it: :math:`\epsilon`, which 0 turns off, and where the learning
    rate enters, which is torch.optim.SGD's place unless `lr_in_momentum`. r = 1, with decay, when a
    norm is zero. ``largebatch.reference.lars`` has the formulas.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (name, Tensor)
        fp32, fp16, bf16, fp64 or complex; any layout. Sharded ones as DTensor.
    lr : float or Tensor
        :math:`\eta \ge 0`. A one-element fp32 tensor on the parameters' device is read there, so a
        captured graph follows it.
    momentum : float
        :math:`\mu \ge 0`; 0 needs no buffer.
    dampening : float
        As in torch.optim.SGD: none in the first step.
    weight_decay : float
        :math:`\lambda \ge 0`.
    nesterov : bool
        Step along :math:`d + \mu b` instead of b.
    trust_coefficient : float
        "trust" above; "eeta" in MLPerf.
    eps : float
        :math:`\epsilon \ge 0`.
    clip : bool
        LARC: r becomes :math:`\min(r / \eta, 1)`, so that the local rate only lowers the global.
    lr_in_momentum : bool
        :math:`b = \mu b + \eta d, p = p - b`: the paper's form, which remembers old rates.
    adapt : bool
        False: r = 1.
    master_weights : bool
        Keep an fp32 copy (`master_param` in the state) of each 16-bit parameter. Without it updates
        smaller than half a unit in the last place are lost.
    maximize : bool
        Ascend instead of descend. `grad` is not written.
    capturable : bool
        Allow ``step`` inside a CUDA graph capture.
    fused : bool or None
        False: the pure-torch path. None: the kernels where the device has them. True: kernels only.

    Raises
    ------
    ValueError
        For a hyper-parameter out of range, or tensors listed twice or overlapping.
    TypeError
        For dtypes that do not go together.
    RuntimeError
        For sparse gradients.

    Notes
    -----
    State: `step` (per parameter, fp32), `momentum_buffer` (fp32, or fp64 with fp64 parameters),
    `master_param`; small ones share storages. Memory traffic 28 B per fp32 parameter; no allocation
    after the first step, no host synchronisation, gradients are only read. Sums are fp64 in a fixed
    order: the same bits on every run. Under ``torch.amp.GradScaler`` a step with a non-finite
    gradient leaves parameters, state and step as they were; without it non-finite values go where
    the formula takes them, and `nonfinite` counts the tensors.

    Examples
    --------
    >>> optimizer = LARS(param_groups(model, weight_decay=5e-4), lr=10.0, momentum=0.9)
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    _plan_type = _C.LarsPlan
    _hyper = (
        "lr", "momentum", "dampening", "weight_decay", "nesterov", "trust_coefficient", "eps",
        "clip", "lr_in_momentum", "adapt", "maximize",
    )  # fmt: skip

    def __init__(
        self,
        params,
        lr=1.0,
        momentum=0.9,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        trust_coefficient=0.001,
        eps=1e-8,
        clip=False,
        lr_in_momentum=False,
        adapt=True,
        master_weights=True,
        maximize=False,
        capturable=False,
        fused=None,
    ):
        defaults = {name: value for name, value in locals().items() if name in self._hyper}
        defaults.update(master_weights=master_weights, capturable=capturable, fused=fused)
        super().__init__(params, defaults)

    def _state_names(self, group):
        return ("step",) if group["momentum"] == 0 else ("step", "momentum_buffer")

    def _kernel(self, plan, batch, **inputs):
        moves = [group["momentum"] != 0 for group in self.param_groups]
        every = range(len(batch.params))
        some = None if all(moves) else [row for row in every if moves[batch.group_of[row]]]
        _C.lars_step(
            plan,
            batch.weights,
            batch.grads,
            batch.state("momentum_buffer", some),
            every if some is None else some,
            batch.state("step"),
            batch.copies,
            batch.copy_rows,
            batch.group_of,
            self.param_groups,
            **inputs,
        )

    def _reference_first(self, batch, arguments):
        return reference.lars_norms(batch.weights, batch.grads, grad_scale=arguments["grad_scale"])

    def _reference_second(self, batch, sums, arguments):
        buffers = batch.state("momentum_buffer") if arguments["momentum"] != 0 else []
        reference.lars_apply(
            batch.weights, batch.grads, buffers, batch.state("step"), sums, **arguments
        )
