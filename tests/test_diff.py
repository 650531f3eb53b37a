"""The word-level diff: by hand, against the definition on drawn texts, and on texts made to be slow."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from score_rl.diff import Span, compare


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts with what changed in brackets."""
    shown = []
    for text, spans in zip((before, after), compare(before, after), strict=True):
        for start, end in reversed(spans):
            text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
        shown.append(text)
    return shown[0], shown[1]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        pytest.param("2 + 3 = 6", "2 + 3 = 5", ("2 + 3 = [6]", "2 + 3 = [5]"), id="a word"),
        pytest.param("It is 4.", "It is not 4.", ("It is 4.", "It is [not] 4."), id="a word more"),
        pytest.param("It is 47.", "It is 45.", ("It is [47].", "It is [45]."), id="whole words, not their letters"),
        pytest.param("so 4", "so 4.", ("so 4", "so 4[.]"), id="a full stop is a word of its own"),
        pytest.param("a  b\n\nc", " a b c ", ("a  b\n\nc", " a b c "), id="blanks count for nothing"),
        pytest.param("", "all new", ("", "[all new]"), id="from nothing"),
        pytest.param("all gone", "", ("[all gone]", ""), id="to nothing"),
        pytest.param("6916620453", "6916630453", ("69166[2]0453", "69166[3]0453"), id="digits, by character"),
        pytest.param("123\n", "124\n", ("12[3]\n", "12[4]\n"), id="a newline at the end is no blank inside"),
        pytest.param("東京都です", "京都です", ("[東]京都です", "京都です"), id="writing without blanks, by character"),
        pytest.param("12345", "the answer is 12345", ("12345", "[the answer is] 12345"), id="one text with blanks"),
        pytest.param(
            "First we add the two, then halve.",
            "Instead, multiply the lot, never halve.",
            ("[First we add the two, then] halve.", "[Instead, multiply the lot, never] halve."),
            id="shared articles and commas between changes are no news",
        ),
        pytest.param(
            "one x two three four five y six",
            "one u two three four five v six",
            ("one [x] two three four five [y] six", "one [u] two three four five [v] six"),
            id="a longer stretch in between is kept",
        ),
    ],
)
def test_changed_words_by_hand(before, after, shown):
    assert marked(before, after) == shown


def kept(text: str, spans: list[Span]) -> str:
    for start, end in reversed(spans):
        text = text[:start] + text[end:]
    return "".join(text.split())


TEXT = st.text(st.sampled_from("ab,. \n"), max_size=30) | st.text(max_size=12)


@given(TEXT, TEXT)
@example("a b", "ab")
def test_what_is_not_marked_is_the_same_in_both_texts(before, after):
    removed, added = compare(before, after)
    assert kept(before, removed) == kept(after, added)
    for text, spans in ((before, removed), (after, added)):
        ends = [place for span in spans for place in span]
        assert ends == sorted(ends) and all(0 <= start < end <= len(text) for start, end in spans)
        assert all(text[start:end] == text[start:end].strip() for start, end in spans)


@given(TEXT)
def test_equal_texts_have_no_changes(text):
    assert compare(text, text) == ([], [])


@given(st.text(st.sampled_from("abc"), max_size=12), st.text(st.sampled_from("abc"), max_size=12))
def test_as_few_characters_as_possible_are_marked(before, after):
    # The longest common subsequence by the textbook recursion.
    best = [[0] * (len(after) + 1) for _ in range(len(before) + 1)]
    for i, x in enumerate(before, start=1):
        for j, y in enumerate(after, start=1):
            best[i][j] = best[i - 1][j - 1] + 1 if x == y else max(best[i - 1][j], best[i][j - 1])
    removed, added = compare(before, after)
    assert sum(end - start for start, end in removed) == len(before) - best[-1][-1]
    assert sum(end - start for start, end in added) == len(after) - best[-1][-1]


def test_two_long_attempts_with_nothing_in_common_are_marked_between_their_equal_ends():
    before = "start " + "a b " * 130_000 + "end"  # a megabyte between them
    after = "start " + "c d " * 130_000 + "end"
    assert compare(before, after) == ([Span(6, len(before) - 4)], [Span(6, len(after) - 4)])
    assert compare(before, before + " 5").added == [Span(len(before) + 1, len(before) + 2)]
