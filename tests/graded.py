"""Graded episodes written by hand, for what only counts them."""

from __future__ import annotations

from collections.abc import Sequence

from score_rl.episodes import Attempt, Episode, Grade, Problem


def attempt(mark: str, *, answer: str | None = "", text: str = "", tokens: int = 3, **fields: object) -> Attempt:
    """An attempt that is right (`mark` is "r") or wrong ("w"); its answer follows from the mark unless given."""
    correct = {"r": True, "w": False}[mark]
    grade = Grade(correct, float(correct), mark if answer == "" else answer)
    return Attempt((), tuple(range(tokens)), text, **{"finished": True, "grade": grade, **fields})  # type: ignore[arg-type]


def episode(marks: str, *, problem: str = "p", path: Sequence[int] = (), sampled: bool = True) -> Episode:
    """An episode from its marks, e.g. "wr" for wrong, then right; a stored first attempt where not `sampled`."""
    attempts = tuple(attempt(mark, sampled=sampled or k > 0) for k, mark in enumerate(marks))
    return Episode(Problem(problem, "1 + 1", "2"), attempts, tuple(path) or (0,) * len(marks))


def episodes(*marks: str) -> list[Episode]:
    """One episode a problem."""
    return [episode(word, problem=f"p{i}") for i, word in enumerate(marks)]
