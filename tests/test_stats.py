from math import comb, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import binomtest, multinomial

from score_rl.stats import holm, mcnemar, paired_difference, wald_difference, wilson

# Published discordant counts (paper, Tables 2 and 3: 500 problems of MATH, 164 of HumanEval), with the difference, its
# standard error and its plain interval in points and the exact p-value, all to the digits that are quoted of them.
PUBLISHED = [
    pytest.param(23, 79, 500, "-11.2", "1.96", "-15.0", "-7.4", "2e-08", id="base on MATH"),
    pytest.param(16, 21, 500, "-1.0", "1.22", "-3.4", "+1.4", "0.51", id="Self-Refine on MATH"),
    pytest.param(13, 11, 500, "+0.4", "0.98", "-1.5", "+2.3", "0.84", id="STaR on MATH"),
    pytest.param(27, 18, 500, "+1.8", "1.34", "-0.8", "+4.4", "0.23", id="Pair-SFT on MATH"),
    pytest.param(29, 7, 500, "+4.4", "1.18", "+2.1", "+6.7", "3e-04", id="SCoRe on MATH"),
    pytest.param(13, 8, 164, "+3.0", "2.78", "-2.4", "+8.5", "0.38", id="base on HumanEval"),
    pytest.param(25, 5, 164, "+12.2", "3.20", "+5.9", "+18.5", "3e-04", id="SCoRe on HumanEval"),
]
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
discordant = counts.flatmap(lambda c: st.tuples(st.integers(0, c[0]), st.just(c[0]), st.just(c[1])))


@pytest.mark.parametrize(("gained", "lost", "trials", "delta", "error", "low", "high", "p"), PUBLISHED)
def test_the_published_differences_come_out_to_the_printed_digits(gained, lost, trials, delta, error, low, high, p):
    plain = wald_difference(gained, lost, trials)
    assert [f"{100 * x:+.1f}" for x in plain] == [delta, low, high]
    assert f"{100 * (plain.high - plain.value) / 1.959964:.2f}" == error
    found = mcnemar(gained, lost)
    assert (f"{found:.0e}" if found < 0.01 else f"{found:.2f}") == p
    # Ours has the same value; at these numbers its ends differ from the plain ones by 0.6 points at most.
    ours = paired_difference(gained, lost, trials)
    assert ours.value == plain.value
    assert max(abs(ours.low - plain.low), abs(ours.high - plain.high)) < 0.006
    assert (ours.low > 0 or ours.high < 0) == (found < 0.05)


def _distance(gained, lost, trials, difference):
    """Standard errors between the difference seen and `difference`, the errors being the likeliest under the latter."""

    def surprise(share_lost):
        shares = [difference + share_lost, share_lost, 1 - difference - 2 * share_lost]
        return -sum(xlogy(n, s) for n, s in zip([gained, lost, trials - gained - lost], shares, strict=True))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return ((gained - lost) / trials - difference) / sqrt((difference + 2 * share - difference**2) / trials)


@pytest.mark.parametrize(("gained", "lost", "trials"), [(29, 7, 500), (5, 25, 164), (3, 1, 10), (40, 40, 100)])
def test_the_ends_of_the_paired_interval_are_those_that_a_score_test_just_rejects(gained, lost, trials):
    _, low, high = paired_difference(gained, lost, trials)
    assert _distance(gained, lost, trials, low) == pytest.approx(1.959964, abs=1e-4)
    assert _distance(gained, lost, trials, high) == pytest.approx(-1.959964, abs=1e-4)


def test_the_paired_interval_of_no_change_by_hand():
    # Nothing gained or lost: lost problems are likeliest 0, so 500 d^2 = 3.841459 d (1 - d), d = 3.841459 / 503.841459.
    assert paired_difference(0, 0, 500) == pytest.approx((0, -0.00762434, 0.00762434), abs=1e-8)


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


@pytest.mark.parametrize(
    "interval", [lambda: wilson(0, 0), lambda: paired_difference(0, 0, 0), lambda: wald_difference(0, 0, 0)]
)
def test_nothing_counted_has_no_interval(interval):
    with pytest.raises(ValueError, match="of nothing has no interval"):
        interval()


@pytest.mark.parametrize(
    ("pvalues", "expected"),
    [
        pytest.param([0.04], [0.04], id="one test"),
        pytest.param(
            [0.01, 0.04, 0.03], [0.03, 0.06, 0.06], id="3 * 0.01, then 2 * 0.03, which the largest takes over"
        ),
        pytest.param([0.6, 0.7], [1.0, 1.0], id="at most 1"),
        pytest.param([], [], id="none"),
    ],
)
def test_holm_by_hand(pvalues, expected):
    assert holm(pvalues) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_what_stepping_down_rejects(pvalues):
    rejected = set()
    for rank, place in enumerate(sorted(range(len(pvalues)), key=lambda i: pvalues[i])):
        if not pvalues[place] * (len(pvalues) - rank) < 0.05:
            break
        rejected.add(place)
    assert {place for place, p in enumerate(holm(pvalues)) if p < 0.05} == rejected
