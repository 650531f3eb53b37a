from graded import episodes
from rich.console import Console
from rich.table import Table

from score_rl.metrics import self_correction
from score_rl.tracking import attempts_table, count_attempts, result_table, step_note


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


def test_a_step_shows_what_it_has() -> None:
    assert step_note({"acc/t1": 0.25, "acc/t2": 0.5, "kl/t1": 0.0123}) == "t1 0.25 t2 0.50 KL1 0.012"
    assert step_note({"acc/t1": 0.25}) == "t1 0.25"
