"""Rows and micro-batches, small enough to be written out."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from score_rl.batch import Batch, Row, collate, micro_batches, rows
from score_rl.episodes import Attempt, Episode, Problem

CPU = torch.device("cpu")
PAD = 99


def episode(*attempts: tuple[tuple[int, ...], tuple[int, ...]], stored: bool = False) -> Episode:
    """Of (context, sampled tokens) pairs; `stored` marks the first attempt as not sampled by this policy."""
    made = [Attempt(c, t, "", True, sampled=not (stored and k == 0)) for k, (c, t) in enumerate(attempts)]
    return Episode(Problem("p", "q", "a"), tuple(made), (0,) * len(made))


@pytest.mark.parametrize(
    ("attempts", "ids", "turn"),
    [
        pytest.param([((1, 2), (3, 4))], (1, 2, 3, 4), (0, 0, 1, 1), id="one attempt"),
        pytest.param(
            [((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6,))],
            (1, 2, 3, 4, 5, 6),
            (0, 0, 1, 1, 0, 2),
            id="two attempts with a bridge of one token",
        ),
        pytest.param(
            # 3 is context, then sampled, then bridge, then sampled again: the place decides, not the token.
            [((3,), (3,)), ((3, 3, 3), (3, 3)), ((3, 3, 3, 3, 3), (3,))],
            (3, 3, 3, 3, 3, 3),
            (0, 1, 0, 2, 2, 3),
            id="three attempts of the same token, the last without a bridge",
        ),
    ],
)
def test_turn_marks_exactly_the_sampled_tokens(attempts, ids, turn):
    assert rows([episode(*attempts)]) == [Row(0, ids, turn)]


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        pytest.param(
            [((1,), (2, 3)), ((1, 2, 3, 4), (5,)), ((1, 3, 4, 5, 6), (7,))],
            [Row(0, (1, 2, 3, 4, 5), (0, 1, 1, 0, 2)), Row(0, (1, 3, 4, 5, 6, 7), (0, 0, 0, 0, 0, 3))],
            id="rewritten before the third attempt",
        ),
        pytest.param(
            [((1,), (2, 3)), ((1, 3, 4), (5,)), ((1, 3, 4, 5, 6), (7,))],
            [Row(0, (1, 2, 3), (0, 1, 1)), Row(0, (1, 3, 4, 5, 6, 7), (0, 0, 0, 2, 0, 3))],
            id="rewritten before the second, which the third goes on from",
        ),
        pytest.param(
            [((1,), (2, 3)), ((1, 2), (5,))],
            [Row(0, (1, 2, 3), (0, 1, 1)), Row(0, (1, 2, 5), (0, 0, 2))],
            id="cut short: shorter than what came before",
        ),
    ],
)
def test_attempts_in_front_of_a_rewritten_context_are_not_trained_again(attempts, expected):
    assert rows([episode(*attempts)]) == expected


def test_a_stored_first_attempt_is_context():
    nested = episode(((1,), (2, 3)), ((1, 2, 3, 4), (5,)), stored=True)
    rewritten = episode(((1,), (2, 3)), ((1, 3, 4), (5,)), stored=True)
    alone = episode(((1,), (2, 3)), stored=True)
    # A row in which nothing is trained is not worth a forward pass; the episodes keep their numbers.
    assert rows([alone, nested, rewritten]) == [
        Row(1, (1, 2, 3, 4, 5), (0, 0, 0, 0, 2)),
        Row(2, (1, 3, 4, 5), (0, 0, 0, 2)),
    ]


def test_the_engines_log_probs_stand_where_its_tokens_are():
    nested = episode(((1,), (2, 3)), ((1, 2, 3, 4), (5,)))
    drawn = [replace(a, engine_logprobs=p) for a, p in zip(nested.attempts, [(-0.5, -1.5), (-2.5,)], strict=True)]
    first, second = replace(nested, attempts=tuple(drawn)), episode(((1,), (6,)))
    assert rows([first])[0].engine_logprobs == (0, -0.5, -1.5, 0, -2.5)
    batch = collate(rows([first, second]), PAD, CPU)
    assert batch.engine_logprobs.tolist() == [-0.5, -1.5, -2.5, 0]
    assert collate(rows([second]), PAD, CPU).engine_logprobs.tolist() == [0]


def test_a_batch_is_padded_on_the_right_and_padding_is_neither_seen_nor_trained():
    batch = collate([Row(4, (1, 2, 3, 4), (0, 1, 0, 2)), Row(7, (5, 6), (0, 1))], PAD, CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.turn.tolist() == [[0, 1, 0, 2], [0, 1, 0, 0]]
    # Position t predicts token t + 1.
    assert batch.predicts.tolist() == [[True, False, True], [True, False, False]]
    assert batch.targets.tolist() == [2, 4, 6]
    assert batch.token_turn.tolist() == [1, 2, 1]
    assert batch.token_episode.tolist() == [4, 4, 7]


def test_a_pad_id_that_is_also_sampled_is_trained_where_it_was_sampled():
    batch = collate([Row(0, (1, 2, PAD), (0, 1, 1)), Row(1, (1, PAD), (0, 1))], PAD, CPU)
    assert batch.targets.tolist() == [2, PAD, PAD] and batch.token_episode.tolist() == [0, 0, 1]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def of_length(*lengths: int) -> list[Row]:
    return [Row(i, tuple(range(n)), (0, *[1] * (n - 1))) for i, n in enumerate(lengths)]


@pytest.mark.parametrize(
    ("lengths", "budget", "shapes"),
    [
        pytest.param((3, 3, 3, 3), 6, [(2, 3), (2, 3)], id="two rows of three fill six"),
        pytest.param((3, 3, 3, 3), 5, [(1, 3)] * 4, id="and do not fit in five"),
        # Longest first: 5 alone (2 x 5 > 8), then 4 + 4 (8), then 2 + 2 + 2 (6).
        pytest.param((2, 4, 2, 5, 4, 2), 8, [(1, 5), (2, 4), (3, 2)], id="rows of like length together"),
        pytest.param((9, 2), 8, [(1, 9), (1, 2)], id="a row above the budget goes alone"),
        # 3 x 4 = 12 with padding, though the rows have but 9 tokens.
        pytest.param((4, 3, 2), 11, [(2, 4), (1, 2)], id="padding counts"),
    ],
)
def test_micro_batches_hold_as_many_padded_tokens_as_the_budget_allows(lengths, budget, shapes):
    assert [tuple(b.input_ids.shape) for b in micro_batches(of_length(*lengths), PAD, budget, CPU)] == shapes


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(2, 30), max_size=40), st.integers(1, 100))
def test_micro_batches_lose_nothing_and_keep_to_the_budget(lengths, budget):
    batches = micro_batches(of_length(*lengths), PAD, budget, CPU)
    assert all(b.input_ids.numel() <= budget or len(b.input_ids) == 1 for b in batches)
    seen = [(int(e), int(m.sum())) for b in batches for e, m in zip(b.row_episode, b.attention_mask, strict=True)]
    assert sorted(seen) == list(enumerate(lengths))
    assert sum(len(b.targets) for b in batches) == sum(n - 1 for n in lengths)


def test_no_rows_make_no_batches():
    assert rows([]) == [] and micro_batches([], PAD, 8, CPU) == []


def test_a_batch_refuses_parts_of_different_shapes():
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    with pytest.raises(ValueError, match="differ in shape"):
        Batch(two, two, three, torch.zeros(1))
    with pytest.raises(ValueError, match="one entry a row"):
        Batch(two, two, two, torch.zeros(2))
