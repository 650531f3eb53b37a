from itertools import pairwise

import pytest
from pytest import approx

from score_rl.episodes import Problem
from score_rl.objectives import Objective
from score_rl.schedule import adapt_beta2, draw_problems, learning_rate, make_objective, rank
from score_rl.schema import AdaptiveKLSettings, StageSettings, TrainSettings


def stage(**changes: object) -> StageSettings:
    return StageSettings.model_validate({"kind": "stage1", "steps": 10, "branch": [2, 1], "lr": 0.1} | changes)


def test_the_learning_rate_warms_up_from_a_part_of_itself_and_stays() -> None:
    # Four warm-up steps: 1/5, 2/5, 3/5, 4/5 of 0.1, then 0.1.
    rates = [learning_rate(stage(warmup_steps=4), step) for step in range(7)]
    assert rates == approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


def test_the_cosine_falls_from_the_end_of_the_warm_up_and_never_rises_again() -> None:
    rates = [learning_rate(stage(warmup_steps=2, schedule="cosine"), step) for step in range(10)]
    # Half-way through the 8 steps after the warm-up the cosine is at one half.
    assert rates[2] == approx(0.1)
    assert rates[6] == approx(0.05)
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.02, 1.0), (0.03, 1.05), (0.2, 1.1), (0.01, 0.95), (0.0, 0.9)],
    ids=["on target it stays", "half too much", "far too much is clipped", "half too little", "none at all"],
)
def test_adaptive_beta2_moves_towards_the_target_by_at_most_its_rate(kl: float, expected: float) -> None:
    control = stage(adaptive_beta2=AdaptiveKLSettings(target=0.02, rate=0.1))
    assert adapt_beta2(1.0, kl, control) == approx(expected)


def test_a_fixed_beta2_does_not_move() -> None:
    assert adapt_beta2(0.3, 99.0, stage()) == 0.3


def problems(number: int) -> list[Problem]:
    return [Problem(str(i), f"q{i}", "a") for i in range(number)]


def test_each_pass_over_the_data_has_every_problem_once_in_another_order() -> None:
    drawn = [p.id for p in draw_problems(problems(10), 0, 20, seed=0)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(str(i) for i in range(10))
    assert drawn[:10] != drawn[10:]


def test_the_data_order_does_not_depend_on_how_it_is_cut_into_steps_but_on_the_seed() -> None:
    whole = draw_problems(problems(10), 0, 20, seed=3)
    assert [p for start in range(0, 20, 4) for p in draw_problems(problems(10), start, 4, seed=3)] == whole
    assert draw_problems(problems(10), 0, 20, seed=4) != whole


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta1": 0.2, "beta2": 0.5}, Objective((0, 1), (0.5, 0.2))),
        ({"kind": "stage2", "alpha": 3, "beta1": 0.2}, Objective((1, 1), (0.2, 0.2), 3, 3)),
        (
            {"kind": "stage2", "alpha_fix": 3, "alpha_break": 0, "gamma": 0.5},
            Objective((1, 1), (0.01, 0.01), 3, 0, 0.5),
        ),
        ({"kind": "stage2", "alpha": 3, "bonus_to": "all"}, Objective((1, 1), (0.01, 0.01), 3, 3, bonus_to="all")),
        ({"kind": "substage", "branch": [2, 1, 1], "max_new_tokens": [8] * 3}, Objective((0, 0, 1), (0.1, 0.1, 0.01))),
        ({"kind": "single_turn", "branch": [2], "max_new_tokens": [8]}, Objective((1,), (0.01,))),
        ({"kind": "multi_turn", "credit": "last"}, Objective((0, 1), (0, 0.01))),
        ({"kind": "multi_turn", "credit": "all"}, Objective((1, 1), (0.01, 0.01))),
    ],
    ids=[
        "stage1",
        "stage2",
        "stage2 with two alphas",
        "bonus on all attempts",
        "substage",
        "single turn",
        "last attempt only",
        "all attempts",
    ],
)
def test_settings_name_the_objective(settings: dict[str, object], expected: Objective) -> None:
    assert make_objective(stage(**settings)) == expected


def test_a_moved_beta2_pins_attempt_1_only() -> None:
    assert make_objective(stage(beta1=0.2, beta2=0.5), beta2=0.9).beta == (0.9, 0.2)


def validated(first: float, last: float) -> dict[str, float]:
    return {"validation/acc/t1": first, "validation/acc/t2": last, "reward/t1": 0.9, "reward/t2": last / 2}


def test_validation_prefers_the_best_second_attempt_among_steps_whose_first_one_holds() -> None:
    train = TrainSettings(select="validation", acc_t1_tolerance=0.01)
    holds, better, fell, fell_less = (
        rank(train, validated(*accuracies), 0.70, due=True)
        for accuracies in ((0.70, 0.80), (0.692, 0.85), (0.60, 0.99), (0.65, 0.90))
    )
    assert fell < fell_less < holds < better  # type: ignore[operator]


def test_the_papers_choice_is_the_reward_of_the_last_attempt_at_checkpoints() -> None:
    train = TrainSettings(select="train_reward")
    assert rank(train, validated(0.1, 0.8), 0.7, due=True) == [0.4]
    assert rank(train, validated(0.1, 0.8), 0.7, due=False) is None


def test_steps_without_validation_and_runs_that_keep_the_last_have_no_candidates() -> None:
    assert rank(TrainSettings(select="validation"), {"reward/t2": 1.0}, 0.7, due=True) is None
    assert rank(TrainSettings(select="last"), validated(0.9, 0.9), 0.7, due=True) is None


def test_what_spoils_the_bonus_is_warned_about() -> None:
    assert "cancels alpha" in stage(kind="stage2", advantage="grpo").cautions()[0]
    assert stage(kind="stage2", advantage="rloo").cautions() == []
    assert "learns to fail first" in stage(kind="stage2", bonus_to="all").cautions()[0]
    assert stage(kind="stage2", bonus_to="all", alpha=0).cautions() == []
    assert stage(kind="stage2", advantage="grpo", alpha=0).cautions() == []
