import pytest

from score_rl.resampling import clustered
from score_rl.stats import paired_difference, wilson


def test_the_value_is_the_mean_of_all_samples():
    assert clustered([[1, 0], [1, 1], [0, 0], [1, 0]]).value == 4 / 8
    assert clustered([[1, 0, 0], [1], []]).value == 2 / 4


def test_equal_data_and_seed_give_an_equal_interval():
    values = [[i % 2, i % 3 == 0] for i in range(50)]
    assert clustered(values, seed=3) == clustered(values, seed=3)
    assert clustered(values, seed=3) != clustered(values, seed=4)


def test_where_all_problems_agree_the_interval_still_has_a_width():
    assert clustered([[1.0] * 8] * 50) == wilson(50, 50)
    assert clustered([[0.0] * 8] * 50, difference=True) == paired_difference(0, 0, 50)


def test_a_negative_number_is_refused_unless_numbers_are_differences():
    values = [[-1.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="difference=True"):
        clustered(values)
    assert clustered(values, difference=True).value == 0.0


@pytest.mark.parametrize("values", [[], [[], []]])
def test_nothing_counted_has_no_interval(values):
    with pytest.raises(ValueError, match="of nothing has no interval"):
        clustered(values)
