from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_rl.votes import majority, pass_at_k


def right_by_vote(answers, correct):
    """Chance that the most frequent answer is right, the tied answers and equal samples drawn evenly."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    winners = [answer for answer, number in votes.items() if number == max(votes.values())]
    return fmean(fmean(c for a, c in zip(answers, correct, strict=True) if a == w) for w in winners)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.lists(st.booleans(), min_size=n, max_size=n))))
def test_pass_at_k_is_the_mean_over_all_subsets(drawn):
    (correct,) = drawn
    for k in range(1, len(correct) + 1):
        brute = fmean(any(subset) for subset in combinations(correct, k))
        assert pass_at_k(sum(correct), len(correct), k) == pytest.approx(brute)


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.booleans()), min_size=1, max_size=8))
def test_majority_is_the_mean_over_all_subsets(samples):
    # Equal answers may have different grades here, which is harder than what a grader does.
    answers, correct = zip(*samples, strict=True)
    for k in range(1, len(samples) + 1):
        brute = fmean(right_by_vote(*zip(*subset, strict=True)) for subset in combinations(samples, k))
        assert majority(answers, correct, k) == pytest.approx(brute)


@pytest.mark.parametrize(
    ("answers", "correct", "k", "expected"),
    [
        pytest.param("aab", [1, 1, 0], 3, 1.0, id="two against one"),
        pytest.param("aab", [1, 1, 0], 1, 2 / 3, id="one sample: accuracy"),
        pytest.param("ab", [1, 0], 2, 1 / 2, id="a tie is shared"),
        pytest.param("abcd", [1, 0, 0, 0], 4, 1 / 4, id="a tie of four"),
        pytest.param(["a", None, None], [1, 0, 0], 3, 1.0, id="one answer beats two without"),
        pytest.param(["a", None, None], [1, 0, 0], 2, 2 / 3, id="one pair of three has no answer"),
        pytest.param([None, None], [0, 0], 2, 0.0, id="no answer at all is wrong"),
    ],
)
def test_majority_by_hand(answers, correct, k, expected):
    assert majority(list(answers), [bool(c) for c in correct], k) == pytest.approx(expected)


def test_majority_of_one_is_the_accuracy_and_pass_at_1_is_it_too():
    answers, correct = ["a", "a", "b", None, "c", "a", "b", "d"], [True, True, False, False, False, True, False, False]
    assert majority(answers, correct, 1) == pytest.approx(3 / 8)
    assert pass_at_k(3, 8, 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize("k", [0, 3])
def test_more_samples_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="not defined"):
        majority(["a", "b"], [True, False], k)
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(1, 2, k)


def test_answers_without_a_grade_each_are_refused():
    with pytest.raises(ValueError, match="2 answers and 1 grades"):
        majority(["a", "b"], [True], 1)


def test_hundreds_of_samples_of_a_problem_are_counted_exactly():
    # 2 of 200 right: no right one in k = 100 with chance (100 * 99) / (200 * 199).
    assert pass_at_k(2, 200, 100) == pytest.approx(1 - 100 * 99 / (200 * 199))
