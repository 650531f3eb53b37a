import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap

from score_rl.resampling import clustered, hierarchical, hierarchical_p, sign_flip
from score_rl.stats import mcnemar, paired_difference, wilson

samples = st.lists(st.lists(st.integers(-1, 1), max_size=4), min_size=1, max_size=40)


def test_the_value_is_the_mean_of_all_samples():
    assert clustered([[1, 0], [1, 1], [0, 0], [1, 0]]).value == 4 / 8
    assert clustered([[1, 0, 0], [1], []]).value == 2 / 4


@given(samples.filter(lambda values: any(values)))
def test_the_value_lies_in_the_interval_and_the_interval_in_the_range(values):
    value, low, high = clustered(values, difference=True, draws=50)
    assert -1 <= low <= value <= high <= 1
    assert high > low
    value, low, high = clustered([[abs(x) for x in v] for v in values], draws=50)
    assert 0 <= low <= value <= high <= 1
    assert high > low


def test_the_interval_of_a_share_is_the_one_that_scipy_draws_problem_by_problem():
    right = np.random.default_rng(0).binomial(8, np.random.default_rng(1).beta(0.5, 2, size=200))
    ours = clustered([[1] * r + [0] * (8 - r) for r in right], draws=20_000)
    theirs = scipy_bootstrap((right / 8,), np.mean, n_resamples=20_000, method="BCa", rng=2).confidence_interval
    assert ours[1:] == pytest.approx(tuple(theirs), abs=0.001)  # the width is 0.08


def test_the_interval_of_a_difference_has_students_width_where_problems_differ_evenly():
    # 100 times 0.5 and 100 times -0.1: mean 0.2, deviation 0.3, standard error 0.3 / sqrt(200) = 0.021213.
    # Two equal heaps: little but the normal distribution is left, 1.96 * 0.021213 = 0.0416.
    value, low, high = clustered([[0.5]] * 100 + [[-0.1]] * 100, difference=True, draws=20_000)
    assert (value, low, high) == pytest.approx((0.2, 0.2 - 0.0416, 0.2 + 0.0416), abs=0.002)


def test_equal_data_and_seed_give_an_equal_interval():
    values = [[i % 2, i % 3 == 0] for i in range(50)]
    assert clustered(values, seed=3) == clustered(values, seed=3)
    assert clustered(values, seed=3) != clustered(values, seed=4)


def test_copies_of_a_sample_narrow_nothing():
    # Eight equal samples of a problem say no more than one: near to Wilson's interval of one, not half as wide.
    once = [i % 5 == 0 for i in range(500)]
    _, low, high = clustered([[right] * 8 for right in once])
    assert (low, high) == pytest.approx(wilson(100, 500)[1:], abs=0.003)


def test_where_all_problems_agree_the_interval_still_has_a_width():
    assert clustered([[1.0] * 8] * 50) == wilson(50, 50)
    assert clustered([[0.0] * 8] * 50, difference=True) == paired_difference(0, 0, 50)


def test_where_nearly_all_problems_agree_the_interval_is_that_of_one_sample_a_problem():
    # 4 problems with 2 of 8 right are one right problem in 50.
    assert clustered([[1, 1, 0, 0, 0, 0, 0, 0]] * 4 + [[0] * 8] * 46) == wilson(1, 50)
    # 4 problems that gain in 4 of 8 samples and 2 that lose in all are 2 gained and 2 lost in 50.
    values = [[1, 1, 1, 1, 0, 0, 0, 0]] * 4 + [[-1] * 8] * 2 + [[0] * 8] * 44
    assert clustered(values, difference=True) == paired_difference(2, 2, 50)


def test_numbers_of_any_kind_and_number_of_samples_are_drawn_in_batches():
    rng = np.random.default_rng(0)
    values = [list(rng.random(1 + i % 3)) for i in range(3000)]
    # The mean is 0.5, the deviation sqrt(1 / 12); 6000 independent numbers: 1.96 * 0.2887 / sqrt(6000) = 0.0073.
    _, low, high = clustered(values)
    assert high - low == pytest.approx(2 * 0.0073, rel=0.08)


def test_a_negative_number_is_refused_unless_numbers_are_differences():
    values = [[-1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="-1 to 1 are no shares; differences need difference=True"):
        clustered(values)
    assert clustered(values, difference=True).value == 0.0


@pytest.mark.parametrize("values", [[], [[], []]])
def test_nothing_counted_has_no_interval(values):
    with pytest.raises(ValueError, match="of nothing has no interval"):
        clustered(values)


@pytest.mark.parametrize(("gained", "lost"), [(29, 7), (13, 11), (8, 1), (0, 0), (40, 45)])
def test_exchanging_the_sides_of_single_samples_is_the_exact_mcnemar_test(gained, lost):
    p = mcnemar(gained, lost)
    drawn = sign_flip([1] * gained + [-1] * lost + [0] * 100)
    assert drawn == pytest.approx(p, abs=1e-5 + 4 * (p * (1 - p) / 100_000) ** 0.5)


def test_exchanging_the_sides_by_hand():
    # |+-2 +-1 +-1| is 4 for 2 of the 8 signs.
    assert sign_flip([2, 1, 1]) == pytest.approx(2 / 8, abs=0.006)


def test_the_interval_over_seeds_by_hand():
    # Four problems, two seeds with means 0.25 and 0.75: their mean square is 4 * 0.125 = 0.5, that of problems (0,
    # 0.5, 0.5, 1) 2 * 0.5 / 3 = 0.3333, what is left 0.5 / 3 = 0.1667. t of 1 degree of freedom is 12.706:
    # half width^2 = 12.706^2 * 0.5 / 8 + 1.96^2 * (0.3333 - 0.1667) / 8, so 3.186 and the range cuts it.
    assert hierarchical([[0, 0, 0, 1], [0, 1, 1, 1]]) == (0.5, 0.0, 1.0)
    assert hierarchical_p([[0, 0, 0, 1], [0, 1, 1, 1]]) == pytest.approx(0.295, abs=0.03)


def test_what_seeds_share_is_not_counted_anew_for_each():
    # Five equal runs: as much as one of them, on 400 problems of which half are right.
    once = [i % 2 for i in range(400)]
    _, low, high = hierarchical([once] * 5)
    assert (low, high) == pytest.approx(wilson(200, 400)[1:], abs=0.001)


def test_where_seeds_differ_more_problems_do_not_help():
    def width(problems: int) -> float:
        rng = np.random.default_rng(0)
        found = hierarchical([(rng.random(problems) < share).astype(float) for share in (0.3, 0.5, 0.7)])
        return found.high - found.low

    # Means 0.3, 0.5, 0.7: deviation 0.2, 4.303 * 0.2 / sqrt(3) = 0.497 on either side.
    assert width(20_000) == pytest.approx(2 * 0.497, abs=0.02)


def test_where_no_seed_shows_a_difference_the_interval_has_a_width():
    assert hierarchical([[0.0] * 50] * 2, difference=True) == paired_difference(0, 0, 50)
    assert hierarchical_p([[0.0] * 50] * 2) == 1.0


def test_the_p_value_over_seeds_is_where_the_interval_reaches_zero():
    rng = np.random.default_rng(5)
    values = rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(4, 300)) * 1.0
    p = hierarchical_p(values)
    assert (p < 0.05) == (hierarchical(values, difference=True).low > 0)
    shift = hierarchical(values, difference=True).low
    assert hierarchical_p(values - shift) == pytest.approx(0.05)


@pytest.mark.parametrize("values", [[[1, 0]], [[1], [0]], [[1, 0], [1, 0, 1]]])
def test_too_little_for_an_interval_over_seeds_is_refused(values):
    with pytest.raises(ValueError, match="expected two or more, equally many each"):
        hierarchical(values)
