"""The schema of a conversation's settings: the words around the question, and how they become tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from score_rl.episodes import Attempt, Critique
from score_rl.strict import Positive, Schema


def _iso(value: Any) -> Any:
    """YAML reads 2024-07-26 as a date."""
    return value.isoformat() if isinstance(value, date) else value


class ShotSettings(Schema):
    """A solved problem in front of the question: one answer, or several attempts with the instruction between them."""

    question: str
    answer: str | None = None
    attempts: list[str] = Field(default_factory=list)
    instruction: str | None = None
    """Between the attempts; one of `chat.instruction` when null."""

    @property
    def said(self) -> list[str]:
        """The attempts, in order."""
        return self.attempts if self.answer is None else [self.answer]

    @model_validator(mode="after")
    def _has_one_of_both(self) -> ShotSettings:
        if (self.answer is None) == (not self.attempts):
            raise ValueError(f"question={self.question!r} needs either an answer or a list of attempts")
        return self


def read_shot(row: Any) -> ShotSettings:
    """The example that a row of a list or of a file is.

    Raises:
        ValueError: one line that names the field.
    """
    try:
        return ShotSettings.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{field + ': ' if field else ''}{first['msg'].removeprefix('Value error, ')}") from error


def _shots(value: Any) -> Any:
    """Examples of a list, validated one by one: the messages for a type of two kinds name neither row nor field."""
    return [read_shot(row) for row in value] if isinstance(value, list) else value


class ChatSettings(Schema):
    """The words around the question."""

    system: str | None = None
    """System prompt; in front of the first user turn where the template has no system role (Gemma)."""
    instruction: str | list[str] = (
        "There might be an error in the solution above. Please correct the error, if any, and rewrite the solution."
    )
    """Asks for the next attempt; of several, one is drawn for each question and attempt, the same in every run."""
    feedback: str | None = None
    """Evaluation only: asks for a critique of each attempt, which the policy writes before `instruction` asks for the
    next one (Self-Refine)."""
    keep: str | None = None
    """A later attempt that starts with this text, behind its thoughts if it has some, keeps the attempt before it."""
    few_shot: Annotated[str | list[ShotSettings], BeforeValidator(_shots)] = Field(default_factory=list)
    """Solved problems in front of the question: a list of `{question, answer}` or `{question, attempts, instruction}`,
    or a JSON Lines file of such rows."""
    history: Literal["verbatim", "template"] = "verbatim"
    """`verbatim`: each context starts with the last one and its attempt, token for token, thoughts included.
    `template`: the chat template renders the conversation anew, and may leave thoughts out."""
    keep_attempts: Positive | None = None
    """Earlier attempts that a context carries, the latest ones; all when null. Bounds the context of many attempts."""
    enable_thinking: bool | None = None
    """For templates that know the switch (Qwen3, GLM-4.5, Nemotron 3, Gemma 4); the template decides when null."""
    template: str | None = None
    """A Jinja file in place of the tokenizer's own chat template."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """More variables of the template, e.g. `chat.template_options.reasoning_effort=low`."""
    date: Annotated[str, BeforeValidator(_iso), Field(pattern=r"^\d{4}-\d\d-\d\d$")] = "2024-07-26"
    """What a template that writes today's date is told (Llama 3, gpt-oss), so that a run of several days sees one
    prompt; Llama 3.1's own default."""
    max_prompt_tokens: Positive | None = None
    """Problems whose first prompt is longer are left out and counted; none are when null. Nothing is ever cut."""

    @property
    def instructions(self) -> list[str]:
        """The instructions, in order; one of them in most runs."""
        return [self.instruction] if isinstance(self.instruction, str) else self.instruction

    def keeps(self, number: int, text: str) -> bool:
        """Whether attempt `number` (from 1) says no more than that the one before it stands."""
        if self.keep is None or number == 1:
            return False
        return text.rpartition("</think>")[2].strip().startswith(self.keep.strip())

    @property
    def requests(self) -> list[str]:
        """All that the policy is asked behind what it said: the instructions, and `feedback` if there is one."""
        return self.instructions + ([] if self.feedback is None else [self.feedback])

    def said(
        self, question: str, attempts: Sequence[Attempt], critique: Critique | None
    ) -> list[tuple[Attempt | Critique, int]]:
        """What a context carries behind the question, each with the place in `requests` of what follows it.

        Where `keep_attempts` cuts, an attempt that keeps another makes room for that one.

        Args:
            critique: of the last attempt; where the settings ask for one and this is None, that request is the end.
        """
        numbers = list(range(1, len(attempts) + 1))
        if self.keep_attempts is not None and len(attempts) > self.keep_attempts:
            numbers = [n for n in numbers if not self.keeps(n, attempts[n - 1].text)][-self.keep_attempts :]
        found: list[tuple[Attempt | Critique, int]] = []
        for number in numbers:
            asked = self.draw(question, number)
            found.append((attempts[number - 1], asked if self.feedback is None else len(self.instructions)))
            behind = critique if number == numbers[-1] else attempts[number].critique
            if self.feedback is not None and behind is not None:
                found.append((behind, asked))
        return found

    def draw(self, question: str, number: int) -> int:
        """Which of the instructions follows attempt `number` (from 1): drawn, and always the same for this question."""
        digest = hashlib.blake2b(repr((question, number)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % len(self.instructions)

    def shot_turns(self, shot: ShotSettings) -> list[tuple[str, str]]:
        """Role and text of each turn of a solved problem."""
        turns = [("user", shot.question)]
        for number, attempt in enumerate(shot.said, start=1):
            if number > 1:
                drawn = self.instructions[self.draw(shot.question, number - 1)]
                turns.append(("user", shot.instruction or drawn))
            turns.append(("assistant", attempt))
        return turns

    @model_validator(mode="after")
    def _is_complete(self) -> ChatSettings:
        if not self.instructions:
            raise ValueError("instruction=[] is empty; say what is asked between two attempts")
        for key in ("feedback", "keep"):
            if getattr(self, key) is not None and not getattr(self, key).strip():
                raise ValueError(f"{key}: empty; give it a text, or null")
        try:
            date.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"date={self.date}: {error}; use e.g. 2024-07-26") from error
        return self
