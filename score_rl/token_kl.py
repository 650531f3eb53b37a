"""How far a policy is from its reference at each token of stored episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from score_rl.batch import micro_batches, rows
from score_rl.chat import Chat
from score_rl.episodes import Attempt, Episode
from score_rl.policy import Policy

PART = 64
"""Episodes that are scored, and their rows made, at once."""


def with_contexts(episode: Episode, chat: Chat) -> Episode:
    """The episode with the contexts that its attempts were sampled in, where they were not stored."""
    attempts: list[Attempt] = []
    for attempt in episode.attempts:
        context = chat.context(episode.problem.question, attempts, attempt.critique)
        attempts.append(dataclasses.replace(attempt, context_ids=context))
    return dataclasses.replace(episode, attempts=tuple(attempts))


@torch.no_grad()
def token_kl(
    policy: Policy,
    chat: Chat,
    episodes: Sequence[Episode],
    *,
    temperature: float,
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """For each episode its problem's id, its path, and the tokens of each attempt with their KL, in nats.

    The KL is exact: KL(policy || reference) summed over the vocabulary, given all tokens before. So it is negative by
    rounding alone, and a first attempt that the policy did not sample has one too.

    Args:
        episodes: with token ids; contexts are made anew.
        temperature: of both distributions; 1 where the attempts were greedy.
        max_tokens: padded tokens in one forward pass.
        progress: called with the number of episodes done since the last call.
    """
    device = next(policy.parameters()).device
    for start in range(0, len(episodes), PART):
        part = [with_contexts(episode, chat) for episode in episodes[start : start + PART]]
        own = [
            dataclasses.replace(e, attempts=tuple(dataclasses.replace(a, sampled=True) for a in e.attempts))
            for e in part
        ]
        found: dict[tuple[int, int], list[float]] = {}
        for batch in micro_batches(rows(own), policy.pad_id, max_tokens, device):
            inputs = (batch.input_ids, batch.attention_mask, batch.predicts)
            states = policy.reference_hidden(*inputs)
            scores = policy(*inputs, temperature=temperature, reference_states=states)
            places = zip(batch.token_episode.tolist(), batch.token_turn.tolist(), strict=True)
            for place, value in zip(places, scores.exact_kl.tolist(), strict=True):
                found.setdefault(place, []).append(value)
        for number, episode in enumerate(part):
            attempts = [
                {"tokens": pieces(chat, attempt.token_ids), "kl": found.get((number, turn), [])}
                for turn, attempt in enumerate(episode.attempts, start=1)
            ]
            yield {"id": episode.problem.id, "path": list(episode.path), "attempts": attempts}
        if progress:
            progress(len(part))


def pieces(chat: Chat, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds, special tokens included; together they are the whole text.

    A token that ends within a character adds nothing, and the one that completes it adds the character.
    """

    def text(start: int, stop: int) -> str:
        ids = list(token_ids[start:stop])
        return str(chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    # Some tokenizers drop the space in front of what they decode first, so each is decoded behind the one before.
    found: list[str] = []
    before, done = 0, 0
    for stop in range(1, len(token_ids) + 1):
        old, new = text(before, done), text(before, stop)
        if new.endswith("\ufffd") and stop < len(token_ids):
            found.append("")
            continue
        found.append(new[len(old) :])
        before, done = done, stop
    return found
