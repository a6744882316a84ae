# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Lion as a ``torch.optim`` optimizer."""

import math
from operator import is_

import torch

from .. import _C
from ..reference import lion as reference
from ..reference import rounding
from . import _momentum
from ._multi_tensor import MultiTensorOptimizer
from ._sharding import local, shard_index
from .kappa import L1
from .kappa.registry import is_builtin, kernel_of

_L1 = L1()


class Lion(MultiTensorOptimizer):
    r"""Sign momentum: every weight moves by the learning rate.

    .. math::
        c = \beta_1 m + (1-\beta_1)\, g, \qquad p = p\,(1 - \eta\lambda) - \eta\,\mathrm{sign}(c),
        \qquad m = \beta_2 m + (1-\beta_2)\, g

    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675,
    Algorithm 2; without deviations. The sign of 0 and of NaN is 0. ``largebatch.reference.lion``
    has the order of evaluation, which every backend keeps to the last bit.

    Parameters
    ----------
    params : iterable of Tensor, of dict or of (name, Tensor)
        fp32, fp16, bf16, fp64 or complex; any layout. Sharded ones as DTensor.
    lr : float or Tensor
        :math:`\eta \ge 0`. A one-element fp32 tensor on the parameters' device is read there, so a
        captured graph follows it.
    betas : (float, float)
        :math:`\beta_1, \beta_2` in [0, 1).
    weight_decay : float
        :math:`\lambda \ge 0`, decoupled.
    cautious : bool
        Move only the weights whose step agrees in sign with the gradient, by the inverse of their
        share more (Liang et al. 2024, arXiv 2411.16085). The bound on the weights that decay gives
        is lost. 28 B per fp32 parameter; 20 for tensors of 16384 elements or less.
    state_dtype : {None, "float32", "bfloat16", "int8"}
        Of the momentum. "int8": blocks of 128 elements, in the order of memory, share an fp32 scale
        (`exp_avg_scale`); tensors of less than 4096 elements stay fp32. None and "float32" are fp64
        with fp64 parameters. Complex parameters have a complex momentum whatever it says.
    stochastic_rounding : bool
        Round bf16 weights without a master, bf16 and int8 momentum stochastically; else to nearest,
        which loses updates smaller than half a unit in the last place. fp16 is always rounded to
        nearest.
    seed : int
        Of the random bits, in [0, 2^64); the same on every rank.
    master_weights : bool
        Keep an fp32 copy (`master_param` in the state) of each 16-bit parameter.
    maximize : bool
        Ascend instead of descend. `grad` is not written.
    capturable : bool
        Allow ``step`` inside a CUDA graph capture.
    fused : bool or None
        False: the pure-torch path. None: the kernels where the device and the settings have them.
        True: kernels only.

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
    State: `step` (per parameter, fp32), `exp_avg`, `exp_avg_scale`, `master_param`; small ones
    share storages. Memory traffic 20 B per fp32 parameter in one launch for the model; no
    allocation after the first step, no host synchronisation, gradients are only read. The same bits
    on every run and every backend; random bits are a function of (seed, place of the parameter in
    the optimizer, step, element in memory), so a resumed run goes on as it would have. Under
    ``torch.amp.GradScaler`` a step with a non-finite gradient leaves parameters, state and step as
    they were; without it a weight whose momentum is NaN stands still, apart from decay: `nonfinite`
    counts them.

    Examples
    --------
    >>> optimizer = Lion(param_groups(model, weight_decay=0.1), lr=1e-4)
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    _plan_type = _C.LionPlan
    _sums_tensors = False
    _optional = ("master_param", "exp_avg_scale")
    _ids, _sizes = {}, None  # of the parameters, and of the groups they were taken from
    _last_ids = [], []  # parameters asked for last, and theirs
    _hyper = (
        "lr", "betas", "weight_decay", "cautious", "stochastic_rounding", "seed", "maximize",
    )  # fmt: skip

    def __init__(
        self,
        params,
        lr=1e-4,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        *,
        cautious=False,
        state_dtype=None,
        stochastic_rounding=True,
        seed=0,
        master_weights=True,
        maximize=False,
        capturable=False,
        fused=None,
    ):
        self._construct(params, locals())

    def _construct(self, params, arguments):
        """Take the arguments of a constructor, its ``locals()``, for the defaults."""
        no_settings = ("self", "params", "__class__")
        defaults = {name: v for name, v in arguments.items() if name not in no_settings}
        MultiTensorOptimizer.__init__(self, params, defaults)

    def add_param_group(self, param_group):
        """Add a group, with its hyper-parameters checked before anything changes."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @property
    def nonfinite(self):
        """Number of elements of c that were not finite in the last step; None before the first.

        0-dim int32 tensor on the device; reading its value waits for the device. Counts to 2**30.
        """
        return super().nonfinite

    def load_state_dict(self, state_dict):
        """Load the state, in its own dtypes; also that of other implementations.

        A momentum of another dtype than `state_dtype` says is converted, rounded to nearest. That
        of timm, lion-pytorch and pytorch_optimizer loads; timm's `caution` is `cautious` here.
        See also ``largebatch.optim.LAMB.load_state_dict``.

        Raises
        ------
        ValueError
            For `corrected_weight_decay`, `adanorm`, `use_gc`, `fixed_decay` and decay that is not
            decoupled, which have no counterpart here; for codes without their scales.
        """
        super().load_state_dict(_converted(type(self).__name__, state_dict))

    # ----------------------------------------------------------------------------- kappa

    def _kappa(self, group):
        """Return the convex function of a group, an object."""
        return _L1

    def _kernel_of(self, group):
        """Return what the extension knows of the function of a group; None if torch ops step it."""
        kappa = self._kappa(group)
        known = kernel_of(kappa) if is_builtin(kappa) else None
        return None if known is None else (*known, bool(group["cautious"]))

    def _part_kappa(self, kappa, param):
        """Return the function that takes this rank's part of c to its part of the subgradient."""
        return kappa

    def _check(self, group):
        """Refuse what the extension does not look at."""
        name = type(self).__name__
        if group["state_dtype"] not in _momentum.DTYPES:
            raise ValueError(
                f"{name}: state_dtype: got {group['state_dtype']!r}, expected one of "
                f"{', '.join(map(repr, _momentum.DTYPES))}."
            )
        kappa = self._kappa(group)
        if group["cautious"] and not getattr(kappa, "elementwise", False):
            raise ValueError(
                f"{name}: cautious: got True with kappa {kappa!r}, expected an elementwise kappa "
                "with it. Use cautious=False, or a kappa without groups, norms and relative."
            )
        if self.defaults["fused"] and self._kernel_of(group) is None:
            raise ValueError(
                f"{name}: fused: got True with kappa {kappa!r}, which steps through torch "
                "operations. Use fused=None."
            )

    # ----------------------------------------------------------------------------- state

    def _state_names(self, group):
        return ("step", "exp_avg")

    def _init_state(self, state, param, group):
        if "exp_avg" not in state:
            state.update(_momentum.zeros(param, group["state_dtype"], self._arena))
        super()._init_state(state, param, group)

    def _load_tensors(self, state, given, param, group):
        rest = {name: v for name, v in given.items() if name not in ("exp_avg", "exp_avg_scale")}
        super()._load_tensors(state, rest, param, group)
        m = given.get("exp_avg")
        if torch.is_tensor(m) and (m.is_floating_point() or m.dtype == torch.int8):
            state.pop("exp_avg_scale", None)
            scale = given.get("exp_avg_scale")
            state.update(_momentum.converted(param, group["state_dtype"], m, scale, self._arena))

    # ------------------------------------------------------------------------------ step

    def _collect(self):
        for group in self.param_groups:
            self._check(group)
        return super()._collect()

    def _collect_plain(self):
        for group in self.param_groups:
            self._check(group)
        return super()._collect_plain()

    def _in_one_call(self, batch):
        return not self._rows_without_kernel(batch)

    def _step_batch(self, device, batch, fused, inputs):
        """Let the kernels step what they can, torch operations the rest."""
        every = range(len(batch.params))
        slow = self._rows_without_kernel(batch) if fused else every
        fast = [row for row in every if row not in slow]
        count = torch.zeros((), dtype=torch.int32, device=device)
        if fast:
            plan = self._plan(device)
            self._kernel(plan, batch.part(fast), **inputs)
            count += plan.nonfinite
        if slow:
            count += self._reference_step(batch.part(sorted(slow)), inputs)
        return count

    def _rows_without_kernel(self, batch):
        """Return which tensors of a batch torch operations are to step."""
        kernels = [self._kernel_of(group) for group in self.param_groups]
        alone = [
            not group["cautious"] and getattr(self._kappa(group), "elementwise", False)
            for group in self.param_groups
        ]
        if all(kernels) and all(alone):
            return set()
        # Of whole tensors only int8 momenta are in the way: not thousands of others to be asked.
        whole = all(kernels) and not batch.shards
        of = batch.group_of
        return {
            row
            for row in (_coded(batch) if whole else range(len(of)))
            if kernels[of[row]] is None
            or not (alone[of[row]] or self._fits_kernel(batch, row, of[row]))
        }

    def _fits_kernel(self, batch, row, group):
        """Tell whether a kernel can reduce the groups of a tensor: they are whole, and its own.

        Where the momentum is int8, a group has to be neighbours by whole blocks of it.
        """
        _, _, _, axis, size, _, cautious = self._kernel_of(self.param_groups[group])
        kappa = self._kappa(self.param_groups[group])
        whole = not cautious and self._part_kappa(kappa, batch.params[row]) is kappa
        if batch.shards.splits(row) and not whole:
            return False
        m = local(batch.states[row]["exp_avg"])
        if m.dtype != torch.int8 or axis < 0 or m.dim() < max(2, axis + 1):
            return True
        inside = (n for n, s in zip(m.shape, m.stride(), strict=True) if s < m.stride(axis))
        return size * math.prod(inside) % rounding.BLOCK == 0 or m.shape[axis] == size

    def _kernel(self, plan, batch, **inputs):
        coded = _coded(batch)
        _C.lion_step(
            plan,
            batch.weights,
            batch.grads,
            batch.state("exp_avg"),
            [_momentum.scale_of(batch.states[row]) for row in coded],
            coded,
            batch.state("step"),
            batch.copies,
            batch.copy_rows,
            self._ids_of(batch),
            batch.group_of,
            self.param_groups,
            [self._kernel_of(group) for group in self.param_groups],
            **inputs,
        )

    def _reference_step(self, batch, inputs):
        for group in self.param_groups:  # as the kernel does, before anything is written
            self._plan_type.check_group(type(self).__name__, group)
        counts = [
            self._reference_row(batch.part([row]), self.param_groups[index], inputs)
            for row, index in enumerate(batch.group_of)
        ]
        batch.write_copies()
        count = torch.cat(counts).sum()
        found_inf = inputs["found_inf"]
        return count if found_inf is None else torch.where(found_inf == 0, count, 0)

    def _reference_row(self, row, group, inputs):
        """Step one tensor; return its count."""
        kappa, (state,), reduce = self._kappa(group), row.states, None
        if row.shards.splits(0):
            kappa = self._part_kappa(kappa, row.params[0])

            def reduce(counts):
                return row.shards.reduce(counts.unsqueeze(0))[0]

        coded = state["exp_avg"].dtype == torch.int8
        return reference.lion_step(
            row.weights,
            row.grads,
            row.state("exp_avg"),
            row.state("step"),
            kappa=kappa,
            scales=[_momentum.scale_of(state)] if coded else (),
            tensor_ids=self._ids_of(row),
            reduce=reduce,
            **{name: group[name] for name in self._hyper},
            **inputs,
        )

    def _ids_of(self, batch):
        """Return what tells the tensors' random bits apart: place in the optimizer, and shard."""
        sizes = [len(group["params"]) for group in self.param_groups]
        params, ids = self._last_ids
        same = sizes == self._sizes and len(params) == len(batch.params)
        if same and all(map(is_, params, batch.params)):
            return ids
        if sizes != self._sizes or not self._ids.keys() >= set(batch.params):
            params = (param for group in self.param_groups for param in group["params"])
            self._ids = {param: shard_index(param) << 32 | i for i, param in enumerate(params)}
            self._sizes = sizes
        ids = [self._ids[param] for param in batch.params]
        self._last_ids = list(batch.params), ids
        return ids


def _coded(batch):
    """Return which tensors of a batch have an int8 momentum."""
    if batch.columns is not None:  # the extension says if scales and dtypes do not go together
        scales = batch.columns["exp_avg_scale"] or ()
        return [row for row, scale in enumerate(scales) if scale is not None]
    return [row for row, s in enumerate(batch.states) if s["exp_avg"].dtype == torch.int8]


# ---- Checkpoints of other implementations --------------------------------------------------------


# Settings of timm and pytorch_optimizer, and which of their values means something else.
_FOREIGN = {
    "corrected_weight_decay": True,
    "adanorm": True,
    "use_gc": True,
    "fixed_decay": True,
    "weight_decouple": False,
}


def _converted(op, state_dict):
    """Return the state of another implementation as this one's; our own as it is."""
    groups = []
    for group in state_dict["param_groups"]:
        group = dict(group)
        for name, foreign in _FOREIGN.items():
            if name in group and bool(group[name]) == foreign:
                raise ValueError(
                    f"{op}: the checkpoint has {name}={foreign}, which there is not here. Set it "
                    f"to {not foreign} in its param_groups to go on without."
                )
        if "caution" in group:  # timm
            group["cautious"] = group.pop("caution")
        groups.append(group)
    return {**state_dict, "param_groups": groups}
