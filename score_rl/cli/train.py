"""`score train`: both stages, from the first evaluation to the last."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.cli.subject import Json, Seed, quiet_libraries
from score_rl.cli.tables import print_table
from score_rl.errors import ConfigError
from score_rl.launcher import is_first

if TYPE_CHECKING:
    from score_rl.schema import Settings

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Settings to change, e.g. stages.1.steps=50 model.path=DIR."),
]


def train(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="A shipped recipe or a YAML file; the embedded task by default.")
    ] = "arithmetic",
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Run directory; runs/<recipe> by default.")
    ] = None,
    smoke: Annotated[
        int | None, typer.Option("--smoke", min=1, help="Every stage for N steps, on few problems: does it run at all?")
    ] = None,
    seed: Seed = None,
    fresh: Annotated[
        bool, typer.Option("--fresh/--resume", help="Delete an earlier run in the directory, or go on with it.")
    ] = False,
    start_stage: Annotated[int, typer.Option("--start-stage", min=1, help="First stage to train, from 1.")] = 1,
    resume_adapter: Annotated[
        Path | None, typer.Option("--resume-adapter", help="Start from these weights, e.g. an earlier run's stage1/.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Train nothing: print parameters, memory, tokens and forward passes.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option("--processes", min=1, help="With --plan: memory, traffic and seconds on N processes, estimated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train all stages, evaluating before, between and after.

    With no argument this trains the policy inside the package on the embedded task, in minutes on 2 CPU cores.
    A run directory that holds a checkpoint is gone on with.

      score train
      score train gsm8k.yaml stages.0.steps=200 -o runs/gsm8k
      score train arithmetic --seed 3 --json
      score train math --plan
      score train math --plan --processes 8
    """
    if "=" in recipe and not Path(recipe).is_file():
        recipe, overrides = "arithmetic", [recipe, *(overrides or [])]
    from score_rl.settings import load

    settings = load(recipe, [*(overrides or []), *([f"seed={seed}"] if seed is not None else [])])
    if smoke is not None:
        settings = _smoke(settings, smoke)
    if plan:
        if is_first():
            _print_plan(settings, recipe, processes, as_json)
        return
    _check_start(settings, start_stage, resume_adapter, processes)
    # A trial must not leave the full run in need of --fresh.
    path = output or Path("runs") / (settings.name if smoke is None else f"{settings.name}-smoke")
    from score_rl.tracking import Screen

    screen = Screen(quiet=not is_first())
    screen.say(f"score train {recipe} -> {path}: loading")
    begun = time.monotonic()
    quiet_libraries()
    from score_rl.interrupts import Interrupted
    from score_rl.processes import leave
    from score_rl.train import Trainer

    trainer = Trainer(settings, path, fresh=fresh, adapter=resume_adapter, start_stage=start_stage, screen=screen)
    try:
        results = trainer.train()
    except Interrupted as interrupted:
        screen.say(f"{interrupted}: saved; the same command goes on from here: score train {recipe} -o {path}")
        leave()
        raise typer.Exit(interrupted.exit_code) from None
    leave()
    seconds = round(time.monotonic() - begun, 1)
    if not is_first():
        return
    if as_json:
        print(json.dumps({"run": str(path), "seconds": seconds, **results}))
    else:
        print_table(f"{settings.name}, seed {settings.seed}, {seconds:.0f} s", results)
    screen.say(f"models, metrics and transcripts are in {path}; to look at: {path / 'report.html'}")


def _check_start(settings: Settings, start_stage: int, adapter: Path | None, processes: int | None) -> None:
    if processes is not None:
        command = f"torchrun --nproc-per-node {processes} -m score_rl train RECIPE"
        raise ConfigError(f"--processes {processes}: only with --plan; to train: {command}")
    if start_stage > 1 and adapter is None:
        raise ConfigError(
            f"--start-stage {start_stage}: starts from an earlier stage's weights; add --resume-adapter DIR"
        )
    if adapter is not None and not adapter.is_dir():
        raise ConfigError(f"--resume-adapter {adapter}: no such directory")
    if start_stage > len(settings.stages) * settings.train.iterations:
        raise ConfigError(f"--start-stage {start_stage}: the recipe has {len(settings.stages)} stages")


def _smoke(settings: Settings, steps: int) -> Settings:
    """The same run, only shorter: each stage `steps` steps, evaluations on at most 64 problems."""
    content = settings.model_dump(mode="json")
    for stage in content["stages"]:
        stage["steps"], stage["rounds"] = steps, min(stage["rounds"], steps)
    content["train"]["validation_problems"] = min(64, settings.train.validation_problems)
    content["eval"]["problems"] = min(64, settings.eval.problems)
    from score_rl.settings import parse

    return parse(content, "--smoke")


def _print_plan(settings: Settings, recipe: str, processes: int | None, as_json: bool) -> None:
    # Without a network the hub's library says for half a minute what the plan says in a word.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    quiet_libraries()
    from score_rl.planning import cluster, make_plan, to_text

    if processes is None:
        plan = make_plan(settings)
        sys.stdout.write(json.dumps(plan.to_json()) + "\n" if as_json else to_text(plan, recipe))
        return
    spread = cluster.make_cluster_plan(settings, processes)
    sys.stdout.write(json.dumps(spread.to_json()) + "\n" if as_json else cluster.to_text(spread, recipe))
