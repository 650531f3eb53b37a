import pytest
from graded import episode, episodes
from hypothesis import given
from hypothesis import strategies as st

from score_rl.metrics import self_correction, training_metrics

words = st.lists(st.text("rw", min_size=2, max_size=2), min_size=1, max_size=200)


@given(words)
def test_delta_is_i_c_minus_c_i_exactly(marks):
    # Of n problems g are gained and l lost, and acc/t2 - acc/t1 = (g - l) / n whatever stays right or wrong. As counts
    # the two sides are equal to the last bit; as fractions each is rounded once, so they may differ by a rounding.
    total = len(marks)
    for metrics in (self_correction(episodes(*marks)), training_metrics(episodes(*marks))):
        counts = [round(metrics[key] * total) for key in ("delta/t1_t2", "delta/i_c", "delta/c_i")]
        assert counts[0] == counts[1] - counts[2] == sum(m[1] == "r" for m in marks) - sum(m[0] == "r" for m in marks)
        assert metrics["delta/t1_t2"] == counts[0] / total
        assert metrics["delta/t1_t2"] == pytest.approx(metrics["acc/t2"] - metrics["acc/t1"], abs=1e-15)
        assert metrics["delta/t1_t2"] == pytest.approx(metrics["delta/i_c"] - metrics["delta/c_i"], abs=1e-15)


@given(words, st.integers(2, 4))
def test_delta_is_i_c_minus_c_i_exactly_over_all_samples_too(marks, samples):
    made = [episode(word, problem=f"p{i // samples}", path=(i % samples, 0)) for i, word in enumerate(marks)]
    metrics, total = self_correction(made), len(marks)
    counts = [round(metrics[key] * total) for key in ("delta/t1_t2", "delta/i_c", "delta/c_i")]
    assert counts[0] == counts[1] - counts[2] == sum(m[1] == "r" for m in marks) - sum(m[0] == "r" for m in marks)
    assert metrics["delta/t1_t2"] == counts[0] / total
    wrong = sum(word[0] == "w" for word in marks)
    for key, value in (("rate/fix", wrong and counts[1] / wrong), ("rate/break", counts[2] / max(1, total - wrong))):
        assert metrics.get(key, 0) == pytest.approx(value, abs=1e-15)
