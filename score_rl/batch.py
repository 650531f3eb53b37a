"""Episodes as rows of tokens, and rows as micro-batches that never change the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from score_rl.episodes import Episode


class Row(NamedTuple):
    """One sequence: its ids, and for each the attempt it was sampled in (0: not sampled by this policy).

    Attributes:
        engine_logprobs: for each id the engine's log-prob of it, 0 where it was not sampled; () if nobody stored them.
    """

    episode: int
    ids: tuple[int, ...]
    turn: tuple[int, ...]
    engine_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Right-padded rows for one forward pass.

    Attributes:
        input_ids: [B, T].
        attention_mask: [B, T].
        turn: [B, T]; it is loss mask, attempt mask and the index that spreads per-attempt numbers over tokens.
        row_episode: [B], the episode of each row.
        engine: [B, T], the engine's log-prob of each sampled token; None if nobody stored them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    turn: Tensor
    row_episode: Tensor
    engine: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.input_ids.shape == self.attention_mask.shape == self.turn.shape:
            raise ValueError("input_ids, attention_mask and turn differ in shape")
        if self.row_episode.shape != self.input_ids.shape[:1]:
            raise ValueError("row_episode needs one entry a row")

    @property
    def predicts(self) -> Tensor:
        """[B, T-1]: True where the next token was sampled."""
        return self.turn[:, 1:] > 0

    @property
    def targets(self) -> Tensor:
        """[N] ids of the trained tokens."""
        return self.input_ids[:, 1:][self.predicts]

    @property
    def token_turn(self) -> Tensor:
        """[N] attempt of each trained token, from 1."""
        return self.turn[:, 1:][self.predicts]

    @property
    def token_episode(self) -> Tensor:
        """[N] episode of each trained token."""
        return self.row_episode[:, None].expand_as(self.turn[:, 1:])[self.predicts]

    @property
    def engine_logprobs(self) -> Tensor:
        """[N] log-probs of the trained tokens under the engine that drew them; 0 if nobody stored them."""
        engine = torch.zeros_like(self.turn, dtype=torch.float32) if self.engine is None else self.engine
        return engine[:, 1:][self.predicts]

    def only(self, wanted: Tensor) -> Batch | None:
        """The rows and positions that are needed to score some attempts alone; None if no token is of them.

        Nothing behind the last such token is needed, since a token sees only what stands before it.

        Args:
            wanted: [A], True for the attempts, in order.
        """
        turn = self.turn * torch.cat([wanted.new_zeros(1), wanted])[self.turn]
        if torch.equal(turn, self.turn):
            return self
        rows = turn.any(dim=1)
        if not rows.any():
            return None
        width = int(turn.any(dim=0).nonzero().max()) + 1
        return Batch(
            input_ids=self.input_ids[rows, :width],
            attention_mask=self.attention_mask[rows, :width],
            turn=turn[rows, :width],
            row_episode=self.row_episode[rows],
        )


def rows(episodes: Sequence[Episode]) -> list[Row]:
    """Rows of all episodes: one each, and one more wherever a context does not start with what came before.

    A new row holds the rewritten context, so earlier attempts in it are context (0) and not trained twice.
    """
    out = []
    for index, episode in enumerate(episodes):
        ids: tuple[int, ...] = ()
        turn: tuple[int, ...] = ()
        engine: tuple[float, ...] = ()
        for k, attempt in enumerate(episode.attempts, start=1):
            if ids and attempt.context_ids[: len(ids)] != ids:
                out.append(_row(index, ids, turn, engine))
                ids = turn = engine = ()
            new = len(attempt.context_ids) - len(ids)
            turn += (0,) * new + (k if attempt.sampled else 0,) * len(attempt.token_ids)
            engine += (0.0,) * new + (attempt.engine_logprobs or (0.0,) * len(attempt.token_ids))
            ids = attempt.context_ids + attempt.token_ids
        out.append(_row(index, ids, turn, engine))
    return [row for row in out if any(row.turn)]


def _row(index: int, ids: tuple[int, ...], turn: tuple[int, ...], engine: tuple[float, ...]) -> Row:
    return Row(index, ids, turn, engine if any(engine) else ())


def micro_batches(all_rows: Sequence[Row], pad_id: int, max_tokens: int, device: torch.device) -> list[Batch]:
    """Rows of like length together, at most `max_tokens` padded tokens each (a longer row goes alone)."""
    return [collate(part, pad_id, device) for part in _split(all_rows, max_tokens)]


def batch_sizes(all_rows: Sequence[Row], max_tokens: int) -> list[tuple[int, int]]:
    """Rows and padded tokens of each of `micro_batches`."""
    return [(len(part), len(part) * len(part[0].ids)) for part in _split(all_rows, max_tokens)]


def _split(all_rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    batches: list[list[Row]] = []
    for row in sorted(all_rows, key=lambda r: -len(r.ids)):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > max_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def collate(part: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """A batch of rows, padded on the right."""
    width = max(len(row.ids) for row in part)

    def padded(values: Sequence[tuple[Any, ...]], fill: float) -> Tensor:
        return torch.tensor([v + (fill,) * (width - len(v)) for v in values], device=device)

    return Batch(
        input_ids=padded([row.ids for row in part], pad_id),
        attention_mask=padded([(1,) * len(row.ids) for row in part], 0),
        turn=padded([row.turn for row in part], 0),
        row_episode=torch.tensor([row.episode for row in part], device=device),
        engine=padded([row.engine_logprobs for row in part], 0.0) if any(row.engine_logprobs for row in part) else None,
    )
