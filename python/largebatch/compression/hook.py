# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Compression as the communication hook of DistributedDataParallel."""

import hashlib

import torch
import torch.distributed as dist

from .exchange import ROLES, Exchange, State

# The name of it since torch 2.13, and before.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

POLICIES = ("skip", "drop", "raise")


class Hook:
    """One collective a bucket in the place of the all-reduce; see :meth:`Method.hook`.

    nonfinite : list of int
        Gradients that each rank left out in the last step, summed over its buckets.
    """

    def __init__(self, method, model, *, process_group=None, start_step=2, nonfinite="skip"):
        if nonfinite not in POLICIES:
            raise ValueError(f"hook: nonfinite: got {nonfinite!r}, expected one of {POLICIES}.")
        if not isinstance(start_step, int) or start_step < 1:
            raise ValueError(
                f"hook: start_step: got {start_step!r}, expected an integer of at least 1: dense "
                "steps come first."
            )
        self.__name__ = self.__qualname__ = "largebatch_compression"  # DDP asks for both
        self.method, self.group = method, process_group
        self.start_step, self.policy = start_step, nonfinite
        self.names = {p: name for name, p in model.named_parameters()}
        self._ids = {p: i for i, p in enumerate(self.names)}
        self.state = {}  # parameter: {role: tensor}
        self.step = 0
        self.nonfinite = []
        self._exchanges = {}  # parameters of a bucket: its exchange
        self._agreed = False

    def __call__(self, state, bucket):
        """Average the gradients of a bucket over the ranks; called by DistributedDataParallel."""
        if bucket.index() == 0:
            self.nonfinite = []
        dense = self.step < self.start_step
        future = self._average(bucket) if dense else self._compress(bucket)
        if bucket.is_last():
            self.step += 1
        return future

    # ---- Dense steps -----------------------------------------------------------------------------

    def _average(self, bucket):
        """All-reduce; the last time, the state takes the gradients of this rank and their mean."""
        buffer, last = bucket.buffer(), self.step == self.start_step - 1
        own = [g.clone() for g in bucket.gradients()] if last and self.method.shifted else []
        buffer.div_(dist.get_world_size(self.group))
        future = dist.all_reduce(buffer, group=self.group, async_op=True).get_future()
        parameters, gradients = bucket.parameters(), bucket.gradients()

        def begin(done):
            for p, g, mean in zip(parameters, own, gradients, strict=False):
                tensors = self._of(p)
                for role in ("shift", "momentum"):
                    if role in tensors:
                        tensors[role].copy_(g)
                tensors["mean"].copy_(mean)
            return done.value()[0]

        return future.then(begin)

    def _of(self, parameter):
        if parameter not in self.state:
            state = State([parameter], self.method.roles(), 0)
            names = {role: getattr(state, name) for role, name in ROLES.items()}
            self.state[parameter] = {role: own[0] for role, own in names.items() if own}
        return self.state[parameter]

    # ---- Compressed steps ------------------------------------------------------------------------

    def _compress(self, bucket):
        grads, world = bucket.gradients(), dist.get_world_size(self.group)
        exchange = self._exchange(tuple(bucket.parameters()), grads)
        if not self._agreed:
            self._agree(grads[0].device)
        exchange.state.step = self.step
        payload = exchange.encode(grads, scratch=True)
        payloads = payload.new_empty(world * len(payload))
        work = all_gather(payloads, payload, group=self.group, async_op=True)
        buffer, last = bucket.buffer(), bucket.is_last()

        def decode(_):
            exchange.decode(payloads.view(world, -1), skip=self.policy == "skip", outs=grads)
            counts = exchange.nonfinite
            self.nonfinite = counts if isinstance(self.nonfinite, list) else self.nonfinite + counts
            if last and self.policy == "raise" and self.nonfinite.any():
                raise FloatingPointError(
                    f"hook: gradients are not finite, by rank: {self.nonfinite.tolist()}. Their "
                    "elements were left out of the state."
                )
            return buffer

        return work.get_future().then(decode)

    def _exchange(self, parameters, grads):
        """Return the exchange of a bucket, whose state is that of its parameters."""
        if parameters not in self._exchanges:
            state = State([], [], dist.get_rank(self.group))
            state.ids = [self._ids[p] for p in parameters]
            for role in self.method.roles():
                setattr(state, ROLES[role], [self._of(p)[role] for p in parameters])
            self._exchanges[parameters] = Exchange(self.method, state, grads)
        return self._exchanges[parameters]

    def _agree(self, device):
        """Raise on every rank unless all have the same method, compressor and parameters."""
        sizes = [(name, tuple(p.shape)) for p, name in self.names.items()]
        setting = repr((self.method, self.start_step, self.policy, sizes))
        digest = hashlib.sha256(setting.encode()).digest()
        mine = torch.tensor(list(digest), dtype=torch.uint8, device=device)
        world = dist.get_world_size(self.group)
        gathered = mine.new_empty(world * len(mine))
        all_gather(gathered, mine, group=self.group)
        all_of_them = gathered.view(world, -1)
        others = [r for r in range(world) if not torch.equal(all_of_them[r], all_of_them[0])]
        if others:
            raise ValueError(
                f"hook: ranks {others} have another method, compressor, option or parameter than "
                f"rank 0; this rank has {self.method} from step {self.start_step} on."
            )
        self._agreed = True

    # ---- State -----------------------------------------------------------------------------------

    def state_dict(self):
        """Return the state of this rank: save one a rank, H is the same in each.

        ``{"step", "rank", "world", "method", "state": {name: {role: tensor}}}``
        """
        return {
            "step": self.step,
            "rank": dist.get_rank(self.group),
            "world": dist.get_world_size(self.group),
            "method": repr(self.method),
            "state": {n: dict(self.state[p]) for p, n in self.names.items() if p in self.state},
        }

    def load_state_dict(self, state_dict):
        """Go on from what :meth:`state_dict` gave this rank, in a world of the same size.

        Raises
        ------
        ValueError
            For another rank, world or method, or a parameter that the model has not.
        """
        here = {
            "rank": dist.get_rank(self.group),
            "world": dist.get_world_size(self.group),
            "method": repr(self.method),
        }
        for key, value in here.items():
            if state_dict[key] != value:
                raise ValueError(
                    f"load_state_dict: {key}: got {state_dict[key]!r}, expected {value!r}."
                )
        parameters = {name: p for p, name in self.names.items()}
        unknown = set(state_dict["state"]) - set(parameters)
        if unknown:
            raise ValueError(f"load_state_dict: state: got {min(unknown)!r}, not in the model.")
        self.step = state_dict["step"]
        for name, own in state_dict["state"].items():
            for role, tensor in self._of(parameters[name]).items():
                tensor.copy_(own[role])

    @torch.no_grad()
    def rebuild(self, process_group=None):
        """Make H the mean of h over the ranks of a group, and exchange with those from now on.

        To be called by each of them after a rank is lost: what it had in H would stay there as a
        bias.
        """
        self.group, self._agreed, self._exchanges = process_group, False, {}
        world = dist.get_world_size(process_group)
        for p in self.names if self.method.shifted else ():  # in one order on all ranks
            own = self._of(p)
            own["mean"].copy_(own["shift"]).div_(world)
            dist.all_reduce(own["mean"], group=process_group)
