"""What a run will cost, before it has weights: parameters, memory, tokens and forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from score_rl.planning import memory
from score_rl.planning.costs import (
    EvaluationCost,
    Prompts,
    StageCost,
    contexts,
    continues,
    evaluation_costs,
    measure_prompts,
    stage_cost,
)
from score_rl.planning.shapes import Shape, blank_model, causal_lm, find_shape, weight_dtype
from score_rl.run import stage_plan
from score_rl.schema import Settings

if TYPE_CHECKING:
    import torch


class Rollout(NamedTuple):
    """One rollout, as large as it gets: rows and tokens a row, and bytes by part, which are not all there at once.

    Attributes:
        cache: keys and values when the attempt ends that leaves most of them.
        growing: the layer whose keys and values are being made longer, or handed to the next attempt.
        sampling: while a token is drawn for every row.
        readings: rows and tokens a row that are read at once before each attempt, and tokens that are cached already.
    """

    name: str
    rows: int
    tokens: int
    cache: int
    growing: int
    sampling: int
    readings: tuple[tuple[int, int, int], ...]

    @property
    def peak(self) -> int:
        """Most bytes at once, but for the reading of contexts."""
        return self.cache + self.growing + self.sampling


def rollouts(settings: Settings, prompts: Prompts, config: Any, dtype: torch.dtype) -> list[Rollout]:
    """Each stage's rollout, and the evaluation's.

    A cache is full when its attempt ends: rows x (context + limit) tokens, with the longest prompt for all rows.
    """

    def size(name: str, branch: Sequence[int], limits: Sequence[int], problems: int, rows: int, logit: int) -> Rollout:
        at_once = min(problems, max(1, rows // prod(branch)))
        seen = contexts(limits, settings.chat, prompts.longest, prompts.bridge)
        drawn = [at_once * prod(branch[: k + 1]) for k in range(len(branch))]
        full = [number * (n + limit) for number, n, limit in zip(drawn, seen, limits, strict=True)]
        cache = memory.cache_bytes(config, dtype) * max(full)
        readings = [(at_once, seen[0], 0)]
        for k in range(1, len(branch)):
            fresh = prompts.bridge + 1 if continues(settings.chat, k) else seen[k]
            readings.append((drawn[k - 1], fresh, seen[k] - fresh))
        return Rollout(
            name=name,
            rows=drawn[-1],
            tokens=seen[-1] + limits[-1],
            cache=cache,
            growing=cache // config.get_text_config().num_hidden_layers,
            sampling=drawn[-1] * config.get_text_config().vocab_size * logit,
            readings=tuple(readings),
        )

    at_most, sampled = settings.train.rollout_rows, memory.SAMPLED_LOGIT
    found = [size(s.label, s.branch, s.max_new_tokens, s.problems, at_most, sampled) for s in settings.stages]
    judged, attempts = settings.eval, settings.eval.attempts
    most = max(judged.problems, settings.train.validation_problems)
    logit = sampled if judged.sampling.temperature else memory.GREEDY_LOGIT
    limits = [judged.max_new_tokens] * attempts
    branch = [judged.samples] + [1] * (attempts - 1)
    return [*found, size("evaluation", branch, limits, most, judged.rows, logit)]


class Update(NamedTuple):
    """The largest micro-batch, and bytes by part; `other` is without checkpointing where there is some, or with."""

    rows: int
    tokens: int
    activations: int
    other: int
    head: int
    peak: int


def update(settings: Settings, prompts: Prompts, model: Any) -> Update:
    """The longest rows that a stage can have, as many as the budget takes."""
    longest, most = 0, 1
    for stage in settings.stages:
        length = contexts(stage.max_new_tokens, settings.chat, prompts.longest, prompts.bridge)[-1]
        length += stage.max_new_tokens[-1]
        rows = min(stage.episodes, max(1, settings.train.micro_batch_tokens // length))
        if rows * length > longest * most:
            longest, most = length, rows
    chunk = settings.train.logprob_chunk
    head = max(memory.replay_head(model, stage, chunk, most * longest) for stage in settings.stages)
    checkpointing = settings.model.gradient_checkpointing
    chosen = memory.replay_update(model, most, longest, checkpointing=checkpointing)
    other = memory.replay_update(model, most, longest, checkpointing=not checkpointing)
    return Update(most, longest, chosen.peak, other.peak, head, max(chosen.peak, chosen.kept + head))


class RunPlan(NamedTuple):
    """Everything that `score train --plan` prints."""

    model: str
    shape: str
    prompts: Prompts
    positions: int | None
    held: memory.Held
    dtype: str
    rollouts: list[Rollout]
    prefill: int
    update: Update
    step: int
    gpu: int | None
    stages: list[StageCost]
    evaluations: dict[str, EvaluationCost]

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes while sampling, in the update and in the optimiser's step, with what is always there."""
        sampling = max(self.prefill, *(rollout.peak for rollout in self.rollouts))
        return {
            "sampling": self.held.total + sampling,
            "update": self.held.total + self.update.peak,
            "optimizer step": self.held.total + self.step,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest episode."""
        return max(rollout.tokens for rollout in self.rollouts)

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, with the sums."""
        return {
            **self._asdict(),
            "prompts": self.prompts._asdict(),
            "held": self.held._asdict() | {"total": self.held.total},
            "rollouts": [rollout._asdict() | {"peak": rollout.peak} for rollout in self.rollouts],
            "update": self.update._asdict(),
            "peaks": self.peaks,
            "stages": [stage._asdict() | {"tokens": stage.tokens} for stage in self.stages],
            "evaluations": {kind: cost._asdict() for kind, cost in self.evaluations.items()},
            "longest": self.longest,
            "sampled_tokens": self.sampled_tokens,
            "tokens": sum(stage.tokens for stage in self.stages),
        }

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the whole run samples, at most."""
        training = sum(stage.steps * stage.sampled_tokens for stage in self.stages)
        return training + sum(cost.sampled_tokens for cost in self.evaluations.values())


def make_plan(
    settings: Settings, *, shape: Shape | None = None, prompts: Prompts | None = None, held_out: int | None = None
) -> RunPlan:
    """The plan of a run.

    Args:
        shape: of the model; `find_shape` when None.
        prompts: lengths of the prompts; `measure_prompts` when None.
        held_out: problems of the evaluation's split, where `prompts` are given.

    Raises:
        ConfigError: the model's configuration is nowhere to be had, or it has no causal language model.
        ConfigError, DataError: as `measure_prompts`.
    """
    shape = shape or find_shape(settings.model)
    if prompts is None:
        prompts, held_out = measure_prompts(settings)
    model = blank_model(settings.model, shape.config)
    base = causal_lm(model)
    dtype = weight_dtype(settings.model, shape.config)
    costs = rollouts(settings, prompts, base.config, dtype)
    moves = any(stage.reference == "stage_start" for stage in settings.stages)
    return RunPlan(
        model=settings.model.path,
        shape=shape.source,
        prompts=prompts,
        positions=getattr(base.config.get_text_config(), "max_position_embeddings", None),
        held=memory.held_bytes(
            model, settings.optim, quantized=settings.model.quantize is not None, moves_reference=moves
        ),
        dtype=str(dtype).removeprefix("torch."),
        rollouts=costs,
        prefill=max(memory.replay_prefill(model, *reading) for reading in {r for cost in costs for r in cost.readings}),
        update=update(settings, prompts, model),
        step=memory.step_bytes(model, settings.optim),
        gpu=gpu_bytes(),
        stages=[stage_cost(label, settings.stages[n], settings, prompts) for label, n in stage_plan(settings)],
        evaluations=evaluation_costs(settings, held_out),
    )


def gpu_bytes() -> int | None:
    """Memory of the GPU at hand; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def to_text(plan: RunPlan, name: str) -> str:
    """The plan as people read it."""
    source = "its config.json" if plan.shape == "config.json" else "the table in score_rl/planning/shapes.py"
    held = plan.held
    share = f"{held.trained:,} trained ({held.trained / held.parameters:.1%})"
    head = [
        f"{name}: {plan.model}, {plan.dtype}, shapes from {source}",
        f"parameters: {held.parameters:,} in all, {share}",
        f"prompts: {plan.prompts}",
        f"longest episode: {plan.longest:,} tokens of the model's {plan.positions or 0:,}",
    ]
    return "\n".join([*head, "", *_memory_lines(plan), "", *_stage_lines(plan), "", *_total_lines(plan)]) + "\n"


def _memory_lines(plan: RunPlan) -> list[str]:
    held, update, largest = plan.held, plan.update, max(plan.rollouts, key=lambda rollout: rollout.peak)
    gpu, most = plan.gpu, max(plan.peaks.values())
    unit, name = (2**30, "GiB") if max(most, gpu or 0) >= 2**30 else (2**20, "MiB")
    with_or_without = "without" if update.activations < update.other else "with"
    rows = [
        ("weights", held.weights),
        ("adapter", held.adapter),
        ("gradients", held.gradients),
        ("optimiser state", held.optimizer),
        ("reference", held.reference),
        ("always there", held.total),
        (f"sampling: cache of {largest.name}, {largest.rows} rows x {largest.tokens:,} tokens", largest.cache),
        ("sampling: a layer that is made anew, and next-token distributions", largest.growing + largest.sampling),
        ("sampling: reading contexts, with their cache", plan.prefill),
        (f"update: activations of {update.rows} rows x {update.tokens:,} tokens", update.activations),
        (f"update: the same {with_or_without} gradient_checkpointing, for comparison", update.other),
        ("update: a piece of the logits and its gradient", update.head),
        ("optimizer step", plan.step),
        *((f"most at once, {when}", bytes_) for when, bytes_ in plan.peaks.items()),
    ]
    lines = [f"memory, {name}", *(f"  {text:<66}{bytes_ / unit:>10.2f}" for text, bytes_ in rows)]
    if gpu is None:
        return [*lines, "  no GPU here to compare with"]
    verdict = "fits" if most <= gpu else "does not fit"
    return [*lines, f"  {verdict} into the {gpu / unit:.2f} of this GPU"]


_STEP_ROWS = {
    "steps": "steps",
    "episodes": "episodes a step",
    "prompt_tokens": "tokens read while sampling",
    "sampled_tokens": "tokens sampled",
    "rollout_passes": "forward passes while sampling",
    "update_tokens": "tokens of the update",
    "policy_passes": "forward and backward passes of the policy",
    "repeated_passes": "forward passes repeated for checkpointing",
    "scoring_passes": "forward passes of the policy without gradient",
    "reference_passes": "forward passes of the reference",
}


def _stage_lines(plan: RunPlan) -> list[str]:
    width = max(16, *(len(stage.label) + 2 for stage in plan.stages))
    lines = [f"{'a step, at most':<48}" + "".join(f"{stage.label:>{width}}" for stage in plan.stages)]
    for key, text in _STEP_ROWS.items():
        values = [getattr(stage, key) for stage in plan.stages]
        lines.append(f"  {text:<46}" + "".join(f"{value:>{width},}" for value in values))
    totals = "".join(f"{stage.tokens:>{width},}" for stage in plan.stages)
    return [*lines, f"  {'tokens through a model, all steps':<46}{totals}"]


def _total_lines(plan: RunPlan) -> list[str]:
    lines = [
        f"{cost.times} {kind}s of {cost.problems:,} problems: {cost.sampled_tokens:,} tokens sampled at most"
        for kind, cost in plan.evaluations.items()
    ]
    steps = sum(stage.steps for stage in plan.stages)
    return [*lines, f"in all: {steps:,} steps, {plan.sampled_tokens:,} tokens sampled at most"]
