"""Where a step's episodes come from: one stream of questions, stored attempts, traces; and what nobody could grade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_rollout import GRADER, ScriptedEngine
from tiny_chat import make_chat, make_model

from score_rl.episodes import Episode, Problem
from score_rl.errors import DataError
from score_rl.grading import Grader, make_grader
from score_rl.offline import stored_attempts
from score_rl.parallel import Parallel
from score_rl.policy import Policy
from score_rl.processes import Group
from score_rl.rollout import Player
from score_rl.run import RunDirectory
from score_rl.schedule import draw_problems
from score_rl.schema import RewardSettings, Settings, StageSettings
from score_rl.sharing import SharingPlayer
from score_rl.supply import Drawn, Rollouts, StageRun
from score_rl.traces import Traces
from score_rl.tracking import Screen

PROBLEMS = [Problem(f"p{i}", f"{i} + {7 - i}", "7") for i in range(6)]


def made(**fields: object) -> StageSettings:
    content = {"kind": "stage2", "steps": 3, "problems": 2, "branch": [2, 1], "max_new_tokens": [6, 6]}
    return StageSettings.model_validate(content | {"advantage": "none"} | fields)


def work_of(
    path: Path, stage: StageSettings, *script: Sequence[str], place: int = 0, begin: int = 0, grader: Grader = GRADER
) -> tuple[StageRun, ScriptedEngine]:
    """A stage whose attempts are written down, and the engine that says them."""
    engine, chat = ScriptedEngine(*script), make_chat()
    policy = Policy(make_model(), chat.tokenizer)
    policy.freeze_reference()
    player = SharingPlayer(Player(engine, chat, grader), Parallel(policy, Group()))
    settings = Settings(name="test", stages=[stage])
    return (
        StageRun(stage.label, place, 0, begin, settings, RunDirectory(path), PROBLEMS, player, Screen(quiet=True)),
        engine,
    )


def drawn(work: StageRun, step: int = 0) -> Drawn:
    return Rollouts(work, work.player.parallel.policy).draw(step, lambda: None)


def test_stages_take_their_questions_from_one_stream_one_after_the_other(tmp_path: Path) -> None:
    first, _ = work_of(tmp_path, made(steps=3, problems=2))
    second, _ = work_of(tmp_path, made(steps=2, problems=4), begin=6)
    steps = [(first, step) for step in range(3)] + [(second, step) for step in range(2)]
    asked = [problem for work, step in steps for problem in work.questions(step)]
    assert asked == draw_problems(PROBLEMS, 0, 14, seed=0)


def test_no_two_attempts_of_a_run_share_a_key_of_their_draws(tmp_path: Path) -> None:
    keys = []
    for place in (0, 1):
        work, engine = work_of(tmp_path, made(), *[["7<|im_end|>"]] * 4, place=place)
        for step in (0, 1):
            drawn(work, step)
        keys += [key for call in engine.calls for key in call["keys"]]
    assert len(set(keys)) == len(keys) == 2 * 2 * 2 * (2 + 2)


def test_as_many_questions_as_asked_for_start_from_stored_attempts(tmp_path: Path) -> None:
    stage = made(steps=1, problems=4, offline_fraction=0.5, offline_attempts=2)
    storing, _ = work_of(tmp_path, stage, ["9<|im_end|>"])
    file = tmp_path / "offline" / "stage2.jsonl"
    stored_attempts(file, storing.player, PROBLEMS, stage, storing.settings, storing.screen)
    work, engine = work_of(tmp_path, stage, ["8<|im_end|>"], ["7<|im_end|>"], ["7<|im_end|>"])
    episodes = drawn(work).episodes
    assert [e.problem for e in episodes[::2]] == work.questions(0)
    assert [(e.attempts[0].text, e.attempts[0].sampled) for e in episodes] == [("9", False)] * 4 + [("8", True)] * 4
    assert len(engine.calls) == 3


UNSURE = """
from score_rl import Grade
def judge(prediction, problem):
    return Grade(prediction == "7", None if prediction == "?" else float(prediction == "7"), prediction)
"""


def test_episodes_that_nobody_could_grade_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "unsure.py").write_text(UNSURE)
    grader = make_grader(RewardSettings(fn=f"{tmp_path}/unsure.py:judge"))
    script = ["7", "?", "1", "7"], ["7", "7", "?", "1"], ["7"], ["7"], ["?"], ["7"]
    work, _ = work_of(tmp_path, made(), *script, grader=grader)
    some, all_of_them = drawn(work), drawn(work)
    assert [(e.path, e.attempts[1].text) for e in some.episodes] == [((0, 0), "7"), ((1, 0), "1")]
    assert not some.complete and some.metrics["ungraded"] == 2
    assert (some.metrics["acc/t1"], some.metrics["acc/t2"]) == (1, 0.5)
    assert (all_of_them.complete, all_of_them.metrics["ungraded"], len(all_of_them.episodes)) == (True, 0, 4)
    with pytest.raises(DataError, match=r"reward\.fn gave no number for any of the 4 episodes of a step"):
        drawn(work)


def test_steps_of_a_round_take_each_trace_once_before_one_comes_again(tmp_path: Path) -> None:
    # Of the four second attempts of each step three are right: nine traces, and three steps of four take twelve.
    stage = made(kind="sft", length_norm="token", beta1=0.0, credit="last")
    work, engine = work_of(tmp_path, stage, *[["1"], ["7", "7", "6", "7"]] * 3)
    traces = Traces(work)
    steps = [traces.draw(step, lambda: None) for step in range(3)]
    assert len(engine.calls) == 6 and [len(step.episodes) for step in steps] == [4] * 3

    def name(trace: Episode) -> tuple[str, tuple[int, ...]]:
        return trace.problem.id, trace.path

    names = [name(trace) for step in steps for trace in step.episodes]
    assert len(set(names[:9])) == 9 and len(set(names[9:])) == 3 and set(names[9:]) < set(names[:9])
    assert [step.metrics["traces/passes"] for step in steps] == [4 / 9, 8 / 9, 12 / 9]
