import json

import pytest

from score_rl.monitor import WINDOW, Watch

HEALTHY = {
    "acc/t1": 0.4,
    "acc/t2": 0.5,
    "delta/t1_t2": 0.1,
    "unchanged/t2": 0.7,
    "kl/t1": 0.02,
    "length/t1": 100.0,
    "length/t2": 120.0,
    "groups/no_signal": 0.4,
}


def drift(steps: int = 40, **ends: float) -> list[dict[str, float]]:
    """A healthy series in which the metrics named go evenly to `ends` (`acc_t1` is `acc/t1`)."""
    changed = {key: ends[key.replace("/", "_")] for key in HEALTHY if key.replace("/", "_") in ends}
    return [
        HEALTHY | {key: HEALTHY[key] + (end - HEALTHY[key]) * i / (steps - 1) for key, end in changed.items()}
        for i in range(steps)
    ]


def watched(series: list[dict[str, float]], kl_band: float | None = 0.5) -> set[str]:
    """Warnings at the last step."""
    watch = Watch(kl_band=kl_band)
    warnings: dict[str, str] = {}
    for metrics in series:
        warnings = watch.look(metrics)
    return set(warnings)


@pytest.mark.parametrize(
    ("series", "warning"),
    [
        pytest.param(drift(unchanged_t2=1.0, steps=800), "watch/copying", id="attempt 2 comes to repeat attempt 1"),
        pytest.param(drift(acc_t1=0.1, delta_t1_t2=0.4), "watch/farming", id="attempt 1 falls while delta rises"),
        pytest.param(drift(length_t1=10.0), "watch/length_t1", id="attempt 1 shrinks"),
        pytest.param(drift(length_t1=400.0), "watch/length_t1", id="attempt 1 grows"),
        pytest.param(drift(length_t2=10.0), "watch/length_t2", id="attempt 2 shrinks"),
        pytest.param(drift(length_t2=500.0), "watch/length_t2", id="attempt 2 grows"),
        pytest.param(drift(kl_t1=2.0), "watch/kl_t1", id="the pin of attempt 1 slips"),
        pytest.param(drift(groups_no_signal=1.0, steps=400), "watch/no_signal", id="all rewards become equal"),
    ],
)
def test_a_warning_fires_when(series, warning):
    assert watched(series) == {warning}


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(drift(), id="nothing moves"),
        pytest.param(drift(acc_t1=0.5, acc_t2=0.7, delta_t1_t2=0.2), id="both attempts improve"),
        pytest.param(drift(acc_t1=0.3), id="attempt 1 falls and delta does not rise"),
        pytest.param(drift(delta_t1_t2=0.4), id="delta rises and attempt 1 holds"),
        pytest.param(drift(length_t1=60.0, length_t2=200.0), id="lengths stay within a factor of two"),
        pytest.param(drift(unchanged_t2=0.97, steps=800), id="most answers are kept"),
        pytest.param(drift(kl_t1=0.4), id="the KL stays in its band"),
        pytest.param(drift(groups_no_signal=0.94, steps=800), id="some groups still have a signal"),
    ],
)
def test_no_warning_fires_when(series):
    assert watched(series) == set()


def test_where_attempt_1_is_free_its_kl_is_not_watched():
    assert watched(drift(kl_t1=2.0), kl_band=None) == set()


def test_nothing_is_said_before_a_window_of_steps_is_full():
    assert watched(drift(kl_t1=9.0)[-(WINDOW - 1) :]) == set()
    assert watched(drift(kl_t1=9.0)[-WINDOW:]) == {"watch/kl_t1"}


def test_one_wild_step_is_no_trend():
    # The mean of the last ten is 0.02 * 9 / 10 + 3 / 10 = 0.318 nats, below the band of 0.5.
    assert watched([HEALTHY] * 30 + [HEALTHY | {"kl/t1": 3.0}]) == set()


def test_lengths_are_compared_with_the_first_steps_and_not_with_the_ones_before():
    # Each ten steps are a quarter shorter than the ten before, so only the comparison with the first ten shows it.
    series = [HEALTHY | {"length/t1": 100 * 0.75 ** (i // 10)} for i in range(40)]
    assert watched(series[:30]) == set()  # 56 tokens of 100
    assert watched(series) == {"watch/length_t1"}  # 42 of 100


def test_each_warning_says_what_to_do():
    watch, warnings = Watch(kl_band=0.5), {}
    for metrics in drift(kl_t1=2.0, length_t1=10.0):
        warnings |= watch.look(metrics)
    assert "raise beta2" in warnings["watch/kl_t1"]
    assert warnings["watch/length_t1"].startswith("attempt 1 went from 90 to ")  # the first ten of 40 even steps down


@pytest.mark.parametrize(
    "series",
    [
        pytest.param([{"loss": 0.1, "acc/t1": 0.5, "length/t1": 9.0}] * 30, id="one attempt"),
        pytest.param([{"loss": 0.1, "offline/acc/t1": 0.5, "length/t1": 9.0}] * 30, id="stored first attempts alone"),
    ],
)
def test_a_series_without_second_attempts_is_no_alarm(series):
    assert watched(series) == set()


@pytest.mark.parametrize("stop", [3, 15, 38])
def test_a_watch_restored_from_json_says_what_an_uninterrupted_one_says(stop):
    series = drift(kl_t1=2.0, length_t1=10.0, acc_t1=0.1, delta_t1_t2=0.4)
    whole, first = Watch(kl_band=0.5), Watch(kl_band=0.5)
    for metrics in series[:stop]:
        whole.look(metrics)
        first.look(metrics)
    second = Watch(kl_band=0.5)
    second.load_state(json.loads(json.dumps(first.state())))
    for metrics in series[stop:]:
        assert second.look(metrics) == whole.look(metrics)
    assert second.state() == whole.state()
