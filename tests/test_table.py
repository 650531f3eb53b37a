"""The tables of a sweep: intervals against direct calls, and differences worked out by hand."""

import csv
import io
import json
import random
import re
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
from made_sweep import bits, table_of, write_result, write_sweep
from typer.testing import CliRunner

from score_rl.cli import app, main
from score_rl.errors import ConfigError, DataError
from score_rl.metrics import put
from score_rl.report import render
from score_rl.resampling import clustered, hierarchical, hierarchical_p
from score_rl.stats import Interval, mcnemar, paired_difference, wilson
from score_rl.table import cost, over_seeds, tables
from score_rl.table_source import read_sweep
from score_rl.table_text import as_csv, grids, latex, markdown


def drawn(seed: int, first: float, second: float, problems: int = 200) -> tuple[str, str]:
    """Attempts that are right so often, alike for equal problems."""
    luck, own = random.Random(0), random.Random(seed)
    ease = [luck.random() for _ in range(problems)]
    return tuple("".join("01"[e + own.gauss(0, 0.1) < share] for e in ease) for share in (first, second))  # type: ignore[return-value]


def as_numbers(marks: str) -> list[int]:
    return [int(mark) for mark in marks]


def test_one_seed_has_the_intervals_over_problems(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}})
    write_result(sweep, "score", 0, bits(50, 20, 5, 25))
    [line] = table_of(sweep).lines
    assert line.values["acc/t1"] == wilson(55, 100)
    assert line.values["acc/t2"] == wilson(70, 100)
    assert line.values["delta/t1_t2"] == paired_difference(20, 5, 100)
    assert line.values["delta/i_c"] == wilson(20, 100)
    assert line.values["delta/c_i"] == wilson(5, 100)
    assert line.values["unchanged/t2"] == wilson(75, 100)
    assert line.differences == {}
    assert table_of(sweep).notes == [
        "Percent of 100 problems, with 95% intervals over seeds and problems, of one seed over problems alone."
    ]


def test_several_seeds_have_the_interval_over_seeds_and_problems(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {"seeds": [0, 1, 2]}})
    seeds = [drawn(seed, 0.5, 0.7) for seed in range(3)]
    for seed, outcome in enumerate(seeds):
        write_result(sweep, "score", seed, outcome)
    [line] = table_of(sweep).lines
    second = [as_numbers(t2) for _, t2 in seeds]
    change = [[b - a for a, b in zip(as_numbers(t1), as_numbers(t2), strict=True)] for t1, t2 in seeds]
    assert line.values["acc/t2"] == hierarchical(second)
    assert line.values["delta/t1_t2"] == hierarchical(change, difference=True)
    assert line.values["delta/i_c"] == hierarchical([[int(x == 1) for x in seed] for seed in change])


def test_what_is_known_of_seeds_as_a_whole_gets_their_spread_and_their_own_intervals() -> None:
    # means 0.4 and 0.6: standard error 0.1, and t of one degree of freedom is 12.7062
    found = over_seeds([Interval(0.4, 0.3, 0.5), Interval(0.6, 0.4, 0.7)])
    assert found.value == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5 - sqrt(0.15**2 + 1.27062**2), abs=1e-4)
    assert found.high == pytest.approx(0.5 + sqrt(0.1**2 + 1.27062**2), abs=1e-4)


def test_the_difference_of_two_runs_is_paired_by_problem_and_corrected_for_all_tests(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}, "a": {}, "b": {}})
    write_result(sweep, "score", 0, ("0" * 100, "1" * 60 + "0" * 40))
    write_result(sweep, "a", 0, ("0" * 100, "1" * 50 + "0" * 10 + "1" * 2 + "0" * 38))  # 2 won, 10 lost
    write_result(sweep, "b", 0, ("0" * 100, "1" * 90 + "0" * 10))  # 30 won, none lost
    found = table_of(sweep)
    _, a, b = found.lines
    assert (a.pairs, b.pairs, found.tests) == (1, 1, 4)
    assert a.differences["acc/t2"].interval == paired_difference(2, 10, 100)
    assert a.differences["acc/t2"].p == mcnemar(2, 10)
    # The four tests are a's and b's, of acc@t2 and, attempt 1 being equal, of the same changes in delta: b's two are
    # the smallest, and acc@t2 of a is exact where delta's is drawn.
    assert mcnemar(2, 10) == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert a.differences["acc/t2"].p_holm == pytest.approx(2 * min(a.differences[k].p for k in a.differences), rel=0.05)
    assert b.differences["acc/t2"].p_holm == pytest.approx(4 * 2 / 2**30)
    assert a.differences["acc/t2"].verdict == "can't tell"  # 0.039 alone, 0.077 corrected
    assert b.differences["acc/t2"].verdict == "better"
    assert "acc@t2 against the reference, in rows: 1 better, 0 worse, 1 can't tell." in found.notes
    [_, read, _] = csv.DictReader(io.StringIO(as_csv([found])))
    written = [float(read[f"difference/acc/t2.{name}"]) for name in ("p", "p_holm")]
    assert written == [a.differences["acc/t2"].p, a.differences["acc/t2"].p_holm]


def test_seeds_are_paired_by_their_numbers(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {"seeds": [0, 1, 2, 3]}, "other": {"seeds": [3, 1, 7]}})
    ours = {seed: drawn(seed, 0.5, 0.7) for seed in (0, 1, 2, 3)}
    theirs = {seed: drawn(seed, 0.5, 0.55) for seed in (3, 1, 7)}
    for row, results in (("score", ours), ("other", theirs)):
        for seed, outcome in results.items():
            write_result(sweep, row, seed, outcome)
    line = table_of(sweep).lines[1]
    change = [[b - a for a, b in zip(*map(as_numbers, (ours[s][1], theirs[s][1])), strict=True)] for s in (3, 1)]
    assert line.pairs == 2
    assert line.differences["acc/t2"].interval == hierarchical(change, difference=True)
    assert line.differences["acc/t2"].p == hierarchical_p(change)


def test_a_model_that_was_not_trained_stands_beside_each_seed(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {"seeds": [0, 1, 2]}, "base": {"train": False}, "other": {"seeds": [5]}})
    base = drawn(9, 0.5, 0.5)
    write_result(sweep, "base", 0, base)
    write_result(sweep, "other", 5, base)
    ours = [drawn(seed, 0.5, 0.7) for seed in range(3)]
    for seed, outcome in enumerate(ours):
        write_result(sweep, "score", seed, outcome)
    _, untrained, unpaired = table_of(sweep).lines
    change = [[b - a for a, b in zip(as_numbers(t2), as_numbers(base[1]), strict=True)] for _, t2 in ours]
    assert untrained.differences["acc/t2"].interval == hierarchical(change, difference=True)
    assert (untrained.pairs, unpaired.pairs, unpaired.differences) == (3, 0, {})


@pytest.mark.parametrize(
    ("won", "paper", "verdict", "direction"),
    [
        (0, (50.0, 40.0), "worse", "same"),
        (0, (50.0, 70.0), "worse", "opposite"),
        (0, (50.0, 60.0), "worse", "can't tell"),  # equal in the paper
        (60, (50.0, 40.0), "can't tell", "can't tell"),
        (100, (50.0, 70.0), "better", "same"),
        (100, None, "better", None),
    ],
)
def test_directions_beside_the_papers(
    tmp_path: Path, won: int, paper: tuple[float, float] | None, verdict: str, direction: str | None
) -> None:
    given = {} if paper is None else {"paper": {"acc_t1": paper[0], "acc_t2": paper[1]}}
    sweep = write_sweep(tmp_path, {"score": {"paper": {"acc_t1": 50.0, "acc_t2": 60.0}}, "row": given})
    write_result(sweep, "score", 0, bits(0, 60, 0, 60))
    write_result(sweep, "row", 0, bits(0, won, 0, 120 - won))
    found = table_of(sweep).lines[1].differences["acc/t2"]
    assert (found.verdict, found.direction) == (verdict, direction)
    if paper is not None:
        assert found.paper == pytest.approx((paper[1] - 60) / 100)


def test_the_papers_delta_is_compared_with_the_papers_delta(tmp_path: Path) -> None:
    paper = {"score": {"acc_t1": 60.0, "acc_t2": 64.4}, "single": {"acc_t1": 61.8, "acc_t2": 59.4}}
    sweep = write_sweep(tmp_path, {row: {"paper": values} for row, values in paper.items()})
    for row in paper:
        write_result(sweep, row, 0, bits(5, 5, 5, 5))
    found = table_of(sweep).lines[1].differences
    assert found["delta/t1_t2"].paper == pytest.approx(-0.068)  # -2.4 - 4.4


def test_rows_that_are_not_finished_say_so(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {name: {"seeds": [0, 1, 2]} for name in ("score", "part", "both", "lost", "todo")}
    sweep = write_sweep(tmp_path, rows)
    for row, seeds in (("score", 3), ("part", 2), ("both", 1)):
        for seed in range(seeds):
            write_result(sweep, row, seed, bits(5, 5, 5, 5))
    # A result counts more than an old failure.
    for row, seeds in (("both", [2]), ("lost", [0, 1, 2]), ("part", [0]), ("score", [0])):
        for seed in seeds:
            file = sweep / "failures" / row / f"seed-{seed}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("killed")
    found = table_of(sweep)
    assert [line.status for line in found.lines] == ["3", "2 of 3 seeds", "1 of 3 seeds, 1 failed", "failed", "not run"]
    assert found.notes[-1] == (
        "Not finished: part (2 of 3 seeds); both (1 of 3 seeds, 1 failed); lost (failed); todo (not run)."
    )
    assert markdown("m", [found], [], []).count("| todo | not run |  |  |  |  |  |  |\n") == 1


def test_nothing_run_yet_is_a_table_too(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}, "other": {}})
    found = table_of(sweep)
    assert (found.notes, cost(read_sweep(sweep)).runs) == (["Nothing has been run yet."], 0)
    assert "other" in markdown("m", [found], [], []) and "not run" in latex([found]) and "not run" in as_csv([found])


def test_rows_on_other_problems_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path, {"score": {}, "star": {}})
    first = write_result(sweep, "score", 0, bits(5, 5, 5, 5))
    other = write_result(sweep, "star", 0, bits(5, 5, 5, 5), outcomes={"problems": "d2", "t1": "01", "t2": "11"})
    monkeypatch.setattr("sys.argv", ["score", "table", str(sweep)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err == (
        f"error: {other}: evaluated on other problems than {first} (2 with digest d2, 20 with d1); put them into "
        "different tables, or give both rows the same data and eval settings\n"
    )
    assert not (sweep / "tables.md").exists()


def test_a_reference_outside_the_table_must_be_on_the_same_problems_too(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}, "star": {}}, tables={"t": {"rows": ["star"]}})
    t1, t2 = bits(5, 5, 5, 5)
    write_result(sweep, "score", 0, (t1, t2))
    write_result(sweep, "star", 0, (t1, t2), outcomes={"problems": "d2", "t1": t1, "t2": t2})
    with pytest.raises(ConfigError, match=r"evaluated on other problems than .*20 with d"):
        table_of(sweep)


def test_problems_that_could_not_be_graded_count_in_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}})
    write_result(sweep, "score", 0, ("11-0" * 10, "1101" * 10))
    [line] = table_of(sweep).lines
    assert line.values["acc/t2"] == wilson(30, 30)
    assert line.values["delta/i_c"] == wilson(10, 30)


def test_samples_of_a_problem_stay_together(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}})
    t1, t2 = drawn(1, 0.4, 0.6)
    write_result(sweep, "score", 0, (t1, t2), evaluations={"stage2": {"samples": 4}})
    found = table_of(sweep)
    fours = [as_numbers(t2)[start : start + 4] for start in range(0, 200, 4)]
    change = [b - a for a, b in zip(as_numbers(t1), as_numbers(t2), strict=True)]
    changes = [change[start : start + 4] for start in range(0, 200, 4)]
    assert found.problems == 50
    assert found.lines[0].values["acc/t2"] == clustered(fours)
    assert found.lines[0].values["delta/t1_t2"] == clustered(changes, difference=True)


def test_equal_budgets_come_from_the_sampled_evaluation(tmp_path: Path) -> None:
    rows = {"score": {}, "base": {}, "own": {"evaluations": {"hot": {"samples": 4}}}}
    sweep = write_sweep(tmp_path, rows, evaluations={"warm": {"samples": 8}})
    sampled: dict[str, float] = {}
    for key, right in (("pass/t1@2", 90), ("maj/t1@2", 70), ("acc/t2", 80)):
        put(sampled, key, wilson(right, 100))
    write_result(sweep, "score", 0, bits(5, 5, 5, 5), evaluations={"warm": sampled})
    write_result(sweep, "base", 0, bits(5, 5, 5, 5))
    write_result(sweep, "own", 0, bits(5, 5, 5, 5), evaluations={"hot": sampled})
    found = table_of(sweep)
    budget = {"pass/t1@2": wilson(90, 100), "maj/t1@2": wilson(70, 100), "acc/t2": wilson(80, 100)}
    assert [line.budget for line in found.lines] == [budget, {}, budget]
    assert [title for title, _ in grids(found)[-1].rows] == ["score", "own"]


def test_corrections_of_fixed_first_attempts_stand_beside_those_of_own_ones(tmp_path: Path) -> None:
    extra = {"fixed": {"first_attempts": "base", "attempts": 3}}
    sweep = write_sweep(tmp_path, {"score": {}, "base": {}}, evaluations=extra)
    fixed: dict[str, Any] = {"first_attempts": "base"}
    for key, right in (("rate/fix", 30), ("rate/break", 2), ("acc/t2", 80), ("pass/t1@2", 1)):
        put(fixed, key, wilson(right, 100))
    write_result(sweep, "score", 0, bits(5, 6, 5, 4), evaluations={"fixed": fixed})
    write_result(sweep, "base", 0, bits(5, 5, 5, 5))
    score, base = table_of(sweep).lines
    assert score.fixed == {"rate/fix": wilson(30, 100), "rate/break": wilson(2, 100), "acc/t2": wilson(80, 100)}
    assert score.own == {"rate/fix": wilson(6, 10)} and base.fixed == base.own == {}
    assert score.budget == {}  # votes and averages of somebody else's attempts are no budget of its own
    [(title, cells)] = grids(table_of(sweep))[-1].rows
    assert (title, [cell.value for cell in cells]) == ("score", ["60.0", "30.0", "", "2.0", "80.0"])


def test_a_table_of_some_rows_is_corrected_for_its_own_tests(tmp_path: Path) -> None:
    listed = {"one": {"title": "One", "rows": ["a"]}, "two": {"rows": ["b", "score"]}}
    sweep = write_sweep(tmp_path, {"score": {}, "a": {}, "b": {}}, tables=listed)
    for row in ("score", "a", "b"):
        write_result(sweep, row, 0, bits(5, 5, 5, 5))
    one, two = tables(read_sweep(sweep))
    assert (one.title, one.tests, two.title, two.tests) == ("One", 2, "two", 2)
    assert [line.row.name for line in two.lines] == ["b", "score"]


def test_a_sweep_without_a_reference_compares_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"a": {}, "b": {}}, reference=None)
    for row in ("a", "b"):
        write_result(sweep, row, 0, bits(5, 5, 5, 5))
    assert table_of(sweep).tests == 0
    assert len(grids(table_of(sweep))) == 1


def test_files_do_not_depend_on_the_order_or_the_time_of_the_runs(tmp_path: Path) -> None:
    written = []
    for name, order, seconds in (("a", [0, 1, 2], 100.0), ("b", [2, 0, 1], 7200.0)):
        sweep = write_sweep(tmp_path / name, {"score": {"seeds": [0, 1, 2]}, "other": {"seeds": [0, 1, 2]}})
        for seed in order:
            write_result(sweep, "other", seed, drawn(seed, 0.5, 0.5), seconds=seconds)
            write_result(sweep, "score", seed, drawn(seed + 10, 0.5, 0.7), seconds=seconds)
        assert CliRunner().invoke(app, ["table", str(sweep)]).exit_code == 0
        files = [*sweep.glob("tables.*"), *sweep.glob("figures/*")]
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]
    assert {"tables.md", "tables.csv", "tables.tex", "edits.svg"} <= written[0].keys()
    assert (tmp_path / "b" / "cost.md").read_text() == (
        "6 of 6 runs, 6,000 attempts sampled in training, 12.00 hours of runs, on 2 processors, Linux\n"
    )


def test_the_command_prints_what_it_writes(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"score": {"title": "SCoRe"}, "base": {"title": "Base [1]"}})
    write_result(sweep, "score", 0, bits(50, 40, 0, 10))
    write_result(sweep, "base", 0, bits(50, 0, 0, 50))
    done = CliRunner().invoke(app, ["table", str(sweep), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert re.search(r"SCoRe +1 +50\.0 \[40\.4, 59\.6\] +90\.0 \[82\.6, 94\.5\] +\+40\.0 \[", done.output)
    assert re.search(r"Base \[1\] +1 +−40\.0 \[−49\.8, −30\.9\] +< 0\.0001 +worse +−40\.0", done.output)
    assert "No figure of majority votes of more attempts: it needs an evaluation of several samples" in done.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == (
        ["cost.md", "figures", "tables.csv", "tables.md", "tables.tex"]
    )
    assert not (sweep / "tables.md").exists()
    rows = json.loads(CliRunner().invoke(app, ["table", str(sweep), "--json"]).output)["rows"]
    assert rows[1]["difference/acc/t2"] == pytest.approx(-0.4)
    assert rows[1]["difference/acc/t2.verdict"] == "worse"


@pytest.mark.parametrize("text", ["{", "[]", "{}", "bits", "bins"])
def test_a_broken_result_is_named_with_its_mend(tmp_path: Path, text: str) -> None:
    sweep = write_sweep(tmp_path, {"score": {}})
    file = write_result(sweep, "score", 0, bits(5, 5, 5, 5))
    row = json.loads(file.read_text())
    content = {"bits": row | {"outcomes": row["outcomes"] | {"t1": "x"}}, "bins": row | {"edits": [1]}}
    file.write_text(json.dumps(content[text]) if text in content else text)
    with pytest.raises(DataError, match=r"seed-0\.json: .*; delete it and run `score sweep` again"):
        read_sweep(sweep)


def test_a_single_attempt_is_refused_with_the_setting_to_change(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"score": {}})
    write_result(sweep, "score", 0, bits(5, 5, 5, 5), outcomes={"problems": "d1", "t1": "01"})
    with pytest.raises(ConfigError, match=r"one attempt, and tables compare two; set eval\.attempts=2"):
        read_sweep(sweep)


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep \(no sweep.yaml in it\)"):
        read_sweep(tmp_path)
    sweep = write_sweep(tmp_path, {"score": {"paper": {"acc_t1": 60.0}}})
    with pytest.raises(DataError, match=r"rows\.score\.paper has acc_t1; give acc_t1 and acc_t2, in percent"):
        read_sweep(sweep)
    with pytest.raises(ConfigError, match="a sweep has a page of its own"):
        render([sweep, tmp_path / "run"])
