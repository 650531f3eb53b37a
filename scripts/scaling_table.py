"""The table of estimates in docs/scaling.md: `python scripts/scaling_table.py`; needs no network, takes some minutes.

The `math` recipe with 64 questions a step, so that 64 processes have one each, on 1, 8 and 64 GPUs. Of the ways to
spread a model the simplest that fits is shown: DDP, then FSDP2; with the built-in engine, then with a vLLM server.
"""

from __future__ import annotations

import warnings

from score_rl.planning.cluster import ClusterPlan, make_cluster_plan
from score_rl.planning.costs import assume_prompts
from score_rl.planning.shapes import Shape, known_config
from score_rl.settings import load

MODELS = {
    "1.5B": "Qwen/Qwen2.5-1.5B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct",
    "70B": "meta-llama/Llama-3.1-70B-Instruct",
}
TRAINED = {"adapter": [], "whole": ["model.lora=null", "model.dtype=float32"]}
GPUS = (1, 8, 64)
HEADS = (
    "model",
    "trains",
    "GPUs",
    "`parallel.kind`",
    "always there, GiB",
    "most, GiB",
    "most with a server, GiB",
    "fits 80 GB",
    "sent, GiB",
    "sampling",
    "sampling, vLLM",
    "update",
    "traffic",
    "step",
    "step, vLLM",
)


def choose(plan: ClusterPlan) -> tuple[str, str]:
    """The kind that is shown, and whether it fits."""
    kinds = [kind for kind in ("ddp", "fsdp") if kind in plan.memory]
    room = plan.assumed.usable
    for kind in kinds:
        if plan.memory[kind].most <= room:
            return kind, "yes"
    for kind in kinds:
        if plan.memory[kind].adapter and plan.memory[kind].training <= room:
            return kind, "only with a server"
    return kinds[-1], "no"


def row(size: str, trained: str, gpus: int) -> str:
    """A line of the table."""
    settings = load("math", ["stages.0.problems=64", "stages.1.problems=64", *TRAINED[trained]])
    shape = Shape(known_config(MODELS[size]), "table")
    plan = make_cluster_plan(settings, gpus, shape=shape, prompts=assume_prompts(settings.chat))
    kind, fits = choose(plan)
    memory, stage = plan.memory[kind], plan.stages[0]
    seconds = stage.seconds[kind]
    cells = [size, trained, str(gpus), kind if gpus > 1 else "-"]
    cells += [f"{bytes_ / 2**30:,.1f}" for bytes_ in (memory.held, memory.most, memory.training)]
    cells += [fits, f"{stage.traffic[kind].total / 2**30:,.1f}"]
    parts = (seconds.sampling, seconds.vllm, seconds.update, seconds.traffic, seconds.total, seconds.total_vllm)
    return f"| {' | '.join([*cells, *(f'{part:,.1f}' for part in parts)])} |"


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    print(f"| {' | '.join(HEADS)} |")
    print(f"|{' --- |' * 4}{' ---: |' * 3} --- |{' ---: |' * 7}")
    for trained in TRAINED:
        for size in MODELS:
            for gpus in GPUS:
                print(row(size, trained, gpus), flush=True)


if __name__ == "__main__":
    main()
