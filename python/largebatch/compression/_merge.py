# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""The state of one rank, from those that ranks have saved."""

import torch


def merge(given, method, rank, world, codec):
    """Return the state for a rank of a world; see :meth:`Hook.load_state_dict`."""
    shards = given if isinstance(given, list | tuple) else [given]
    if not shards or not all(isinstance(s, dict) for s in shards):
        kinds = sorted({type(s).__name__ for s in shards})
        raise TypeError(
            f"load_state_dict: state_dict: got {type(given).__name__} of {kinds}, expected what "
            "state_dict() gave, or a list of that of all ranks."
        )
    for key, value in (("codec", codec), ("method", method)):
        for shard in shards:
            if shard.get(key) != value:
                raise ValueError(
                    f"load_state_dict: {key}: got {shard.get(key)!r}, expected {value!r}."
                )
    if shards[0]["world"] != world and not isinstance(given, list | tuple):
        raise ValueError(
            f"load_state_dict: world: got {shards[0]['world']}, expected {world}. Give a list of "
            "the state of all ranks to go on with another number of them."
        )
    if len(shards) == 1 and not isinstance(given, list | tuple):
        if shards[0]["rank"] != rank:
            raise ValueError(f"load_state_dict: rank: got {shards[0]['rank']}, expected {rank}.")
        return shards[0]
    return _of_all(sorted(shards, key=lambda shard: shard["rank"]), rank, world)


def _of_all(shards, rank, world):
    saved = shards[0]["world"]
    ranks = [shard["rank"] for shard in shards]
    if ranks != list(range(saved)) or any(s["world"] != saved for s in shards):
        raise ValueError(
            f"load_state_dict: state_dict: got shards of ranks {ranks}, expected one of each of "
            f"the {saved} ranks that have saved."
        )
    if len({shard["step"] for shard in shards}) > 1:
        steps = [shard["step"] for shard in shards]
        raise ValueError(f"load_state_dict: step: got {steps}, expected one step on all ranks.")
    means = next((shard["mean"] for shard in shards if shard["mean"]), {})
    if saved == world:
        return shards[rank] | {"mean": means}
    state = {}
    for name, own in shards[0]["state"].items():
        parts = {role: [s["state"][name][role] for s in shards] for role in own}
        state[name] = {role: _mean(tensors) for role, tensors in parts.items()}
        if "shift" in own and name in means:
            state[name]["shift"] = means[name]
    return shards[0] | {"state": state, "mean": means}


def _mean(tensors):
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(tensors[0].dtype)
