"""The tokens of an episode, attempt by attempt, as a model would see them."""

from __future__ import annotations

from dataclasses import dataclass

from score_rl.chat import Chat
from score_rl.episodes import Attempt, Critique

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True)
class Part:
    """An attempt and what stands in front of it.

    Attributes:
        context_ids: the whole context.
        nested: how many of its first tokens are the last context and the last attempt; 0 where it was rewritten.
        token_ids: the attempt, its end token included.
        instruction: the one in front of the attempt; None in front of attempt 1.
    """

    context_ids: tuple[int, ...]
    nested: int
    token_ids: tuple[int, ...]
    instruction: str | None


def lay_out(chat: Chat, question: str, attempts: int) -> list[Part]:
    """An episode with placeholders for attempts, which end as the model would end them."""
    parts: list[Part] = []
    made: list[Attempt] = []
    for number in range(1, attempts + 1):
        critique = None
        if made and chat.settings.feedback is not None:
            critique = Critique(placeholder(chat, "critique"), "critique", finished=True)
        context = chat.context(question, made, critique)
        before = parts[-1].context_ids + parts[-1].token_ids if parts else ()
        nested = len(before) if context[: len(before)] == before else 0
        token_ids = placeholder(chat, f"{ORDINALS[number - 1] if number <= len(ORDINALS) else number} attempt")
        asked = chat.instructions[chat.instruction(question, number - 1)] if made else None
        parts.append(Part(context, nested, token_ids, asked))
        made.append(Attempt(context, token_ids, chat.decode(token_ids), finished=True, critique=critique))
    return parts


def placeholder(chat: Chat, text: str) -> tuple[int, ...]:
    """Tokens that a model of this family could have sampled to say `text`; with thoughts if the prompt opens some."""
    if "<think>" in chat.prefix and "</think>" not in chat.prefix:
        text = f"thoughts\n</think>\n\n{text}"
    return (*chat.template.encode(chat.header + text), *chat.closing_ids)
