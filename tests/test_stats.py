from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial

from score_rl.stats import mcnemar, paired_difference, wilson

# Published discordant counts (paper, Tables 2 and 3: 500 problems of MATH, 164 of HumanEval), with the difference in
# points, the plain Wald standard error in points, and the exact p-value.
PUBLISHED = [
    pytest.param(23, 79, 500, -11.2, 1.96, 2e-8, id="base on MATH"),
    pytest.param(16, 21, 500, -1.0, 1.22, 0.51, id="Self-Refine on MATH"),
    pytest.param(13, 11, 500, 0.4, 0.98, 0.84, id="STaR on MATH"),
    pytest.param(27, 18, 500, 1.8, 1.34, 0.23, id="Pair-SFT on MATH"),
    pytest.param(29, 7, 500, 4.4, 1.18, 3e-4, id="SCoRe on MATH"),
    pytest.param(13, 8, 164, 3.0, 2.78, 0.38, id="base on HumanEval"),
    pytest.param(25, 5, 164, 12.2, 3.20, 3e-4, id="SCoRe on HumanEval"),
]
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
discordant = counts.flatmap(lambda c: st.tuples(st.integers(0, c[0]), st.just(c[0]), st.just(c[1])))


@pytest.mark.parametrize(("gained", "lost", "trials", "delta", "error", "p"), PUBLISHED)
def test_the_published_differences_and_their_p_values_are_reproduced(gained, lost, trials, delta, error, p):
    value, low, high = paired_difference(gained, lost, trials)
    assert round(100 * value, 1) == delta
    assert mcnemar(gained, lost) == pytest.approx(p, rel=0.2 if p < 0.01 else 0.02)  # two digits, or one, are published
    # The adjusted interval lies close to value +- 1.96 standard errors at this many problems, drawn a little to zero.
    assert 100 * low == pytest.approx(delta - 1.96 * error, abs=0.45)
    assert 100 * high == pytest.approx(delta + 1.96 * error, abs=0.45)


@pytest.mark.parametrize(("gained", "lost", "trials", "delta", "error", "p"), PUBLISHED)
def test_the_interval_and_the_exact_test_agree_on_the_published_rows(gained, lost, trials, delta, error, p):
    _, low, high = paired_difference(gained, lost, trials)
    assert (low > 0 or high < 0) == (mcnemar(gained, lost) < 0.05)


def test_the_paired_interval_of_29_gained_and_7_lost_of_500_by_hand():
    # (29 + 1) / 502 = 0.059761 and (7 + 1) / 502 = 0.015936, so the centre is 0.043825;
    # the variance is (0.075697 - 0.043825 ** 2) / 502 = 1.46967e-4, its root 0.012123, and 1.959964 of it 0.023761.
    assert paired_difference(29, 7, 500) == pytest.approx((0.044, 0.020064, 0.067586), abs=2e-6)


def test_the_wilson_interval_of_8_in_10_by_hand():
    # z^2 = 3.841459; centre (0.8 + 0.192073) / 1.384146 = 0.716740;
    # half width 1.959964 * sqrt(0.016 + 0.0096036) / 1.384146 = 0.226577.
    assert wilson(8, 10) == pytest.approx((0.8, 0.490163, 0.943317), abs=2e-6)


@given(counts)
def test_wilson_is_the_interval_that_scipy_gives(count):
    successes, trials = count
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((successes / trials, expected.low, expected.high), abs=1e-9)


@given(counts)
def test_a_share_lies_in_its_interval_and_the_interval_between_0_and_1(count):
    value, low, high = wilson(*count)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0


@given(discordant)
def test_a_difference_lies_in_its_interval_and_the_interval_between_minus_1_and_1(count):
    lost, gained, trials = count[0], count[1] - count[0], count[2]
    value, low, high = paired_difference(gained, lost, trials)
    assert value == (gained - lost) / trials
    assert -1 <= low <= value <= high <= 1
    assert high - low > 0


@given(discordant)
def test_exchanging_the_attempts_turns_the_interval_round(count):
    lost, gained, trials = count[0], count[1] - count[0], count[2]
    value, low, high = paired_difference(gained, lost, trials)
    assert paired_difference(lost, gained, trials) == pytest.approx((-value, -high, -low))
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.8, 0.97])
def test_wilson_intervals_hold_the_truth_about_95_times_in_100(share):
    trials = 50
    held = sum(
        comb(trials, k) * share**k * (1 - share) ** (trials - k)
        for k in range(trials + 1)
        if wilson(k, trials).low <= share <= wilson(k, trials).high
    )
    assert 0.92 < held < 0.99


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.1), (0.05, 0.05), (0.1, 0.02), (0.2, 0.1), (0.4, 0.1)])
def test_paired_intervals_hold_the_truth_about_95_times_in_100(gain, loss):
    # The plain Wald interval holds it 91 times in 100 at (0, 0.1), and has no width where nothing changed.
    trials = 40
    outcomes = [(g, b) for g in range(trials + 1) for b in range(trials + 1 - g)]
    chances = multinomial(trials, [gain, loss, 1 - gain - loss])
    held = sum(
        chances.pmf([g, b, trials - g - b])
        for g, b in outcomes
        if paired_difference(g, b, trials).low <= gain - loss <= paired_difference(g, b, trials).high
    )
    assert 0.93 < held < 0.995


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        pytest.param(0, 0, 1.0, id="nothing changed"),
        pytest.param(1, 0, 1.0, id="one gained: 2 * 1/2"),
        pytest.param(5, 0, 2 / 32, id="five gained: 2 * 1/32"),
        pytest.param(6, 1, 2 * (1 + 7) / 128, id="six and one: 2 * (1 + 7) / 128"),
        pytest.param(4, 4, 1.0, id="as many lost as gained"),
    ],
)
def test_mcnemar_by_hand(gained, lost, p):
    assert mcnemar(gained, lost) == pytest.approx(p)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_tail_of_a_fair_coin(gained, lost):
    tosses, few = gained + lost, min(gained, lost)
    tail = sum(comb(tosses, k) for k in range(few + 1)) / 2**tosses
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail))


def test_more_problems_narrow_the_interval_as_the_root_of_their_number():
    def width(trials: int) -> float:
        interval = wilson(trials // 2, trials)
        return interval.high - interval.low

    assert width(1000) / width(4000) == pytest.approx(sqrt(4), rel=0.01)


@pytest.mark.parametrize("interval", [lambda: wilson(0, 0), lambda: paired_difference(0, 0, 0)])
def test_nothing_counted_has_no_interval(interval):
    with pytest.raises(ValueError, match="of nothing has no interval"):
        interval()
