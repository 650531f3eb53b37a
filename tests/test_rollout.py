"""Trees of attempts: their shape, their contexts, and that neither chunks nor neighbours change a draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import pytest
from tiny_chat import VOCABULARY, encode, make_chat, make_model

from score_rl.decode import Sample, TransformersEngine
from score_rl.draws import derive
from score_rl.episodes import Attempt, Grade, Problem
from score_rl.grading import make_grader
from score_rl.offline import stored_attempts
from score_rl.parallel import Parallel
from score_rl.policy import Policy
from score_rl.processes import Group
from score_rl.rollout import Plan, Player
from score_rl.schema import RewardSettings, SamplingSettings, Settings, StageSettings
from score_rl.sharing import SharingPlayer
from score_rl.tracking import Screen

SAMPLING = SamplingSettings()
PROBLEMS = [Problem(f"p{i}", "1+" * i + "1", str(i + 1)) for i in range(5)]
GRADER = make_grader(RewardSettings())


class ScriptedEngine:
    """Answers the rows of call `c` with `script[c]`'s texts in turn, and remembers what it was asked for."""

    def __init__(self, *script: Sequence[str]) -> None:
        self.script = script
        self.calls: list[dict] = []
        self.sessions = 0

    def open(self) -> ScriptedEngine:
        self.sessions += 1
        return self

    def sample(self, contexts, parents, keys, sampling, max_new_tokens, *, last=False) -> list[Sample]:
        texts = self.script[len(self.calls)]
        self.calls.append(
            {"contexts": contexts, "parents": parents, "keys": keys, "limit": max_new_tokens, "last": last}
        )
        samples = []
        for row in range(len(contexts)):
            ids = encode(texts[row % len(texts)])
            samples.append(Sample(ids, (-1.0,) * len(ids), "<|im_end|>" in texts[row % len(texts)]))
        return samples


def real_player(**options: object) -> Player:
    """A random model whose attempts end at every seventh token."""
    engine = TransformersEngine(make_model(), frozenset(range(0, VOCABULARY, 7)), pad_id=1)
    return Player(engine, make_chat(**options), GRADER)


def plan(*branch: int, rows: int = 512, limits: Sequence[int] = (6, 5, 4, 3)) -> Plan:
    return Plan(branch, tuple(limits[: len(branch)]), SAMPLING, rows)


def test_a_tree_of_two_by_three_has_six_paths_in_order():
    engine = ScriptedEngine(["a<|im_end|>", "b"], ["c<|im_end|>"])
    episodes = Player(engine, make_chat(), GRADER).play(PROBLEMS[:2], plan(2, 3), ("test",))
    paths = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [(e.problem.id, e.path) for e in episodes] == [(p, path) for p in ("p0", "p1") for path in paths]
    assert [e.attempts[0].text for e in episodes[:6]] == ["a", "a", "a", "b", "b", "b"]
    assert [(e.attempts[0].finished, e.attempts[1].finished) for e in episodes[2:4]] == [(True, True), (False, True)]
    first, second = engine.calls
    assert (first["parents"], first["last"], first["limit"]) == (None, False, 6)
    # Of four first attempts, rows 0 and 1 are of the first problem.
    assert (second["parents"], second["last"], second["limit"]) == ([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], True, 5)


def test_siblings_share_the_attempt_that_they_come_from():
    episodes = real_player().play(PROBLEMS[:2], plan(2, 2), ("test",))
    by_path = {(e.problem.id, e.path): e for e in episodes}
    for problem in ("p0", "p1"):
        for first in (0, 1):
            one, other = by_path[problem, (first, 0)], by_path[problem, (first, 1)]
            assert one.attempts[0] is other.attempts[0]
            assert one.attempts[1].context_ids == other.attempts[1].context_ids
    assert len({e.attempts[0].token_ids for e in episodes}) == 4, "first attempts should differ"
    assert len({e.attempts[1].token_ids for e in episodes}) > 4, "second attempts should differ"


def test_every_attempt_is_graded_by_its_text_and_its_problem():
    engine = ScriptedEngine(["1<|im_end|>", "2<|im_end|>"], ["2<|im_end|>"])
    episodes = Player(engine, make_chat(), GRADER).play(PROBLEMS[:2], plan(2, 1), ("test",))
    assert [[a.correct for a in e.attempts] for e in episodes] == [
        [True, False],
        [False, False],
        [False, True],
        [True] * 2,
    ]
    assert episodes[0].attempts[1].grade == Grade(False, 0.0, "2")


def test_contexts_are_the_opening_and_then_all_that_came_before():
    chat = make_chat()
    engine = ScriptedEngine(["3<|im_end|>"], ["4"], ["5<|im_end|>"])
    (episode,) = Player(engine, chat, GRADER).play(PROBLEMS[:1], plan(1, 1, 1), ("test",))
    opening = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    tail = "<|im_end|>\n<|im_start|>user\nRedo it.<|im_end|>\n<|im_start|>assistant\n"
    texts = [opening, f"{opening}3{tail}", f"{opening}3{tail}4{tail}"]
    assert [a.context_ids for a in episode.attempts] == [encode(text) for text in texts]
    assert [call["contexts"] for call in engine.calls] == [[a.context_ids] for a in episode.attempts]


@pytest.mark.parametrize("history", ["verbatim", "template"])
@pytest.mark.parametrize(("keep", "carried"), [(1, ["4"]), (2, ["3", "4"]), (9, ["2", "3", "4"])])
def test_a_bounded_context_carries_the_latest_attempts_only(keep, carried, history):
    chat = make_chat(keep_attempts=keep, history=history)
    engine = ScriptedEngine(["2<|im_end|>"], ["3"], ["4<|im_end|>"], ["5"])
    (episode,) = Player(engine, chat, GRADER).play(PROBLEMS[:1], plan(1, 1, 1, 1), ("test",))
    opening = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    tail = "<|im_end|>\n<|im_start|>user\nRedo it.<|im_end|>\n<|im_start|>assistant\n"
    assert episode.attempts[3].context_ids == encode(opening + "".join(text + tail for text in carried))


def test_two_attempts_are_the_same_whether_the_context_is_bounded_or_not():
    bounded = real_player(keep_attempts=1).play(PROBLEMS, plan(2, 2), ("test",))
    assert bounded == real_player().play(PROBLEMS, plan(2, 2), ("test",))


def test_with_a_context_of_one_attempt_the_third_is_to_the_second_as_the_second_is_to_the_first():
    # Greedy, each attempt is a function of the one before it, so an attempt that is repeated once is repeated for ever.
    greedy = Plan((1,) * 6, (6,) * 6, SamplingSettings(temperature=0.0))
    for episode in real_player(keep_attempts=1).play(PROBLEMS, greedy, ("test",)):
        ids = [attempt.token_ids for attempt in episode.attempts]
        after = dict(pairwise(ids))
        assert [after[before] for before in ids[:-1]] == ids[1:]


@pytest.mark.parametrize("attempts", [1, 2, 3, 4])
def test_an_episode_has_as_many_attempts_as_the_plan_and_each_its_own_limit(attempts):
    episodes = real_player().play(PROBLEMS, plan(*[1] * attempts), ("test",))
    limits = (6, 5, 4, 3)[:attempts]
    assert [e.path for e in episodes] == [(0,) * attempts] * 5
    for k, limit in enumerate(limits):
        lengths = [(len(e.attempts[k].token_ids), e.attempts[k].finished) for e in episodes]
        assert all(length == limit for length, finished in lengths if not finished)
        assert all(length <= limit for length, _ in lengths)
    if attempts > 1:
        shorter = real_player().play(PROBLEMS, plan(*[1] * (attempts - 1)), ("test",))
        assert [e.attempts for e in shorter] == [e.attempts[:-1] for e in episodes]


def texts_of(episodes) -> list[tuple[str, tuple[int, ...], list[tuple[int, ...]]]]:
    return [(e.problem.id, e.path, [a.token_ids for a in e.attempts]) for e in episodes]


@pytest.mark.parametrize("history", ["verbatim", "template"])
@pytest.mark.parametrize("rows", [1, 9, 12])
def test_how_many_rows_are_decoded_at_once_changes_nothing(rows, history):
    expected = texts_of(real_player(history=history).play(PROBLEMS, plan(2, 2), ("test",)))
    assert texts_of(real_player(history=history).play(PROBLEMS, plan(2, 2, rows=rows), ("test",))) == expected


@pytest.mark.parametrize(
    ("rows", "parts"),
    [(1, [1, 1, 1, 1, 1]), (4, [1, 1, 1, 1, 1]), (9, [2, 2, 1]), (12, [3, 2]), (512, [5])],
)
def test_progress_adds_up_to_the_problems_and_trees_stay_whole(rows, parts):
    done: list[int] = []
    engine = ScriptedEngine(*[["a<|im_end|>"]] * 10)
    Player(engine, make_chat(), GRADER).play(PROBLEMS, plan(2, 2, rows=rows), ("test",), progress=done.append)
    assert done == parts
    assert [len(call["contexts"]) for call in engine.calls] == [n * width for n in parts for width in (2, 4)]


def test_no_problems_give_no_episodes():
    assert real_player().play([], plan(2, 2), ("test",)) == []


def test_each_attempt_draws_from_a_key_of_purpose_place_and_path():
    engine = ScriptedEngine(["a<|im_end|>"], ["b<|im_end|>"])
    Player(engine, make_chat(), GRADER).play(PROBLEMS[:2], plan(2, 1), (7, "rollout", 3))
    first = [derive(7, "rollout", 3, problem, (child,)) for problem in (0, 1) for child in (0, 1)]
    second = [derive(7, "rollout", 3, problem, (child, 0)) for problem in (0, 1) for child in (0, 1)]
    assert [call["keys"] for call in engine.calls] == [first, second]


@pytest.mark.parametrize("rows", [4, 512])
def test_a_list_may_be_played_in_calls_that_know_where_they_begin(rows):
    whole = real_player().play(PROBLEMS, plan(2, 2, rows=rows), ("test",))
    given = [e.attempts[0] for e in whole[12:16:2]]
    parts = [
        real_player().play(PROBLEMS[first:last], plan(2, 2, rows=rows), ("test",), first=first, first_attempts=stored)
        for first, last, stored in ((0, 3, None), (3, 5, [given, None]))
    ]
    assert texts_of([*parts[0], *parts[1]]) == texts_of(whole)
    assert texts_of(real_player().play(PROBLEMS[3:], plan(2, 2), ("test",))) != texts_of(whole[12:])


def test_another_purpose_draws_other_attempts_and_the_same_one_the_same():
    one, again, other = (
        texts_of(real_player().play(PROBLEMS, plan(2, 1), purpose)) for purpose in ((0, 1), (0, 1), (0, 2))
    )
    assert one == again != other


def test_a_problem_that_comes_twice_is_drawn_twice():
    one, other = real_player().play([PROBLEMS[0], PROBLEMS[0]], plan(1), ("test",))
    assert one.attempts[0].context_ids == other.attempts[0].context_ids
    assert one.attempts[0].token_ids != other.attempts[0].token_ids


def stored_first(*texts: str, problem: Problem = PROBLEMS[0]) -> list[Attempt]:
    context = make_chat().open(problem.question)
    return [
        Attempt(context, encode(text), text.removesuffix("<|im_end|>"), "<|im_end|>" in text, True, (), Grade(False, 0))
        for text in texts
    ]


def test_stored_first_attempts_are_marked_and_continued_as_if_just_sampled():
    engine = ScriptedEngine(["1<|im_end|>"])
    stored = stored_first("8<|im_end|>", "9", "7<|im_end|>")
    episodes = Player(engine, make_chat(), GRADER).play(PROBLEMS[:1], plan(2, 2), ("test",), first_attempts=[stored])
    assert [e.path for e in episodes] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for episode, source in zip(episodes, [stored[0], stored[0], stored[1], stored[1]], strict=True):
        first, second = episode.attempts
        assert first == dataclasses.replace(source, sampled=False) and source.sampled
        assert second.sampled and second.correct
    opening = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    tail = "<|im_end|>\n<|im_start|>user\nRedo it.<|im_end|>\n<|im_start|>assistant\n"
    (call,) = engine.calls
    assert call["contexts"] == [encode(f"{opening}{digit}{tail}") for digit in "8899"]
    # Nothing is cached of a stored attempt, so there is no row to go on from.
    assert call["parents"] is None


def test_stored_first_attempts_change_only_their_own_problem():
    drawn = real_player().play(PROBLEMS, plan(2, 2), ("test",))
    # The first attempts that problems 1 and 3 drew anyway, given as stored ones, lead to the same second attempts.
    given = [None if i % 2 == 0 else [e.attempts[0] for e in drawn[4 * i : 4 * i + 4 : 2]] for i in range(5)]
    for rows in (4, 512):
        mixed = real_player().play(PROBLEMS, plan(2, 2, rows=rows), ("test",), first_attempts=given)
        assert texts_of(mixed) == texts_of(drawn)
        assert [e.attempts[0].sampled for e in mixed] == [i % 2 == 0 for i in range(5) for _ in range(4)]


def test_a_plan_of_one_attempt_from_stored_ones_samples_nothing():
    engine = ScriptedEngine()
    stored = stored_first("8<|im_end|>", "9")
    episodes = Player(engine, make_chat(), GRADER).play(PROBLEMS[:1], plan(2), ("test",), first_attempts=[stored])
    assert [e.attempts[0].text for e in episodes] == ["8", "9"] and engine.calls == []


def test_first_attempts_are_stored_once_and_read_back_afterwards(tmp_path):
    stage = StageSettings(kind="stage1", steps=1, branch=[2, 1], offline_fraction=1.0, offline_attempts=3)
    settings = Settings(name="test", stages=[stage])
    engine = ScriptedEngine(["1<|im_end|>", "8", "2<|im_end|>"])
    chat, file = make_chat(), tmp_path / "offline" / "stage1.jsonl"
    player = SharingPlayer(Player(engine, chat, GRADER), Parallel(Policy(make_model(), chat.tokenizer), Group()))
    written = stored_attempts(file, player, PROBLEMS[:2], stage, settings, Screen(quiet=True))
    read = stored_attempts(file, player, PROBLEMS[:2], stage, settings, Screen(quiet=True))
    assert written == read and len(engine.calls) == 1
    assert [(a.text, a.finished, a.correct) for a in read["p0"]] == [
        ("1", True, True),
        ("8", False, False),
        ("2", True, False),
    ]
    assert engine.calls[0]["limit"] == stage.max_new_tokens[0] and len(file.read_text().splitlines()) == 6
