# SPDX-FileCopyrightText: 2026 the largebatch authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from click.testing import CliRunner

from largebatch.cli import main
from largebatch.cli.bench.compare import compare

from .bench_setting import make, slower


def changed(times=1.0, number=0, **over):
    """Return results in which one row takes so many times as long."""
    found = make()
    found.rows[number].update(slower(found.rows[number], times))
    found.rows[number].update(over)
    return found


def verdicts(found):
    return [change.verdict for change in found.changes if change.verdict]


def first(family, role):
    """Return the number of the first row of this family and role."""
    rows = make().rows
    return next(i for i, r in enumerate(rows) if (r["family"], r["role"]) == (family, role))


def test_nothing_changes_between_equal_files():
    found = compare(make(), make())
    assert len(found.changes) == len(make().rows)
    assert not verdicts(found)
    assert (found.regressions, found.improvements) == ([], [])
    assert found.others == (1, 1)


def test_a_slower_kernel_is_a_regression_and_a_faster_one_an_improvement():
    found = compare(make(), changed(1.2))
    (change,) = found.regressions
    assert change.after["family"] == "lamb"
    assert change.time_ratio == pytest.approx(1.2)
    assert change.copy_ratio == pytest.approx(1.2)
    assert not found.improvements
    back = compare(changed(1.2), make())
    assert not back.regressions
    assert len(back.improvements) == 1


def test_within_the_threshold_nothing_is_flagged():
    assert not verdicts(compare(make(), changed(1.08)))
    assert verdicts(compare(make(), changed(1.08), threshold=0.05)) == ["slower"]
    assert not verdicts(compare(make(), changed(1.3), threshold=0.5))


def test_quartiles_that_overlap_are_not_flagged():
    before = make().rows[0]
    touching = {"q1_ms": before["q3_ms"]}
    assert not verdicts(compare(make(), changed(1.5, **touching)))
    apart = {"q1_ms": 1.001 * before["q3_ms"]}
    assert verdicts(compare(make(), changed(1.5, **apart))) == ["slower"]
    touching = {"q3_ms": before["q1_ms"]}
    assert not verdicts(compare(make(), changed(0.5, **touching)))


def test_a_machine_in_another_state_is_not_flagged():
    copy = make().rows[0]["copy_GBps"]
    found = compare(make(), changed(2.0, copy_GBps=copy / 2))
    assert not verdicts(found)
    assert found.changes[0].time_ratio == pytest.approx(2)
    assert found.changes[0].copy_ratio == pytest.approx(1)
    assert not verdicts(compare(changed(2.0, copy_GBps=copy / 2), make()))
    # Nor is it that the copy alone has changed.
    assert not verdicts(compare(make(), changed(1.0, copy_GBps=2 * copy)))
    assert not verdicts(compare(make(), changed(1.0, copy_GBps=copy / 2)))


@pytest.mark.parametrize("role", ["peer", "floor"])
def test_others_judge_nothing_and_tell_of_the_machine(role):
    found = compare(make(), changed(3.0, first("lamb", role)))
    assert verdicts(found) == ["slower"]
    assert not found.regressions
    before, after = make(), make()
    for both in (before, after):
        both.rows = [row for row in both.rows if row["role"] in ("ours", role)]
    for row in after.rows:
        if row["role"] == role:
            row["median_ms"] *= 1.5
            row["copy_GBps"] *= 0.8
    assert compare(before, after).others == (pytest.approx(1.5), pytest.approx(1.2))


def test_the_threshold_counts_from_what_others_in_the_case_have_become():
    peer = first("lamb", "peer")

    def both(ours, others, **over):
        found = changed(ours, **over)
        found.rows[peer].update(slower(found.rows[peer], others))
        return found

    def judged(ours, others, **over):
        found = compare(both(1, 1, **over), both(ours, others, **over))
        return [c.verdict for c in found.changes if c.verdict and c.after["role"] == "ours"]

    assert make().rows[0]["case"] == make().rows[peer]["case"]
    assert judged(1.53, 1.4) == []
    assert judged(1.55, 1.4) == ["slower"]
    assert judged(1 / 1.53, 1 / 1.4) == []
    assert judged(1 / 1.55, 1 / 1.4) == ["faster"]
    # Others that have become faster are no excuse, nor are those of another case or family.
    assert judged(1.2, 0.5) == ["slower"]
    assert judged(1.2, 1.4, case="another") == ["slower"]
    assert judged(1.2, 1.4, family="another") == ["slower"]


def test_a_shortest_time_that_stays_is_not_flagged():
    assert not verdicts(compare(make(), changed(1.5, min_ms=1.05 * make().rows[0]["min_ms"])))


def test_rows_match_by_all_that_tells_them_apart():
    for name in ("family", "operation", "case", "dtype", "implementation", "backend"):
        found = compare(make(), changed(9.0, 0, **{name: "another"}))
        assert not verdicts(found)
        assert [r[name] for r in found.only_after] == ["another"]
        assert found.only_before == [make().rows[0]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "GPU", "device differ: Example CPU 9000 @ 2.1 GHz before, GPU after. Compare"),
        ("threads", 4, "threads differ: 2 before, 4 after. Compare runs of one machine."),
    ],
)
def test_another_machine_is_refused_in_one_line(name, value, message):
    after = make()
    after.machine[name] = value
    with pytest.raises(ValueError, match=f"^{message}"):
        compare(make(), after)


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture
def invoke(tmp_path):
    def run(before, after, *options):
        files = [tmp_path / "before.json", tmp_path / "after.json"]
        for found, file in zip((before, after), files, strict=True):
            found.save(file)
        return CliRunner().invoke(main, ["bench", "--compare", *map(str, files), *options])

    return run


def test_the_command_fails_on_a_regression_only(invoke):
    result = invoke(make(), changed(1.2))
    assert result.exit_code == 1, result.output
    said = "by more than 10 % beside others in the case, of 17 of largebatch."
    assert f"1 slower and 0 faster {said}" in result.output
    line = next(line for line in result.output.splitlines() if "+20.0 %" in line)
    assert line.split()[-1] == "slower"
    assert invoke(make(), changed(1.2), "--threshold", "30").exit_code == 0
    assert invoke(changed(1.2), make()).exit_code == 0
    peer = invoke(make(), changed(3.0, first("lion", "peer")))
    assert peer.exit_code == 0
    assert "The others, which have not changed here: +0.0 % in time" in peer.output


def test_the_command_lists_rows_of_one_file(invoke):
    before, after = make(), make()
    del before.rows[1], after.rows[0]
    result = invoke(before, after)
    assert result.exit_code == 0
    row = "lamb, step, bert-35m, float32"
    assert f"only in the file before: {row}, largebatch\n" in result.output
    assert f"only in the file after: {row}, timm\n" in result.output


def test_the_command_refuses_another_machine(invoke):
    after = make()
    after.machine["threads"] = 4
    result = invoke(make(), after)
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: threads differ: 2 before, 4 after.")
