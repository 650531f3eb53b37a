"""Makes a small policy that ships with the package: `python -m score_rl.embedded.build --policy NAME -o DIR`.

It is pretrained from nothing on two-attempt conversations whose answers are often wrong and whose second attempts
mostly repeat the first. So it behaves as base models do: it can solve the problems better than it lets on, and asked to
correct itself, it repeats itself.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from score_rl.chat import Chat
from score_rl.data.load import load_problems
from score_rl.embedded.walks import Mixture, Stream, Walks
from score_rl.episodes import Episode
from score_rl.evaluation import at_temperature, evaluate, make_player
from score_rl.grading import make_grader
from score_rl.metrics import self_correction
from score_rl.policy import Policy
from score_rl.schema import Settings
from score_rl.settings import load
from score_rl.tracking import Screen

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DIGITS = 10
BATCH = 128
TEMPLATE = (
    "{%- for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)

# By this transformers' server finds the answer; without it, it takes the markers of Qwen's own template.
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {"content": {"close": "<|end|>", "content": "text"}},
}


@dataclass(frozen=True)
class Phase:
    """A stretch of pretraining with its own optimiser, stream of documents and mixture of second attempts.

    Attributes:
        decay: steps over which the learning rate would fall to a tenth, on a cosine.
        copies: share of second attempts that repeat the first.
        right: share that are solved afresh and right; the rest are new wrong ones.
    """

    steps: int
    decay: int
    lr: float
    copies: float
    right: float


# The skill of solving afresh forms late and needs many right second attempts; the habit of repeating forms at once.
PHASES = (
    Phase(steps=3000, decay=4000, lr=3e-3, copies=0.6, right=0.3),
    Phase(steps=100, decay=300, lr=6e-4, copies=0.75, right=0.15),
)
# Glances first, then walks to the end without a slip, then both; last the habits that training is to break.
WALKS = (
    Mixture(450, 450, 4e-3, right_first=1.0, first=True, copies=0.5, glances=0.0, right_walks=1.0),
    Mixture(250, 250, 3e-3, right_first=0.0, first=False, copies=0.0, glances=0.0, right_walks=1.0),
    Mixture(500, 500, 3e-3, right_first=1.0, first=True, copies=0.75, glances=0.0, right_walks=1.0),
    Mixture(120, 120, 1e-3, right_first=0.4, first=True, copies=0.95, glances=0.03, right_walks=0.85),
    Mixture(160, 160, 1e-3, right_first=0.4, first=True, copies=0.965, glances=0.028, right_walks=0.5),
)
RIGHT_FIRST = 0.6
WRONG_BORROWS = 2.0
"""Borrows that are forgotten or made up in a wrong answer, on average."""


def build_tokenizer(instruction: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: single digits, the words of the instruction, and every other byte."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        min_frequency=1,
        special_tokens=["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([instruction], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = RESPONSE
    return tokenizer


def subtract(a: np.ndarray, b: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Digits [N, D] of `a - b` for digits [N, D] each, with the borrow out of each place in `wrong` [N, D] flipped."""
    out, borrow = np.zeros_like(a), np.zeros(len(a), dtype=a.dtype)
    for place in range(a.shape[1] - 1, -1, -1):
        difference = a[:, place] - b[:, place] - borrow
        out[:, place] = difference % 10
        borrow = (difference < 0) ^ wrong[:, place]
    return out


class Documents(Stream):
    """Conversations about subtraction."""

    def batch(self, phase: Phase) -> tuple[Tensor, Tensor]:
        """Token ids [B, T] and which of them are an assistant's [B, T]."""
        a, b = self._operands()
        right = subtract(a, b, np.zeros(a.shape, dtype=bool))
        first = np.where(self.rng.random((BATCH, 1)) < RIGHT_FIRST, right, self._wrong(a, b))
        kind = self.rng.random((BATCH, 1))
        afresh = np.where(kind < phase.copies + phase.right, right, self._wrong(a, b))
        second = np.where(kind < phase.copies, first, afresh)
        rows = [self._parts(*(_text(x[i]) for x in (a, b, first, second))) for i in range(BATCH)]
        ids = self.tokenizer(["".join(parts) for parts in rows], add_special_tokens=False)["input_ids"]
        # All numbers have the same length, so what is an assistant's in one row is so in all.
        lengths = [len(part) for part in self.tokenizer(rows[0], add_special_tokens=False)["input_ids"]]
        trained = [place % 2 == 1 for place, length in enumerate(lengths) for _ in range(length)]
        return torch.tensor(ids), torch.tensor(trained).expand(BATCH, -1)

    def _operands(self) -> tuple[np.ndarray, np.ndarray]:
        while True:
            a, b = self.rng.integers(0, 10, (2, BATCH, DIGITS))
            swap = np.array([tuple(x) < tuple(y) for x, y in zip(a, b, strict=True)])
            a[swap], b[swap] = b[swap], a[swap].copy()
            if not any(f"{_text(x)} - {_text(y)}" in self.held_out for x, y in zip(a, b, strict=True)):
                return a, b

    def _wrong(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return subtract(a, b, self.rng.random(a.shape) < WRONG_BORROWS / DIGITS)

    def _parts(self, a: str, b: str, first: str, second: str) -> list[str]:
        """Context and attempt in turn; special tokens at the seams keep the parts' tokens apart."""
        return [
            f"<|user|>{a} - {b}<|end|><|assistant|>",
            f"{first}<|end|>",
            f"<|user|>{self.instruction}<|end|><|assistant|>",
            f"{second}<|end|>",
        ]


def _text(digits: np.ndarray) -> str:
    return "".join(map(str, digits))


def learning_rate(phase: Phase | Mixture, step: int) -> float:
    """Learning rate of a step, from 0: 100 steps of warm-up, then the first part of a cosine."""
    return phase.lr * min(1.0, (step + 1) / 100) * (0.1 + 0.9 * 0.5 * (1 + cos(pi * step / phase.decay)))


@dataclass(frozen=True)
class Shape:
    """Of a policy's network; every head has a key and a value of its own."""

    hidden: int
    layers: int
    head_dim: int


@dataclass(frozen=True)
class Kind:
    """A policy that ships: the recipe it is for, its network, and what it is pretrained on."""

    recipe: str
    title: str
    shape: Shape
    documents: type[Any]
    phases: tuple[Phase | Mixture, ...]


KINDS = {
    "policy": Kind("arithmetic", "ten-digit subtraction", Shape(96, 2, 24), Documents, PHASES),
    "walk": Kind("walk", "the walk between two walls", Shape(64, 1, 16), Walks, WALKS),
}


def new_policy(settings: Settings, seed: int, shape: Shape) -> Policy:
    """The policy with random weights, and its tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    tokenizer = build_tokenizer(" ".join(settings.chat.instructions))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=256,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=shape.head_dim,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Policy(Qwen3ForCausalLM(config), tokenizer)


def pretrain(policy: Policy, documents: Any, phase: Phase | Mixture) -> None:
    """One phase of pretraining: cross-entropy on the tokens that are to be learned."""
    model = policy.model
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    with Screen().task("pretraining", phase.steps) as advance:
        for step in range(phase.steps):
            ids, trained = documents.batch(phase)
            logits = model(input_ids=ids).logits[:, :-1][trained[:, 1:]]
            loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][trained[:, 1:]])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(phase, step)
            optimizer.step()
            advance(1, f"loss {loss.item():.3f}")


def fix_rate(episodes: list[Episode]) -> float:
    """Share of the wrong first attempts that the second one puts right."""
    return fmean(e.attempts[1].correct for e in episodes if not e.attempts[0].correct)


def describe(policy: Policy, settings: Settings, name: str) -> str:
    """The model card, with what the policy does on the validation split."""
    player = make_player(policy, Chat(policy.tokenizer, settings.chat), make_grader(settings.reward))
    problems = load_problems(settings.data, "validation")
    lines = []
    for temperature in (0.0, 1.0):
        options = at_temperature(settings.eval.model_copy(update={"split": "validation"}), temperature)
        episodes = evaluate(player, problems, options, seed=0).episodes
        counted = self_correction(episodes)
        shown = [f"{100 * counted[key]:.1f}" for key in ("acc/t1", "acc/t2", "unchanged/t2")]
        lines.append(f"| {temperature:g} | {' | '.join(shown)} | {100 * fix_rate(episodes):.1f} |")
    parameters = sum(p.numel() for p in policy.parameters())
    return f"""---
license: apache-2.0
library_name: transformers
---
# A base policy for self-correction on {KINDS[name].title}

A Qwen3-shaped causal language model of {parameters:,} parameters, pretrained from nothing by
`python -m score_rl.embedded.build --policy {name}` on synthetic two-attempt conversations. It is for tests,
demonstrations and method studies on a machine without a GPU, and good for nothing else.

On the {len(problems)} validation problems, in percent:

| temperature | acc@t1 | acc@t2 | unchanged | wrong first attempts put right |
| --- | --- | --- | --- | --- |
{chr(10).join(lines)}
"""


def main() -> None:
    """Builds, measures and writes a policy."""
    parser = argparse.ArgumentParser(description="Build an embedded policy.")
    parser.add_argument("--policy", choices=KINDS, default="policy")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kind = KINDS[arguments.policy]
    settings = load(kind.recipe)
    policy = new_policy(settings, arguments.seed, kind.shape)
    for index, phase in enumerate(kind.phases):
        pretrain(policy, kind.documents(policy.tokenizer, settings, arguments.seed + index), phase)
    policy.model.generation_config.do_sample = False
    policy.save(arguments.output)
    card = describe(policy, settings, arguments.policy)
    (arguments.output / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
