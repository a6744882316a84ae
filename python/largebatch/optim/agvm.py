# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""AGVM: a learning rate for every module, around any optimizer."""

import torch
from torch.optim import Optimizer

from ..reference import agvm as reference
from ._dots import Measure, second_moments
from ._halves import MicroBatches, WorkerHalves
from ._modules import Modules
from ._rates import Rates
from ._wrapper import Wrapper


class AGVM(Wrapper):
    r"""Adaptive gradient variance modulator: learning rates that even out noise between modules.

    Every `interval` steps the batch's gradient is split in two halves, a and b, and

    .. math::
        \phi_i &= 1 - \frac{\langle a_i, b_i \rangle}{\lVert a_i \rVert \lVert b_i \rVert}, \qquad
        r_i = \sqrt{\operatorname{clamp}\Big(\frac{\phi_\text{anchor} + 10^{-6}}
              {\phi_i + 10^{-6}},\, \text{low},\, \text{high}\Big)} \\
        \mu_i &= \alpha \mu_i + (1 - \alpha)\, r_i, \qquad \mu_i = 1 \text{ at first}

    for every module i; each step of `optimizer` moves module i with the learning rate
    :math:`\eta \mu_i`, and so its weight decay if that is multiplied by the rate.

    Xue et al. 2022, "Large-batch Optimization for Dense Visual Predictions", NeurIPS 2022, arXiv
    2210.11078. Deviations: the factor :math:`\eta^2` of the paper's variance, which cancels, is
    left out; the clamp and :math:`10^{-6}` are those of the authors' code; halves for an optimizer
    of Adam's kind are mean gradients, not sums over workers. A module that cannot be measured (a
    half that is zero or not finite, no gradients, a skipped step) keeps its factor, and all do if
    it is the anchor. ``largebatch.reference.agvm`` has the formulas.

    The halves come from one of

    - gradient accumulation: call :meth:`micro_batch` after every backward pass;
    - data-parallel workers: ``ddp.register_comm_hook(None, agvm.hook())``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any whose groups have an `lr`: of this package, of torch, of others.
    modules : dict of str to torch.nn.Module or list of Tensor
        Every parameter of `optimizer` is in exactly one. Parameters that it does not have are
        left aside. Modules and parameter groups need not agree.
    anchor : str
        The module the others are compared with, whose factor is always 1: the backbone.
    interval : int
        :math:`\tau \ge 1`, steps between measurements. 10; 5 for batches above a thousand.
    momentum : float
        :math:`\alpha` in [0, 1). Without it training was reported to diverge.
    warmup : int
        Steps before the first measurement: the learning rate's warm-up and a hundred more.
    clamp : (float, float)
        (low, high) around 1, of the ratio before the root: factors stay within their roots.
    precondition : bool or None
        Compare the halves as Adam would scale them, by `exp_avg_sq` in the optimizer's state and
        the last of `betas` and `eps` in its groups. None: if there is an `exp_avg_sq`. Parameters
        that have none yet are left out of that measurement. Clipping by the optimizer itself
        (LAMB's `max_grad_norm`) is not applied to halves.
    grad_scale : callable, optional
        Returns what gradients are multiplied by, a number or a one-element tensor: for a
        preconditioned measure under a GradScaler, ``scaler.get_scale``. Called when measuring only.
    fused : bool or None
        False: the dot products in pure torch. None, True: by the kernels.

    Raises
    ------
    TypeError, ValueError
        One line, from the constructor: a parameter in no module or in two, a module without any, a
        setting out of range.
    RuntimeError
        One line, from :meth:`step`: a batch that did not come in halves.

    Notes
    -----
    It is an optimizer that shares `param_groups` and `state` with the one it wraps: schedulers,
    ``GradScaler`` and loops take either. No group's `lr` is ever written or replaced. During the
    inner step `param_groups` is another list, of copies with the rates :math:`\eta \mu_i`, and what
    the optimizer writes into these (a step count, say) goes to the groups afterwards. A tensor `lr`
    is multiplied where it is, without waiting for the device; for one that is a number, the factors
    are read from the device once after each measurement.

    Between measurements a step costs what `optimizer` takes. A measurement keeps one buffer of the
    size of the gradients (micro-batches) or of a bucket (workers) until the step; per fp32
    parameter the dot products read 8 B, 12 preconditioned. Deterministic: sums are fp64 in a fixed
    order, the same on all workers.

    Examples
    --------
    >>> agvm = AGVM(SGD(model.parameters(), lr=0.1), {"body": model.body, "head": model.head},
    ...             anchor="body")
    >>> for x, y in halves: (loss(model(x), y) / 2).backward(); agvm.micro_batch()
    >>> agvm.step(); agvm.zero_grad()
    """

    def __init__(
        self,
        optimizer,
        modules,
        *,
        anchor,
        interval=10,
        momentum=0.97,
        warmup=500,
        clamp=(0.5, 10.0),
        precondition=None,
        grad_scale=None,
        fused=None,
    ):
        _check_settings(optimizer, interval, momentum, warmup, clamp, grad_scale)
        super().__init__(optimizer)
        self.interval, self.momentum, self.warmup, self.clamp = interval, momentum, warmup, clamp
        self.precondition, self.fused = precondition, fused
        self._scale_of = grad_scale
        self._modules = Modules(optimizer, modules, anchor)
        device = optimizer.param_groups[0]["params"][0].device
        self._rates = Rates(self._modules, device)
        self._variances = torch.full_like(self._rates.factors, torch.nan)
        self._steps = 0
        self._workers = None
        self._begin()

    # ------------------------------------------------------------------------- measurement

    @property
    def factors(self):
        r""":math:`\mu` of each module: a dict of 0-dim float64 tensors on the device, copies."""
        return dict(zip(self._modules.names, self._rates.factors.clone(), strict=True))

    @property
    def variances(self):
        r""":math:`\phi` of each module when it was last measured, NaN before; as `factors`."""
        return dict(zip(self._modules.names, self._variances.clone(), strict=True))

    @torch.no_grad()
    def micro_batch(self):
        """Say that a backward pass has added the gradient of one more micro-batch to ``p.grad``.

        Call it after each, whether the next step measures or not, and before gradients are
        unscaled or clipped. Micro-batches are of equal size, two or more to a step, and each
        ``p.grad`` is complete: under FSDP2 reduced in every backward pass. Under DDP use
        :meth:`hook`.

        Raises
        ------
        RuntimeError
            Beside a :meth:`hook`; for sparse gradients.

        Examples
        --------
        >>> loss.backward(); agvm.micro_batch()
        """
        if self._workers is not None:
            raise RuntimeError(
                "AGVM: micro_batch() beside hook(), expected one of them. Leave micro_batch() out: "
                "the halves are those of the workers."
            )
        self._count += 1
        if self._due():
            self._halves.add(self._count, self._modules.owned(self.param_groups), self._measure())

    def hook(self, process_group=None):
        """Return a communication hook that averages gradients, and measures on the way.

        For ``DistributedDataParallel.register_comm_hook(None, hook)``. Between measurements it is
        an all-reduce like the one DDP does by itself. On a measuring step each bucket is reduced a
        second time, of the lower half of the workers alone, and the backward pass waits for both;
        the average has the same bits. Accumulate under ``no_sync``: a half is then all
        micro-batches of its workers. All of them call it, once.

        Parameters
        ----------
        process_group : ProcessGroup, optional
            That of DDP. Two or more workers.

        Returns
        -------
        callable
            ``hook(state, bucket)``.

        Raises
        ------
        ValueError
            For one worker.

        Examples
        --------
        >>> ddp.register_comm_hook(None, agvm.hook())
        """
        workers = self._workers = WorkerHalves(process_group)

        @torch.no_grad()
        def agvm_hook(state, bucket):
            if not self._due():
                return workers.average(bucket)
            owner_of = dict(self._modules.owned(self.param_groups))
            return workers.reduce(bucket, owner_of, self._measure())

        return agvm_hook

    def _begin(self):
        """Forget the halves of the step before."""
        self._count = 0
        self._halves = MicroBatches()
        if self._workers is not None:
            self._workers.buckets = {}

    def _due(self):
        """Tell whether the step that is to come measures."""
        after = self._steps - self.warmup
        return after >= 0 and after % self.interval == 0

    def _measure(self):
        moments = second_moments(self.optimizer, self.precondition, self._steps)
        scale = self._scale_of() if self._scale_of is not None and moments is not None else None
        return Measure(moments, scale, self.fused)

    def _check_halves(self, due):
        """Raise unless the batch came in halves: in the first step too, not only when it is due."""
        if self._workers is not None:
            if due and not self._workers.buckets:
                raise RuntimeError(
                    "AGVM: the hook has not run since the last step, expected one run for each "
                    "bucket. Register it: ddp.register_comm_hook(None, agvm.hook())."
                )
        elif self._count < 2 and (due or self._steps == 0):
            raise RuntimeError(
                f"AGVM: the step has {self._count} micro-batch{'es' if self._count != 1 else ''} "
                "on one worker, expected 2 or more: noise is measured between halves of a batch. "
                "Call micro_batch() after each of several backward passes, or register hook() with "
                "DDP."
            )
        scaled = due and self._scale_of is None and self._mark("grad_scale") is not None
        if scaled and second_moments(self.optimizer, self.precondition, self._steps):
            raise ValueError(
                "AGVM: grad_scale: got None under a GradScaler, expected a function: a "
                "preconditioned measure has to unscale. Pass grad_scale=scaler.get_scale."
            )

    def _update(self):
        """Take the measurement into the factors, on the device."""
        source = self._halves if self._workers is None else self._workers
        factors = self._rates.factors
        phi = reference.variances(source.by_module(len(factors), factors.device))
        skip = self._mark("found_inf")
        if skip is not None:
            phi = torch.where(skip.to(phi.device).reshape(()) != 0, torch.nan, phi)
        factors = reference.next_factors(
            factors, phi, self._modules.anchor, momentum=self.momentum, clamp=self.clamp
        )
        self._set(factors, torch.where(phi.isnan(), self._variances, phi))

    def _set(self, factors, variances):
        self._rates.set(factors)
        self._variances.copy_(variances)

    # -------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure=None):
        """Measure if it is time to, then let the optimizer step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model with its backward passes and returns the loss; called once.

        Returns
        -------
        The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = self._due()
        self._check_halves(due)
        before = (self._rates.factors.clone(), self._variances.clone()) if due else None
        if due:
            self._update()
        try:
            with self._marked(), self._rates.standing_in(self.optimizer):
                self.optimizer.step()
        except BaseException:
            if due:
                self._set(*before)
            raise
        self._steps += 1
        self._begin()
        return loss

    def zero_grad(self, set_to_none=True):
        """Drop the gradients, and the halves that were measured of them."""
        super().zero_grad(set_to_none)
        self._begin()

    def _look_at(self, groups):
        self._modules.runs(groups)

    # -------------------------------------------------------------------------- checkpoints

    def state_dict(self):
        """Return the optimizer's state with the factors and the steps taken, between two steps.

        Returns
        -------
        dict
            The optimizer's own, and `agvm`: `modules`, their names; `factors` and `variances`,
            float64 tensors in their order; `step`, an int, which the next measurement depends on.
        """
        agvm = {
            "modules": list(self._modules.names),
            "factors": self._rates.factors.clone(),
            "variances": self._variances.clone(),
            "step": self._steps,
        }
        return {**self.optimizer.state_dict(), "agvm": agvm}

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Load what `state_dict` returned: training goes on bit for bit.

        Raises
        ------
        ValueError
            If the modules are others, or it is the state of an optimizer alone.
        """
        rest = dict(state_dict)
        agvm = rest.pop("agvm", None)
        if agvm is None:
            raise ValueError(
                "AGVM: state_dict has no 'agvm', expected the factors in it. Load the state of an "
                "optimizer alone by agvm.optimizer.load_state_dict."
            )
        if list(agvm["modules"]) != self._modules.names:
            raise ValueError(
                f"AGVM: state_dict has the modules {agvm['modules']}, expected "
                f"{self._modules.names}. Name them as they were when it was saved."
            )
        self.optimizer.load_state_dict(rest)
        self._set(agvm["factors"], agvm["variances"])
        self._steps = agvm["step"]
        self._begin()


def _check_settings(optimizer, interval, momentum, warmup, clamp, grad_scale):
    def fail(name, got, expected, error=ValueError):
        raise error(f"AGVM: {name}: got {got!r}, expected {expected}.")

    if not isinstance(optimizer, Optimizer):
        fail("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer", TypeError)
    for position, group in enumerate(optimizer.param_groups):
        if not isinstance(group.get("lr"), float | int | torch.Tensor):
            where = f"optimizer.param_groups[{position}]['lr']"
            fail(where, group.get("lr"), "a number or a tensor", TypeError)
    for name, value, low in (("interval", interval, 1), ("warmup", warmup, 0)):
        if not isinstance(value, int) or value < low:
            fail(name, value, f"an integer >= {low}")
    if not 0 <= momentum < 1:
        fail("momentum", momentum, "a number in [0, 1)")
    if len(clamp) != 2 or not 0 <= clamp[0] <= 1 <= clamp[1]:
        fail("clamp", clamp, "(low, high) with 0 <= low <= 1 <= high")
    if grad_scale is not None and not callable(grad_scale):
        fail("grad_scale", grad_scale, "a function that returns it, as scaler.get_scale", TypeError)
