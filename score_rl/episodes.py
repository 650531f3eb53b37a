"""The records that everything else passes around: Problem, Grade, Attempt, Episode."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

KEPT = "kept"
"""Note of the grade of an attempt that keeps the one before it (`chat.keep`)."""


@dataclass(frozen=True)
class Problem:
    """A question with its gold answer or all accepted ones; `meta` has the data's other columns (level, tests, ...)."""

    id: str
    question: str
    answer: str | list[str]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> list[str]:
        """The accepted answers."""
        return [self.answer] if isinstance(self.answer, str) else self.answer


@dataclass(frozen=True)
class Grade:
    """What a grader says of one attempt.

    `correct` is what accuracies count; `reward` is what training maximises; `answer` is what was extracted
    (None if nothing was); `note` says why a grade is what it is (`timeout`, `unparsable`, `crashed`, ...). A reward of
    None means that nobody can tell: the episode is left out of training and of accuracies, and counted as ungraded.
    """

    correct: bool
    reward: float | None
    answer: str | None = None
    note: str | None = None

    def of_keeping(self) -> Grade:
        """The grade of an attempt that keeps the one that has this grade."""
        return replace(self, note=KEPT)


@dataclass(frozen=True)
class Critique:
    """What the policy wrote of its last attempt before it made another (`chat.feedback`); no attempt of its own."""

    token_ids: tuple[int, ...]
    text: str
    finished: bool
    num_tokens: int | None = None

    @property
    def length(self) -> int:
        """Tokens, as of an attempt."""
        return len(self.token_ids) if self.num_tokens is None else self.num_tokens


@dataclass(frozen=True)
class Attempt:
    """One answer of the policy.

    Attributes:
        context_ids: every token in front of the attempt, from the start of the conversation.
        token_ids: what was sampled, the end-of-turn token included if it was sampled.
        finished: the end-of-turn token was sampled (False: cut off at the token limit).
        sampled: by the policy that is being trained, in this step. False for a stored first attempt, which
            gets neither policy gradient nor KL.
        engine_logprobs: log-probability of each token under the distribution it was sampled from, in nats.
        num_tokens: how many tokens there were, where an engine counts them and does not give their ids.
        critique: of the attempt before it, which stands in its context; None where none was asked for.
    """

    context_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    sampled: bool = True
    engine_logprobs: tuple[float, ...] = ()
    grade: Grade | None = None
    num_tokens: int | None = None
    critique: Critique | None = None

    @property
    def length(self) -> int:
        """Tokens, the end-of-turn token included if it was sampled."""
        return len(self.token_ids) if self.num_tokens is None else self.num_tokens

    @property
    def cost(self) -> int:
        """Tokens that were sampled for it: its own and those of the critique in front of it."""
        return self.length + (self.critique.length if self.critique else 0)

    @property
    def keeps(self) -> bool:
        """Whether it says no more than that the attempt before it stands."""
        return self.grade is not None and self.grade.note == KEPT

    @property
    def correct(self) -> bool:
        """Whether the grader called the attempt right; an ungraded attempt is a programming error."""
        assert self.grade is not None, "the attempt has not been graded"
        return self.grade.correct


@dataclass(frozen=True)
class Episode:
    """A problem with its attempts, in order.

    `path` places the episode in its problem's tree of samples: `path[k-1]` numbers attempt `k` among those that
    share its context, so two episodes with equal `path[:k]` share attempts 1 to k.
    """

    problem: Problem
    attempts: tuple[Attempt, ...]
    path: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for one JSON line; `from_json` gives the same episode back."""
        return asdict(self)

    @property
    def texts(self) -> list[str]:
        """What each attempt comes to: its text, or that of the attempt that it keeps."""
        found: list[str] = []
        for attempt in self.attempts:
            found.append(found[-1] if attempt.keeps and found else attempt.text)
        return found

    @property
    def graded(self) -> bool:
        """Whether every attempt has a reward."""
        return all(attempt.grade is not None and attempt.grade.reward is not None for attempt in self.attempts)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Episode:
        """The episode that `to_json` wrote."""
        attempts = tuple(
            Attempt(
                **{
                    **attempt,
                    "context_ids": tuple(attempt["context_ids"]),
                    "token_ids": tuple(attempt["token_ids"]),
                    "engine_logprobs": tuple(attempt["engine_logprobs"]),
                    "grade": None if attempt["grade"] is None else Grade(**attempt["grade"]),
                    "critique": _critique(attempt.get("critique")),
                }
            )
            for attempt in row["attempts"]
        )
        return cls(Problem(**row["problem"]), attempts, tuple(row["path"]))


def _critique(row: dict[str, Any] | None) -> Critique | None:
    return None if row is None else Critique(**{**row, "token_ids": tuple(row["token_ids"])})
