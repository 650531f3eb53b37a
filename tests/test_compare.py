import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from score_rl.cli import app
from score_rl.compare import caution, compare, evaluation_file, in_words, p_text, read_outcomes, shared_problems
from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.errors import ConfigError, DataError
from score_rl.power import mcnemar_problems
from score_rl.results import write_files
from score_rl.stats import mcnemar, paired_difference


def write(path: Path, marks: list[list[str]], *, question: str = "what is {}?") -> str:
    """Writes an evaluation: for each problem the marks of its samples, such as `wr` or, ungraded, `w?`."""
    episodes = []
    for number, samples in enumerate(marks):
        problem = Problem(f"p{number}", question.format(number), "1")
        for sample, word in enumerate(samples):
            grades = [Grade(m == "r", None if m == "?" else float(m == "r"), m) for m in word]
            attempts = tuple(Attempt((), (1,), grade.answer or "", True, grade=grade) for grade in grades)
            episodes.append(Episode(problem, attempts, (sample,) + (0,) * (len(word) - 1)))
    write_files(path, {}, episodes)
    return str(path)


def rows_of(a: list[str], b: list[str], *, common: bool = False, delta: float | None = None):
    sides = [[read_outcomes(source) for source in side] for side in (a, b)]
    return compare(*sides, shared_problems([*sides[0], *sides[1]], common=common), delta)


def refused(*arguments: str) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """100 problems: at attempt 1 B gains 5 and loses 5, at attempt 2 it gains 20 and loses 2."""
    a = [["rr"]] * 42 + [["wr"]] * 3 + [["ww"]] * 55
    b = [["rr"]] * 37 + [["wr"]] * 3 + [["ww"]] * 2 + [["wr"]] * 3 + [["rr"]] * 5 + [["wr"]] * 15 + [["ww"]] * 35
    return write(tmp_path / "a.json", a), write(tmp_path / "b.json", b)


def test_accuracies_of_one_sample_have_the_exact_test_and_the_paired_interval(pair):
    first, last, delta = rows_of([pair[0]], [pair[1]])
    assert (first.key, first.a, first.b) == ("acc/t1", 0.42, 0.42)
    assert (first.difference, first.p) == (paired_difference(5, 5, 100), mcnemar(5, 5))
    assert (last.key, last.a, last.b) == ("acc/t2", 0.45, pytest.approx(0.63))
    assert (last.difference, last.p) == (paired_difference(20, 2, 100), mcnemar(20, 2))
    # From 3 points in A to 21 in B.
    assert (delta.key, delta.a, delta.b) == ("delta/t1_t2", pytest.approx(0.03), pytest.approx(0.21))
    assert delta.difference.value == pytest.approx(0.18)
    assert 0 < delta.difference.low < 0.18 < delta.difference.high


def test_p_values_are_corrected_for_the_three_tests(pair):
    first, last, delta = rows_of([pair[0]], [pair[1]])
    assert (first.p_holm, first.better) == (1.0, None)
    assert last.p_holm == pytest.approx(max(2 * last.p, 3 * delta.p) if delta.p < last.p else 3 * last.p)
    assert last.better == delta.better == "B"


def test_exchanging_the_sides_turns_every_comparison_round(pair):
    for row, other in zip(rows_of([pair[0]], [pair[1]]), rows_of([pair[1]], [pair[0]]), strict=True):
        assert (row.a, row.b) == (other.b, other.a)
        assert row.difference == pytest.approx([-x for x in (other.difference[0], *other.difference[:0:-1])], abs=1e-9)
        assert (row.p, row.problems_needed) == (pytest.approx(other.p, abs=0.01), other.problems_needed)


def test_what_cannot_be_told_says_how_many_problems_would_do(tmp_path):
    # 3 gained and 1 lost of 100: a difference of 2 points where 4% differ.
    a = write(tmp_path / "a.json", [["w"]] * 3 + [["r"]] + [["w"]] * 96)
    b = write(tmp_path / "b.json", [["r"]] * 3 + [["w"]] + [["w"]] * 96)
    (row,) = rows_of([a], [b])
    assert (row.better, row.problems_needed) == (None, mcnemar_problems(0.02, 0.04))
    assert in_words(row, 100) == (
        "acc/t1: can't tell, B - A = +2.0 points [-2.8, +7.6], p = 0.62; "
        "a difference like that would need about 840 problems, here are 100"
    )
    (asked,) = rows_of([a], [b], delta=0.03)
    assert asked.problems_needed == mcnemar_problems(0.03, 0.04)
    assert "a difference of 3 points would need about" in in_words(asked, 100, delta=0.03)


def test_where_nothing_differs_only_a_difference_asked_for_has_a_number_of_problems(tmp_path):
    same = write(tmp_path / "a.json", [["r"], ["w"]] * 20)
    (row,) = rows_of([same], [same])
    assert (row.difference.value, row.p, row.problems_needed) == (0.0, 1.0, None)
    assert "need" not in in_words(row, 40)
    (row,) = rows_of([same], [same], delta=0.1)
    assert row.problems_needed == mcnemar_problems(0.1, 0.1)


def test_several_samples_are_compared_problem_by_problem(tmp_path):
    rng = random.Random(0)
    easy = [rng.random() for _ in range(300)]

    def played(gain: float) -> list[list[str]]:
        return [["r" if rng.random() < min(1, p + gain) else "w" for _ in range(8)] for p in easy]

    a, b = write(tmp_path / "a.json", played(0)), write(tmp_path / "b.json", played(0.1))
    (row,) = rows_of([a], [b])
    # Capped at 1 the gain is 0.1 - 0.1^2 / 2 = 0.095 on average. Unpaired, the interval would be near
    # 1.96 * sqrt(2 * 0.083 / 300) = 0.046 on either side; paired, chance alone counts: near 0.023.
    assert row.difference.value == pytest.approx(0.095, abs=0.03)
    assert row.difference.high - row.difference.low == pytest.approx(2 * 0.023, rel=0.25)
    assert row.better == "B"


def test_seeds_are_paired_and_their_spread_counts(tmp_path):
    def sides(gains: list[int]) -> tuple[list[str], list[str]]:
        a = [write(tmp_path / f"a{i}.json", [["w"]] * 200) for i in range(len(gains))]
        b = [write(tmp_path / f"b{i}.json", [["r"]] * g + [["w"]] * (200 - g)) for i, g in enumerate(gains)]
        return a, b

    (row,) = rows_of(*sides([20, 60, 100]))
    # Differences 0.1, 0.3, 0.5: t of 2 degrees of freedom, 4.303 * 0.2 / sqrt(3) = 0.497 alone.
    assert row.difference.value == pytest.approx(0.3)
    assert row.difference.low < 0
    assert (row.better, row.problems_needed) == (None, None)
    assert in_words(row, 200).endswith(f"p = {p_text(row.p)}")
    (row,) = rows_of(*sides([58, 60, 62]))
    assert row.better == "B"


def test_a_better_delta_that_comes_with_a_worse_first_attempt_is_pointed_at(tmp_path):
    a = write(tmp_path / "a.json", [["rr"]] * 100 + [["ww"]] * 100)
    b = write(tmp_path / "b.json", [["wr"]] * 100 + [["ww"]] * 100)
    rows = rows_of([a], [b])
    assert [row.better for row in rows] == ["A", None, "B"]
    assert caution(rows) == "the better delta/t1_t2 comes with a lower acc/t1: go by acc/t2"
    assert "go by acc/t2" in shown("compare", a, b)
    assert caution(rows_of([a], [a])) is None


def test_different_problems_are_refused_unless_the_common_ones_are_asked_for(tmp_path):
    a, b = write(tmp_path / "a.json", [["r"]] * 6), write(tmp_path / "b.json", [["w"]] * 4)
    other = write(tmp_path / "other.json", [["w"]] * 6, question="how much is {}?")
    assert "6 problems and" in refused("compare", a, b)
    assert "4 of them in common by id and question; --common compares on those" in refused("compare", a, b)
    assert "0 of them in common by id and question; nothing can be paired" in refused("compare", a, other)
    assert "0 graded problems in common; nothing to compare" in refused("compare", a, other, "--common")
    found = json.loads(shown("compare", a, b, "--common", "--json"))
    assert (found["problems"], found["left_out"]) == (4, 2)
    assert found["a"] == [a.replace(".json", ".jsonl")]


def test_problems_that_a_grader_could_not_tell_of_are_left_out_and_counted(tmp_path):
    a = write(tmp_path / "a.json", [["rr"], ["r?"], ["ww"], ["ww"]])
    b = write(tmp_path / "b.json", [["rr"], ["rr"], ["wr"], ["ww"]])
    assert "3 problems, 1 left out (not in all, or not graded)" in shown("compare", a, b)


def test_different_numbers_of_attempts_and_of_seeds_are_refused(tmp_path):
    one, two = write(tmp_path / "one.json", [["r"]] * 4), write(tmp_path / "two.json", [["rr"]] * 4)
    assert "evaluate both with the same --attempts" in refused("compare", one, two)
    assert "2 evaluations against 1; give equally many, seed by seed" in refused("compare", f"{one},{one}", one)
    assert "--delta 0" in refused("compare", one, one, "--delta", "0")


def test_episodes_of_different_lengths_or_none_are_no_evaluation(tmp_path):
    mixed = write(tmp_path / "mixed.json", [["r"], ["rr"]])
    assert "episodes with [1, 2] attempts" in refused("compare", mixed, mixed)
    empty = write(tmp_path / "empty.json", [])
    assert "episodes with [] attempts" in refused("compare", empty, empty)


def test_an_evaluation_is_found_by_run_by_name_and_by_file(tiny_run, tmp_path):
    last = tiny_run / "eval" / "stage2.jsonl"
    assert evaluation_file(str(tiny_run)) == last
    assert evaluation_file(f"{tiny_run}:stage1") == tiny_run / "eval" / "stage1.jsonl"
    assert evaluation_file(str(last)) == evaluation_file(str(last.with_suffix(".json"))) == last
    with pytest.raises(ConfigError, match=r"stage3: no such evaluation in .*eval \(there: .*base, .*stage2"):
        evaluation_file(f"{tiny_run}:stage3")
    with pytest.raises(ConfigError, match="no run, RUN:NAME or"):
        evaluation_file(str(tmp_path))
    with pytest.raises(ConfigError, match=r"none.jsonl does not exist"):
        evaluation_file(str(tmp_path / "none.json"))


def test_two_stages_of_a_run_are_compared_on_the_screen_and_as_json(tiny_run):
    text = shown("compare", f"{tiny_run}:base", str(tiny_run))
    assert "p (Holm)" in text
    found = json.loads(shown("compare", f"{tiny_run}:base", str(tiny_run), "--json"))
    assert [row["key"] for row in found["comparisons"]] == ["acc/t1", "acc/t3", "delta/t1_t3"]
    assert all(row["low"] <= row["difference"] <= row["high"] for row in found["comparisons"])
    assert all(row["sentence"] in " ".join(text.split()) for row in found["comparisons"])


def test_power_is_shown_for_known_sizes_the_own_one_and_the_one_needed():
    text = shown("power", "--delta", "2", "--discordant", "6", "--problems", "250")
    assert "1,244 problems give a power of 80%" in text
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [
        ["164", "10%"],
        ["250", "18%"],
        ["500", "37%"],
        ["1,244", "80%"],
        ["1,319", "82%"],
        ["5,000", "100%"],
    ]
    # 2 +- 1.96 * sqrt((0.06 - 0.0004) / 500) = 2 +- 2.14 points.
    assert "500 37% [-0.1, +4.1]" in " ".join(text.split())
    found = json.loads(shown("power", "--delta", "2", "--discordant", "6", "--json"))
    assert found["problems_needed"] == 1244
    assert found["power"]["500"] == pytest.approx(0.3734, abs=1e-4)


def test_a_power_that_cannot_be_is_refused():
    assert "delta must be above 0 and at most discordant" in refused("power", "--delta", "7", "--discordant", "6")
    assert "--power 100" in refused("power", "--delta", "2", "--discordant", "6", "--power", "100")
