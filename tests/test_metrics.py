import dataclasses

import pytest
from graded import attempt, episode, episodes
from hypothesis import given
from hypothesis import strategies as st

from score_rl.episodes import Episode, Problem
from score_rl.metrics import (
    attempt_shapes,
    by_field,
    edit_ratio,
    is_unchanged,
    self_correction,
    training_metrics,
    transitions,
)
from score_rl.resampling import clustered
from score_rl.stats import mcnemar, paired_difference, wilson

marks_of_three = st.lists(st.text("rw", min_size=3, max_size=3), min_size=1, max_size=30)


def pair(first: dict, second: dict) -> Episode:
    return Episode(Problem("p", "q", "a"), (attempt("w", **first), attempt("w", **second)), (0, 0))


@pytest.mark.parametrize(
    ("first", "second", "unchanged"),
    [
        pytest.param({"answer": "4"}, {"answer": "4"}, True, id="the same answer"),
        pytest.param({"answer": "4"}, {"answer": "5"}, False, id="another answer"),
        pytest.param(
            {"answer": "4", "text": "so 4"}, {"answer": "4", "text": "4!"}, True, id="the same in other words"
        ),
        pytest.param(
            {"answer": None, "text": "hm"}, {"answer": None, "text": "hm"}, True, id="the same text, no answer"
        ),
        pytest.param(
            {"answer": None, "text": "hm"}, {"answer": None, "text": "ah"}, False, id="other texts, no answer"
        ),
        pytest.param({"answer": "4", "text": "x"}, {"answer": None, "text": "x"}, False, id="an answer lost"),
        pytest.param({"answer": None, "text": "x"}, {"answer": "4", "text": "x"}, False, id="an answer found"),
    ],
)
def test_an_attempt_is_unchanged_only_with(first, second, unchanged):
    assert is_unchanged(pair(first, second), 2) is unchanged


def test_unchanged_compares_with_the_attempt_before_and_not_with_the_first():
    made = Episode(Problem("p", "q", "a"), tuple(attempt("w", answer=a) for a in "aba"), (0, 0, 0))
    assert [is_unchanged(made, 2), is_unchanged(made, 3)] == [False, False]
    made = Episode(Problem("p", "q", "a"), tuple(attempt("w", answer=a) for a in "abb"), (0, 0, 0))
    assert [is_unchanged(made, 2), is_unchanged(made, 3)] == [False, True]


def test_transitions_count_gains_and_losses_between_any_two_attempts():
    made = episodes("wrr", "wrw", "rwr", "rrr", "www")
    assert transitions(made, 1, 2) == (2, 1)
    assert transitions(made, 2, 3) == (1, 1)
    assert transitions(made, 1, 3) == (1, 0)


def test_ten_episodes_are_counted_by_hand():
    # 2 stay right, 3 are repaired, 1 is broken, 4 stay wrong: 3/10 right at first, 5/10 at last.
    metrics = self_correction(episodes(*["rr"] * 2, *["wr"] * 3, "rw", *["ww"] * 4))
    assert {key: value for key, value in metrics.items() if "." not in key} == {
        "acc/t1": 0.3,
        "acc/t2": 0.5,
        "delta/t1_t2": 0.2,
        "delta/i_c": 0.3,
        "delta/c_i": 0.1,
        "rate/fix": 3 / 7,  # of 7 wrong ones
        "rate/break": 1 / 3,  # of 3 right ones
        "mcnemar_p/t1_t2": 0.625,  # 2 * (1 + 4) / 2 ** 4
        "unchanged/t2": 0.6,  # the mark is the answer: rr and ww
        "identical/t2": 1.0,  # the texts are all empty
        "kept/t2": 0.0,
        "edit_ratio/t2": 0.0,
        "edit_ratio_q1/t2": 0.0,
        "edit_ratio_median/t2": 0.0,
        "edit_ratio_q3/t2": 0.0,
        "no_answer/t1": 0.0,
        "no_answer/t2": 0.0,
        "length/t1": 3.0,
        "length/t2": 3.0,
        "truncated/t1": 0.0,
        "truncated/t2": 0.0,
    }


def test_every_share_carries_its_wilson_interval_and_every_difference_its_paired_one():
    metrics = self_correction(episodes(*["rr"] * 2, *["wr"] * 3, "rw", *["ww"] * 4))
    expected = {
        "acc/t1": wilson(3, 10),
        "acc/t2": wilson(5, 10),
        "delta/t1_t2": paired_difference(3, 1, 10),
        "delta/i_c": wilson(3, 10),
        "delta/c_i": wilson(1, 10),
        "rate/fix": wilson(3, 7),
        "rate/break": wilson(1, 3),
        "unchanged/t2": wilson(6, 10),
        "identical/t2": wilson(10, 10),
        "kept/t2": wilson(0, 10),
        "no_answer/t1": wilson(0, 10),
        "no_answer/t2": wilson(0, 10),
    }
    assert {key.split(".")[0] for key in metrics if "." in key} == expected.keys()
    assert {key: (metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"]) for key in expected} == expected


def test_samples_of_a_problem_are_counted_together_and_drawn_together():
    # Three problems with two samples each: one always right, one never, one right in one of two at attempt 2.
    words = {"a": ["rr", "rr"], "b": ["ww", "ww"], "c": ["wr", "ww"]}
    made = [episode(word, problem=p, path=(j, 0)) for p, pair in words.items() for j, word in enumerate(pair)]
    metrics = self_correction(made)
    assert (metrics["acc/t1"], metrics["acc/t2"], metrics["delta/t1_t2"]) == (2 / 6, 3 / 6, 1 / 6)
    assert (metrics["rate/fix"], metrics["rate/break"]) == (1 / 4, 0)
    assert "mcnemar_p/t1_t2" not in metrics
    by_problem = {"acc/t2": [[1, 1], [0, 0], [1, 0]], "rate/fix": [[], [0, 0], [1, 0]], "rate/break": [[0, 0], [], []]}
    for key, values in by_problem.items():
        assert (metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"]) == clustered(values)
    low, high = metrics["delta/t1_t2.low"], metrics["delta/t1_t2.high"]
    assert (low, high) == clustered([[0, 0], [0, 0], [1, 0]], difference=True)[1:]


def test_a_rate_of_nothing_is_not_there():
    assert not any(key.startswith("rate/fix") for key in self_correction(episodes("rr", "rw")))
    assert not any(key.startswith("rate/break") for key in self_correction(episodes("ww", "wr")))


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        pytest.param("12", "12", 0, id="equal"),
        pytest.param("", "", 0, id="both empty"),
        pytest.param("12", "34", 1, id="nothing kept"),
        pytest.param("", "34", 1, id="written where nothing was"),
        pytest.param("1234", "1235", 2 / 8, id="one character exchanged: one out, one in"),
        pytest.param("ab", "abc", 1 / 5, id="one added"),
    ],
)
def test_the_edit_ratio_is_of_characters_by_both_lengths(before, after, ratio):
    assert edit_ratio(before, after) == edit_ratio(after, before) == pytest.approx(ratio)


def test_texts_are_compared_with_the_attempt_before_and_spread_in_quartiles():
    made = [
        Episode(Problem(f"p{n}", "q", "a"), tuple(attempt("w", text=text) for text in ("ab", after, after)), (0, 0, 0))
        for n, after in enumerate(["ab", "abc", "zz", "ab"])
    ]
    metrics = self_correction(made)
    # 0, 1/5, 1 and 0; attempt 3 is attempt 2
    assert (metrics["identical/t2"], metrics["identical/t3"]) == (0.5, 1.0)
    assert metrics["edit_ratio/t3"] == 0
    assert metrics["edit_ratio/t2"] == pytest.approx(0.3)
    quartiles = [metrics[f"edit_ratio_{name}/t2"] for name in ("q1", "median", "q3")]
    assert quartiles == pytest.approx([0, 0.1, 0.4])


def test_an_attempt_without_an_answer_is_counted():
    made = [Episode(Problem("p", "q", "a"), (attempt("w", answer=None), attempt("w", answer="4")), (0, 0))]
    metrics = self_correction([*made, *episodes("ww")])
    assert (metrics["no_answer/t1"], metrics["no_answer/t2"]) == (0.5, 0.0)


def placed(marks: str, number: int, **meta: object) -> Episode:
    made = episode(marks, problem=f"p{number}")
    return dataclasses.replace(made, problem=dataclasses.replace(made.problem, meta=meta))


def test_groups_are_those_of_the_data_and_each_has_its_own_intervals():
    made = [placed("wr", 0, level=1), placed("rr", 1, level=1, subject="Algebra"), placed("ww", 2, level="2")]
    metrics = by_field([*made, placed("rr", 3)])
    assert {key for key in metrics if "." not in key} == {
        f"by/{group}/{key}"
        for group in ("level=1", "level=2", "subject=Algebra")
        for key in ("acc/t1", "acc/t2", "delta/t1_t2", "problems")
    }
    assert (metrics["by/level=1/acc/t1"], metrics["by/level=1/acc/t2"], metrics["by/level=1/problems"]) == (0.5, 1.0, 2)
    ends = [metrics[f"by/level=1/delta/t1_t2{end}"] for end in ("", ".low", ".high")]
    assert ends == list(paired_difference(1, 0, 2))


def test_a_column_with_many_values_groups_nothing():
    assert by_field([placed("wr", number, level=number) for number in range(21)]) == {}
    assert len(by_field([placed("wr", number, level=number) for number in range(20)])) == 20 * (3 * 3 + 1)


@given(marks_of_three)
def test_each_later_attempt_is_compared_with_the_first(words):
    metrics = self_correction(episodes(*words))
    for k in (2, 3):
        gained = sum(word[0] == "w" and word[k - 1] == "r" for word in words)
        lost = sum(word[0] == "r" and word[k - 1] == "w" for word in words)
        assert metrics[f"delta/t1_t{k}"] == pytest.approx(metrics[f"acc/t{k}"] - metrics["acc/t1"], abs=1e-12)
        assert metrics[f"delta/t1_t{k}"] == paired_difference(gained, lost, len(words)).value
        assert metrics[f"mcnemar_p/t1_t{k}"] == mcnemar(gained, lost)


@pytest.mark.parametrize("attempts", [1, 2, 5, 10])
def test_any_number_of_attempts_is_counted(attempts):
    metrics = self_correction(episodes("w" * (attempts - 1) + "r"))
    assert [metrics[f"acc/t{k}"] for k in range(1, attempts + 1)] == [0.0] * (attempts - 1) + [1.0]
    assert f"acc/t{attempts + 1}" not in metrics
    assert {key for key in metrics if key.startswith("delta/t1")} == {
        f"delta/t1_t{k}{end}" for k in range(2, attempts + 1) for end in ("", ".low", ".high")
    }
    assert ("delta/i_c" in metrics) == (attempts > 1)


def test_the_flips_of_a_longer_episode_are_those_between_attempts_1_and_2():
    metrics = self_correction(episodes("wwr", "wwr", "rwr", "wrr"))
    assert (metrics["delta/i_c"], metrics["delta/c_i"]) == (0.25, 0.25)
    assert metrics["delta/t1_t3"] == 0.75


def test_no_episodes_are_refused_rather_than_counted_as_zero():
    with pytest.raises(ValueError, match="no episodes to count"):
        self_correction([])


def test_lengths_are_means_of_tokens_and_truncated_is_the_share_that_did_not_end():
    made = [
        Episode(Problem("p", "q", "a"), (attempt("w", tokens=2), attempt("w", tokens=8, finished=False)), (0, 0)),
        Episode(Problem("q", "q", "a"), (attempt("w", tokens=6), attempt("w", tokens=9)), (0, 0)),
    ]
    assert attempt_shapes(made) == {"length/t1": 4.0, "truncated/t1": 0.0, "length/t2": 8.5, "truncated/t2": 0.5}


def test_training_counts_own_and_stored_first_attempts_apart():
    # Own: one of two right at first, both at last. Stored: none right at first, one of two at last.
    own = [episode("rr", problem="a"), episode("wr", problem="a", path=(1, 0))]
    stored = [episode("ww", problem="b", sampled=False), episode("wr", problem="b", path=(1, 0), sampled=False)]
    metrics = training_metrics([*own, *stored])
    assert (metrics["acc/t1"], metrics["acc/t2"]) == (0.5, 1.0)
    assert (metrics["offline/acc/t1"], metrics["offline/acc/t2"]) == (0.0, 0.5)
    assert (metrics["delta/t1_t2"], metrics["delta/i_c"], metrics["delta/c_i"]) == (0.5, 0.5, 0.0)
    assert (metrics["offline/delta/t1_t2"], metrics["offline/unchanged/t2"]) == (0.5, 0.5)


def test_without_stored_first_attempts_nothing_is_reported_of_them():
    assert not any(key.startswith("offline/") for key in training_metrics([episode("wr")]))


def test_with_stored_first_attempts_alone_only_they_are_reported():
    metrics = training_metrics([episode("wr", sampled=False)])
    assert "acc/t1" not in metrics
    assert metrics["offline/acc/t2"] == 1.0
    assert metrics["length/t2"] == 3.0


def test_lengths_while_training_leave_stored_first_attempts_out():
    long = dataclasses.replace(attempt("w", tokens=50), sampled=False)
    stored = Episode(Problem("b", "q", "a"), (long, attempt("w", tokens=50)), (0, 0))
    assert training_metrics([episode("wr"), stored])["length/t1"] == 3.0


def test_reward_and_accuracy_are_kept_apart():
    half = attempt("w")
    half = dataclasses.replace(half, grade=dataclasses.replace(half.grade, reward=0.5))
    metrics = training_metrics([Episode(Problem("a", "q", "a"), (half,), (0,))])
    assert (metrics["acc/t1"], metrics["reward/t1"]) == (0.0, 0.5)


def test_a_question_has_no_signal_when_all_its_episodes_have_the_same_rewards():
    # a: alike. b: second attempts differ. c: first attempts differ. d: alike. e: alone, with nothing to be compared.
    made = [
        *(episode(word, problem="a") for word in ("wr", "wr")),
        *(episode(word, problem="b") for word in ("ww", "wr")),
        *(episode(word, problem="c") for word in ("rr", "wr")),
        *(episode(word, problem="d") for word in ("ww", "ww", "ww")),
        episode("wr", problem="e"),
    ]
    assert training_metrics(made)["groups/no_signal"] == 0.5


def test_with_one_episode_a_question_there_are_no_groups_to_warn_of():
    # The paper's shape: one episode a question, compared with the rest of the batch.
    assert "groups/no_signal" not in training_metrics(episodes("wr", "rr", "ww"))


def test_training_reports_one_attempt_without_a_change():
    metrics = training_metrics([episode("r"), episode("w", path=(1,))])
    assert metrics["acc/t1"] == 0.5
    assert not any(key.startswith(("delta/", "unchanged/")) for key in metrics)
