"""The second embedded task: its walks are right, the same in every version, and no question is in two splits."""

import numpy as np
import pytest

from score_rl.data.walk import places, walk
from score_rl.embedded.build import WALKS, build_tokenizer
from score_rl.embedded.walks import BATCH, Walks, follow
from score_rl.errors import ConfigError
from score_rl.settings import load

SIZES = {"moves": 5, "train": 300, "validation": 40, "test": 50}
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        pytest.param("5+>-", [8, 9, 6], id="free"),
        pytest.param("8+-", [9, 6], id="the upper wall forgets two of three steps"),
        pytest.param("1-<>", [0, 0, 1], id="the lower wall"),
    ],
)
def test_a_walk_goes_where_its_steps_and_the_walls_say(question, expected):
    assert places(question) == expected


def test_walk_splits_have_their_sizes_and_share_no_question_nor_id():
    problems = {split: walk(split, **SIZES) for split in SPLITS}
    assert {split: len(found) for split, found in problems.items()} == {"train": 300, "validation": 40, "test": 50}
    assert len({p.question for found in problems.values() for p in found}) == 390
    assert len({p.id for found in problems.values() for p in found}) == 390
    assert all(p.answer == str(places(p.question)[-1]) for found in problems.values() for p in found)


def test_walk_questions_are_these_in_every_version():
    # Two runs are compared on the same test questions, so the stream must never change.
    assert [p.question for p in walk("test", train=9, validation=2, test=3)] == [
        "1>++>->-+",
        "1<><->>++",
        "7<+<<-><+",
    ]


def test_a_walk_with_too_few_problems_is_refused():
    with pytest.raises(ConfigError, match=r"data\.options\.moves=3 has too few problems for 390; use more moves"):
        walk("train", **SIZES | {"moves": 3})


def test_pretraining_follows_walks_as_the_task_does_and_slips_once():
    starts, lengths = np.array([5, 8]), np.array([[3, 1, -3], [3, -3, -1]])
    assert follow(starts, lengths).tolist() == [places("5+>-"), places("8+-<")]
    # 5 up 3 is 8, the slip makes it 8 + 4 = 12, that is 2; from there one up is 3, three down ends at the wall.
    slips = np.array([[4, 0, 0], [0, 0, 0]])
    assert follow(starts, lengths, slips).tolist() == [[2, 3, 0], places("8+-<")]


def test_pretraining_learns_right_attempts_and_shows_no_held_out_question():
    settings = load("walk", ["data.options={moves: 5, validation: 600, test: 600, train: 10}"])
    walks = Walks(build_tokenizer(settings.chat.instruction), settings, seed=0)
    ids, learned = walks.batch(WALKS[0])
    assert len(ids) == BATCH
    for row, on in zip(ids, learned, strict=True):
        question = walks.tokenizer.decode(row).removeprefix("<|user|>").split("<|end|>")[0]
        assert (
            question not in walks.held_out
        )  # 1,200 of the 10,240 walks: seven or eight of 64 would be without a check
        end, walked = str(places(question)[-1]), "".join(map(str, places(question)))
        said = walks.tokenizer.decode(row[on]).split("<|end|>")
        assert said[0] == f"={end}" and said[1] in (said[0], f"{walked}={end}") and said[2:] == [""]
