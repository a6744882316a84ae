# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The state of a hook: by parameter, saved by rank, and what becomes of it when ranks change."""

import zlib

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .._comm import gather_rows
from ._merge import merge
from .exchange import ROLES, Exchange, State, real_of, sizes_of

CODEC = 1  # version of the wire format
PRIVATE = ("error", "shift", "momentum")


class HookState:
    """What a hook keeps of each parameter, and the exchanges of its buckets.

    names : dict
        Parameter: name, of those that are trained.
    state : dict
        Parameter: {role: tensor}, flat in memory as buckets have it.
    started : bool
        Whether dense steps are over.
    """

    def __init__(self, method, model, process_group):
        if isinstance(model, DistributedDataParallel):
            model = model.module
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        self.method, self.group = method, process_group
        self.names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        self.state, self.step, self.started, self.lr = {}, 0, False, None
        self._ids = {p: i for i, p in enumerate(self.names)}
        self._exchanges = {}  # parameters of a bucket: its exchange
        self._warm = {}  # name: where the search for its threshold begins
        self._groups = []  # parameters that are one record, where the scope is a bucket
        # Of all parameters together: buckets may be built anew.
        self._rule = method.rule(sizes_of(method, [p.numel() for p in self.names]))

    @property
    def numel(self):
        """How many elements are trained."""
        return sum(p.numel() for p in self.names)

    def description(self):
        """Return what has to be the same on every rank."""
        shapes = [(name, tuple(p.shape), str(p.dtype)) for p, name in self.names.items()]
        options = (
            f"start_step={self.start_step}, nonfinite={self.policy!r}, exchange={self.exchange!r}, "
            f"checksum={self.checksum}, freeze_unused={self._used is not None}, "
            f"loss_scale={self._loss_scale is not None}"
        )
        settings = ", ".join(f"{name}={value!r}" for name, value in self.method.settings.items())
        return {
            "method": f"{type(self.method).__name__}({settings})",
            "compressor": repr(self.method.compressor),
            "options": options,
            "parameters": repr(shapes),
            "groups of parameters": repr([[self.names[p] for p in g] for g in self._groups]),
            "step": f"step {self.step}, started {self.started}",
            "codec version": str(CODEC),
        }

    # ---- Parameters and buckets ------------------------------------------------------------------

    def _of(self, parameter):
        if parameter not in self.state:
            # Not the parameter's strides: gradients lie in a bucket in the order of memory.
            like = parameter.new_empty(parameter.shape, dtype=real_of(parameter.dtype))
            state = State([like], self.method.roles(), 0)
            lists = {role: getattr(state, name) for role, name in ROLES.items()}
            self.state[parameter] = {role: own[0] for role, own in lists.items() if own}
        return self.state[parameter]

    def _exchange(self, parameters, grads):
        """Return the exchange of a bucket, whose state is that of its parameters."""
        exchange = self._exchanges.get(parameters)
        if exchange is None or not exchange.fits(self.method, grads):
            self._drop(parameters)
            self._exchanges[parameters] = exchange = self._new_exchange(parameters, grads)
        return exchange

    def _drop(self, parameters):
        """Forget exchanges of buckets that have any of these parameters."""
        mine = set(parameters)
        for other in [key for key in self._exchanges if not mine.isdisjoint(key)]:
            del self._exchanges[other]

    def _new_exchange(self, parameters, grads):
        state = State([], [], dist.get_rank(self.group))
        for role in self.method.roles():
            setattr(state, ROLES[role], [self._of(p)[role] for p in parameters])
        position = {p: t for t, p in enumerate(parameters)}
        inside = [group for group in self._groups if all(p in position for p in group)]
        together = [[position[p] for p in group] for group in inside]
        ids = [self._ids[p] for p in parameters]
        exchange = Exchange(self.method, state, grads, ids, self._rule, together)
        for g, name in enumerate(self._names_of(exchange, parameters)):
            if name in self._warm:
                exchange.warm[g] = self._warm[name]
            self._warm[name] = exchange.warm[g]
        if self.method.compressor.scope == "bucket":
            others = [g for g in self._groups if all(p not in position for p in g)]
            mine = [group for small, group in exchange.groups if not small]
            self._groups = others + [[parameters[t] for t in group] for group in mine]
        return exchange

    def _names_of(self, exchange, parameters):
        """Return the name of the first parameter of each record."""
        return [self.names[parameters[group[0]]] for _, group in exchange.groups]

    # ---- Checkpoints -----------------------------------------------------------------------------

    def state_dict(self, *, mean=True):
        """Return the state of this rank, between two steps: save one a rank.

        Parameters
        ----------
        mean : bool
            Whether H, which is the same on each rank, is in it: one shard is enough.

        Returns
        -------
        dict
            ``rank``, ``world``, ``step``, ``started``; ``state``: {name: {"error": .., "shift": ..,
            "momentum": ..}}, what the method has of them, of this rank; ``mean``: {name: H};
            ``warm``, where selection starts to search, and ``groups``, the records of buckets; the
            settings ``method``, ``compressor``, ``eta``, ``ratio``, ``seed``, ``lr``, and
            ``codec``, the version of the wire format. Tensors are those of the hook.
        """
        method, compressor = self.method, self.method.compressor
        known = [(name, self.state[p]) for p, name in self.names.items() if p in self.state]
        private = {n: {r: t for r, t in own.items() if r != "mean"} for n, own in known}
        means = {n: own["mean"] for n, own in known if "mean" in own}
        return {
            "codec": CODEC,
            "method": type(method).__name__,
            "compressor": repr(compressor),
            "eta": self._rule.get("eta"),
            "ratio": getattr(compressor, "ratio", None),
            "seed": getattr(compressor, "seed", None),
            "rank": dist.get_rank(self.group),
            "world": dist.get_world_size(self.group),
            "step": self.step,
            "started": self.started,
            "lr": self.lr,
            "state": private,
            "mean": means if mean else {},
            "warm": {name: warm.clone() for name, warm in self._warm.items()},
            "groups": [[self.names[p] for p in group] for group in self._groups],
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Go on from what :meth:`state_dict` gave.

        Parameters
        ----------
        state_dict : dict or list of dict
            What this rank has saved in a world of this size: training goes on bit for bit. Or what
            all ranks have, in any order, of a world of any size. If that is another one, each rank
            gets the mean of the residuals and of the momenta, and H for its shift: the means over
            ranks, which training depends on, are as before.

        Raises
        ------
        ValueError, TypeError
            For another rank, world or method, shards that are missing, or a parameter that the
            model has not.
        """
        rank, world = dist.get_rank(self.group), dist.get_world_size(self.group)
        own = merge(state_dict, type(self.method).__name__, rank, world, CODEC)
        parameters = {name: p for p, name in self.names.items()}
        roles = set(self.method.roles())
        for name, tensors in own["state"].items():
            if name not in parameters:
                raise ValueError(f"load_state_dict: state: got {name!r}, not in the model.")
            if set(tensors) != roles - {"mean"}:
                raise ValueError(
                    f"load_state_dict: state[{name!r}]: got {sorted(tensors)}, expected "
                    f"{sorted(roles - {'mean'})} for this method."
                )
            for role, tensor in tensors.items():
                if tensor.numel() != parameters[name].numel():
                    raise ValueError(
                        f"load_state_dict: state[{name!r}]: {role} has shape {list(tensor.shape)}, "
                        f"expected {list(parameters[name].shape)}."
                    )
            if "mean" in roles and name not in own["mean"]:
                raise ValueError(
                    f"load_state_dict: mean: has no {name!r}. Give the shard that was saved with "
                    "mean=True too, in a list of all."
                )
        self.step, self.started, self.lr = own["step"], own["started"], own["lr"]
        self._exchanges, self._agreed = {}, None
        self._warm = {n: w.to(parameters[n].device) for n, w in own["warm"].items()}
        self._groups = [[parameters[name] for name in group] for group in own["groups"]]
        for name, tensors in own["state"].items():
            mean = {"mean": own["mean"][name]} if "mean" in roles else {}
            for role, tensor in self._of(parameters[name]).items():
                tensor.copy_((tensors | mean)[role])

    # ---- Ranks that come and go ------------------------------------------------------------------

    @torch.no_grad()
    def rebuild(self, process_group=None):
        """Make H the mean of h over the ranks of a group, and exchange with those from now on.

        To be called by each of them after a rank was lost or has joined: what a lost one had in H
        would stay there as a bias. One all-reduce of h. A rank whose hook has not begun yet gets
        h = H, e = 0, and for an average of gradients that of the others; it takes part in the next
        step. The residual of a rank that is lost is lost.

        The recipe: end the step or drop it; make a process group of the ranks that are there; wrap
        the model in a new DistributedDataParallel, which sends weights to those that are new;
        register the hook there; call this.

        Examples
        --------
        >>> group = dist.new_group(ranks_that_are_left)
        >>> ddp = DistributedDataParallel(model, process_group=group)
        >>> ddp.register_comm_hook(None, hook); hook.rebuild(group)
        """
        self.group, self._agreed, self._round = process_group, None, None
        self._exchanges, self._groups = {}, []  # a rank that is new knows of none
        device = next(iter(self.names)).device
        there = [int(p in self.state) for p in self.names]
        row = torch.tensor([int(self.started), self.step, *there], device=device)
        rows = gather_rows(row, process_group).cpu()
        begun = rows[rows[:, 0] == 1]
        if len(begun) == 0:
            return
        here = [p for p, known in zip(self.names, begun[0, 2:], strict=True) if known]
        newcomer, newcomers = not self.started, len(rows) - len(begun)
        self.started, self.step = True, int(begun[:, 1].max())
        roles = self.method.roles()
        if "shift" in roles:
            means = self._mean_over("shift", here, newcomer, len(begun))
            for p, mean in zip(here, means, strict=True):
                self._of(p)["mean"].copy_(mean)
                if newcomer:
                    self._of(p)["shift"].copy_(mean)
        if "momentum" in roles and self.method.momentum is not None and newcomers > 0:
            means = self._mean_over("momentum", here, newcomer, len(begun))
            for p, mean in zip(here if newcomer else (), means, strict=False):
                self._of(p)["momentum"].copy_(mean)

    def _mean_over(self, role, parameters, newcomer, count):
        """Return the mean of a role over the ranks that have begun: one all-reduce."""
        own = [self._of(p)[role] for p in parameters]
        if not own:
            return []
        flat = torch.cat([t.reshape(-1) for t in own])
        if newcomer:
            flat.zero_()
        dist.all_reduce(flat, group=self.group)
        parts = flat.div_(count).split([t.numel() for t in own])
        return [part.view(t.shape) for part, t in zip(parts, own, strict=True)]

    def check_sync(self):
        """Raise RuntimeError, on all ranks, if H differs between them: by its CRC-32.

        It is never sent, and the same bits on all ranks. To be called every now and then, on all
        ranks; waits for the device.
        """
        if not self.method.shifted:
            return
        known = [(n, self.state[p]["mean"]) for p, n in self.names.items() if p in self.state]
        if not known:
            return
        sums = [zlib.crc32(mean.cpu().numpy()) for _, mean in known]
        rows = gather_rows(torch.tensor(sums, device=known[0][1].device), self.group).cpu()
        for c, (name, _) in enumerate(known):
            if (rows[:, c] != rows[0, c]).any():
                raise RuntimeError(
                    f"hook: parameter {name!r}: its mean H differs between ranks. Load the "
                    "state of one step on all of them, or rebuild()."
                )
