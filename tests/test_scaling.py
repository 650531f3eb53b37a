"""What more attempts are worth, against every selection of samples counted one by one."""

from collections import Counter
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from graded import attempt
from hypothesis import given
from hypothesis import strategies as st

from score_rl import scaling as module
from score_rl.episodes import Episode, Problem
from score_rl.scaling import count_answers, majority_of_chains, scaling

ANSWERS = {"4": True, "5": False, "6": False, None: False}


def group(*chains: list[str | None], problem: str = "p") -> list[Episode]:
    """Episodes of one problem from their answers, of which "4" is right; attempts of 3 tokens."""
    return [
        Episode(
            Problem(problem, "2 + 2", "4"),
            tuple(attempt("r" if ANSWERS[answer] else "w", answer=answer) for answer in chain),
            (number, *(0 for _ in chain[1:])),
        )
        for number, chain in enumerate(chains)
    ]


def vote(answers: list[str | None]) -> float:
    """Chance that the most frequent answer is right; equally frequent ones share it."""
    counts = Counter(answer for answer in answers if answer is not None)
    best = [answer for answer, number in counts.items() if number == max(counts.values())]
    return fmean(ANSWERS[answer] for answer in best) if best else 0.0


def brute(chains: list[list[str | None]], number: int, attempts: slice) -> float:
    taken = combinations(chains, number)
    return fmean(vote([answer for chain in some for answer in chain[attempts]]) for some in taken)


answers = st.sampled_from(list(ANSWERS))
chains_of_three = st.lists(st.lists(answers, min_size=3, max_size=3), min_size=4, max_size=4)


@given(chains_of_three, chains_of_three)
def test_every_way_is_the_mean_over_all_selections(one, other):
    metrics = scaling([*group(*one), *group(*other, problem="q")], 4)
    both = (one, other)
    for n in (1, 2, 3, 4):
        found = fmean(brute(chains, n, slice(1)) for chains in both)
        assert metrics[f"scaling/parallel@{n}"] == pytest.approx(found)
    for n in (1, 2, 4):
        last, every = (fmean(brute(chains, n, part) for chains in both) for part in (slice(2, 3), slice(3)))
        assert metrics[f"scaling/sequential@{3 * n}"] == pytest.approx(last)
        assert metrics[f"scaling/mixed@{3 * n}"] == pytest.approx(every)
        for k in (1, 2, 3):
            part = slice(k - 1, k)
            assert metrics[f"maj/t{k}@{n}"] == pytest.approx(fmean(brute(chains, n, part) for chains in both))
            some = [any(ANSWERS[c[k - 1]] for c in taken) for chains in both for taken in combinations(chains, n)]
            assert metrics[f"pass/t{k}@{n}"] == pytest.approx(fmean(some))


def test_ways_are_named_by_attempts_and_say_what_they_cost():
    metrics = scaling(group(["4", "4", "4"], ["5", "5", "4"], ["5", "6", "6"], [None, "5", "4"]), 4)
    shown = {key for key in metrics if key.startswith("scaling/") and not key.endswith((".low", ".high"))}
    ways = {"parallel": (1, 2, 3, 4), "sequential": (3, 6, 12), "mixed": (3, 6, 12)}
    assert shown == {f"scaling/{way}@{n}{end}" for way, all_n in ways.items() for n in all_n for end in ("", ".tokens")}
    assert [metrics[f"scaling/{way}.tokens"] for way in ("parallel@4", "sequential@6", "mixed@12")] == [12, 18, 36]


def test_one_chain_compares_its_last_answer_with_the_majority_of_all():
    metrics = scaling(group(["4", "4", "5"]), 1)
    found = [metrics[f"scaling/{way}"] for way in ("parallel@1", "sequential@3", "mixed@3")]
    assert found == [1.0, 0.0, 1.0]
    assert not any(key.startswith(("pass/", "maj/")) for key in metrics)


def test_one_attempt_has_votes_and_nothing_to_compare_them_with():
    metrics = scaling(group(["4"], ["5"]), 2)
    assert metrics["pass/t1@2"] == 1.0
    assert not any(key.startswith("scaling/") for key in metrics)


def test_a_problem_of_which_a_sample_could_not_be_graded_is_left_out():
    whole, short = group(["4", "4"], ["4", "4"]), group(["5", "5"], problem="q")
    assert scaling([*whole, *short], 2) == scaling(whole, 2)
    assert scaling(short, 2) == {}


def test_the_same_answer_graded_both_ways_is_right_as_often_as_it_was_called_so():
    # As a grader that reads the whole text may do.
    made = [Episode(Problem("p", "q", "a"), (attempt(mark, answer="4"),) * 2, (j, 0)) for j, mark in enumerate("rrw")]
    assert majority_of_chains(count_answers([made]), 3) == pytest.approx([2 / 3])


def test_where_selections_are_many_drawn_ones_come_near_to_all():
    rng = np.random.default_rng(0)
    names = list(ANSWERS)
    chains = [[names[i] for i in rng.choice(4, size=2, p=(0.45, 0.35, 0.1, 0.1))] for _ in range(12)]
    made = count_answers([group(*chains)])
    drawn = majority_of_chains(made, 4)  # of 495 all, of 924 drawn
    assert drawn == pytest.approx([brute(chains, 4, slice(2))])
    # 500 draws of a number in [0, 1]: a standard error of 0.022 at most.
    assert majority_of_chains(made, 6) == pytest.approx([brute(chains, 6, slice(2))], abs=0.07)


def test_votes_are_the_same_however_many_problems_are_counted_at_once(monkeypatch):
    rng = np.random.default_rng(1)
    names = list(ANSWERS)
    made = count_answers([group(*[[names[i] for i in rng.choice(4, size=2)] for _ in range(4)]) for _ in range(9)])
    expected = majority_of_chains(made, 2)
    monkeypatch.setattr(module, "CELLS", 1)
    assert majority_of_chains(made, 2) == expected
