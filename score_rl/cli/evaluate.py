"""`score eval`: held-out problems, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from score_rl.cli.subject import Json, Overrides, Recipe, Seed, Stage, Subject, chat_of, is_run, player_of, settings_of
from score_rl.cli.tables import print_table


def evaluate(
    subject: Subject,
    overrides: Overrides = None,
    attempts: Annotated[int | None, typer.Option(min=1, help="Attempts a problem; the recipe's by default.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy, the default.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="At most this many problems.")] = None,
    stage: Stage = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write; RUN/eval/NAME.json for a run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure self-correction on held-out problems, with 95% intervals and an exact McNemar p-value.

    score eval runs/arithmetic
    score eval runs/arithmetic --attempts 10
    score eval embedded --temperature 1 --json
    """
    from score_rl.run import check_writable

    extra = [f"eval.attempts={attempts}"] if attempts is not None else []
    extra += [f"eval.sampling.temperature={temperature}"] if temperature is not None else []
    extra += [f"eval.problems={problems}"] if problems is not None else []
    settings, name = settings_of(subject, recipe, [*(overrides or []), *extra], stage=stage, seed=seed)
    if output is None and is_run(subject):
        label = f"{name}-{settings.eval.split}-{settings.eval.attempts}-attempts"
        warm = settings.eval.sampling.temperature
        output = Path(subject) / "eval" / f"{label}{f'-temperature-{warm:g}' if warm else ''}.json"
    if output is not None:
        check_writable(output.parent)
    from score_rl.data.load import load_problems
    from score_rl.evaluation import evaluate as play
    from score_rl.evaluation import write_evaluation
    from score_rl.limits import check_room, keep_short
    from score_rl.loading import context_length
    from score_rl.tracking import Screen

    screen, chat = Screen(), chat_of(settings)
    chosen = load_problems(settings.data, settings.eval.split)[: settings.eval.problems]
    chosen = keep_short(chosen, chat, settings.eval.split, screen.say)
    limits = [settings.eval.max_new_tokens] * settings.eval.attempts
    check_room(chosen, chat, limits, context_length(settings.model), key="eval")
    player = player_of(settings, chat)
    with screen.task(f"{name} evaluation", len(chosen)) as advance:
        result = play(player, chosen, settings.eval, seed=settings.seed, progress=lambda n: advance(n, ""))
    if output is not None:
        write_evaluation(result, output)
    if as_json:
        print(json.dumps(result.metrics))
        return
    print_table(f"{subject} ({name})", {name: result.metrics})
    if output is not None:
        screen.say(f"metrics in {output}, episodes in {output.with_suffix('.jsonl')}")
