from math import comb, sqrt

import numpy as np
import pytest
from scipy.stats import binom

from score_rl.power import mcnemar_power, mcnemar_problems, power_given_flips, problems_for
from score_rl.stats import mcnemar


@pytest.mark.parametrize(("delta", "discordant"), [(0.2, 0.4), (-0.2, 0.4), (0.3, 0.3), (0.1, 1.0)])
def test_power_is_the_chance_of_all_outcomes_that_the_test_rejects(delta, discordant):
    trials, gain, loss = 30, (discordant + delta) / 2, (discordant - delta) / 2
    rejected = sum(
        comb(trials, g) * comb(trials - g, b) * gain**g * loss**b * (1 - discordant) ** (trials - g - b)
        for g in range(trials + 1)
        for b in range(trials + 1 - g)
        if mcnemar(g, b) <= 0.05
    )
    assert mcnemar_power(trials, delta, discordant) == pytest.approx(rejected)


@pytest.mark.parametrize(("problems", "power"), [(164, 0.103), (500, 0.373), (1319, 0.824), (5000, 1.0)])
def test_the_power_for_2_points_where_6_percent_differ(problems, power):
    # Simulated with 200,000 draws: 0.3735 at 500, 0.8230 at 1319.
    assert mcnemar_power(problems, 0.02, 0.06) == pytest.approx(power, abs=5e-4)


@pytest.mark.parametrize(("flips", "quoted"), [(29, "33%"), (79, "84%"), (300, "100%")])
def test_the_power_often_quoted_for_500_1319_and_5000_problems_takes_the_number_of_flips_as_known(flips, quoted):
    # 6% of 500, 1319 and 5000, cut down to whole problems. Power jumps with the number of flips: 30 of
    # them would give 43%.
    assert f"{power_given_flips(np.array([flips]), 2 / 3)[0]:.0%}" == quoted


def test_no_more_than_five_flips_never_reject():
    # 2 / 2 ** 5 = 0.0625, 2 / 2 ** 6 = 0.03125.
    assert mcnemar_power(5, 1.0, 1.0) == 0.0
    assert mcnemar_power(6, 1.0, 1.0) == 1.0


@pytest.mark.parametrize(("delta", "discordant", "power"), [(0.02, 0.06, 0.8), (0.05, 0.05, 0.8), (0.044, 0.072, 0.9)])
def test_the_number_of_problems_has_the_power_and_one_fewer_has_not(delta, discordant, power):
    number = mcnemar_problems(delta, discordant, power)
    assert mcnemar_power(number, delta, discordant) >= power > mcnemar_power(number - 1, delta, discordant)


def test_the_normal_approximation_takes_over_where_it_is_as_good():
    # (1.959964 + 0.841621)^2 = 7.84888; * 0.059999 / 0.001^2 = 470,925; exactly it is 472,894.
    assert mcnemar_problems(0.001, 0.06) == problems_for(0.001, sqrt(0.06 - 1e-6)) == pytest.approx(472_894, rel=0.01)
    exact = mcnemar_problems(0.0025, 0.06)
    assert exact == pytest.approx(problems_for(0.0025, sqrt(0.06 - 0.0025**2)), rel=0.011)


def test_the_normal_approximation_by_hand():
    # 7.84888 * (0.5 / 0.1) ** 2 = 196.2
    assert problems_for(0.1, 0.5) == 197
    assert problems_for(-0.1, 0.5) == 197


def test_the_test_is_exact_at_every_number_of_flips():
    flips = np.arange(60)
    rejected = [sum(binom.pmf(g, n, 0.7) for g in range(n + 1) if mcnemar(g, n - g) <= 0.05) for n in flips]
    assert power_given_flips(flips, 0.7) == pytest.approx(rejected)


@pytest.mark.parametrize(("delta", "discordant"), [(0.0, 0.1), (0.2, 0.1), (0.1, 1.1)])
def test_a_difference_that_cannot_be_is_refused(delta, discordant):
    with pytest.raises(ValueError, match="expected 0 < delta <= discordant <= 1"):
        mcnemar_power(100, delta, discordant)
    with pytest.raises(ValueError, match="expected 0 < delta <= discordant <= 1"):
        mcnemar_problems(delta, discordant)


def test_a_power_that_cannot_be_had_and_a_difference_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"power=1; expected"):
        mcnemar_problems(0.02, 0.06, 1.0)
    with pytest.raises(ValueError, match="difference of 0"):
        problems_for(0.0, 0.5)
