import dataclasses

import pytest
from graded import attempt, episode, episodes
from hypothesis import given
from hypothesis import strategies as st

from score_rl.episodes import Episode, Problem
from score_rl.metrics import attempt_shapes, is_unchanged, self_correction, training_metrics, transitions
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
        "mcnemar_p/t1_t2": 0.625,  # 2 * (1 + 4) / 2 ** 4
        "unchanged/t2": 0.6,  # the mark is the answer: rr and ww
        "length/t1": 3.0,
        "length/t2": 3.0,
        "truncated/t1": 0.0,
        "truncated/t2": 0.0,
    }


def test_every_share_carries_its_wilson_interval_and_every_difference_its_paired_one():
    metrics = self_correction(episodes(*["rr"] * 2, *["wr"] * 3, "rw", *["ww"] * 4))
    intervals = {key.split(".")[0] for key in metrics if "." in key}
    assert intervals == {"acc/t1", "acc/t2", "delta/t1_t2", "delta/i_c", "delta/c_i", "unchanged/t2"}
    expected = {
        "acc/t1": wilson(3, 10),
        "delta/t1_t2": paired_difference(3, 1, 10),
        "delta/i_c": wilson(3, 10),
        "delta/c_i": wilson(1, 10),
        "unchanged/t2": wilson(6, 10),
    }
    assert {key: (metrics[key], metrics[f"{key}.low"], metrics[f"{key}.high"]) for key in expected} == expected


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
