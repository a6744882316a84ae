# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Adan as a ``torch.optim`` optimizer."""

import torch

from .. import _C
from ..reference import adan as reference
from ..reference.norm import clipping
from ._multi_tensor import MultiTensorOptimizer

_STATES = "exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad"


class Adan(MultiTensorOptimizer):
    r"""Adaptive Nesterov momentum: Adam that also follows the differences of gradients.

    .. math::
        d &= g - g_{\text{prev}}, \qquad m = \beta_1 m + (1 - \beta_1) g, \qquad
        v = \beta_2 v + (1 - \beta_2) d \\
        n &= \beta_3 n + (1 - \beta_3) (g + \beta_2 d)^2 \\
        u &= \eta \left( \frac{m}{1 - \beta_1^k} + \frac{\beta_2 v}{1 - \beta_2^k} \right) \Big/
             \left( \sqrt{\frac{n}{1 - \beta_3^k}} + \epsilon \right) \\
        p &= (p - u) / (1 + \eta \lambda)

    Xie, Zhou, Li, Lin, Yan 2022, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing
    Deep Models", arXiv 2208.06677, Algorithm 1. Deviations from it, all of them those of its
    authors' code: `betas` are the decay factors (1 minus the paper's); the averages start at zero
    and are corrected for it, where the paper starts them with the first gradient; `max_grad_norm`;
    `no_prox`. ``largebatch.reference.adan`` has the formulas.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (name, Tensor)
        fp32, fp16, bf16, fp64 or complex; any layout. Sharded ones as DTensor.
    lr : float or Tensor
        :math:`\eta \ge 0`; five to ten times that of AdamW in the authors' recipes. A one-element
        fp32 tensor on the parameters' device is read there, so a captured graph follows it.
    betas : (float, float, float)
        :math:`0 \le \beta < 1`, of m, v and n. Advice of the authors: tune the third, then the
        first.
    eps : float
        :math:`\epsilon \ge 0`.
    weight_decay : float
        :math:`\lambda \ge 0`; 0.02 in the authors' recipes.
    max_grad_norm : float or None
        Gradients are multiplied by :math:`\min(1, \text{max\_grad\_norm} / (G + \epsilon))`, G the
        norm of all gradients of all groups together, unscaled; None, 0 and inf are off. A group may
        have a limit of its own on that same norm.
    no_prox : bool
        Decay as AdamW does, before the update: :math:`p = (1 - \eta\lambda) p - u`.
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
    State: `step` (per parameter, fp32), `exp_avg`, `exp_avg_diff`, `exp_avg_sq`, `neg_pre_grad`
    (:math:`-g_{\text{prev}}`; fp32, or fp64 with fp64 parameters), `master_param`; small ones share
    storages. Memory traffic 44 B per fp32 parameter, 48 with clipping; no allocation after the
    first step, no host synchronisation, gradients are only read. Same bits on every run. A
    parameter without a gradient is left alone, so that its next difference is that over several
    steps. Under ``torch.amp.GradScaler`` a step with a non-finite gradient leaves parameters, state
    and step as they were, previous gradient included; without it non-finite values go where the
    formula takes them.

    Examples
    --------
    >>> optimizer = Adan(param_groups(model, weight_decay=0.02), lr=5e-3)
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    _plan_type = _C.AdanPlan
    _takes_grad_sq_sum = True
    _sums_tensors = False
    _hyper = (
        "lr", "betas", "eps", "weight_decay", "max_grad_norm", "no_prox", "maximize",
    )  # fmt: skip

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.98, 0.92, 0.99),
        eps=1e-8,
        weight_decay=0.0,
        *,
        max_grad_norm=None,
        no_prox=False,
        master_weights=True,
        maximize=False,
        capturable=False,
        fused=None,
    ):
        defaults = {name: value for name, value in locals().items() if name in self._hyper}
        defaults.update(master_weights=master_weights, capturable=capturable, fused=fused)
        super().__init__(params, defaults)

    @property
    def nonfinite(self):
        """Number of elements whose update was not finite in the last step; None before the first.

        0-dim int32 tensor on the device; reading its value waits for the device. Counts to 2**30.
        """
        return super().nonfinite

    @torch.no_grad()
    def restart(self):
        """Forget the averages, and start anew with the next gradient.

        Zeroes `exp_avg`, `exp_avg_diff`, `exp_avg_sq` and `step` of every parameter in place; the
        next step is a first one again, with a difference of 0. Parameters and their masters stay.
        The paper restarts when a bound on the distance travelled is passed; its authors train
        without, or restart by hand after the warm-up. Nothing is waited for: between the replays of
        a captured graph it works as between steps.

        Examples
        --------
        >>> if epoch == warmup_epochs:
        ...     optimizer.restart()
        """
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_diff", "exp_avg_sq", "step"):
                if name in state:
                    state[name].zero_()

    def load_state_dict(self, state_dict):
        """Load the state, in its own dtypes; also that of other implementations.

        Those of the authors and of timm load as they are. pytorch_optimizer's `previous_grad` and
        `weight_decouple` are renamed. optimi's averages, which it keeps corrected for their start,
        are brought back; its `adam_wd` never reaches its update, so neither does it here, and its
        Kahan compensation is dropped.
        See also ``largebatch.optim.LAMB.load_state_dict``.

        Raises
        ------
        ValueError
            For `caution`, `adanorm` and `use_gc`, which have no counterpart here.
        """
        super().load_state_dict(_converted(state_dict))

    def _state_names(self, group):
        return ("step", *_STATES)

    def _clips(self):
        return any(clipping(group["max_grad_norm"]) for group in self.param_groups)

    def _kernel(self, plan, batch, **inputs):
        _C.adan_step(
            plan,
            batch.weights,
            batch.grads,
            *(batch.state(name) for name in _STATES),
            batch.state("step"),
            batch.copies,
            batch.copy_rows,
            batch.group_of,
            self.param_groups,
            **inputs,
        )

    def _reference_part(self, batch, arguments):
        states = (batch.state(name) for name in (*_STATES, "step"))
        return reference.adan_step(batch.weights, batch.grads, *states, **arguments)


# ---- Checkpoints of other implementations --------------------------------------------------------


def _converted(state_dict):
    """Return the state of another implementation as this one's; our own as it is."""
    states = dict(state_dict["state"])
    groups = []
    for group in state_dict["param_groups"]:
        group = dict(group)
        for name in ("caution", "adanorm", "use_gc"):  # timm, pytorch_optimizer
            if group.get(name):
                raise ValueError(
                    f"Adan: the checkpoint has {name}=True, which there is not here. Set it to "
                    "False in its param_groups to go on without."
                )
        if "weight_decouple" in group:  # pytorch_optimizer
            group["no_prox"] = group.pop("weight_decouple")
        for key in group["params"]:
            if key in states:
                states[key] = _converted_state(states[key], group)
        if "beta1" in group:  # optimi
            group["betas"] = tuple(group.pop(name) for name in ("beta1", "beta2", "beta3"))
            if group.get("decouple_lr"):  # its rate of decay is lr / max_lr * weight_decay
                group["weight_decay"] /= group["max_lr"]
        groups.append(group)
    return {**state_dict, "state": states, "param_groups": groups}


def _converted_state(state, group):
    state = dict(state)
    for name in ("previous_grad", "prev_grad"):  # pytorch_optimizer, optimi: its negative as well
        if name in state:
            state["neg_pre_grad"] = state.pop(name)
    if "beta1" in group:
        step = float(state.get("step", group.get("step", 0)))
        betas = {"exp_avg": "beta1", "exp_avg_diff": "beta2", "exp_avg_sq": "beta3"}
        for name, beta in betas.items():
            state[name] = state[name] * (1 - group[beta] ** step)
        state.pop("kahan_comp", None)
        state.pop("group", None)
    return state
