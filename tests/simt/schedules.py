# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Calls under several schedules of threads and blocks."""

SEEDS = range(8)


def under_each_seed(monkeypatch, function, *arguments, racecheck=False):
    """Return the results of a call under each of the schedules."""
    monkeypatch.setenv("LARGEBATCH_SIMT_RACECHECK", "1" if racecheck else "0")
    results = []
    for seed in SEEDS:
        monkeypatch.setenv("LARGEBATCH_SIMT_SEED", str(seed))
        results.append(function(*arguments))
    return results
