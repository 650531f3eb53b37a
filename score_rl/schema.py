"""The schema of a run's settings: strict, with the combinations that cannot work refused."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from score_rl.chat_schema import ChatSettings as ChatSettings
from score_rl.engine_schema import EngineSettings as EngineSettings
from score_rl.model_schema import LoraSettings as LoraSettings
from score_rl.model_schema import ModelSettings as ModelSettings
from score_rl.model_schema import OptimSettings as OptimSettings
from score_rl.strict import Fraction as Fraction
from score_rl.strict import NonNegative as NonNegative
from score_rl.strict import Positive as Positive
from score_rl.strict import Schema as Schema

SCIENTIFIC = ("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
"""Makes `1e-5` a number; YAML 1.1 wants `1.0e-5` and gives a string. The dumper needs it too, to quote such text."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows which text would be read back as a number."""


_Dumper.add_implicit_resolver(*SCIENTIFIC)


class SplitSettings(Schema):
    """Which stored rows are which split: `NAME`, `NAME[from:to]` in rows or percent, and `A+B`, as in `datasets`."""

    train: str = "train"
    validation: str = "validation"
    test: str = "test"


class DataSettings(Schema):
    """Where problems come from."""

    source: str = "arithmetic"
    """A registered source (`arithmetic`, `gsm8k`, `math`, `mbpp`, `humaneval`, `qa`), your own (`file.py:function`),
    a directory with `train.jsonl`, `train.parquet` or `train.csv` and so on, one such file, a directory written by
    `save_to_disk`, or a data set of the hub (`owner/name`)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to a registered source, e.g. `data.options.digits=10`."""
    config: str | None = None
    """Which configuration of a data set of the hub."""
    revision: str | None = None
    """Branch, tag or commit of a data set of the hub; the newest when null."""
    splits: SplitSettings = SplitSettings()
    question_field: str = "question"
    answer_field: str | None = "answer"
    """The answer, or a list of accepted ones; null for problems that other fields decide, such as a program's tests."""
    id_field: str | None = None
    """What identifies a row; its place when null."""
    drop_empty: bool = False
    """Leave rows without an answer out; otherwise the first one is an error."""
    drop_leaked: bool = False
    """Leave training questions out that also stand in an evaluation split; otherwise they are an error."""


class RewardPart(Schema):
    """One reward function and what it is told."""

    fn: str = "exact_match"
    """A registered name, `file.py:function` or `package.module:function`."""
    extractor: str | None = None
    """How the answer is found, named in the same way; in the reward's own way when null."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the reward, e.g. `reward.options.mode=final`."""
    weight: float = 1.0


class RewardSettings(RewardPart):
    """How an attempt is graded: `fn` decides what counts as correct, and `also` adds to the reward alone."""

    also: list[RewardPart] = Field(default_factory=list)
    """More rewards, added with their weights to what training maximises; accuracies do not see them."""
    threshold: float = 1.0
    """What a function that returns a number must reach for an attempt to count as correct."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds to grade one attempt, for rewards that run in worker processes (`math`, `code`)."""
    workers: Positive | None = None
    """Worker processes for these; when null, one less than this process has cores, at least one."""


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


class StageSettings(Schema):
    """One stage of training; every stage has its own optimiser, schedule, objective and sampling."""

    kind: Literal["stage1", "stage2", "substage", "single_turn", "multi_turn"]
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
    """`multi_turn` only: reward the last attempt, or the sum of all."""
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
                self.kind != "single_turn" and len(self.branch) < 2,
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
        for wrong, message in checks:
            if wrong:
                raise ValueError(message)
        return self


class TrainSettings(Schema):
    """The loop around the stages."""

    iterations: Positive = 1
    """How often the list of stages is gone through."""
    micro_batch_tokens: Positive = 16384
    """Padded tokens in one forward and backward pass; does not change the gradient. Halved for the rest of the run
    whenever the memory runs out."""
    logprob_chunk: Positive = 16_000_000
    """Logits held at once when token log-probs are computed, all their copies counted: 64 MB. More is quicker."""
    rollout_rows: Positive = 512
    """Rows decoded at once."""
    checkpoint_every: Positive = 50
    save_total_limit: Positive = 2
    validate_every: Positive = 50
    validation_problems: Positive = 500
    select: Literal["validation", "train_reward", "last"] = "validation"
    """Which checkpoint of a stage is kept: best validation acc/t2 while acc/t1 holds, the paper's choice
    (highest training reward), or the last."""
    acc_t1_tolerance: Fraction = 0.01
    """How far validation acc/t1 may lie below the base's for `select: validation`."""
    log_episodes: Annotated[int, Field(ge=0)] = 4
    """Training episodes stored a step."""


class EvalSettings(Schema):
    """The held-out evaluation before training and after each stage."""

    split: Literal["validation", "test"] = "test"
    problems: Positive = 500
    """At most; fewer if the split has fewer."""
    attempts: Positive = 2
    samples: Positive = 1
    """Episodes a problem, each with first attempt and later ones of its own."""
    max_new_tokens: Positive = 512
    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    rows: Positive = 512
    """Rows decoded at once."""

    @model_validator(mode="after")
    def _samples_differ(self) -> EvalSettings:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples={self.samples} with sampling.temperature=0 draws every sample alike; set "
                "eval.sampling.temperature, e.g. 1.0"
            )
        return self


class LogSettings(Schema):
    """Where numbers go beside metrics.jsonl and the screen; a run may go on with others than it was begun with."""

    to: Annotated[
        list[Literal["tensorboard", "wandb", "trackio"]],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    ] = Field(default_factory=list)
    """Any of `tensorboard`, `wandb` and `trackio`; each is an extra of its name."""
    project: str | None = None
    """Of `wandb` and `trackio`; `score` when null, for wandb after what WANDB_PROJECT says."""
    every: Positive = 1
    """Steps from one that is logged there to the next; those with a validation always are."""


class ParallelSettings(Schema):
    """How several processes share the work; a run may go on with another kind, and with another number of them."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` is a whole model in each process; `fsdp` shards weights, gradients and optimiser (torch's FSDP2)."""


class Settings(Schema):
    """Everything that determines a run, and where it is logged."""

    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    chat: ChatSettings = ChatSettings()
    reward: RewardSettings = RewardSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainSettings = TrainSettings()
    eval: EvalSettings = EvalSettings()
    log: LogSettings = LogSettings()
    engine: EngineSettings = EngineSettings()
    parallel: ParallelSettings = ParallelSettings()
    stages: Annotated[list[StageSettings], Field(min_length=1)]

    @model_validator(mode="after")
    def _labels_differ(self) -> Settings:
        labels = [stage.label for stage in self.stages]
        if len(set(labels)) < len(labels):
            raise ValueError(f"stages have the labels {', '.join(labels)}; give each its own stages.N.name")
        taken = {"base", "checkpoints", "episodes", "eval", "offline", "tensorboard", "wandb"}.intersection(labels)
        if taken:
            raise ValueError(f"stages.N.name={min(taken)} is taken by another part of the run directory; use another")
        if self.eval.split == "validation" and self.train.select == "validation":
            raise ValueError("eval.split=validation is what train.select=validation chooses on; evaluate on test")
        return self

    def dump(self) -> str:
        """YAML that `parse` turns into an equal object."""
        return str(yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))
