"""The report: its verdict, what it counts and what it draws."""

import json
import re
from pathlib import Path

import pytest
from wild_run import outcomes, run_of, write_evaluation_of, write_run

from score_rl.errors import ConfigError, DataError
from score_rl.report import render
from score_rl.report.charts import Axes, Series, flow, line_chart, whole_percent
from score_rl.report.differences import differences
from score_rl.report.parts import Flag, by_field, curves, flags, over_attempts, over_samples, over_tokens
from score_rl.report.source import Played, Shown, read_runs
from score_rl.report.summary import change, summarise
from score_rl.report.svg import ticks
from score_rl.report.text import number, percent
from score_rl.report.transcripts import HEAD_CHARACTERS
from score_rl.report.verdict import judge


def verdict_of(run: Path) -> tuple[str, str, list[str]]:
    [read] = read_runs([run])
    found = judge(read, {e.name: summarise(e.episodes()) for e in read.evaluations})
    return found.kind, f"{found.claim}: {found.rest}", found.notes


def test_the_verdict_is_yes_where_the_interval_lies_above_0(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcomes(60, 0, 0, 40), outcomes(60, 30, 2, 8))
    kind, sentence, notes = verdict_of(run)
    assert kind == "yes"
    # 60 + 30 of 100 are right at attempt 2, 60 + 2 at attempt 1
    start = "It self-corrects: after Stage II the second attempt is right on 90.0% of problems and the first on 62.0%, "
    assert sentence.startswith(start + "a gain of 28.0 points (95% interval +")
    assert notes == ["Attempt 1 is 2.0 points higher than before training, which may be chance (95% interval "
                     + notes[0].partition("95% interval ")[2]]  # fmt: skip


def test_a_gain_that_was_bought_with_attempt_1_is_said(tmp_path: Path) -> None:
    kind, _, notes = verdict_of(run_of(tmp_path, outcomes(60, 0, 0, 40), outcomes(20, 40, 0, 40)))
    assert kind == "yes"
    assert notes[0].startswith("Attempt 1 fell by 40.0 points from before training (95% interval −")
    assert notes[0].endswith("100 problems): part of the gain is a worse first attempt.")


def test_the_verdict_is_no_where_the_interval_lies_below_0(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, outcomes(50, 0, 0, 50), outcomes(30, 0, 20, 50)))
    assert kind == "no"
    assert "a loss of 20.0 points" in sentence


def test_the_verdict_is_no_where_a_gain_of_a_point_is_ruled_out(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, outcomes(300, 0, 0, 300), outcomes(300, 0, 0, 300)))
    assert kind == "no"
    assert "a gain of 1.0 points is ruled out" in sentence


def test_few_problems_leave_it_open_and_the_number_that_would_do_is_named(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, outcomes(10, 0, 0, 10), outcomes(10, 2, 1, 7)))
    assert kind == "unsure"
    assert sentence.startswith("Can't tell whether it self-corrects: after Stage II")
    [needed] = re.findall(r"to tell a difference of 5.0 points takes about ([\d,]+) problems", sentence)
    # 3 of 20 flip: 7.85 * (0.15 - 0.05^2) / 0.05^2 = 463 at 80% power, with the interval's own width a little more
    assert 350 < int(needed.replace(",", "")) < 800


def test_cut_off_and_ungraded_attempts_are_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcomes(5, 0, 0, 5), outcomes(5, 5, 0, 0), **{"truncated/t2": 0.2, "ungraded": 3})
    _, _, notes = verdict_of(run)
    assert (
        "0.0% of attempts 1 and 20.0% of attempts 2 were cut off at the token limit: every accuracy is a lower bound."
        in notes
    )
    assert "3 episodes could not be graded and count in nothing." in notes


def test_a_run_that_still_trains_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=[{"step": 12, "stage": "stage1", "acc/t1": 0.5}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "acc')  # a line that is being written
    assert verdict_of(run)[0] == "none"
    assert verdict_of(run)[2] == ["The run has not finished: step 12 of 160. Numbers are those so far."]
    assert "Nothing measured yet" in render([run])


def test_before_the_first_stage_has_finished_the_verdict_is_about_the_base_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation_of(run, "base", outcomes(300, 0, 0, 300))
    kind, sentence, _ = verdict_of(run)
    assert kind == "none"
    assert sentence.startswith("No stage finished: it does not self-correct yet; before training the second attempt is")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run \(no config.yaml in it\)"):
        render([tmp_path])
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is there twice"):
        render([run, tmp_path / "run" / "." / ""])


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_file_of_metrics_is_named(tmp_path: Path, content: str) -> None:
    run = run_of(tmp_path, outcomes(1, 0, 0, 0), outcomes(1, 0, 0, 0))
    (run / "eval" / "stage1.json").write_text(content)
    with pytest.raises(DataError, match=r"stage1\.json: "):
        render([run])


@pytest.mark.parametrize(
    "row",
    [{}, {"problem": {"id": 1}}, {"problem": {"id": "1", "question": "?", "answer": "1"}, "attempts": [], "path": [0]}],
    ids=["empty", "no question", "no attempts"],
)
def test_a_broken_episode_is_named_with_its_line(tmp_path: Path, row: dict[str, object]) -> None:
    run = run_of(tmp_path, outcomes(1, 0, 0, 0), outcomes(1, 0, 0, 0))
    with (run / "eval" / "stage1.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"stage1\.jsonl:2: no episode"):
        render([run])


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, outcomes(1, 1, 0, 0), outcomes(1, 1, 0, 0)) for name in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]


def test_flow_and_histogram_count_what_the_episodes_say() -> None:
    def shown(text: str, correct: bool | None) -> Shown:
        return Shown(text, None, correct, None, 1, True)

    pairs = [("abcd", False, "abce", True), ("same", True, "same", True), ("abc", True, "xyz", False)]
    rows = [Played(str(k), "", "", {}, (0,), (shown(a, b), shown(c, d))) for k, (a, b, c, d) in enumerate(pairs)]
    rows.append(Played("u", "", "", {}, (0,), (shown("?", None), shown("?", True))))
    rows.append(Played("l", "", "", {}, (0,), (shown("a" * (HEAD_CHARACTERS + 1), True), shown("b", True))))
    found = summarise(rows)
    assert found.flow == {(False, True): 1, (True, True): 2, (True, False): 1}
    assert (found.episodes, found.identical, found.too_long, found.measured) == (4, 1, 1, 3)
    # abcd to abce: one letter out and one in, of eight: 0.25, in the bin from 0.25 to 0.3; abc to xyz: 1, in the last
    assert [place for place, count in enumerate(found.ratios) if count] == [5, 19]


def test_a_change_between_evaluations_is_paired_by_problem() -> None:
    def summary(marks: dict[str, list[bool]]) -> object:
        rows = [
            Played(name, "", "", {}, (k,), (Shown("", None, right, None, 1, True),))
            for name, samples in marks.items()
            for k, right in enumerate(samples)
        ]
        return summarise(rows)

    before = summary({"a": [False], "b": [True], "c": [False], "only": [True]})
    after = summary({"c": [True], "a": [True], "b": [True], "other": [False]})
    interval, problems = change(before, after, 1)
    assert (interval.value, problems) == (pytest.approx(2 / 3), 3)
    interval, problems = change(summary({"a": [False, True], "b": [True, True]}), after, 1)
    assert (interval.value, problems) == (pytest.approx(0.25), 2)  # a: from a half to 1, b: 1 as before
    assert change(before, after, 2) is None


def test_several_runs_are_compared_on_the_problems_that_they_share(tmp_path: Path) -> None:
    better = run_of(tmp_path / "better", outcomes(0, 0, 0, 1), outcomes(60, 35, 0, 5))
    paths = [run_of(tmp_path / "a", outcomes(0, 0, 0, 1), outcomes(60, 0, 0, 40)), better]
    paths.append(run_of(tmp_path / "other", outcomes(0, 0, 0, 1), []))
    runs = read_runs(paths)
    summaries = {(run.name, e.name): summarise(e.episodes()) for run in runs for e in run.evaluations}
    pair, nothing = differences(runs, summaries)
    assert (pair.first, pair.other) == ("a/run", "better/run")
    assert pair.note == "100 problems that both answered; p is corrected for 3 tests (Holm)."
    assert [(row.name, row.first, row.other, row.says) for row in pair.rows] == [
        ("acc@t1", "60.0", "60.0", "can't tell"),
        ("acc@t2", "60.0", "95.0", "the other is better"),
        ("Δ(t1, t2)", "0.0", "+35.0", "the other is better"),
    ]
    assert pair.rows[1].change.startswith("+35.0 [+")
    assert (nothing.note, nothing.rows) == ("Nothing to compare yet.", [])


def test_flags_of_one_kind_without_a_break_are_one() -> None:
    class Run:
        steps = [{"step": k, "stage": "stage1", "watch/copying": 1.0} for k in (3, 4, 5, 9)]  # noqa: RUF012

    assert flags(Run()) == [Flag("watch/copying", "stage1", 3, 5), Flag("watch/copying", "stage1", 9, 9)]


def test_curves_mark_stages_and_the_steps_that_the_watch_marked(tmp_path: Path) -> None:
    steps = [
        {"step": k, "stage": "stage1" if k < 11 else "stage2", "unchanged/t2": 0.99, "acc/t1": 0.5, "acc/t2": k / 20}
        | ({"watch/copying": 1.0} if k in (4, 5, 6) else {})
        for k in range(1, 21)
    ]
    [run] = read_runs([write_run(tmp_path / "run", steps=steps)])
    drawn = {chart.title: chart.svg for chart in curves(run, flags(run))}
    assert list(drawn) == ["Right answers in training", "Unchanged answers"]
    assert ['class="flag"' in svg for svg in drawn.values()] == [False, True]
    assert all("Stage I<" in svg and "Stage II<" in svg and svg.count('class="stage"') == 1 for svg in drawn.values())


def test_charts_of_more_attempts_and_samples_show_the_stored_numbers(tmp_path: Path) -> None:
    more = {"acc/t3": 0.9, "acc/t3.low": 0.8, "acc/t3.high": 0.95, "samples": 4}
    more |= {f"pass/t{k}@{n}": 0.1 * k + 0.1 * n for k in (1, 2) for n in (1, 2, 4)}
    more |= {"scaling/parallel@1": 0.5, "scaling/parallel@1.tokens": 11.0}
    more |= {
        "scaling/mixed@2": 0.6,
        "scaling/mixed@2.tokens": 22.0,
        "scaling/mixed@2.low": 0.5,
        "scaling/mixed@2.high": 0.7,
    }
    more |= {"scaling/mixed@4": 0.7, "scaling/mixed@4.tokens": 44.0}
    more |= {"by/level=5/acc/t1": 0.25, "by/level=5/acc/t2": 0.75, "by/level=5/problems": 12}
    run = run_of(tmp_path, outcomes(1, 1, 0, 0), outcomes(1, 1, 0, 0), **more)
    last = read_runs([run])[0].evaluations[-1:]
    [over] = over_attempts(last)
    assert [row[0] for row in over.rows] == ["1", "2", "3"] and over.rows[-1][1] == "90% [80%, 95%]"
    [tokens] = over_tokens(last)
    assert tokens.head[0] == "generated tokens a problem"
    assert tokens.rows == [["11", "50%", ""], ["22", "", "60% [50%, 70%]"], ["44", "", "70%"]]
    [samples] = over_samples(last)
    assert samples.head == ["samples n", "pass@n, attempt 1", "pass@n, attempt 2"]
    assert samples.rows[-1] == ["4", "50%", "60%"]
    [level] = by_field(last)
    assert level.rows == [["5", "12 problems", "25.0% [25.0, 25.0]", "75.0% [75.0, 75.0]"]]


def test_the_bands_of_a_flow_are_as_thick_as_their_shares() -> None:
    chart = flow("After", {(True, True): 50, (False, True): 25, (False, False): 25})
    assert [row[1:] for row in chart.rows] == [["50", "50.0%"], ["0", "0.0%"], ["25", "25.0%"], ["25", "25.0%"]]
    assert len(re.findall('class="ribbon', chart.svg)) == 3  # nothing is drawn of what did not happen
    [(_, begin, end)] = re.findall(r'd="M(\S+) (\S+)C[^"]+ (\S+)Z" class="ribbon won"', chart.svg)
    assert float(end) - float(begin) == pytest.approx(150 / 4)  # a quarter of a chart 150 high


def test_a_line_chart_has_a_table_with_its_numbers_and_leaves_out_nothing_between() -> None:
    line = Series("accuracy", "t2", [(x, x / 1000) for x in range(1000)], smooth=10)
    chart = line_chart("Title", "Note.", [line], Axes("step", whole_percent))
    assert chart is not None
    assert chart.head == ["step", "accuracy"]
    assert chart.rows[0] == ["0", "0%"] and chart.rows[-1] == ["999", "99.9%"] and len(chart.rows) <= 42
    assert chart.svg.count("L") < 600  # a thousand points are drawn as means of neighbours
    assert line_chart("Title", "", [Series("none", "t1", [])], Axes("step", whole_percent)) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (0.31, 0.36),
        (-0.2, 0.4),
        (5.0, 5.0),
        (0.0, 0.0),
        (1e-6, 3e-6),
        (0.0, 12345.0),
        (0.0, 1e-320),
        (0.3, 0.1 + 0.2),
    ],
)
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, 10**400, True, "0.5", None, [1]])
def test_what_is_no_measured_number_is_none(value: object) -> None:
    assert number({"key": value}, "key") is None and number({}, "key") is None
    assert number({"key": 1}, "key") == 1.0


def test_numbers_have_a_true_minus_and_zero_has_no_sign() -> None:
    assert [percent(x, sign=True) for x in (0.05, -0.05, 0.0, -0.0001)] == ["+5.0", "−5.0", "0.0", "0.0"]
