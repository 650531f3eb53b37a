"""Tokens per second by phase with 1 and 2 processes and with each engine: `python benchmarks/scaling.py -o FILE.json`.

Starts short runs of the embedded recipe, all with the same seed and the same questions a step, and reads the seconds
that they wrote themselves: `time/rollout_seconds` and `time/update_seconds` of `metrics.jsonl`. A phase's tokens are
those that were sampled, or those that were trained on; a first attempt that siblings share is sampled once and trained
on with each. The first steps of a stage are left out, and the median of the others counts. Prints a table in Markdown,
and how busy the machine was. vLLM takes part, in one process, where the Python that starts this has it; on a CPU it
wants the policy of `python -m score_rl.embedded.wide -o wide`, and so `--model wide` for all.

`--layer` measures something else: the processor time of one decoder layer in a forward pass of the built-in engine,
with next to no arithmetic in it, which is what `score_rl.planning.seconds` assumes of a GPU's host.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

BRANCHES = {"stage1": (2, 4), "stage2": (8, 1)}
PROBLEMS = 64
SMALL = ["eval.problems=8", "train.validation_problems=8", "train.select=last"]
VLLM_ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Case(NamedTuple):
    """One way to do the same work."""

    engine: str
    kind: str
    processes: int
    threads: int

    @property
    def label(self) -> str:
        return f"{self.engine}, {self.kind if self.processes > 1 else 'one process'}"


class Step(NamedTuple):
    """Tokens and seconds of a step's phases."""

    sampled: float
    trained: float
    rollout: float
    update: float


def cases(cores: int) -> list[Case]:
    """All cores in one process, half of them in one process, and half of them in each of two processes."""
    half = max(1, cores // 2)
    engines = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    alone = [Case(engine, "ddp", 1, threads) for engine in engines for threads in (half, cores)]
    return alone + [Case("transformers", kind, 2, half) for kind in ("ddp", "fsdp")]


def run(case: Case, model: str, steps: int, lora: bool, path: Path) -> list[dict[str, Any]] | str:
    """The lines of the run's metrics, or the line with which it ended."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={case.processes}", "--standalone"]
    command = [sys.executable, *(launcher if case.processes > 1 else []), "-m", "score_rl", "train", "arithmetic"]
    command += [f"stages.{n}.steps={steps}" for n in range(2)] + SMALL + ["-o", str(path)]
    command += [f"model.path={model}", f"engine.kind={case.engine}", f"parallel.kind={case.kind}"]
    command += ["model.lora={rank: 16}"] if lora else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(case.threads), **(VLLM_ON_CPU if case.engine == "vllm" else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return next((line for line in lines if line.startswith("error: ")), lines[-1])


def steps_of(lines: list[dict[str, Any]], stage: str, skip: int) -> list[Step]:
    """The stage's steps but for the first ones."""
    first, second = BRANCHES[stage]
    found = []
    for line in lines:
        if line["stage"] != stage or line["stage_step"] <= skip:
            continue
        episodes = PROBLEMS * first * second
        lengths = [line[f"length/t{k}"] for k in (1, 2)]
        found.append(
            Step(
                sampled=PROBLEMS * first * lengths[0] + episodes * lengths[1],
                trained=episodes * sum(lengths),
                rollout=line["time/rollout_seconds"],
                update=line["time/update_seconds"],
            )
        )
    return found


def summary(steps: list[Step]) -> dict[str, float]:
    """Medians over the steps; tokens are added up, to be compared between cases."""
    return {
        "rollout_tokens_per_second": median(step.sampled / step.rollout for step in steps),
        "update_tokens_per_second": median(step.trained / step.update for step in steps),
        "step_seconds": median(step.rollout + step.update for step in steps),
        "sampled_tokens": sum(step.sampled for step in steps),
    }


def layer_seconds(adapter: bool, tokens: int = 150, repeats: int = 5) -> float:
    """Processor time of one more decoder layer in a forward pass that adds a token to one row."""
    import torch
    import transformers

    from score_rl.adapters import add_adapter
    from score_rl.decode import TransformersEngine
    from score_rl.schema import LoraSettings, ModelSettings, SamplingSettings

    torch.set_num_threads(1)
    found = {}
    for layers in (4, 28):
        config = transformers.Qwen2Config(
            vocab_size=128,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        torch.manual_seed(0)
        model = transformers.Qwen2ForCausalLM(config).eval()
        if adapter:
            add_adapter(model, ModelSettings(), LoraSettings(), 0)  # in place
        engine = TransformersEngine(model, frozenset(), 0)
        seconds = []
        for _ in range(repeats):
            started = time.process_time()
            engine.open().sample([(1, 2, 3)], None, [1], SamplingSettings(), tokens, last=True)
            seconds.append((time.process_time() - started) / tokens)
        found[layers] = min(seconds)
    return (found[28] - found[4]) / 24


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    print("| engine, processes | threads each | stage | rollout, tokens/s | update, tokens/s | seconds a step |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases(options.cores)):
            lines = run(case, options.model, options.skip + options.steps, options.lora, Path(folder) / str(number))
            if isinstance(lines, str):
                print(f"| {case.label} | {case.threads} | not run: {lines} | | | |", flush=True)
                results.append(case._asdict() | {"refused": lines})
                continue
            for stage in BRANCHES:
                found = summary(steps_of(lines, stage, options.skip))
                results.append(case._asdict() | {"stage": stage} | found)
                cells = [f"{case.label}{' x 2' * (case.processes > 1)}", str(case.threads), stage]
                cells += [f"{found[f'{phase}_tokens_per_second']:,.0f}" for phase in ("rollout", "update")]
                print(f"| {' | '.join(cells)} | {found['step_seconds']:.2f} |", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="cores that are shared out")
    parser.add_argument("--steps", type=int, default=8, help="steps of each stage that count")
    parser.add_argument("--skip", type=int, default=2, help="first steps of each stage that do not")
    parser.add_argument("--model", default="embedded", help="model.path of all runs")
    parser.add_argument("--lora", action="store_true", help="train an adapter, not the whole model")
    parser.add_argument("--layer", action="store_true", help="measure a layer's processor time instead")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    found: dict[str, Any] = {"machine": machine, "cores": options.cores, "load_before": os.getloadavg()}
    if options.layer:
        found["layer_seconds"] = {name: layer_seconds(name == "adapter") for name in ("plain", "adapter")}
        print("\n".join(f"{name}: {1000 * each:.2f} ms a layer" for name, each in found["layer_seconds"].items()))
    else:
        found["results"] = compare(options)
        found["load_after"] = os.getloadavg()
        loads = [f"{found[key][0]:.1f}" for key in ("load_before", "load_after")]
        print(f"\nload average (1 minute) {loads[0]} before and {loads[1]} after, on {options.cores} cores")
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
