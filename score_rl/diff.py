"""What changed between two attempts, word by word, as places in either text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rapidfuzz.distance import Indel

MAX_CELLS = 200_000_000
"""Pairs of words that are compared at most, one bit each; a second attempt of that length is no correction."""

_WORD = re.compile(r"\w+|[^\w\s]")
_LETTER = re.compile(r"\S")
_INNER_BLANK = re.compile(r"\S\s+\S")


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a text."""

    start: int
    end: int


class Changes(NamedTuple):
    """Places of the first text that the second has not, and the other way round, each in order and apart."""

    removed: list[Span]
    added: list[Span]


class _Edit(NamedTuple):
    """Words `a` to `a_end` of the first text became words `b` to `b_end` of the second."""

    a: int
    a_end: int
    b: int
    b_end: int


def compare(before: str, after: str) -> Changes:
    """The words that differ, as few as possible; blanks count for nothing, and neither does a lone word in between.

    Where no text has a blank inside, as digit strings have none, characters are compared instead. If the texts differ
    over more than `MAX_CELLS` pairs of words, everything between their equal ends counts as changed.

    >>> compare("so x is 5, I think", "so x is 7, I think")
    Changes(removed=[Span(start=8, end=9)], added=[Span(start=8, end=9)])
    >>> compare("6916620453", "6916630453").added
    [Span(start=5, end=6)]
    """
    by_word = any(_INNER_BLANK.search(text) for text in (before, after))
    pattern = _WORD if by_word else _LETTER
    a, b = ([match.span() for match in pattern.finditer(text)] for text in (before, after))
    edits = _edits(pattern.findall(before), pattern.findall(after))
    if by_word:
        edits = _without_islands(edits)
    return Changes(_joined(a, ((e.a, e.a_end) for e in edits)), _joined(b, ((e.b, e.b_end) for e in edits)))


def _edits(a: Sequence[str], b: Sequence[str]) -> list[_Edit]:
    shorter = min(len(a), len(b))
    head = next((n for n in range(shorter) if a[n] != b[n]), shorter)
    tail = next((n for n in range(shorter - head) if a[-1 - n] != b[-1 - n]), shorter - head)
    a_end, b_end = len(a) - tail, len(b) - tail
    if (a_end - head) * (b_end - head) > MAX_CELLS:
        return [_Edit(head, a_end, head, b_end)]
    # As numbers, because two different words may have one hash.
    numbers: dict[str, int] = {}
    ids_a, ids_b = ([numbers.setdefault(w, len(numbers)) for w in side] for side in (a[head:a_end], b[head:b_end]))
    edits: list[_Edit] = []
    for op in Indel.opcodes(ids_a, ids_b):
        if op.tag == "equal":
            continue
        edit = _Edit(op.src_start + head, op.src_end + head, op.dest_start + head, op.dest_end + head)
        if edits and (edits[-1].a_end, edits[-1].b_end) == (edit.a, edit.b):
            edit = _Edit(edits[-1].a, edit.a_end, edits.pop().b, edit.b_end)
        edits.append(edit)
    return edits


def _without_islands(edits: Iterable[_Edit]) -> list[_Edit]:
    """Edits joined over equal words that are no more than what changed on either side of them.

    Two sentences about different things share their commas and their articles, and nobody reads those as kept.
    """
    joined: list[_Edit] = []
    for edit in edits:
        last = edit
        while joined and last.a - joined[-1].a_end <= min(_size(joined[-1]), _size(last)):
            before = joined.pop()
            last = _Edit(before.a, last.a_end, before.b, last.b_end)
        joined.append(last)
    return joined


def _size(edit: _Edit) -> int:
    return max(edit.a_end - edit.a, edit.b_end - edit.b)


def _joined(words: Sequence[tuple[int, int]], changed: Iterable[tuple[int, int]]) -> list[Span]:
    return [Span(words[start][0], words[end - 1][1]) for start, end in changed if start < end]
