"""The plan of a run on several processes: what each holds, what they send each other, and how long a step may take."""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from typing import Any, NamedTuple

import torch

from score_rl.parallel import check_parallel
from score_rl.planning import RunPlan, make_plan
from score_rl.planning.costs import Prompts, StageCost, contexts, stage_cost
from score_rl.planning.memory import cache_bytes
from score_rl.planning.seconds import (
    Assumptions,
    Seconds,
    cache_read,
    decode_seconds,
    forward_flops,
    update_flops,
    vllm_gpus,
)
from score_rl.planning.shapes import Shape, blank_model, causal_lm, find_shape, weight_dtype
from score_rl.planning.spread import KINDS, Memory, Sizes, Traffic, episode_bytes, measure, memory_of, traffic_of
from score_rl.processes import Group
from score_rl.run import stage_plan
from score_rl.schema import Settings, StageSettings


class StageLoad(NamedTuple):
    """A stage on several processes: what falls to each in a step; what it sends and how long that takes, by kind."""

    cost: StageCost
    traffic: dict[str, Traffic]
    seconds: dict[str, Seconds]


class ClusterPlan(NamedTuple):
    """Everything that `score train --plan --processes N` prints.

    Attributes:
        share: plan of one process's share of the work.
        vllm: GPUs of one vLLM engine, and how many of these engines sample.
    """

    processes: int
    share: RunPlan
    memory: dict[str, Memory]
    stages: list[StageLoad]
    vllm: tuple[int, int]
    assumed: Assumptions

    def to_json(self) -> dict[str, Any]:
        """The same as plain data, with the sums."""
        sums = {kind: {"held": m.held, "training": m.training, "most": m.most} for kind, m in self.memory.items()}
        return {
            "processes": self.processes,
            "model": self.share.model,
            "memory": {kind: m._asdict() | sums[kind] for kind, m in self.memory.items()},
            "stages": [
                {
                    "label": stage.cost.label,
                    "episodes": stage.cost.episodes,
                    "traffic": {k: t._asdict() | {"total": t.total} for k, t in stage.traffic.items()},
                    "seconds": {
                        k: s._asdict() | {"total": s.total, "total_vllm": s.total_vllm}
                        for k, s in stage.seconds.items()
                    },
                }
                for stage in self.stages
            ],
            "vllm": {"gpus": self.vllm[0], "engines": self.vllm[1]},
            "assumed": asdict(self.assumed),
        }


def share_of(settings: Settings, processes: int) -> Settings:
    """Settings of the work that falls to one of the processes, at most: questions are shared, nothing else.

    Raises:
        ConfigError: as `check_parallel`.
    """
    check_parallel(settings, Group(size=processes))

    def part(number: int) -> int:
        return ceil(number / processes)

    stages = [stage.model_copy(update={"problems": part(stage.problems)}) for stage in settings.stages]
    validation = {"validation_problems": part(settings.train.validation_problems)}
    return settings.model_copy(
        update={
            "stages": stages,
            "train": settings.train.model_copy(update=validation),
            "eval": settings.eval.model_copy(update={"problems": part(settings.eval.problems)}),
        }
    )


def kinds_of(settings: Settings, processes: int) -> tuple[str, ...]:
    """Ways to spread the model; weights or moments of less than 16 bits cannot be sharded."""
    small = settings.model.quantize is not None or settings.optim.kind != "adamw"
    return KINDS[:1] if processes == 1 or small else KINDS


class _Model(NamedTuple):
    sizes: Sizes
    dtype: torch.dtype
    cached: int


def make_cluster_plan(
    settings: Settings,
    processes: int,
    *,
    shape: Shape | None = None,
    prompts: Prompts | None = None,
    assumed: Assumptions | None = None,
) -> ClusterPlan:
    """The plan of a run on several processes, with one GPU each.

    Raises:
        ConfigError, DataError: as `make_plan`.
        ConfigError: as `share_of`.
    """
    own = share_of(settings, processes)
    assumed = assumed or Assumptions()
    shape = shape or find_shape(settings.model)
    share = make_plan(own, shape=shape, prompts=prompts)
    model = blank_model(settings.model, shape.config)
    dtype = weight_dtype(settings.model, shape.config)
    known = _Model(measure(model), dtype, cache_bytes(causal_lm(model).config, dtype))
    kinds = kinds_of(settings, processes)
    memory = {kind: memory_of(kind, share, known.sizes, processes) for kind in kinds}
    gpus = vllm_gpus(assumed, share.held.weights + share.held.adapter)
    vllm = (gpus, max(1, processes // gpus))
    stages = []
    for cost, (_, index) in zip(share.stages, stage_plan(settings), strict=True):
        stage = own.stages[index]
        seen = contexts(stage.max_new_tokens, settings.chat, share.prompts.mean, share.prompts.bridge)
        sent = episode_bytes(cost.episodes, seen, stage.max_new_tokens)
        traffic = {kind: traffic_of(kind, share.held, known.sizes, cost, sent, processes) for kind in kinds}
        reading, sampling = _rollout_seconds(share, cost, stage, seen, known, assumed)
        seconds = {
            kind: Seconds(
                reading=reading,
                sampling=sampling,
                vllm=_vllm_seconds(settings, index, share, seen, known, assumed, vllm),
                update=update_flops(known.sizes, cost) / assumed.computing(dtype),
                optimizer=_optimizer_seconds(share, assumed, 1 if kind == "ddp" else processes),
                traffic=traffic[kind].total / assumed.sending(processes),
            )
            for kind in kinds
        }
        stages.append(StageLoad(cost, traffic, seconds))
    return ClusterPlan(processes, share, memory, stages, vllm, assumed)


def _optimizer_seconds(share: RunPlan, assumed: Assumptions, parts: int) -> float:
    """Weights and moments are read and written, gradients are read."""
    trained = share.held.gradients
    return (2 * (trained + share.held.optimizer) + trained) / parts / assumed.reading


def _nodes(stage: StageSettings, problems: int) -> list[int]:
    """Attempts that are drawn at each depth."""
    drawn = [problems]
    for children in stage.branch:
        drawn.append(drawn[-1] * children)
    drawn[1] -= stage.offline_problems * stage.branch[0]  # stored, not drawn
    return drawn[1:]


def _rollout_seconds(
    share: RunPlan, cost: StageCost, stage: StageSettings, seen: tuple[int, ...], known: _Model, assumed: Assumptions
) -> tuple[float, float]:
    """Of reading contexts and of sampling, by the built-in engine."""
    rate, sizes = assumed.computing(known.dtype), known.sizes
    reading = forward_flops(sizes, cost.prompt_tokens, max(seen)) / rate
    sampling = decode_seconds(
        assumed,
        passes=cost.rollout_passes,
        weights=share.held.weights + share.held.adapter,
        cache=cache_read(_nodes(stage, stage.problems), seen, stage.max_new_tokens, known.cached),
        flops=cost.sampled_tokens * 2 * sizes.multiplied,
        rate=rate,
        least=sizes.layers * assumed.layer_seconds,
    )
    return reading, sampling


def _vllm_seconds(
    settings: Settings,
    index: int,
    share: RunPlan,
    seen: tuple[int, ...],
    known: _Model,
    assumed: Assumptions,
    vllm: tuple[int, int],
) -> float:
    """Of sampling by vLLM, which decodes as many rows at once as its cache holds."""
    gpus, engines = vllm
    stage = settings.stages[index]
    stage = stage.model_copy(update={"problems": ceil(stage.problems / engines)})
    cost = stage_cost(stage.label, stage, settings, share.prompts)
    nodes, limits = _nodes(stage, stage.problems), stage.max_new_tokens
    weights = share.held.weights + share.held.adapter
    room = assumed.usable * gpus - weights
    full = nodes[-1] * (seen[-1] + limits[-1]) * known.cached
    return decode_seconds(
        assumed,
        passes=ceil(full / room) * sum(limits),
        weights=weights,
        cache=cache_read(nodes, seen, limits, known.cached),
        flops=cost.sampled_tokens * 2 * known.sizes.multiplied,
        rate=assumed.computing(known.dtype),
        least=0.0,
        gpus=gpus,
    )


_MEMORY_ROWS = {
    "weights": "weights",
    "adapter": "adapter",
    "gradients": "gradients",
    "optimizer": "optimiser state",
    "reference": "reference",
    "held": "always there",
    "update": "update, on top of it",
    "sampling": "sampling, on top of it",
    "step": "optimizer step, on top of it",
    "most": "most at once, if the built-in engine samples",
    "training": "most at once, if a vLLM server samples",
}
_TRAFFIC_ROWS = {"gradients": "gradients", "weights": "weights", "episodes": "episodes", "total": "all"}
_SECONDS_ROWS = {
    "reading": "contexts are read",
    "sampling": "tokens are sampled, built-in engine",
    "vllm": "tokens are sampled, vLLM",
    "update": "update",
    "optimizer": "optimizer step",
    "traffic": "traffic",
    "total": "a step, built-in engine",
    "total_vllm": "a step, vLLM",
}


def to_text(plan: ClusterPlan, name: str) -> str:
    """The plan as people read it."""
    gpus, engines = plan.vllm
    episodes = ", ".join(f"{stage.cost.episodes} of {stage.cost.label}" for stage in plan.stages)
    memory = {key: [getattr(m, key) for m in plan.memory.values()] for key in _MEMORY_ROWS}
    lines = [
        f"{name} on {plan.processes} processes with a GPU each: an estimate, of which nothing was measured on GPUs",
        f"{plan.share.model}, {plan.share.dtype}, {plan.share.held.parameters:,} parameters",
        f"episodes a step and process: {episodes}",
        f"prompts: {plan.share.prompts}",
        "",
        *_table("memory of each process, GiB", list(plan.memory), memory, _MEMORY_ROWS, 2**30),
        _verdict(plan),
    ]
    for stage in plan.stages:
        label, kinds = stage.cost.label, list(plan.memory)
        sent = {key: [getattr(t, key) for t in stage.traffic.values()] for key in _TRAFFIC_ROWS}
        seconds = {key: [getattr(s, key) for s in stage.seconds.values()] for key in _SECONDS_ROWS}
        lines += ["", *_table(f"{label}: each process sends in a step, MiB", kinds, sent, _TRAFFIC_ROWS, 2**20)]
        lines += ["", *_table(f"{label}: seconds of a step, at most", kinds, seconds, _SECONDS_ROWS, 1)]
    lines += ["", f"vLLM: {engines} engine{'s' * (engines > 1)} of {gpus} GPU{'s' * (gpus > 1)} each"]
    if plan.processes > 1:
        lines[-1] += "; several processes sample with it from a server, with parallel.kind=ddp (docs/scaling.md)"
    lines += ["assumed (score_rl/planning/seconds.py); nothing overlaps, and every attempt runs to its limit:"]
    return "\n".join([*lines, *(f"  {key:<18}{value:>20,.10g}" for key, value in asdict(plan.assumed).items())]) + "\n"


def _table(title: str, heads: list[str], values: dict[str, list[Any]], rows: dict[str, str], unit: int) -> list[str]:
    first = f"{title:<52}" + "".join(f"{head:>12}" for head in heads)
    cells = {key: "".join(f"{value / unit:>12,.{2 - (unit == 2**20)}f}" for value in values[key]) for key in rows}
    return [first, *(f"  {text:<50}{cells[key]}" for key, text in rows.items())]


def _verdict(plan: ClusterPlan) -> str:
    """Which kinds fit into a GPU that is filled as far as is assumed; a server takes adapters alone."""
    room = plan.assumed.usable
    here = [kind for kind, memory in plan.memory.items() if memory.most <= room]
    served = [kind for kind, memory in plan.memory.items() if memory.adapter and memory.training <= room]
    other = [kind for kind in served if kind not in here]
    said = f"  of {room / 2**30:.0f} GiB that may be filled: "
    parts = [
        f"{' '.join(here)} fit" if here else "",
        f"{' '.join(other)} would fit if a vLLM server sampled" if other else "",
    ]
    return said + ("; ".join(part for part in parts if part) or "nothing fits")
