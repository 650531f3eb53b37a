"""Traces to imitate: which are kept, what is trained of them, and a stage of rounds that a signal cannot change."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import graded
import pytest
import torch
from test_docs import documented, general
from tiny import episode, gradients, largest_gap, make_policy, mixed_batch, stage, stir
from tiny_chat import INSTRUCTION, encode, make_chat
from torch.nn.functional import cross_entropy

from score_rl.checkpoint import checkpoints
from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.errors import DataError
from score_rl.interrupts import Interrupted
from score_rl.objectives import Objective
from score_rl.rewards import register_reward, rewards
from score_rl.schedule import learning_rate, make_objective, round_of
from score_rl.schema import Settings, StageSettings
from score_rl.settings import load
from score_rl.traces import pair_traces, star_traces, to_imitate
from score_rl.train import Trainer
from score_rl.update import accumulate

# ---- Which traces


@pytest.mark.parametrize(
    ("marks", "keep_correct", "kept"),
    [
        pytest.param("ww wr rw rr wr", False, "wr wr", id="D: from wrong to right"),
        pytest.param("ww wr rw rr wr", True, "wr rr wr", id="D+: from right to right too"),
        pytest.param("ww rw rr", False, "", id="nothing to keep"),
        pytest.param("w r w r", False, "r r", id="one attempt: the right ones"),
        pytest.param("wwr wrr rwr wrw rrr", False, "wwr wrr", id="three attempts: no step back"),
        pytest.param("wwr wrr rwr wrw rrr", True, "wwr wrr rrr", id="three attempts, D+"),
    ],
)
def test_star_keeps_the_episodes_that_end_right(marks: str, keep_correct: bool, kept: str) -> None:
    made = graded.episodes(*marks.split())
    found = star_traces(made, keep_correct=keep_correct)
    assert ["".join("wr"[a.correct] for a in e.attempts) for e in found] == kept.split()
    assert all(any(e is one for one in made) for e in found)


def first_attempts(question: str, marks: str, chat=None) -> list[Episode]:
    """Episodes of one attempt each, which says its place and its mark: `0w`, `1r`, ..."""
    chat = chat or make_chat()
    made = []
    for place, mark in enumerate(marks):
        text = f"{place}{mark}"
        ids, context = encode(f"{text}<|im_end|>"), chat.open(question)
        grade = Grade(mark == "r", float(mark == "r"), text)
        attempt = Attempt(context, ids, text, True, engine_logprobs=(-1.0,) * len(ids), grade=grade)
        made.append(Episode(Problem(question, question, "2"), (attempt,), (place,)))
    return made


def texts(pairs: list[Episode]) -> list[str]:
    return [" ".join(attempt.text for attempt in pair.attempts) for pair in pairs]


@pytest.mark.parametrize("seed", range(5))
def test_each_right_attempt_stands_behind_a_wrong_one_and_wrong_ones_take_turns(seed: int) -> None:
    found = texts(pair_traces(first_attempts("1+1", "wrwrrrw"), make_chat(), (seed,), keep_correct=False))
    assert sorted(text.split()[1] for text in found) == ["1r", "3r", "4r", "5r"]
    # Four right attempts and three wrong ones: each wrong one once, and one of them twice.
    assert sorted(Counter(text.split()[0] for text in found).values()) == [1, 1, 2]
    assert {text.split()[0] for text in found} == {"0w", "2w", "6w"}


@pytest.mark.parametrize("seed", range(5))
def test_with_keep_correct_each_right_attempt_stands_behind_another_right_one_too(seed: int) -> None:
    made = first_attempts("1+1", "wrwrr")
    without = pair_traces(made, make_chat(), (seed,), keep_correct=False)
    found = texts(pair_traces(made, make_chat(), (seed,), keep_correct=True))
    assert [text for text in found if "w" in text] == texts(without)
    among = [text.split() for text in found if "w" not in text]
    assert sorted(last for _, last in among) == sorted(first for first, _ in among) == ["1r", "3r", "4r"]
    assert all(first != last for first, last in among)


@pytest.mark.parametrize(
    ("marks", "keep_correct", "number"),
    [
        pytest.param("wwww", True, 0, id="no right attempt"),
        pytest.param("rrr", False, 0, id="no wrong attempt"),
        pytest.param("rrr", True, 3, id="no wrong attempt, D+"),
        pytest.param("r", True, 0, id="a right attempt alone"),
        pytest.param("", True, 0, id="nothing at all"),
    ],
)
def test_a_question_without_both_kinds_of_attempt_gives_no_pair_of_them(
    marks: str, keep_correct: bool, number: int
) -> None:
    assert len(pair_traces(first_attempts("1+1", marks), make_chat(), (0,), keep_correct=keep_correct)) == number


def test_only_attempts_of_one_question_are_paired_and_each_seed_has_its_own_pairs() -> None:
    made = [*first_attempts("1+1", "www"), *first_attempts("2+2", "rr"), *first_attempts("3+3", "wrwrwr")]
    again, other = (texts(pair_traces(made, make_chat(), key, keep_correct=False)) for key in ((7, "a"), (8, "a")))
    assert again == texts(pair_traces(made, make_chat(), (7, "a"), keep_correct=False)) != other
    assert len(again) == 3 and all(set(text.split()) <= {f"{i}{'wr'[i % 2]}" for i in range(6)} for text in again)
    # Written down, so that a change of the draws does not go unseen.
    assert again == PAIRS_OF_SEED_7


PAIRS_OF_SEED_7 = ["4w 5r", "2w 1r", "0w 3r"]


def test_a_question_drawn_twice_in_a_row_is_paired_twice() -> None:
    made = [*first_attempts("1+1", "ww"), *first_attempts("1+1", "rr")]
    assert pair_traces(made, make_chat(), (0,), keep_correct=False) == []


def test_a_question_whose_first_attempt_nobody_could_grade_does_not_join_the_one_before() -> None:
    made = [*first_attempts("1+1", "w"), *first_attempts("2+2", "?r")[1:]]
    assert pair_traces(made, make_chat(), (0,), keep_correct=False) == []


@pytest.mark.parametrize("history", ["verbatim", "template"])
def test_a_pair_has_the_context_that_an_episode_would_have_and_the_tokens_that_were_sampled(history: str) -> None:
    chat = make_chat(history=history)
    wrong, right = made = first_attempts("1+1", "wr", chat)
    (pair,) = pair_traces(made, chat, (0,), keep_correct=False)
    first, last = pair.attempts
    assert first == wrong.attempts[0] and pair.path == (0, 1)
    assert last.context_ids == chat.context("1+1", [wrong.attempts[0]]) != right.attempts[0].context_ids
    assert last.token_ids == right.attempts[0].token_ids
    text = chat.tokenizer.decode(last.context_ids)
    assert text.count("0w") == 1 and INSTRUCTION in text


def test_what_is_not_trained_counts_as_stored_and_no_attempt_keeps_log_probs() -> None:
    (one,) = [episode("p", [[5], [6]], [[7, 1], [8, 1]], [0.25, 0.5])]
    last, everything = to_imitate(one, "last"), to_imitate(one, "all")
    assert [(a.sampled, a.grade.reward, a.engine_logprobs) for a in last.attempts] == [
        (False, 0.25, ()),
        (True, 1.0, ()),
    ]
    assert [(a.sampled, a.grade.reward) for a in everything.attempts] == [(True, 1.0)] * 2
    assert [a.grade.correct for a in everything.attempts] == [a.grade.correct for a in one.attempts]
    assert Episode.from_json(json.loads(json.dumps(last.to_json()))) == last


# ---- What is trained


@pytest.mark.parametrize("credit", ["last", "all"])
@pytest.mark.parametrize("length_norm", ["token", "sequence"])
@pytest.mark.parametrize("max_tokens", [1, 30, 1000], ids=["a row alone", "padded micro-batches", "one padded batch"])
def test_the_gradient_is_that_of_the_cross_entropy_on_the_trained_attempts_alone(
    credit: str, length_norm: str, max_tokens: int
) -> None:
    temperature = 0.7
    policy = stir(make_policy("qwen3"))
    settings = stage("sft", credit=credit, length_norm=length_norm, sampling={"temperature": temperature})
    traces = [to_imitate(one, settings.credit) for one in mixed_batch()]
    metrics = accumulate(policy, traces, settings, make_objective(settings), max_tokens=max_tokens)
    found = gradients(policy)

    attempts = [a for one in mixed_batch() for a in (one.attempts if credit == "all" else one.attempts[-1:])]
    total = sum(len(a.token_ids) for a in attempts)
    assert total == (
        10 + 10 if credit == "all" else 10
    )  # first attempts of 3, 2, 2, 3 tokens, second ones of 2, 5, 1, 2
    value = torch.zeros(())
    for attempt in attempts:
        ids = torch.tensor([attempt.context_ids + attempt.token_ids])
        logits = policy.model(input_ids=ids).logits[0, len(attempt.context_ids) - 1 : -1] / temperature
        nats = cross_entropy(logits, torch.tensor(attempt.token_ids), reduction="sum")
        value = value + nats / (total if length_norm == "token" else 4 * len(attempt.token_ids))
    value.backward()
    assert metrics["loss"] == pytest.approx(float(value.detach()), rel=1e-5)
    assert largest_gap(gradients(policy), found) < 2e-5


def test_the_objective_of_traces_is_one_for_each_attempt_without_kl_or_bonus() -> None:
    assert make_objective(stage("sft")) == Objective((1.0, 1.0), (0.0, 0.0))
    assert make_objective(stage("sft", branch=[4])) == Objective((1.0,), (0.0,))


# ---- Rounds


def sft(**fields: object) -> StageSettings:
    return StageSettings.model_validate(
        {"kind": "sft", "steps": 7, "branch": [2, 1], "max_new_tokens": [8, 8]} | fields
    )


def test_rounds_share_all_steps_among_them_and_each_has_a_schedule_of_its_own() -> None:
    three = sft(rounds=3, lr=0.1, schedule="cosine")
    assert [round_of(three, step).number for step in range(7)] == [0, 0, 1, 1, 2, 2, 2]
    assert [tuple(round_of(three, step).steps) for step in (0, 3, 6)] == [(0, 1), (2, 3), (4, 5, 6)]
    # Cosine over 2 steps: 0.1 and half of it; over 3: 1, 3/4 and 1/4 of it.
    rates = [learning_rate(three, step) for step in range(7)]
    assert rates == pytest.approx([0.1, 0.05, 0.1, 0.05, 0.1, 0.075, 0.025])
    going_on = three.model_copy(update={"restart": False})
    assert learning_rate(going_on, 6) == learning_rate(sft(lr=0.1, schedule="cosine"), 6) < 0.01


# ---- A whole stage

SMALL = ["data.options={digits: 4, train: 40, validation: 4, test: 4}", "eval.problems=4", "eval.max_new_tokens=6"]
SMALL += ["reward.fn=even", "train.select=last", "train.validate_every=50", "train.checkpoint_every=2"]
PART = "problems: 4, branch: [2, 2], max_new_tokens: [6, 6], lr: 0.02"
STAR = f"{{kind: sft, name: star, steps: 7, rounds: 3, {PART}}}"
PAIRS = f"{{kind: sft, name: pairs, traces: pairs, keep_correct: true, steps: 3, {PART}}}"
STRIKES: list[int] = []
"""Calls of the reward after which the process gets a signal."""


@pytest.fixture(scope="module", autouse=True)
def rewarded() -> Iterator[None]:
    """A reward that a random model earns now and then, and that counts its calls."""
    calls = Counter()

    @register_reward("even")
    def even(prediction: str, problem: Problem, *, extract: object = None) -> Grade:
        calls["all"] += 1
        if STRIKES and calls["all"] >= STRIKES[0]:
            STRIKES.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return Grade(len(prediction) % 2 == 0, float(len(prediction) % 2 == 0), prediction)

    @register_reward("never")
    def never(prediction: str, problem: Problem, *, extract: object = None) -> Grade:
        return Grade(False, 0.0, prediction)

    even.calls = calls  # type: ignore[attr-defined]
    yield
    del rewards["even"], rewards["never"]


def settings_of(tiny_model: Path, *changes: str) -> Settings:
    return load("arithmetic", [*SMALL, f"model.path={tiny_model}", f"stages=[{STAR}, {PAIRS}]", *changes])


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of STaR in three rounds and of Pair-SFT after it."""
    path = tmp_path_factory.mktemp("traces") / "run"
    Trainer(settings_of(tiny_model), path).train()
    return path


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def outcome(run: Path) -> dict[str, object]:
    """All that a run leaves but times."""
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in lines(run / "metrics.jsonl")]
    files = [
        file for part in ("star", "pairs", "traces", "episodes", "eval") for file in sorted((run / part).iterdir())
    ]
    return {"metrics": rows} | {str(file.relative_to(run)): file.read_bytes() for file in files}


def test_rounds_sample_anew_and_steps_take_their_traces_in_passes(finished: Path) -> None:
    rows = lines(finished / "metrics.jsonl")[1:]
    parts = {number: lines(finished / "traces" / f"star-{number}.jsonl") for number in (1, 2, 3)}
    assert [[row["step"] for row in part] for part in parts.values()] == [[0, 1], [2, 3], [4, 5, 6]]
    for row, number in zip(rows, (1, 1, 2, 2, 3, 3, 3), strict=False):
        own, everything = parts[number][row["stage_step"] - parts[number][0]["step"] - 1], parts[number]
        kept, sampled = (
            sum(len(part["traces"]) for part in everything),
            sum(sum(p["marks"].values()) for p in everything),
        )
        assert sampled == len(everything) * 16 and kept == sum(part["marks"].get("01", 0) for part in everything) > 0
        assert row["traces/kept"] == kept and row["traces/share"] == kept / sampled
        assert row["traces/passes"] == (row["stage_step"] - everything[0]["step"]) * 16 / kept
        assert row["acc/t1"] == (own["marks"].get("10", 0) + own["marks"].get("11", 0)) / 16
    (pairs,) = [lines(file) for file in (finished / "traces").glob("pairs-*")]
    # As many attempts as a tree of two by two has: six.
    assert [sum(part["marks"].values()) for part in pairs] == [4 * 6] * 3
    assert all(len(trace["attempts"]) == 2 for part in pairs for trace in part["traces"])


def test_the_episodes_of_a_step_are_traces_of_its_round(finished: Path) -> None:
    stored = lines(finished / "episodes" / "star.jsonl")
    for number, steps in ((1, (1, 2)), (2, (3, 4)), (3, (5, 6, 7))):
        traces = [trace for part in lines(finished / "traces" / f"star-{number}.jsonl") for trace in part["traces"]]
        seen = [{k: v for k, v in row.items() if k != "step"} for row in stored if row["step"] in steps]
        assert len(seen) == 4 * len(steps) and all(row in traces for row in seen)
        assert {tuple(a["sampled"] for a in row["attempts"]) for row in seen} == {(False, True)}


def test_the_page_of_metrics_defines_what_a_step_of_traces_writes(finished: Path) -> None:
    rows = lines(finished / "metrics.jsonl")[1:]
    places = {row.key: row.places for row in documented()}
    own = {general(key) for row in rows for key in row if not key.startswith("validation/")}
    assert own <= {key for key, where in places.items() if "step" in where or "traces" in where}
    assert own >= {key for key, where in places.items() if "traces" in where}
    assert not any(key.startswith(("entropy/", "engine_gap/", "kl/", "advantage_std/")) for key in own)


@pytest.mark.parametrize("share", [0.15, 0.35, 0.6, 0.9], ids=lambda share: f"after {share:.0%} of the attempts")
def test_a_run_that_is_stopped_and_goes_on_ends_with_the_same_bits(
    finished: Path, tiny_model: Path, tmp_path: Path, share: float
) -> None:
    calls, run = rewards["even"].calls, tmp_path / "run"
    STRIKES.append(calls["all"] + round(share * CALLS_OF_A_RUN))
    with pytest.raises(Interrupted):
        Trainer(settings_of(tiny_model), run).train()
    # As after a kill: a row that was not written to its end, and a checkpoint that lies further back.
    newest = max((run / "traces").glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    os.truncate(newest, newest.stat().st_size - 10)
    Trainer(settings_of(tiny_model), run).train()
    assert outcome(run) == outcome(finished)


CALLS_OF_A_RUN = 7 * 4 * 6 + 3 * 4 * 6
"""Attempts sampled in training."""


def test_a_round_that_restarts_trains_from_the_weights_that_the_stage_began_with(
    tiny_model: Path, tmp_path: Path
) -> None:
    def weights(run: Path) -> bytes:
        return (run / "star" / "model.safetensors").read_bytes()

    stages = f"stages=[{{kind: sft, name: star, steps: 2, rounds: 2, {PART}}}]"
    Trainer(settings_of(tiny_model, stages), tmp_path / "restarting").train()
    Trainer(settings_of(tiny_model, stages, "stages.0.restart=false"), tmp_path / "going on").train()
    assert weights(tmp_path / "restarting") != weights(tmp_path / "going on")
    rows = {name: lines(tmp_path / name / "metrics.jsonl") for name in ("restarting", "going on")}
    # Both have sampled the second round from the same weights, and then trained from others.
    for name in rows:
        assert lines(tmp_path / name / "traces" / "star-2.jsonl") == lines(tmp_path / "going on/traces/star-2.jsonl")
    assert rows["restarting"][2]["loss"] != rows["going on"][2]["loss"]
    assert not list((tmp_path / "restarting" / "checkpoints").glob("start-*"))


def test_a_round_without_traces_says_what_was_sampled_and_what_to_do(tiny_model: Path, tmp_path: Path) -> None:
    message = (
        r"^stages\.0 \(star\), round 1: nothing to imitate among 32 episodes \(32 wrong, then wrong\); draw more "
        r"\(problems, branch, or fewer rounds\), raise sampling\.temperature, set keep_correct=true, or start"
    )
    with pytest.raises(DataError, match=message):
        Trainer(settings_of(tiny_model, "reward.fn=never"), tmp_path / "run").train()
    with pytest.raises(
        DataError, match=r"^stages\.0 \(pairs\), round 1: .* among 72 first attempts \(72 wrong\); draw"
    ):
        Trainer(settings_of(tiny_model, "reward.fn=never", f"stages=[{PAIRS}]"), tmp_path / "pairs").train()
    assert re.search("step-0-000000", str(checkpoints(tmp_path / "run" / "checkpoints")))
