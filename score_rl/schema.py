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
from score_rl.stage_schema import AdaptiveKLSettings as AdaptiveKLSettings
from score_rl.stage_schema import KLSettings as KLSettings
from score_rl.stage_schema import SamplingSettings as SamplingSettings
from score_rl.stage_schema import StageSettings as StageSettings
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

    kind: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """`ddp` is a whole model in each process; `fsdp` (torch's FSDP2) shards weights, gradients and optimiser, as does
    `zero3`; `zero2` shards gradients and optimiser. The last two are DeepSpeed's, an extra."""


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
        taken = {"base", "checkpoints", "episodes", "eval", "offline", "tensorboard", "traces", "wandb"}
        taken &= set(labels)
        if taken:
            raise ValueError(f"stages.N.name={min(taken)} is taken by another part of the run directory; use another")
        if self.train.select == "train_reward" and any(stage.kind == "sft" for stage in self.stages):
            raise ValueError(
                "train.select=train_reward: a stage of kind sft samples at the start of its rounds alone, so its steps "
                "have no reward of their own; use validation or last"
            )
        if self.eval.split == "validation" and self.train.select == "validation":
            raise ValueError("eval.split=validation is what train.select=validation chooses on; evaluate on test")
        return self

    def dump(self) -> str:
        """YAML that `parse` turns into an equal object."""
        return str(yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))
