"""The part of a run's settings that says how attempts are sampled and what a stage of training does with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from score_rl.strict import Fraction, NonNegative, Positive, Schema


class SamplingSettings(Schema):
    """How tokens are drawn; temperature 0 is greedy."""

    temperature: NonNegative = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Positive | None = None
    min_p: Fraction = 0.0

    @property
    def truncated(self) -> bool:
        """Whether some tokens can never be drawn, so that scores at full support would not match."""
        return self.top_p < 1 or self.top_k is not None or self.min_p > 0


class KLSettings(Schema):
    """How far from the reference; see `objectives.kl_estimate`."""

    estimator: Literal["k1", "k2", "k3", "exact"] = "k2"
    placement: Literal["loss", "reward"] = "loss"


class AdaptiveKLSettings(Schema):
    """Holds the KL of attempt 1 at `target` (nats per attempt) by moving beta2, at most by `rate` a step."""

    target: Annotated[float, Field(gt=0)]
    rate: Annotated[float, Field(gt=0, lt=1)] = 0.1


SFT_DEFAULTS = {"advantage": "none", "length_norm": "token", "credit": "last", "beta1": 0.0}
"""Of kind `sft`: a trace is worth 1 whatever the others are, and each trained token counts alike."""
RL_KEYS: tuple[str, ...] = (
    "alpha",
    "alpha_fix",
    "alpha_break",
    "bonus_on",
    "bonus_to",
    "gamma",
    "advantage",
    "beta1",
    "beta2",
    "kl",
)
RL_KEYS += ("adaptive_beta2", "reference", "offline_fraction", "offline_attempts")
"""What kind `sft` has no use for."""
SFT_KEYS = ("traces", "keep_correct", "rounds", "restart")
"""What the other kinds have no use for."""


class StageSettings(Schema):
    """One stage of training; every stage has its own optimiser, schedule, objective and sampling."""

    kind: Literal["stage1", "stage2", "substage", "single_turn", "multi_turn", "sft"]
    name: Annotated[str, Field(pattern="^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")] = ""
    """Directory and metric name; the kind when empty."""
    steps: Positive
    problems: Positive = 64
    """Questions a step."""
    branch: list[Positive] = Field(default=[2, 2])
    """Attempts drawn from each context: `[n, m]` is n first attempts and m second attempts after each."""
    sampling: SamplingSettings = SamplingSettings()
    max_new_tokens: list[Positive] = Field(default=[512, 512])
    """Token limit of each attempt."""

    alpha: NonNegative = 10.0
    alpha_fix: NonNegative | None = None
    """Bonus for wrong -> right; `alpha` when not set."""
    alpha_break: NonNegative | None = None
    """Penalty for right -> wrong; `alpha` when not set."""
    bonus_on: Literal["correct", "reward"] = "correct"
    bonus_to: Literal["later", "all"] = "later"
    """`all` pays each bonus to the attempts before it too: a known fault, for ablations."""
    gamma: Fraction = 0.0
    credit: Literal["last", "all"] = "all"
    """`multi_turn`: reward the last attempt, or the sum of all. `sft`: train the last attempt of a trace, or all."""
    beta1: NonNegative = 0.01
    beta2: NonNegative = 0.1
    """Pin on the attempts before the rewarded one (`stage1`, `substage`)."""
    kl: KLSettings = KLSettings()
    adaptive_beta2: AdaptiveKLSettings | None = None
    reference: Literal["base", "stage_start"] = "base"
    advantage: Literal["none", "batch_mean", "rloo", "sibling", "grpo"] = "rloo"
    length_norm: Literal["none", "sequence", "constant", "token"] = "none"
    offline_fraction: Fraction = 0.0
    """Share of a step's questions whose first attempts come from a store sampled from the reference."""
    offline_attempts: Positive = 4
    """Stored first attempts a question."""

    traces: Literal["star", "pairs"] = "star"
    """`sft` only: imitate sampled episodes that end right (STaR), or right attempts behind others (Pair-SFT)."""
    keep_correct: bool = False
    """`sft` only: traces from right to right too (the paper's D+), not from wrong to right alone."""
    rounds: Positive = 1
    """`sft` only: how often traces are sampled anew, from the policy as it then is."""
    restart: bool = True
    """`sft` only: every round trains from the weights, and with the schedule, that the stage began with."""

    lr: Annotated[float, Field(gt=0)] = 1e-5
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0

    @property
    def label(self) -> str:
        """The stage's name in metrics and in the run directory."""
        return self.name or self.kind

    @property
    def attempts(self) -> int:
        """Attempts an episode of this stage has."""
        return len(self.branch)

    @property
    def episodes(self) -> int:
        """Episodes a step: questions times the leaves of each question's tree."""
        leaves = 1
        for children in self.branch:
            leaves *= children
        return self.problems * leaves

    @property
    def offline_problems(self) -> int:
        """Questions of a step that start from stored first attempts."""
        return round(self.offline_fraction * self.problems)

    @property
    def restarts(self) -> bool:
        """Whether rounds after the first one train from the weights that the stage began with."""
        return self.kind == "sft" and self.restart and self.rounds > 1

    @property
    def _foreign(self) -> str | None:
        """The first key that is changed though this kind has no use for it."""
        defaults = {key: field.default for key, field in type(self).model_fields.items()}
        if self.kind == "sft":
            unused = {key: SFT_DEFAULTS.get(key, defaults[key]) for key in RL_KEYS}
        else:
            unused = {key: defaults[key] for key in SFT_KEYS}
        return next((key for key, value in unused.items() if getattr(self, key) != value), None)

    @property
    def _lonely(self) -> int | None:
        """The first attempt that earns something while the baseline has no other to compare it with."""
        early = self.kind in ("stage2", "single_turn") or (self.kind == "multi_turn" and self.credit == "all")
        early |= self.gamma > 0 or self.kl.placement == "reward"
        drawn = 1
        for k, children in enumerate(self.branch, start=1):
            drawn *= children
            if (early or k == self.attempts) and (children if self.advantage == "sibling" else drawn) < 2:
                return k
        return None

    def cautions(self) -> list[str]:
        """What works but may not do what was meant, a sentence each."""
        if self.kind != "stage2" or not any((self.alpha, self.alpha_fix, self.alpha_break)):
            return []
        found = []
        if self.advantage == "grpo":
            found.append(
                "advantage=grpo divides by each attempt's own spread, which cancels alpha; use rloo or sibling"
            )
        if self.bonus_to == "all":
            found.append(
                "bonus_to=all pays attempt 1 r1 + alpha (r2 - r1), so that it learns to fail first; for ablations only"
            )
        return found

    @model_validator(mode="before")
    @classmethod
    def _imitates(cls, content: Any) -> Any:
        return SFT_DEFAULTS | content if isinstance(content, dict) and content.get("kind") == "sft" else content

    @model_validator(mode="after")
    def _fits_together(self) -> StageSettings:
        checks = [
            (
                self.sampling.truncated,
                f"sampling.top_p={self.sampling.top_p:g}, top_k={self.sampling.top_k}, min_p={self.sampling.min_p:g} "
                "cut the distribution that the loss scores; leave them at 1, null and 0",
            ),
            (self.sampling.temperature == 0, "sampling.temperature=0 draws every sample alike; use e.g. 1.0"),
            (
                len(self.max_new_tokens) != len(self.branch),
                f"max_new_tokens has {len(self.max_new_tokens)} entries and branch has {len(self.branch)}; "
                "give one of each per attempt",
            ),
            (
                self.kind == "single_turn" and len(self.branch) != 1,
                f"branch={self.branch} has {len(self.branch)} attempts; single_turn has 1: branch=[n]",
            ),
            (
                self.kind not in ("single_turn", "sft") and len(self.branch) < 2,
                f"branch={self.branch} has 1 attempt; {self.kind} needs 2 or more: branch=[n, m]",
            ),
            (
                self.kind == "stage1" and len(self.branch) != 2,
                f"branch={self.branch}: stage1 has 2 attempts; use kind substage for more",
            ),
            (
                self.gamma > 0 and self.kind in ("stage1", "substage"),
                f"gamma={self.gamma}: no credit may flow back to a pinned attempt; gamma belongs to stage2",
            ),
            (
                self.advantage == "sibling" and self.branch[-1] < 2,
                f"advantage=sibling needs branch[-1] >= 2, found branch={self.branch}; use branch=[n, 2] or rloo",
            ),
            (
                self.advantage in ("rloo", "grpo", "sibling") and self._lonely is not None,
                f"advantage={self.advantage} has no other attempt {self._lonely} to compare one with, found "
                f"branch={self.branch}; draw 2 or more of it, or use batch_mean",
            ),
            (
                self.advantage == "batch_mean"
                and 1 in (self.problems * self.branch[0], (self.problems - self.offline_problems) * self.branch[0]),
                f"advantage=batch_mean compares a step's attempts, found problems={self.problems}, "
                f"offline_fraction={self.offline_fraction:g} and branch={self.branch}; "
                "raise problems or use branch=[2, ...]",
            ),
            (
                self.kl.estimator == "exact" and self.kl.placement == "reward",
                "kl.placement=reward needs a sampled estimate; use kl.estimator=k1",
            ),
            (
                self.bonus_to == "all" and self.kind != "stage2",
                f"bonus_to=all: {self.kind} has no bonus; it belongs to stage2",
            ),
            (
                self.adaptive_beta2 is not None and self.kind not in ("stage1", "substage"),
                f"adaptive_beta2 moves the pin of stage1 and substage; kind is {self.kind}",
            ),
            (
                self.offline_fraction > 0 and self.offline_attempts < self.branch[0],
                f"offline_attempts={self.offline_attempts} is fewer than branch[0]={self.branch[0]} first attempts; "
                f"set offline_attempts={self.branch[0]}",
            ),
        ]
        for wrong, message in [*checks, *self._imitation_checks()]:
            if wrong:
                raise ValueError(message)
        return self

    def _imitation_checks(self) -> list[tuple[bool, str]]:
        foreign = self._foreign
        told = foreign and f"{foreign}={getattr(self, foreign)!r}: kind {self.kind} has no use for it; leave it out"
        pairs = self.kind == "sft" and self.traces == "pairs"
        return [
            (foreign is not None, str(told)),
            (
                pairs and len(self.branch) != 2,
                f"traces=pairs: branch={self.branch} has {len(self.branch)} attempts; a pair has 2: branch=[n, m]",
            ),
            (
                pairs and len(set(self.max_new_tokens)) > 1,
                f"max_new_tokens={self.max_new_tokens}: traces=pairs samples first attempts alone; give both one limit",
            ),
            (
                self.keep_correct and len(self.branch) == 1,
                f"keep_correct=true: traces of one attempt (branch={self.branch}) are right anyway; leave it out",
            ),
            (
                self.kind == "sft" and self.rounds > self.steps,
                f"rounds={self.rounds} is more than steps={self.steps}; each round takes a step or more",
            ),
        ]
