"""Selective revision: an attempt may keep the one before it, and then it counts as that one in everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graded import attempt
from scripted_server import serving
from test_endpoint import player as asking
from test_endpoint import says
from test_rollout import GRADER, ScriptedEngine, plan
from tiny_chat import encode, make_chat

from score_rl.chat_schema import ChatSettings
from score_rl.compare import compare, read_outcomes, shared_problems
from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.evaluation import count
from score_rl.metrics import is_unchanged, self_correction, training_metrics
from score_rl.objectives import shape_rewards, stage2
from score_rl.records import read_jsonl
from score_rl.report import build
from score_rl.results import read_episodes, write_files
from score_rl.rollout import Player
from score_rl.schema import EvalSettings, SamplingSettings
from score_rl.settings import load
from score_rl.sweep_result import edits
from score_rl.train import Trainer
from score_rl.update import tabulate

TWO = Problem("p", "1 + 1", "2")
ASK = "<|im_end|>\n<|im_start|>user\nRedo it.<|im_end|>\n<|im_start|>assistant\n"


def play(*said: str, problem: Problem = TWO, **options: object) -> Episode:
    """An episode in which the policy says this."""
    engine = ScriptedEngine(*([text] for text in said))
    branch, limits = [1] * len(said), [9] * len(said)
    chat = make_chat(keep="KEEP", **options)
    (played,) = Player(engine, chat, GRADER).play([problem], plan(*branch, limits=limits), ("test",))
    return played


@pytest.mark.parametrize(
    ("number", "text", "keeps"),
    [
        pytest.param(2, "KEEP", True, id="the marker alone"),
        pytest.param(3, " \n KEEP. It is right.", True, id="the marker and more"),
        pytest.param(2, "<think>\nKEEP? No.</think>\n\nKEEP", True, id="behind thoughts"),
        pytest.param(2, "<think>\nKEEP? No.</think>\n\n3", False, id="in thoughts alone"),
        pytest.param(2, "I KEEP it", False, id="not at the start"),
        pytest.param(2, "keep", False, id="in other letters"),
        pytest.param(1, "KEEP", False, id="attempt 1 has none to keep"),
    ],
)
def test_an_attempt_keeps_the_one_before_it_if_it_starts_with_the_marker(number: int, text: str, keeps: bool) -> None:
    assert ChatSettings(keep=" KEEP ").keeps(number, text) is keeps
    assert not ChatSettings().keeps(number, text)


@pytest.mark.parametrize(
    ("said", "grades"),
    [
        pytest.param(
            ["2", "KEEP"], [Grade(True, 1.0, "2"), Grade(True, 1.0, "2", "kept")], id="a right first attempt is kept"
        ),
        pytest.param(["3", "KEEP"], [Grade(False, 0.0, "3"), Grade(False, 0.0, "3", "kept")], id="a wrong one"),
        pytest.param(
            ["3", "2", "KEEP", "KEEP"],
            [Grade(False, 0.0, "3"), Grade(True, 1.0, "2"), *[Grade(True, 1.0, "2", "kept")] * 2],
            id="attempts 3 and 4 keep attempt 2",
        ),
        pytest.param(
            ["2", "KEEP", "3"],
            [Grade(True, 1.0, "2"), Grade(True, 1.0, "2", "kept"), Grade(False, 0.0, "3")],
            id="attempt 3 revises what attempt 2 kept",
        ),
        pytest.param(
            ["KEEP", "KEEP"], [Grade(False, 0.0, "KEEP"), Grade(False, 0.0, "KEEP", "kept")], id="nothing to keep"
        ),
    ],
)
def test_a_kept_attempt_has_the_grade_of_the_one_that_it_keeps(said: list[str], grades: list[Grade]) -> None:
    played = play(*said)
    assert [a.grade for a in played.attempts] == grades
    assert [a.keeps for a in played.attempts] == [grade.note == "kept" for grade in grades]


def test_in_a_tree_each_child_keeps_its_own_parent() -> None:
    engine = ScriptedEngine(["2", "3"], ["KEEP", "4", "KEEP", "2"])
    made = Player(engine, make_chat(keep="KEEP"), GRADER).play([TWO], plan(2, 2), ("test",))
    assert [[a.correct for a in e.attempts] for e in made] == [[True, True], [True, False], [False] * 2, [False, True]]
    assert [e.texts[1] for e in made] == ["2", "4", "3", "2"]
    assert made[0].attempts[0] is made[1].attempts[0]


def test_a_given_first_attempt_can_be_kept() -> None:
    chat = make_chat(keep="KEEP")
    stored = Attempt(chat.open("1 + 1"), encode("2"), "2", True, grade=Grade(True, 1.0, "2"))
    (played,) = Player(ScriptedEngine(["KEEP"]), chat, GRADER).play(
        [TWO], plan(1, 1), ("test",), first_attempts=[[stored]]
    )
    assert played.attempts[1].grade == Grade(True, 1.0, "2", "kept") and not played.attempts[0].sampled


def test_behind_an_endpoint_it_is_the_same() -> None:
    texts = {1: "2", 3: "KEEP", 5: "KEEP"}
    script = lambda number, request: says(texts[len(request["messages"])])  # noqa: E731
    chat = ChatSettings(instruction="Redo it.", keep="KEEP")
    with serving(script) as server:
        (drawn,) = asking(server, chat).play([TWO], plan(1, 1, 1), ("test",))
        stored = Attempt((), (), "2", True, grade=Grade(True, 1.0, "2"), num_tokens=1)
        (given,) = asking(server, chat).play([TWO], plan(1, 1, 1), ("test",), first_attempts=[[stored]])
    assert [a.grade for a in drawn.attempts] == [a.grade for a in play("2", "KEEP", "KEEP").attempts]
    assert [a.grade for a in given.attempts] == [a.grade for a in drawn.attempts]


@pytest.mark.parametrize("history", ["verbatim", "template"])
@pytest.mark.parametrize(
    ("keep_attempts", "carried"),
    [
        pytest.param(None, f"3{ASK}2{ASK}KEEP{ASK}", id="a whole history says what was said"),
        pytest.param(1, f"2{ASK}", id="a bounded one has the attempt that stands"),
        pytest.param(2, f"3{ASK}2{ASK}", id="and what it came from"),
        pytest.param(3, f"3{ASK}2{ASK}KEEP{ASK}", id="while there is room nothing leaves"),
    ],
)
def test_a_bounded_context_never_has_the_marker_in_place_of_the_answer(
    history: str, keep_attempts: int | None, carried: str
) -> None:
    played = play("3", "2", "KEEP", "4", history=history, keep_attempts=keep_attempts)
    opening = "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n"
    assert played.attempts[3].context_ids == encode(opening + carried)


def kept(before: Attempt, *, tokens: int = 1) -> Attempt:
    assert before.grade is not None
    return Attempt((), tuple(range(tokens)), "KEEP", True, grade=before.grade.of_keeping())


def four() -> list[Episode]:
    """Kept right, kept wrong, fixed and broken; the texts have nothing in common with the marker."""
    right, wrong = attempt("r", text="so it is 2"), attempt("w", text="so it is 3")
    pairs = [(right, kept(right)), (wrong, kept(wrong)), (wrong, right), (right, wrong)]
    return [Episode(Problem(f"p{i}", "q", "2"), pair, (0, 0)) for i, pair in enumerate(pairs)]


def test_a_kept_first_attempt_counts_as_unchanged_in_every_metric() -> None:
    metrics = self_correction(four())
    expected = {"kept/t2": 0.5, "unchanged/t2": 0.5, "identical/t2": 0.5, "acc/t1": 0.5, "acc/t2": 0.5}
    expected |= {"delta/i_c": 0.25, "delta/c_i": 0.25, "delta/t1_t2": 0.0, "rate/fix": 0.5, "rate/break": 0.5}
    # A kept attempt differs by nothing; "so it is 2" and "so it is 3" by one character deleted and one inserted of 20.
    expected |= {"edit_ratio/t2": 0.05, "edit_ratio_q1/t2": 0.0, "edit_ratio_median/t2": 0.05, "edit_ratio_q3/t2": 0.1}
    expected |= {"length/t1": 3.0, "length/t2": 2.0, "no_answer/t2": 0.0}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    steps = training_metrics(four())
    assert (steps["kept/t2"], steps["unchanged/t2"], steps["delta/t1_t2"]) == (0.5, 0.5, 0.0)
    assert steps["reward/t2"] == 0.5


def test_an_attempt_without_an_answer_is_kept_unchanged_too() -> None:
    blank = attempt("w", answer=None, text="hm")
    again = attempt("w", answer=None, text="hm")
    made = Episode(TWO, (blank, kept(blank), kept(kept(blank)), again), (0,) * 4)
    # Attempt 4 says what attempt 1 said, and attempt 3 stands for that.
    assert made.texts == ["hm"] * 4
    assert [is_unchanged(made, k) for k in (2, 3, 4)] == [True] * 3


def test_votes_and_budgets_see_the_kept_answer() -> None:
    right, wrong = attempt("r", tokens=3), attempt("w", tokens=3)
    pairs = [(right, kept(right)), (right, kept(right)), (wrong, kept(wrong)), (wrong, right)]
    made = [Episode(TWO, pair, (i, 0)) for i, pair in enumerate(pairs)]
    settings = EvalSettings(samples=4, sampling=SamplingSettings(temperature=1.0))
    metrics = count(made, settings, 0)
    # Second answers: r, r, w, r; of all eight r has five.
    assert metrics["maj/t2@4"] == 1.0 and metrics["pass/t2@1"] == 0.75
    assert metrics["maj/t1@4"] == 0.5, "two against two"
    assert metrics["scaling/mixed@8"] == 1.0
    assert metrics["scaling/sequential@2.tokens"] == 3 + (1 + 1 + 1 + 3) / 4


def test_a_kept_attempt_earns_what_it_keeps_and_no_bonus() -> None:
    table = tabulate(four(), torch.device("cpu"))
    credit = shape_rewards(stage2(alpha=10), table.rewards, table.correct)
    # Kept right, kept wrong, fixed, broken.
    assert credit.tolist() == [[1, 1], [0, 0], [0, 11], [1, -10]]
    assert table.lengths.tolist() == [[3, 1], [3, 1], [3, 3], [3, 3]], "the marker's own tokens are trained"


def test_stored_and_compared_it_is_still_kept(tmp_path: Path) -> None:
    for name, episodes in (("a", four()), ("b", four()[::-1])):
        write_files(tmp_path / f"{name}.json", {}, episodes)
    assert read_episodes(tmp_path / "a.jsonl") == four()
    one, other = ([read_outcomes(str(tmp_path / f"{name}.json"))] for name in "ab")
    rows = compare(one, other, shared_problems([*one, *other]), None)
    assert [(row.a, row.difference.value) for row in rows] == [(0.5, 0.0), (0.5, 0.0), (0.0, 0.0)]


def test_a_policy_trains_with_the_marker_and_the_run_can_be_looked_at(tiny_model: Path, tmp_path: Path) -> None:
    settings = load(
        "arithmetic",
        [
            f"model.path={tiny_model}",
            "chat.keep=E",
            "data.options={digits: 4, train: 40, validation: 6, test: 8}",
            "eval.max_new_tokens=6",
            "train.validate_every=2",
            "train.log_episodes=64",
            "stages=[{kind: stage2, steps: 2, problems: 8, branch: [4, 2], max_new_tokens: [6, 6], lr: 1.0e-4}]",
        ],
    )
    path = tmp_path / "run"
    Trainer(settings, path).train()
    rows = [row for _, row in read_jsonl(path / "episodes" / "stage2.jsonl")]
    shares = {}
    for step in (1, 2):
        played = [Episode.from_json(row) for row in rows if row["step"] == step]
        says_so = [episode.attempts[1].text.strip().startswith("E") for episode in played]
        for episode, keeps in zip(played, says_so, strict=True):
            first, second = (attempt.grade for attempt in episode.attempts)
            assert first is not None and second is not None
            assert (second == first.of_keeping()) is keeps is (second.note == "kept")
        shares[step] = sum(says_so) / 64
    assert min(shares.values()) > 0, "choose a letter that the random model says now and then"
    steps = {row["step"]: row for _, row in read_jsonl(path / "metrics.jsonl")}
    assert {step: steps[step]["kept/t2"] for step in shares} == pytest.approx(shares)
    build([path], tmp_path / "report.html")


def test_a_kept_attempt_has_no_edits_in_the_histogram_of_a_sweep() -> None:
    assert edits([play("3", "KEEP"), play("3", "2")])[0] == 1
