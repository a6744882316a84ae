# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""One of four processes, of which some are lost and join again; see test_elastic_workers.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from largebatch.compression import DGC, EF21, EControl, ErrorFeedback, TopK
from tests.compression.hook_setting import LONG, Training, error_of

WORLD, LEFT = 4, 3
METHODS = {
    "econtrol-m": lambda: EControl(TopK(ratio=0.1), momentum=0.3, min_numel=100),
    "ef21": lambda: EF21(TopK(ratio=0.1, scope="bucket"), min_numel=100),
    "feedback": lambda: ErrorFeedback(TopK(ratio=0.1), momentum=0.5, min_numel=100),
    "dgc": lambda: DGC(TopK(ratio=0.1), min_numel=100),
}


def join(training, group=None):
    """Go on in a group: what docs/compression.md says."""
    training.wrap(group)
    training.ddp.register_comm_hook(None, training.hook)
    training.hook.rebuild(group)
    return training


def lost_and_found(rank, left, alone):
    """Lose the last rank, go on without it, and let a new one join."""
    found = {}
    for name, make in METHODS.items():
        training = Training(make(), rank).steps(range(5))
        begun = [training.result(), training.roles()]
        if rank < LEFT:
            join(training, left)
            rebuilt = training.roles()
            training.steps(range(5, 8))
            begun += [rebuilt, training.result(), training.roles()]
        else:
            training = Training(make(), rank, group=alone)
            if name != "ef21":  # it knows nothing; the others end their dense steps here
                training.steps(range(2))
        dist.barrier()
        join(training)
        joined = training.roles()
        training.hook.check_sync()
        training.steps(range(8, 11))
        training.hook.check_sync()
        found[name] = (begun, joined, training.result(), training.roles(), training.hook.step)
    return found


def long(rank):
    training = Training(METHODS["econtrol-m"](), rank).steps(range(LONG))
    training.hook.check_sync()
    return training.result(), training.losses


def fewer(rank, folder, left):
    """Save the state of four ranks, and go on with three and with four."""
    found = {}
    for name, make in METHODS.items():
        training = Training(make(), rank).steps(range(5))
        torch.save(training.hook.state_dict(mean=rank == 0), Path(folder) / f"{name}{rank}.pt")
        dist.barrier()
        shards = [torch.load(Path(folder) / f"{name}{r}.pt") for r in range(WORLD)]
        again = Training(make(), rank)
        again.hook.load_state_dict(shards[::-1])
        own = (training.roles(), again.roles())
        if rank < LEFT:
            part = Training(make(), rank, group=left)
            part.hook.load_state_dict(shards)
            roles = part.roles()
            found[name] = (*own, roles, part.steps(range(5, 8)).result())
        else:
            found[name] = own
    wrong = {
        "world": lambda: part.hook.load_state_dict(shards[rank]),
        "missing": lambda: part.hook.load_state_dict(shards[1:]),
        "no mean": lambda: again.hook.load_state_dict(shards[rank]),
        "method": lambda: again.hook.load_state_dict(shards[0] | {"method": "EF21"}),
        "steps": lambda: again.hook.load_state_dict([shards[0] | {"step": 9}, *shards[1:]]),
        "name": lambda: again.hook.load_state_dict(own_shard | {"state": {"x": {}}}),
        "shape": lambda: again.hook.load_state_dict(
            own_shard | {"state": {"0.weight": dict.fromkeys(("error", "momentum"), torch.ones(3))}}
        ),
        "kind": lambda: again.hook.load_state_dict("state.pt"),
    }
    own_shard = shards[rank]
    return found, {name: error_of(call) for name, call in wrong.items() if rank < LEFT}


def out_of_sync(rank):
    training = Training(METHODS["econtrol-m"](), rank).steps(range(3))
    if rank == 2:
        training.hook.state[training.model[0].weight]["mean"][0, 3] += 1
    return error_of(training.hook.check_sync)


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    left, alone = dist.new_group(list(range(LEFT))), dist.new_group([LEFT])
    results = {
        "ranks": lost_and_found(rank, left, alone),
        "fewer": fewer(rank, folder, left),
        "long": long(rank),
        "sync": out_of_sync(rank),
    }
    dist.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
