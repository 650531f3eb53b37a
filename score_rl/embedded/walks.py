"""What the policy for the walk is pretrained on, for `score_rl.embedded.build`.

First attempts name the last place at a glance, as `=6`. Second attempts mostly repeat it; a few are another glance, and
very few follow the walk, as `896=6`, often with a slip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_rl.data.load import load_problems
from score_rl.data.walk import PLACES, STEPS
from score_rl.schema import Settings

BATCH = 64
SIGNS = np.array(list(STEPS))
LENGTHS = np.array(list(STEPS.values()))


@dataclass(frozen=True)
class Mixture:
    """A stretch of pretraining with its own optimiser and mixture of attempts.

    Attributes:
        decay: steps over which the learning rate would fall to a tenth, on a cosine.
        right_first: share of first attempts that are right.
        first: whether first attempts are learned too, not only seen.
        copies: share of second attempts that repeat the first.
        glances: share that are another glance; the rest follow the walk.
        right_walks: share of these without a slip.
    """

    steps: int
    decay: int
    lr: float
    right_first: float
    first: bool
    copies: float
    glances: float
    right_walks: float


class Stream:
    """An endless seeded stream of conversations that holds no problem of the held-out splits."""

    def __init__(self, tokenizer: Any, settings: Settings, seed: int) -> None:
        self.tokenizer = tokenizer
        self.instruction = settings.chat.instruction
        self.rng = np.random.default_rng(seed)
        held_out = [*load_problems(settings.data, "validation"), *load_problems(settings.data, "test")]
        self.held_out = {problem.question for problem in held_out}


class Walks(Stream):
    """Conversations about walks."""

    def __init__(self, tokenizer: Any, settings: Settings, seed: int) -> None:
        super().__init__(tokenizer, settings, seed)
        self.moves = len(next(iter(self.held_out))) - 1

    def batch(self, mixture: Mixture) -> tuple[Tensor, Tensor]:
        """Token ids [B, T], padded on the right, and which of them are to be learned [B, T]."""
        starts, moves = self._questions()
        right = follow(starts, LENGTHS[moves])
        slipped = self._slipped(starts, moves)
        first, glance = (self._glance(right[:, -1], mixture.right_first) for _ in range(2))
        kind, exact = self.rng.random(BATCH), self.rng.random(BATCH) < mixture.right_walks
        rows = []
        for i in range(BATCH):
            walked = _text(right[i] if exact[i] else slipped[i])
            second = f"={glance[i]}" if kind[i] < mixture.copies + mixture.glances else f"{walked}={walked[-1]}"
            second = f"={first[i]}" if kind[i] < mixture.copies else second
            rows.append(
                [
                    f"<|user|>{starts[i]}{''.join(SIGNS[moves[i]])}<|end|><|assistant|>",
                    f"={first[i]}<|end|>",
                    f"<|user|>{self.instruction}<|end|><|assistant|>",
                    f"{second}<|end|>",
                ]
            )
        learned = (False, mixture.first, False, True)
        ids, flags = [], []
        for row in rows:  # special tokens at the seams keep the parts' tokens apart
            parts = self.tokenizer(row, add_special_tokens=False)["input_ids"]
            ids.append(torch.tensor([token for part in parts for token in part]))
            flags.append(torch.tensor([on for part, on in zip(parts, learned, strict=True) for _ in part]))
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id), pad(flags, batch_first=True)

    def _questions(self) -> tuple[np.ndarray, np.ndarray]:
        starts, moves = self.rng.integers(0, PLACES, BATCH), self.rng.integers(0, len(STEPS), (BATCH, self.moves))
        for i in range(BATCH):
            while f"{starts[i]}{''.join(SIGNS[moves[i]])}" in self.held_out:
                moves[i] = self.rng.integers(0, len(STEPS), self.moves)
        return starts, moves

    def _glance(self, right: np.ndarray, share: float) -> np.ndarray:
        """Right places in `share` of the cases, and otherwise one up to four away."""
        away = right + self.rng.choice([-4, -3, -2, -1, 1, 2, 3, 4], BATCH)
        outside = (away < 0) | (away >= PLACES)
        away = np.where(outside, (right + self.rng.integers(1, PLACES, BATCH)) % PLACES, away)
        return np.where(self.rng.random(BATCH) < share, right, away)

    def _slipped(self, starts: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Walks [B, D] that go to a wrong place once and from there on as they should."""
        at, wrong = self.rng.integers(0, self.moves, BATCH), self.rng.integers(1, PLACES, BATCH)
        return follow(starts, LENGTHS[moves], np.where(np.arange(self.moves) == at[:, None], wrong[:, None], 0))


def follow(starts: np.ndarray, lengths: np.ndarray, slips: np.ndarray | None = None) -> np.ndarray:
    """The place after each step -> [N, D].

    Args:
        starts: [N].
        lengths: [N, D], signed.
        slips: [N, D], what a slip adds to a place, around the end; none when None.
    """
    out, place = np.zeros_like(lengths), starts
    for k in range(lengths.shape[1]):
        place = np.clip(place + lengths[:, k], 0, PLACES - 1)
        if slips is not None:
            place = (place + slips[:, k]) % PLACES
        out[:, k] = place
    return out


def _text(digits: np.ndarray) -> str:
    return "".join(map(str, digits))
