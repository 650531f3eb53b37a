import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_rl.episodes import Attempt, Episode, Grade, Problem

texts = st.text(max_size=8)
ids = st.lists(st.integers(0, 300_000), max_size=5).map(tuple)
nats = st.lists(st.floats(max_value=0, allow_nan=False), max_size=5).map(tuple)
metas = st.dictionaries(texts, st.one_of(texts, st.integers(), st.booleans(), st.none(), st.lists(texts)), max_size=3)
grades = st.builds(
    Grade,
    correct=st.booleans(),
    reward=st.floats(allow_nan=False),
    answer=st.none() | texts,
    note=st.none() | texts,
)
attempts = st.builds(
    Attempt,
    context_ids=ids,
    token_ids=ids,
    text=texts,
    finished=st.booleans(),
    sampled=st.booleans(),
    engine_logprobs=nats,
    grade=st.none() | grades,
)
episodes = st.builds(
    Episode,
    problem=st.builds(Problem, id=texts, question=texts, answer=texts, meta=metas),
    attempts=st.lists(attempts, max_size=3).map(tuple),
    path=st.lists(st.integers(0, 9), max_size=3).map(tuple),
)


@given(episodes)
def test_an_episode_comes_back_from_its_json_line_as_it_was(episode):
    line = json.dumps(episode.to_json(), ensure_ascii=False)
    assert Episode.from_json(json.loads(line)) == episode


def test_sequences_come_back_as_tuples_so_that_contexts_still_nest():
    # A list never equals a tuple: `context[: len(ids)] == ids` would quietly open a second row for every attempt.
    first = Attempt((1, 2), (3,), "a", True)
    second = Attempt((1, 2, 3, 4), (5,), "b", True)
    episode = Episode(Problem("p", "q", "a"), (first, second), (0, 1))
    back = Episode.from_json(json.loads(json.dumps(episode.to_json())))
    before = back.attempts[0].context_ids + back.attempts[0].token_ids
    assert back.attempts[1].context_ids[: len(before)] == before
    assert {type(value) for value in (back.path, back.attempts, before, back.attempts[0].engine_logprobs)} == {tuple}


def test_records_cannot_be_changed_after_they_were_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grade(True, 1.0).reward = 0.0  # type: ignore[misc]


def test_an_ungraded_attempt_is_not_counted_as_wrong():
    with pytest.raises(AssertionError, match="has not been graded"):
        _ = Attempt((), (1,), "a", True).correct
