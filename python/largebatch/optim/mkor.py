# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""MKOR: second-order preconditioning of linear layers, around any optimizer."""

from types import SimpleNamespace

import torch
import torch.distributed as dist

from ._factors import NAMES, Factors, Scratch, ShapeGroup, has_gradients
from ._hybrid import Hybrid
from ._layers import find_layers
from ._mkor_checks import FORMAT, check_settings, check_state
from ._statistics import Statistics, clip, from_gradients
from ._wrapper import UnscalingWrapper


class MKOR(UnscalingWrapper):
    r"""Momentum-enabled Kronecker-factor-based optimizer using rank-1 updates; MKOR-H.

    For every linear layer and convolution, with G its gradient ``[d_out, d_in]`` (the bias's a
    last column), a the mean row of its input and g the sum of the rows of its output's gradient:

    .. math::
        \hat M &= \zeta M + (1 - \zeta) I, \quad u = \hat M v, \quad
        M \leftarrow \hat M - \frac{\rho}{1 + \rho\, v^\top u}\, u u^\top
        \qquad (M_L, v = g),\ (M_R, v = a) \\
        \hat G &= M_L\, G\, M_R, \qquad
        G' = \hat G\, \lVert G \rVert / \lVert \hat G \rVert

    every `update_every` steps and in every step, and `optimizer` steps with G' in the place of G.

    Mozaffari, Li, Zhang, Mehri Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based
    Optimizer Using Rank-1 Updates", NeurIPS 2023, arXiv 2306.01685. The update above, ``"leaky"``,
    is that of the authors' code; the paper prints another one, ``"paper"``, and ``"exact"`` is what
    its derivation leads to (:func:`largebatch.ops.kron_rank1_update`, ``docs/mkor.md``). Other
    deviations: norms of weight and bias together; entries are clipped after averaging, not before;
    statistics are averaged over ranks once.

    Parameters
    ----------
    model : torch.nn.Module, or dict or list of (str, torch.nn.Module)
        Its ``nn.Linear`` and ``nn.Conv2d`` whose weight `optimizer` trains are preconditioned. Of
        a compiled model the uncompiled one, before it is first called.
    optimizer : torch.optim.Optimizer
        Any, of this package, of torch, of others. All its other parameters are left to it.
    variant : str
        ``"leaky"``, ``"exact"`` or ``"paper"``.
    gamma : float
        :math:`\gamma` in (0, 1), of exact and paper.
    leak, rho : float
        :math:`\zeta` in [0, 1) and :math:`\rho > 0`, of leaky.
    update_every, warmup_steps : int
        Factors are updated in the first `warmup_steps` steps, and in every `update_every`-th.
    sides : str
        ``"LR"``, ``"L"`` or ``"R"``. Sharded weights (``fully_shard``) need ``"R"``.
    stats : str
        ``"auto"``: a and g as above. ``"grad"``: the means of G over its rows and over its columns,
        which need no hooks.
    fold_bias : bool
        Treat a bias as a column of its weight, with a constant 1 appended to a.
    max_factor_dim : int
        Sides of a larger order are treated as `large_dims` says: ``"skip_side"`` is the identity,
        ``"block"`` makes it block-diagonal, ``"skip_layer"`` leaves the layer out.
    factor_dtype : torch.dtype
        float32, float16 (leaky: entries are in [-1, 1]), bfloat16 or float64.
    matmul_dtype : torch.dtype, optional
        Of the two products per step: float32, float64 (the default with fp64 weights or factors) or
        bfloat16. What fp32 means on a GPU is ``torch.set_float32_matmul_precision``'s.
    stat_clip : float or None
        Largest absolute value of an entry of a and g.
    stabilizer_norm : str
        ``"max"`` or ``"inf"``, of exact and paper, as in the operation.
    stabilizer_threshold, stabilizer_blend : float, optional
        By default 2, and 0.9 for exact or 0.4 for paper. The blend must be below
        :math:`\gamma` for exact and :math:`1 / (\gamma + \gamma^{-3})` for paper, or factors grow
        without bound. leaky has no stabilizer and needs none.
    hybrid : bool or dict, optional
        MKOR-H: go on with `optimizer` alone once the loss no longer falls at `beta` (0.1) times its
        fastest rate, in `patience` (3) checks in a row, one every `interval` (20) steps, from
        `min_steps` (100) on; `momentum` (0.95) is that of the average of the loss, which comes by
        ``step(closure)`` or :meth:`observe_loss`. A dict replaces some of these.
    skip : str or callable, optional
        Layers to leave out: a regular expression for their names, or a function of name and module.
    grad_scale : callable, optional
        ``scaler.get_scale``, for layers without a bias under a ``GradScaler``.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks that train together. None: all of them, if there are any.
    fused : bool or None
        False: the factor updates in plain torch. None, True: by the kernels.

    Attributes
    ----------
    layers : tuple of str
        Names of the layers that are preconditioned.
    factors : dict
        ``{name: {"L": M_L, "R": M_R}}``, the tensors themselves; blocks are a list.
    counters : dict
        ``{name: {side: {"dropped": .., "stabilized": .., "reset": ..}}}``: updates left out because
        they were not finite, blended by the stabilizer, and factors set back to I.
    first_order : bool
        Whether `optimizer` goes on alone.

    Raises
    ------
    TypeError, ValueError
        One line naming the module or the setting, from the constructor.
    RuntimeError
        One line, from :meth:`step`: what is missing for it.

    Notes
    -----
    It is an optimizer that shares `param_groups` and `state` with the one it wraps: schedulers,
    ``GradScaler`` and loops take either. Gradients are as before when :meth:`step` returns.

    Memory: the factors; a gradient for each parameter of a layer; three times the largest group of
    layers of one shape. A step moves 3 d^2 elements a factor when it updates, and multiplies
    ``2 d_out d_in (d_out + d_in)`` a layer. One all-reduce an update, of the vectors. Deterministic
    where torch's products are.

    Examples
    --------
    >>> mkor = MKOR(model, LAMB(model.parameters(), lr=1e-3))
    >>> loss(model(x), y).backward(); mkor.step(); mkor.zero_grad()
    """

    def __init__(
        self,
        model,
        optimizer,
        *,
        variant="leaky",
        gamma=0.95,
        leak=0.95,
        rho=1.0,
        update_every=10,
        warmup_steps=0,
        sides="LR",
        stats="auto",
        fold_bias=True,
        max_factor_dim=8192,
        large_dims="skip_side",
        factor_dtype=torch.float32,
        matmul_dtype=None,
        stat_clip=100.0,
        stabilizer_norm="max",
        stabilizer_threshold=None,
        stabilizer_blend=None,
        hybrid=None,
        skip=None,
        grad_scale=None,
        process_group=None,
        fused=None,
    ):
        given = dict(locals())
        update = check_settings(given)
        super().__init__(optimizer)
        self.update_every, self.warmup_steps = update_every, warmup_steps
        self.sides, self.stats, self.stat_clip = sides, stats, stat_clip
        self._scale_of = grad_scale
        self._group = process_group
        self._settings = SimpleNamespace(
            update=update,
            block=max_factor_dim,
            large_dims=large_dims,
            factor_dtype=factor_dtype,
            matmul_dtype=matmul_dtype,
            fused=fused,
        )
        self._hybrid = None if hybrid in (None, False) else Hybrid(hybrid)
        layers = find_layers(model, optimizer, fold_bias=fold_bias, skip=skip, sides=sides)
        self._layers = [layer for layer in layers if self._orders(layer)]
        if not self._layers:
            raise ValueError(
                f"MKOR: max_factor_dim: got {max_factor_dim}, expected at least the order of one "
                "factor: no layer is left to precondition. Raise it or pass large_dims='block'."
            )
        self._steps = 0
        self._updated = False  # in a step that is not over
        self._works = None
        self._build()
        self._shapes = {(row.layer.name, row.name): row.shapes for row in self._rows}

    def _orders(self, layer):
        """Return the orders of the factors of a layer: none if it is left to the optimizer."""
        orders = [{"L": layer.rows, "R": layer.columns}[side] for side in self.sides]
        small = [order for order in orders if order <= self._settings.block]
        if self._settings.large_dims == "block":
            return orders
        if self._settings.large_dims == "skip_layer" and len(small) < len(orders):
            return []
        return small

    @torch.no_grad()
    def _build(self):
        """Make factors, all of them I, and put the hooks on the modules."""
        by_shape, by_device = {}, {}
        for layer in self._layers:
            weight = layer.weight
            shape = layer.rows, layer.columns, weight.device, weight.dtype, layer.sharded
            by_shape.setdefault(shape, []).append(layer)
            by_device.setdefault(weight.device, []).append(layer)
        self._groups = [
            ShapeGroup(group, self.sides, self._settings) for group in by_shape.values()
        ]
        self._factors = [
            Factors([g for g in self._groups if g.device == device], self._settings)
            for device in by_device
        ]
        self._scratch = Scratch()
        dtype = torch.float64 if self._settings.factor_dtype == torch.float64 else torch.float32
        self._statistics = []
        if self.stats == "auto":
            self._statistics = [
                Statistics(layers, dtype, device, captures_g="L" in self.sides)
                for device, layers in by_device.items()
            ]
        self._dtype = dtype
        self.first_order = False
        self._begin()

    # ---------------------------------------------------------------------------- statistics

    def _begin(self):
        """Wait for the gradients of the next step."""
        t = self._steps
        due = t < self.warmup_steps or t % self.update_every == 0
        self._due = due and not self._updated and not self.first_order
        for work in self._works or ():
            work.wait()
        self._works = None
        for statistics in self._statistics:
            statistics.active = self._due
            statistics.clear()

    def _world(self):
        """Return the ranks that train together, or None where there is one."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        group = dist.group.WORLD if self._group is None else self._group
        return group if dist.get_world_size(group) > 1 else None

    def reduce_statistics(self):
        """Begin to average the statistics over the ranks: after the last backward pass of a step.

        :meth:`step` does so itself; calling it earlier lets it go on while gradients are clipped.
        """
        if self._works is None and self._due:
            group = self._world()
            self._works = [] if group is None else [s.all_reduce(group) for s in self._statistics]

    def statistics(self):
        """Return ``{name: {"a": .., "g": ..}}``: what would enter the factors now, of this rank.

        Without layers that no backward pass has come through since the last step, or if the next
        step updates nothing.
        """
        if not self._due or self.first_order:
            return {}
        vectors, skip = self._vectors(ranks=1)
        names = {"L": "g", "R": "a"}
        return {
            layer.name: {names[side]: vector for side, vector in own.items()}
            for layer, own in vectors.items()
            if layer not in skip or not skip[layer]
        }

    @torch.no_grad()
    def _vectors(self, ranks):
        """Return {layer: {side: vector}}, and {layer: 0-dim tensor that is not 0 without any}."""
        scale = self._mark("grad_scale")
        layers = [layer for layer in self._layers if has_gradients(layer)]
        vectors, skip = {}, {}
        if self.stats == "grad":
            vectors = from_gradients(layers, self._dtype, scale)
        else:
            captured_scale = scale if self._scale_of is None else self._scale_of()
            for layer in layers:
                (statistics,) = (s for s in self._statistics if layer in s)
                vectors[layer], skip[layer] = statistics.vectors(
                    layer, ranks, scale, captured_scale
                )
        clipped = {
            layer: {side: clip(own[side], self.stat_clip) for side in self.sides}
            for layer, own in vectors.items()
        }
        return clipped, skip

    # ---------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure=None):
        """Update the factors if it is time to, precondition, and let the optimizer step.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model with its backward passes and returns the loss; called once.

        Returns
        -------
        The closure's loss, or None.
        """
        hybrid = None if self._hybrid is None else dict(vars(self._hybrid))
        try:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
                self.observe_loss(loss)
            self._check_step()
            if not self._is_skipped():
                self._take_step()
        except BaseException:
            if hybrid is not None:
                vars(self._hybrid).update(hybrid)
            for name in ("grad_scale", "found_inf"):  # a scaler would multiply what it finds
                vars(self).pop(name, None)
            raise
        self._steps += 1
        self._updated = False
        self._begin()
        return loss

    def _take_step(self):
        if self._due:
            self._update()
            # Should the optimizer fail and the step be taken again, it is not to be done again.
            self._due, self._updated = False, True
        given = {}
        for group in self._groups:
            given |= group.precondition(self._scratch, self._settings.fused)
        self._add_unscaled(given)
        kept = {param: param.grad for param in given}
        try:
            for param, grad in given.items():
                param.grad = grad
            with self._marked():
                self.optimizer.step()
        finally:
            for param, grad in kept.items():
                param.grad = grad
        hybrid = None if self.first_order else self._hybrid
        if hybrid is not None and hybrid.due(self._steps):
            device = self._layers[0].weight.device
            if hybrid.check(self._steps, self._world(), device):
                self.switch_to_first_order()

    def _check_step(self):
        def fail(message):
            raise RuntimeError(f"MKOR: {message}")

        scaled = hasattr(self, "found_inf")  # by a GradScaler
        captured = "L" in self.sides and self.stats == "auto" and self._due
        if scaled and captured and self._scale_of is None and self._mark("grad_scale") is None:
            for layer in self._layers:
                if layer.bias is None:
                    fail(
                        f"gradients were unscaled before step(), and module {layer.name!r} has no "
                        "bias: its statistics need the scale. Pass grad_scale=scaler.get_scale."
                    )
        hybrid = self._hybrid
        waiting = hybrid is not None and not self.first_order and not hybrid.observed
        if waiting and hybrid.due(self._steps):
            fail("hybrid needs losses, got none yet. Call observe_loss or pass a closure.")

    def _update(self):
        """Take the statistics into the factors, on the device."""
        self.reduce_statistics()
        for work in self._works:
            work.wait()
        group = self._world()
        vectors, skip = self._vectors(1 if group is None else dist.get_world_size(group))
        found_inf = self._mark("found_inf")
        for factors in self._factors:
            factors.update(vectors, skip, found_inf)

    def zero_grad(self, set_to_none=True):
        """Drop the gradients, and the statistics that came with them."""
        super().zero_grad(set_to_none)
        self._begin()

    # -------------------------------------------------------------------------------- MKOR-H

    def observe_loss(self, loss):
        """Tell MKOR-H the loss of this step: a number or a tensor of one element."""
        if self._hybrid is not None and not self.first_order:
            self._hybrid.observe(loss)

    def switch_to_first_order(self):
        """Go on with `optimizer` alone: frees the factors and takes the hooks off, for good."""
        for statistics in self._statistics:
            statistics.remove()
        self._statistics, self._groups, self._factors = [], [], []
        self._scratch = Scratch()
        self.first_order = True
        self._begin()

    # ------------------------------------------------------------------------- what is inside

    @property
    def layers(self):
        """Return the names of the layers that are preconditioned."""
        return tuple(layer.name for layer in self._layers)

    @property
    def factors(self):
        """Return ``{name: {"L": M_L, "R": M_R}}``: the tensors themselves."""
        return self._by_layer(lambda row: row.blocks if len(row.blocks) > 1 else row.blocks[0])

    @property
    def counters(self):
        """Return what happened to updates, ``{name: {side: {what: times}}}``."""
        return self._by_layer(
            lambda row: dict(zip(NAMES, row.counters.sum(0).tolist(), strict=True))
        )

    @property
    def _rows(self):
        return [row for factors in self._factors for row in factors.rows]

    def _by_layer(self, what):
        found = {}
        for layer in self._layers:
            found[layer.name] = {r.name: what(r) for r in self._rows if r.layer is layer}
        return {} if self.first_order else found

    def check_sync(self):
        """Raise RuntimeError, on all ranks, if factors differ between them.

        They are never sent: the updates are the same bits on all ranks, as is what goes into them.
        """
        group = self._world()
        rows = self._rows
        if group is None or not rows:
            return
        sums = torch.stack([row.checksum() for row in rows])
        extremes = torch.stack([sums, -sums]).to(self._layers[0].weight.device)
        dist.all_reduce(extremes, op=dist.ReduceOp.MAX, group=group)
        for row, most, least in zip(rows, *extremes.tolist(), strict=True):
            if most != -least:
                raise RuntimeError(
                    f"MKOR: module {row.layer.name!r}: its factor {row.name} differs between "
                    "ranks. Load one state dict on all of them, and give all the same statistics."
                )

    # --------------------------------------------------------------------------- checkpoints

    def state_dict(self):
        """Return the optimizer's state with the factors, between two steps.

        Returns
        -------
        dict
            The optimizer's own, and `mkor`: `format`; `settings`, the constants of the update;
            `step`; `first_order`; `hybrid`; `factors`, ``{name: {side: [blocks]}}``; `norms` and
            `counters`, likewise.
        """
        mkor = {
            "format": FORMAT,
            "settings": dict(self._settings.update),
            "step": self._steps,
            "first_order": self.first_order,
            "hybrid": None if self._hybrid is None else self._hybrid.state_dict(),
            "factors": self._by_layer(lambda row: [m.clone() for m in row.blocks]),
            "norms": self._by_layer(lambda row: row.norms.clone()),
            "counters": self._by_layer(lambda row: row.counters.clone()),
        }
        return {**self.optimizer.state_dict(), "mkor": mkor}

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Load what `state_dict` returned: training goes on bit for bit.

        Factors are cast to `factor_dtype`. The number of ranks may be another.

        Raises
        ------
        ValueError
            If it is the state of other layers or of another variant, or of an optimizer alone.
        """
        rest = dict(state_dict)
        mkor = rest.pop("mkor", None)
        check_state(mkor, self._settings.update["variant"], self._shapes)
        self.optimizer.load_state_dict(rest)
        if mkor["first_order"]:
            self.switch_to_first_order()
        elif self.first_order:
            self._build()
        for row in self._rows:
            for to, of in zip(row.blocks, mkor["factors"][row.layer.name][row.name], strict=True):
                to.copy_(of)
            row.norms.copy_(mkor["norms"][row.layer.name][row.name])
            row.counters.copy_(mkor["counters"][row.layer.name][row.name])
            row.side.identity = False
        if self._hybrid is not None and mkor["hybrid"] is not None:
            self._hybrid.load_state_dict(mkor["hybrid"])
        self._steps = mkor["step"]
        self._begin()
