# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
"""Whether ours has become slower between two files of results of one machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from .results import Results

REGRESSED, IMPROVED = "slower", "faster"
_SAME = (
    "family", "operation", "case", "dtype", "implementation", "backend", "device", "threads",
)  # fmt: skip


@dataclass
class Change:
    """One benchmark that both files have.

    Attributes
    ----------
    before, after : dict
        Its rows.
    time_ratio : float
        Of the medians, after over before.
    copy_ratio : float
        The same in units of a copy that was timed beside them: a machine whose memory is in
        another state than it was takes longer for both.
    fastest_ratio : float
        Of the shortest times: a core that is shared is alone for some of the rounds.
    verdict : str
        "slower", "faster" or empty.
    """

    before: dict
    after: dict
    time_ratio: float
    copy_ratio: float
    fastest_ratio: float
    verdict: str = ""

    @property
    def agreed_ratio(self) -> float:
        """What the three agree on: that nearest to 1, or 1 where they differ in direction."""
        ratios = self.time_ratio, self.copy_ratio, self.fastest_ratio
        return max(min(*ratios), 1.0) * min(max(*ratios), 1.0)


@dataclass
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    threshold : float
        From which ratio on a change counts: 0.1 is 10 %.
    changes : list of Change
        All benchmarks that both have, those of others too.
    only_before, only_after : list of dict
        Rows without a counterpart.
    """

    threshold: float
    changes: list[Change] = field(default_factory=list)
    only_before: list[dict] = field(default_factory=list)
    only_after: list[dict] = field(default_factory=list)

    @property
    def regressions(self) -> list[Change]:
        """Ours that have become slower; others do not judge."""
        return self._ours(REGRESSED)

    @property
    def improvements(self) -> list[Change]:
        """Ours that have become faster."""
        return self._ours(IMPROVED)

    def _ours(self, verdict):
        return [c for c in self.changes if c.verdict == verdict and c.after["role"] == "ours"]

    @property
    def others(self) -> tuple[float, float] | None:
        """Median ratios, of time and in copies, of what is not ours; None if there is none.

        No change of ours changes these, so they tell how much the machine itself has.
        """
        others = [c for c in self.changes if c.after["role"] != "ours"]
        if not others:
            return None
        return (
            statistics.median(c.time_ratio for c in others),
            statistics.median(c.copy_ratio for c in others),
        )


def compare(before: Results, after: Results, threshold: float = 0.10) -> Comparison:
    """Match the rows of two runs and judge each pair.

    Slower means: by more than the threshold in time, in copies and in the shortest time, and the
    quartiles do not overlap. Each alone is what a machine does that others use too. What it does to
    the calls of others in the same family and case, which run within the same minute, it does to
    ours: the threshold counts from the one of them that has become slower most. Faster likewise.

    Raises
    ------
    ValueError
        In one line, if the device or the threads differ.
    """
    for name in ("device", "threads"):
        a, b = before.machine[name], after.machine[name]
        if a != b:
            raise ValueError(f"{name} differ: {a} before, {b} after. Compare runs of one machine.")
    old, new = ({_key(row): row for row in found.rows} for found in (before, after))
    changes = [_change(old[key], row) for key, row in new.items() if key in old]
    others = [change for change in changes if change.after["role"] != "ours"]
    for change in changes:
        beside = [1.0]
        if change.after["role"] == "ours":
            beside += [c.agreed_ratio for c in others if _beside(c.after) == _beside(change.after)]
        least, most = min(beside) / (1 + threshold), max(beside) * (1 + threshold)
        change.verdict = _verdict(change, least, most)
    return Comparison(
        threshold,
        changes=changes,
        only_before=[row for key, row in old.items() if key not in new],
        only_after=[row for key, row in new.items() if key not in old],
    )


def _key(row):
    return tuple(row[name] for name in _SAME)


def _beside(row):
    return row["family"], row["case"]


def _change(before, after):
    time = after["median_ms"] / before["median_ms"]
    copies = time * after["copy_GBps"] / before["copy_GBps"]
    return Change(before, after, time, copies, after["min_ms"] / before["min_ms"])


def _verdict(change, least, most):
    before, after = change.before, change.after
    if change.agreed_ratio > most and after["q1_ms"] > before["q3_ms"]:
        return REGRESSED
    if change.agreed_ratio < least and after["q3_ms"] < before["q1_ms"]:
        return IMPROVED
    return ""
