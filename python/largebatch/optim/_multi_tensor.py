# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""What the optimizers of the package share: everything of ``step`` but the arithmetic."""

from dataclasses import dataclass, field

import torch
from torch.optim import Optimizer

from .. import _C, ops
from .._versions import mark_written
from ._arena import Arena
from ._sharding import PLAIN, Shards, local

_HALF = (torch.float16, torch.bfloat16)


@dataclass
class Batch:
    """The tensors of one device that a step updates, in the order of the parameter groups."""

    device: torch.device
    params: list = field(default_factory=list)  # what the user holds
    weights: list = field(default_factory=list)  # what the update works on: param or its master
    grads: list = field(default_factory=list)
    copies: list = field(default_factory=list)  # 16-bit params whose master is in `weights`
    copy_rows: list = field(default_factory=list)  # the positions of those
    states: list = field(default_factory=list)  # the dict of each
    group_of: list = field(default_factory=list)
    staged: list = field(default_factory=list)  # (param, dense stand-in), to be copied back
    shards: Shards = field(default_factory=Shards)
    # Entries of the states by name, taken without a look at each tensor: the extension says if one
    # needs it. None if they were looked at.
    columns: dict = None

    def state(self, name, rows=None):
        """Return one entry of the states (of `rows`, or all), as the update works on it."""
        if self.columns is None:
            states = self.states if rows is None else [self.states[row] for row in rows]
            return [_as_real(local(state[name])) for state in states]
        column = self.columns[name]
        return column if rows is None else [column[row] for row in rows]

    def part(self, rows):
        """Return the batch of some of the tensors."""
        part = Batch(self.device, shards=self.shards.part(rows))
        for name in ("params", "weights", "grads", "states", "group_of"):
            setattr(part, name, [getattr(self, name)[row] for row in rows])
        copies = dict(zip(self.copy_rows, self.copies, strict=True))
        part.copy_rows = [i for i, row in enumerate(rows) if row in copies]
        part.copies = [copies[rows[i]] for i in part.copy_rows]
        return part

    def groups(self):
        """Yield (parameter group, rows) of the tensors, in order."""
        for index in sorted(set(self.group_of)):
            yield index, [row for row, of in enumerate(self.group_of) if of == index]

    def write_copies(self):
        """Round masters into their 16-bit parameters, as the kernels do in passing."""
        for copy, row in zip(self.copies, self.copy_rows, strict=True):
            copy.copy_(self.weights[row])


class MultiTensorOptimizer(Optimizer):
    """Base of the optimizers: one call into the extension per device and step.

    A subclass names its hyper-parameters and state tensors, and says how the two phases of a step
    are done by the kernels and by the reference.
    """

    _step_supports_amp_scaling = True  # GradScaler then sets grad_scale and found_inf around step()
    _hyper = ()  # keys of a group that are arguments of the update
    _optional = ("master_param",)  # entries that the state of a parameter may have
    _plan_type = None  # extension class that holds table and workspace
    _takes_grad_sq_sum = False
    _sums_tensors = True  # the update of an element needs sums over its tensor: two phases
    _results = (lambda: None), (lambda: None)  # of the last step: grad_norm, nonfinite
    _all_plain = False  # when tensors were last looked at, each was dense, real, like its gradient

    def __init__(self, params, defaults):
        self._plans, self._arena = {}, Arena()
        super().__init__(params, defaults)

    def __setstate__(self, state):
        super().__setstate__(state)
        self._plans, self._arena = {}, Arena()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def add_param_group(self, param_group):
        """Add a group, with its hyper-parameters checked before anything changes."""
        self._plan_type.check_group(type(self).__name__, {**self.defaults, **param_group})
        super().add_param_group(param_group)

    # ------------------------------------------------------------ results of the last step

    @property
    def grad_norm(self):
        """Global norm of the unscaled gradients in the last step; None if none was taken.

        0-dim float64 tensor on the device; reading its value waits for the device.
        """
        return self._results[0]()

    @property
    def nonfinite(self):
        """Number of tensors whose norms were not finite in the last step; None before the first.

        0-dim int32 tensor on the device; reading its value waits for the device.
        """
        return self._results[1]()

    # ------------------------------------------------------------------------------- step

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters.

        Parameters
        ----------
        closure : callable, optional
            Evaluates the model again and returns the loss; called with gradients enabled.

        Returns
        -------
        The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not (self._all_plain and self._step_plain()):
            self._step_any()
        return loss

    def _step_plain(self):
        """Do the step if all tensors are as most are; else tell so, with nothing written.

        That each tensor is dense, real, on the same device, like its gradient and its state, the
        extension sees anyway. Asking here too would take longer than the step of a small tensor.
        """
        try:
            batch = self._collect_plain()
            if batch is None or not self._fused([batch.device]):
                return False
            self._refuse_capture([batch.device])
            if not self._in_one_call(batch):
                return False
            self._call(batch)
        except (KeyError, TypeError, ValueError):  # raised before anything is written
            return False
        self._keep_results(batch.device)
        mark_written(batch.params)
        return True

    def _step_any(self):
        """Do the step whatever the tensors are, each one looked at."""
        batches = self._collect()
        if not batches:
            return
        self._refuse_capture(batches)
        first = next(iter(batches.values()))
        one = len(batches) == 1 and self._fused(batches) and not first.shards
        if one and self._in_one_call(first):
            self._call(first)
            self._keep_results(first.device)
        else:
            self._all_plain = False
            self._step_in_phases(batches)
        for batch in batches.values():
            for param, dense in batch.staged:
                param.copy_(dense)
            mark_written(batch.params)

    def _call(self, batch):
        """Do the step of a batch in one call into the extension."""
        self._kernel(self._plan(batch.device), batch, **self._scaler_inputs(batch.device))

    def _keep_results(self, device):
        plan, clips = self._plan(device), self._clips()
        self._results = (lambda: plan.grad_norm if clips else None), (lambda: plan.nonfinite)

    def _step_in_phases(self, batches):
        """Whatever a single call cannot do: several devices, shards, the pure-torch path."""
        fused = self._fused(batches)
        first_device = next(iter(batches))
        norm_sq = None
        if self._clips():
            norm_sq = sum(
                batch.shards.reduce(ops.multi_tensor_sq_sum(batch.grads)).sum().to(first_device)
                for batch in batches.values()
            )
        nonfinite = torch.zeros((), dtype=torch.int32, device=first_device)
        for device, batch in batches.items():
            inputs = self._scaler_inputs(device)
            if self._takes_grad_sq_sum:
                inputs["grad_sq_sum"] = None if norm_sq is None else norm_sq.to(device)
            nonfinite += self._step_batch(device, batch, fused, inputs).to(first_device)
        norm = None
        if norm_sq is not None:
            scale = self._scaler_inputs(first_device)["grad_scale"]
            norm = norm_sq.sqrt() if scale is None else norm_sq.sqrt() / scale.double()
        self._results = (lambda: norm), (lambda: nonfinite)

    def _step_batch(self, device, batch, fused, inputs):
        """Update one device's tensors; return how many of their sums or elements are not finite."""
        if self._sums_tensors:
            first, second = self._phases(device, batch, fused, inputs)
            sums = batch.shards.reduce(first())
            second(sums)
            return (~torch.isfinite(sums).all(dim=1)).sum()
        if not fused:
            return self._reference_step(batch, inputs)
        plan = self._plan(device)
        self._kernel(plan, batch, **inputs)
        return plan.nonfinite

    def _reference_step(self, batch, inputs):
        """Do a step without sums by the pure-torch reference; return its count."""
        count = 0
        for index, rows in batch.groups():
            group = self.param_groups[index]
            hyper = {name: group[name] for name in self._hyper}
            count = count + self._reference_part(batch.part(rows), {**hyper, **inputs}).sum()
        batch.write_copies()
        return count

    def _phases(self, device, batch, fused, inputs):
        """Return first() -> sums and second(sums)."""
        if not fused:
            return self._reference_phases(batch, inputs)
        plan = self._plan(device)

        def first():
            sums = torch.zeros(len(batch.params), 2, dtype=torch.float64, device=device)
            self._kernel(plan, batch, phases="first", sums=sums, **inputs)
            return sums

        def second(sums):
            self._kernel(plan, batch, phases="second", sums=sums, **inputs)

        return first, second

    def _reference_phases(self, batch, inputs):
        parts = []
        for index, rows in batch.groups():
            group = self.param_groups[index]
            hyper = {name: group[name] for name in self._hyper}
            parts.append((rows, batch.part(rows), {**hyper, **inputs}))

        def first():
            sums = torch.zeros(len(batch.params), 2, dtype=torch.float64, device=batch.device)
            for rows, part, arguments in parts:
                sums[rows] = self._reference_first(part, arguments)
            return sums

        def second(sums):
            for rows, part, arguments in parts:
                self._reference_second(part, sums[rows], arguments)
            batch.write_copies()

        return first, second

    # What a subclass says.

    def _state_names(self, group):
        """Return the names of the state tensors of a group's parameters, `step` among them."""
        raise NotImplementedError

    def _kernel(self, plan, batch, **inputs):
        """Do a step, or the phase of it that `inputs` names, by the extension."""
        raise NotImplementedError

    def _reference_first(self, batch, arguments):
        """Do the first phase by the pure-torch reference; return its sums."""
        raise NotImplementedError

    def _reference_second(self, batch, sums, arguments):
        """Do the second."""
        raise NotImplementedError

    def _reference_part(self, batch, arguments):
        """Do a step without sums on the tensors of one group; return counts."""
        raise NotImplementedError

    def _clips(self):
        """Tell whether the global gradient norm is needed."""
        return False

    def _in_one_call(self, batch):
        """Tell whether the extension knows all that this batch's groups ask for."""
        return True

    # ---------------------------------------------------------------------------- helpers

    def _refuse_capture(self, devices):
        if self.defaults["capturable"] or all(device.type != "cuda" for device in devices):
            return
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{type(self).__name__}: step() in a CUDA graph capture needs capturable=True."
            )

    def _plan(self, device):
        plan = self._plans.get(device)
        if plan is None:
            plan = self._plans[device] = self._plan_type()
        return plan

    def _fused(self, batches):
        fused = self.defaults["fused"]
        if fused is not None:
            return fused
        return all(d.type == "cpu" or (d.type == "cuda" and _C.cuda_available()) for d in batches)

    def _scaler_inputs(self, device):
        inputs = {}
        for name in ("grad_scale", "found_inf"):
            value = getattr(self, name, None)
            inputs[name] = None if value is None else value.to(device, torch.float32)
        return inputs

    def _collect_plain(self):
        """Return the tensors that have a gradient, as lists; None if some need to be looked at."""
        names = {name for group in self.param_groups for name in self._state_names(group)}
        names = [*names, *self._optional]
        found = _C.collect(self.param_groups, self.state, names, PLAIN)
        if found is None or not found[0]:
            return None
        params, grads, states, group_of, columns = found
        batch = Batch(
            params[0].device, params, params, grads,
            states=states, group_of=group_of, columns=columns,
        )  # fmt: skip
        masters = columns["master_param"]
        if masters is not None:
            batch.copy_rows = [row for row, master in enumerate(masters) if master is not None]
            batch.copies = [params[row] for row in batch.copy_rows]
            batch.weights = [
                param if master is None else master
                for param, master in zip(params, masters, strict=True)
            ]
        return batch

    def _collect(self):
        """Group the tensors that have a gradient by device."""
        batches, plain = {}, True
        state_of = self.state
        for index, group in enumerate(self.param_groups):
            names = self._state_names(group)
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                if grad.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
                state = state_of[param]
                for name in names:
                    if name not in state:
                        self._init_state(state, param, group)
                        break
                device = param.device
                batch = batches.get(device)
                if batch is None:
                    batch = batches[device] = Batch(device)
                batch.params.append(param)
                batch.states.append(state)
                batch.group_of.append(index)
                given = param, grad
                if type(param) not in PLAIN:
                    param, grad = batch.shards.add(len(batch.params) - 1, param, grad)
                if not (param.is_contiguous() and grad.is_contiguous()):
                    param, grad = self._lay_out(batch, param, grad)
                if param.is_complex():
                    param, grad = torch.view_as_real(param), torch.view_as_real(grad)
                plain = plain and param is given[0] and grad is given[1]
                batch.grads.append(grad)
                master = state.get("master_param")
                if master is None:
                    batch.weights.append(param)
                else:
                    batch.weights.append(local(master))
                    batch.copies.append(param)
                    batch.copy_rows.append(len(batch.weights) - 1)
        self._all_plain = plain and len(batches) == 1
        return batches

    def _lay_out(self, batch, param, grad):
        """Return a param without gaps and a gradient with its strides."""
        position = len(batch.params) - 1
        dense, overlapping = _layout(param)
        if overlapping:
            raise ValueError(
                f"{type(self).__name__}: params[{position}] has shape {list(param.shape)} and "
                f"strides {list(param.stride())}: elements share memory, so they cannot be updated "
                "one by one. Pass a clone."
            )
        if not dense:
            stand_in = param.contiguous()  # as its state is; the param gets the result afterwards
            batch.staged.append((param, stand_in))
            param = stand_in
        if grad.stride() != param.stride():
            grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
        return param, grad

    def _init_state(self, state, param, group):
        """Make what the state lacks: all of it at first, parts of it after a foreign checkpoint."""
        if param.dtype in _HALF and group["master_weights"] and "master_param" not in state:
            state["master_param"] = self._state_like(param).copy_(param.detach())
        for name in self._state_names(group):
            if name == "step" and name not in state:
                state[name] = self._arena.scalar(0.0, self._step_device(param))
            elif name not in state:
                state[name] = self._state_like(param).zero_()

    def _state_like(self, param):
        """Return an uninitialised tensor: the param's layout, in the dtype of the arithmetic."""
        dtype = torch.float32 if param.dtype in _HALF else param.dtype
        return self._arena.empty_like(param, dtype)

    def _step_device(self, param):
        on_device = self.defaults["capturable"] or self.defaults["fused"] is not False
        return param.device if on_device else torch.device("cpu")

    # ------------------------------------------------------------------------- checkpoints

    def load_state_dict(self, state_dict):
        """Load the state, in its own dtypes.

        ``torch.optim.Optimizer`` rounds every state tensor to the dtype of its parameter, which for
        16-bit parameters would truncate fp32 moments and masters. A `step` that a checkpoint keeps
        per group (apex, timm) becomes the step of each of its parameters. Parameters that have a
        master get its rounded value.
        """
        loaded = {}
        handles = (
            # Last of the hooks before, first of the hooks after: user's hooks see the usual order.
            self.register_load_state_dict_pre_hook(lambda _, given: loaded.update(given)),
            self.register_load_state_dict_post_hook(lambda _: self._restore(loaded), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _restore(self, loaded):
        for group, saved in zip(self.param_groups, loaded["param_groups"], strict=True):
            group_step = group.pop("step", None)
            for param, key in zip(group["params"], saved["params"], strict=True):
                given = loaded["state"].get(key)
                if given is None:
                    continue
                state = self.state[param]
                self._load_tensors(state, given, param, group)
                # State without a step (SGD's momentum_buffer) is that of some step after the first.
                step = given.get("step", 1.0 if group_step is None else group_step)
                state["step"] = self._arena.scalar(float(step), self._step_device(param))
                self._init_state(state, param, group)
                if "master_param" in state:
                    param.copy_(state["master_param"])

    def _load_tensors(self, state, given, param, group):
        """Put the tensors of a checkpoint into the state of a parameter, in the dtypes of here."""
        for name, value in given.items():
            if name != "step" and torch.is_tensor(value) and value.is_floating_point():
                state[name] = self._state_like(param).copy_(value)


def _as_real(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _layout(tensor):
    """Tell whether elements fill their memory without gaps, and whether some of them share it."""
    reach, dense = 1, True  # elements that the dimensions of smaller stride span
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size > 1):
        if stride < reach:
            return False, True
        dense = dense and stride == reach
        reach += (size - 1) * stride
    return dense, False
