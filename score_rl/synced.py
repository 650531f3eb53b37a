"""An engine with a copy of the policy's weights: when it gets them, and the proof that it has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from score_rl.decode import Session
from score_rl.engine_schema import EngineSettings
from score_rl.errors import ConfigError, SyncError
from score_rl.policy import Policy
from score_rl.schema import SamplingSettings

SUPPORTED = ((0, 32), (0, 33))
"""Versions of vLLM from the first to before the second: those whose ways in and out of weights were tried."""

PROBE = (
    "What is 15 * 17? It is 255, since 15 * 10 = 150 and 15 * 7 = 105.",
    "There might be an error in the solution above: def add(a, b): return a - b",
    "The capital of France is Paris. La capitale de la France est Paris.",
)
PREFIXES = (4, 8, 16, 32)
"""Tokens of each text that a context of the probe has."""
DRAWN = 8
"""Tokens that are drawn behind each context."""
WARM = SamplingSettings(temperature=1.5)
"""How they are drawn: two models that are sure of the same token would look alike; and the log-probs must follow it."""

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}
"""Nats by which the log-probs of a token of the probe may differ, on average, by the type of the engine's weights."""
SHAKEN = 4
"""How much more may differ of a policy that was shaken, which may round less well; a missing tensor differs by more."""
NOISE = 1.0
"""Of a tensor's own size, when it is shaken."""

Rows = Sequence[tuple[int, ...]]


class SyncedEngine:
    """What engines with weights of their own have in common; `decode.Engine` in all but `open`.

    Args:
        policy: whose weights they are to be.
        name: of the engine, for messages.
        dtype: of its weights.
    """

    def __init__(self, settings: EngineSettings, policy: Policy, name: str, dtype: str) -> None:
        self.settings, self.policy, self.name, self.dtype = settings, policy, name, dtype
        self.gap: float | None = None
        self._uses = self._proofs = 0
        encoded = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBE]
        self.texts = [tuple(int(token) for token in ids) for ids in encoded]
        self._contexts = [ids[:length] for ids in self.texts for length in PREFIXES]

    def open(self) -> Session:
        """A session for one batch of episodes, within `ready`."""
        raise NotImplementedError

    def push(self) -> None:
        """Gives the engine the policy's weights."""
        raise NotImplementedError

    def wake(self) -> None:
        """Takes the memory back that `rest` gave."""

    def rest(self) -> None:
        """Gives back what memory it can until it is woken."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Within it the engine is awake and has the policy's weights, which were compared if that was due.

        Raises:
            SyncError: its log-probs are not the policy's.
        """
        self.wake()
        try:
            self.push()
            if self._uses % self.settings.probe_every == 0:
                self.compare()
            self._uses += 1
            yield
        finally:
            self.rest()

    def prove(self) -> None:
        """Shows that every trained tensor reaches the engine, however little training moves it.

        All of them are pushed with noise, which a tensor that stays behind would not have, and then as they are.

        Raises:
            SyncError: the engine's log-probs are not those of the policy with the noise.
        """
        self.wake()
        try:
            self._proofs += 1  # the noise of the one before may still be there
            with shaken(self.policy, seed=self._proofs):
                self.push()
                self._compare(SHAKEN * TOLERANCE[self.dtype])
            self._uses = 0
        finally:
            self.rest()

    def compare(self) -> None:
        """Measures `gap`.

        Raises:
            SyncError: it is above the tolerance.
        """
        self._compare(TOLERANCE[self.dtype])

    def _compare(self, tolerance: float) -> None:
        self.gap = self.measure()
        if not self.gap <= tolerance:
            raise SyncError(
                f"{self.name}: its log-probs are {self.gap:.2g} nats a token from the trainer's, and {tolerance:g} is "
                f"what {self.dtype} explains: weights did not reach it, or it has another model; nothing was trained on"
            )

    def measure(self) -> float:
        """Mean distance of the engine's log-probs of tokens that it draws from the policy's log-probs of them, nats."""
        drawn = self.open().sample(self._contexts, None, range(len(self._contexts)), WARM, DRAWN)
        rows = [context + sample.token_ids for context, sample in zip(self._contexts, drawn, strict=True)]
        ours = policy_logprobs(self.policy, rows, temperature=WARM.temperature)
        pairs = [
            pair
            for found, sample in zip(ours, drawn, strict=True)
            for pair in zip(found[-len(sample.token_ids) :], sample.logprobs, strict=True)
        ]
        return sum(abs(a - b) for a, b in pairs) / len(pairs)


def sampling_parameters(
    sampling: SamplingSettings, key: int, max_new_tokens: int, end_ids: Sequence[int]
) -> dict[str, Any]:
    """How one attempt is to be drawn, by the names that vLLM's class has and its server takes."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "seed": key % 2**63,  # -1 would be none
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(end_ids),
        "ignore_eos": True,  # else the model's own end would count beside these
        "logprobs": 0,  # of the token that was drawn alone
    }


def check_version(found: str, where: str) -> None:
    """Refuses another version of vLLM than was tried.

    Raises:
        ConfigError: it is another.
    """
    first, behind = (".".join(map(str, version)) for version in SUPPORTED)
    number = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdecimal())
    if not SUPPORTED[0] <= number < SUPPORTED[1]:
        raise ConfigError(f"{where}: vLLM {found} was not tried; install one from {first} to before {behind}")


@torch.no_grad()
def policy_logprobs(policy: Policy, rows: Rows, *, temperature: float = 1.0) -> list[list[float]]:
    """Log-prob of each token of the rows but their first under the policy."""
    device = next(policy.parameters()).device
    was_training = policy.model.training
    policy.model.eval()
    found = []
    for row in rows:
        ids = torch.tensor([row], device=device)
        mask = torch.ones_like(ids)
        found.append(policy(ids, mask, mask[:, 1:].bool(), temperature=temperature).logprobs.tolist())
    policy.model.train(was_training)
    return found


@contextmanager
def shaken(policy: Policy, *, seed: int = 0) -> Iterator[None]:
    """Within it every trained tensor has noise; behind it the policy is as before, bit by bit."""
    kept = {name: value.to("cpu", copy=True) for name, value in policy.trained_state().items()}
    generator = torch.Generator().manual_seed(seed)
    try:
        policy.load_trained_state({name: _shake(value, generator) for name, value in kept.items()})
        yield
    finally:
        policy.load_trained_state(kept)


def _shake(value: Tensor, generator: torch.Generator) -> Tensor:
    wide = value.float()
    # One half of a fresh adapter is zero, and times it the other half would not show.
    size = NOISE * float(wide.square().mean().sqrt()) or 0.02
    return (wide + size * torch.randn(wide.shape, generator=generator)).to(value.dtype)
