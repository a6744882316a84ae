# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""LAMB as a ``torch.optim`` optimizer."""

from .. import _C
from ..reference import lamb as reference
from ..reference.norm import clipping
from ._multi_tensor import MultiTensorOptimizer

_PRESETS = {
    "paper_v3": {"bias_correction": False, "adapt": "always", "max_grad_norm": None},
    "nvlamb": {"adapt": "always"},
    "deepspeed": {
        "bias_correction": "outside",
        "adapt": "always",
        "trust_clip": (0.01, 10.0),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": None,
    },
    "lambc": {"adapt": "always", "trust_clip": 1.0},
}


class LAMB(MultiTensorOptimizer):
    r"""Layer-wise adaptive moments: Adam whose step in every tensor is scaled by the tensor's norm.

    .. math::
        g' &= g / \max(1, \lVert g \rVert_{\text{all}} / \text{max\_grad\_norm}) \\
        m &= \beta_1 m + (1 - \beta_1) g', \qquad v = \beta_2 v + (1 - \beta_2) g'^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda p \\
        p &= p - \eta\, r\, u, \qquad r = \phi(\lVert p \rVert) / \lVert u \rVert

    You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arXiv 1904.00962, Algorithm 2. Deviation from it: the clip by the global gradient norm, which
    NVIDIA found necessary and which `max_grad_norm=None` turns off. r = 1 when a norm is zero.
    Every switch by which implementations differ is an argument; ``largebatch.reference.lamb`` has
    the formulas.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (name, Tensor)
        fp32, fp16, bf16, fp64 or complex; any layout. Sharded ones as DTensor.
    lr : float or Tensor
        :math:`\eta \ge 0`. A one-element fp32 tensor on the parameters' device is read there, so a
        captured graph follows it.
    betas : (float, float)
        :math:`0 \le \beta < 1`.
    eps : float
        :math:`\epsilon \ge 0`.
    weight_decay : float
        :math:`\lambda \ge 0`.
    bias_correction : bool or "outside"
        False: raw moments. "outside": raw moments, and the step is multiplied by
        :math:`\sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` after the ratio, as DeepSpeed does.
    grad_averaging : bool
        False: the gradient enters m with weight 1.
    max_grad_norm : float or None
        Limit on the norm of all gradients of all groups together, unscaled; None, 0 and inf are
        off. A group may have a limit of its own on that same norm.
    decay : "in_update", "l2" or "outside"
        Where :math:`\lambda p` goes: into u as above; into the gradient; or into
        :math:`p = (1 - \eta\lambda) p` before anything is measured.
    adapt : "decay_only", "always", "never" or bool
        Which tensors have a ratio; "decay_only" is those with weight decay. False is "never".
    trust_clip : None, float or (float, float)
        Upper, or lower and upper, bound of r.
    weight_norm_clip : None or (float, float)
        :math:`\phi(z) = \min(\max(z, low), high)`; None is the identity.
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
    State: `step` (per parameter, fp32), `exp_avg`, `exp_avg_sq` (fp32, or fp64 with fp64
    parameters), `master_param`; small ones share storages. Memory traffic 44 B per fp32 parameter,
    40 without clipping; no allocation after the first step, no host synchronisation, gradients are
    only read. Sums are fp64 in a fixed order: the same bits on every run. Under
    ``torch.amp.GradScaler`` a step with a non-finite gradient leaves parameters, state and step as
    they were; without it non-finite values go where the formula takes them, and `nonfinite` counts
    the tensors.

    Examples
    --------
    >>> optimizer = LAMB(param_groups(model, weight_decay=0.01), lr=2e-3)
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    _plan_type = _C.LambPlan
    _takes_grad_sq_sum = True
    _hyper = (
        "lr", "betas", "eps", "weight_decay", "bias_correction", "grad_averaging", "max_grad_norm",
        "decay", "adapt", "trust_clip", "weight_norm_clip", "maximize",
    )  # fmt: skip

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        *,
        bias_correction=True,
        grad_averaging=True,
        max_grad_norm=1.0,
        decay="in_update",
        adapt="decay_only",
        trust_clip=None,
        weight_norm_clip=None,
        master_weights=True,
        maximize=False,
        capturable=False,
        fused=None,
    ):
        defaults = {name: value for name, value in locals().items() if name in self._hyper}
        defaults.update(master_weights=master_weights, capturable=capturable, fused=fused)
        super().__init__(params, defaults)

    @classmethod
    def preset(cls, name, params, **over):
        """Make a LAMB as a published one computes it.

        Parameters
        ----------
        name : str
            "paper_v3": third version of the paper, without bias correction and clip.
            "nvlamb": NVIDIA apex's FusedLAMB with ``use_nvlamb=True``.
            "deepspeed": DeepSpeed's FusedLamb, with its correction outside of the ratio.
            "lambc": ratio at most 1 (Fong et al. 2020, arXiv 2011.13584).
        params : iterable
            As in the constructor.
        **over
            Arguments of the constructor; they win over the preset.

        Examples
        --------
        >>> optimizer = LAMB.preset("nvlamb", model.parameters(), lr=6e-3)
        """
        if name not in _PRESETS:
            raise ValueError(
                f"LAMB.preset: name got {name!r}, expected one of {', '.join(_PRESETS)}."
            )
        return cls(params, **{**_PRESETS[name], **over})

    def _state_names(self, group):
        return "step", "exp_avg", "exp_avg_sq"

    def _clips(self):
        return any(clipping(group["max_grad_norm"]) for group in self.param_groups)

    def _kernel(self, plan, batch, **inputs):
        _C.lamb_step(
            plan,
            batch.weights,
            batch.grads,
            batch.state("exp_avg"),
            batch.state("exp_avg_sq"),
            batch.state("step"),
            batch.copies,
            batch.copy_rows,
            batch.group_of,
            self.param_groups,
            **inputs,
        )

    def _reference_first(self, batch, arguments):
        moments = batch.state("exp_avg"), batch.state("exp_avg_sq"), batch.state("step")
        arguments = {**arguments, "adapt": _named(arguments["adapt"])}
        return reference.lamb_moments(batch.weights, batch.grads, *moments, **arguments)

    def _reference_second(self, batch, sums, arguments):
        moments = batch.state("exp_avg"), batch.state("exp_avg_sq"), batch.state("step")
        arguments = {**arguments, "adapt": _named(arguments["adapt"])}
        reference.lamb_apply(batch.weights, *moments, sums, **arguments)


def _named(adapt):
    return {True: "always", False: "never"}.get(adapt, adapt)
