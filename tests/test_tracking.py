from dataclasses import replace

from graded import episode, episodes
from rich.console import Console
from rich.table import Table

from score_rl.evaluation import count
from score_rl.metrics import by_field, self_correction
from score_rl.schema import EvalSettings, SamplingSettings
from score_rl.tracking import attempts_table, count_attempts, groups_table, result_table, step_note


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def metrics(*marks: str) -> dict[str, float | int | str]:
    return self_correction(episodes(*marks)) | {"problems": len(marks), "split": "test"}


def test_the_table_shows_percent_intervals_and_the_test_for_each_model() -> None:
    text = shown(result_table("title", {"base": metrics("wr", "rr", "rw", "wr"), "stage1": metrics(*["wr"] * 4)}))
    base = next(line for line in text.splitlines() if "base" in line)
    # Attempt 1 is right in 2 of 4, attempt 2 in 3 of 4: two gained, one lost.
    for cell in ("50.0 [", "75.0 [", "+25.0 [", "25.0 ["):
        assert cell in base
    assert base.rstrip("│ ").endswith(" 1")  # 2 against 1 of 3 flips: exact p = 1
    stage1 = next(line for line in text.splitlines() if "stage1" in line)
    assert "+100.0 [" in stage1
    assert stage1.rstrip("│ ").endswith("0.12")  # 4 against 0: 2 * 0.5^4
    assert "4 problems (test split)" in text


def test_many_attempts_have_a_row_each() -> None:
    found = metrics("wwwrr", "rrrrw")
    assert count_attempts(found) == 5
    text = shown(attempts_table("title", found))
    rows = [line for line in text.splitlines() if "│" in line]
    assert len(rows) == 5
    assert "100.0 [" in rows[3]
    assert "+50.0 [" in rows[3]


def test_the_lines_below_say_what_is_fixed_and_broken_of_each_evaluation() -> None:
    text = shown(result_table("title", {"base": metrics("wr", "ww", "rw", "rr"), "stage1": metrics("wr", "wr")}))
    assert "base: of wrong first attempts 50.0 [9.5, 90.5] fixed, of right ones 50.0 [9.5, 90.5] broken" in text
    assert "stage1: of wrong first attempts 100.0 [34.2, 100.0] fixed" in text
    assert "pass@" not in text


def test_samples_are_told_by_their_votes_and_have_no_test() -> None:
    made = [episode(marks, problem=p, path=(j, 0)) for p in "ab" for j, marks in enumerate(("wr", "rr", "ww", "wr"))]
    found = count(made, EvalSettings(samples=4, sampling=SamplingSettings(temperature=1.0)), 0)
    text = shown(result_table("title", {"base": found}))
    assert "2 problems (test split), 4 samples each, percent" in text
    assert "t1 pass@4 100.0 [34.2, 100.0], maj@4 0.0 [0.0, 65.8]" in text
    assert "t2 pass@4 100.0 [34.2, 100.0], maj@4 100.0" in text
    # Four attempts are four first ones, or two episodes of two.
    assert "majority of 4 attempts: parallel 0.0 [0.0, 65.8], sequential " in text
    assert "McNemar" not in text + shown(attempts_table("title", found))


def test_groups_have_a_table_where_the_data_has_them() -> None:
    made = [
        replace(e, problem=replace(e.problem, meta={"level": n % 2})) for n, e in enumerate(episodes("wr", "rr", "ww"))
    ]
    table = groups_table(by_field(made))
    assert table is not None
    text = shown(table)
    assert [line.split("│")[1].strip() for line in text.splitlines() if "level" in line] == ["level=0", "level=1"]
    assert "+50.0 [" in text and "acc@t2" in text and "delta(t1,t2)" in text
    assert groups_table(metrics("wr")) is None


def test_a_step_shows_what_it_has() -> None:
    assert step_note({"acc/t1": 0.25, "acc/t2": 0.5, "kl/t1": 0.0123}) == "t1 0.25 t2 0.50 KL1 0.012"
    assert step_note({"acc/t1": 0.25}) == "t1 0.25"
