"""`score import-config` and `score export`: recipes from other programs, and models for other programs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from score_rl.prior.conversion import Conversion


def import_config(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A YAML file of BY571/SCoRe or VityaVitalich/SCoRe.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value ...]", help="Keys of ours to set, e.g. data.source=DIR reward.fn=mine.py:f."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write here, not to standard output.")] = None,
    train_rows: Annotated[
        int | None, typer.Option("--train-rows", min=1, help="Rows of the training data, to turn epochs into steps.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Processes theirs would be launched on; 1 by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print recipe and keys as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Turn another SCoRe's settings into a recipe, and say what became of each key.

    The recipe does what the file says where it can, and what the paper says where their program does something else;
    the table on standard error names every key, and how to have it their way.

      score import-config gsm8k.yaml --train-rows 7473 -o recipe.yaml
      score import-config gsm8k.yaml data.source=data/gsm8k -o recipe.yaml
      score import-config score.yaml --processes 2 -o recipe.yaml
    """
    from score_rl.grading import make_grader
    from score_rl.prior import import_config as convert
    from score_rl.records import write_text
    from score_rl.run import check_writable

    if output is not None:
        check_writable(output.parent)
    made = convert(file, overrides, train_rows=train_rows, processes=processes)
    _print_keys(made)
    recipe, settings = made.recipe(), made.settings()
    make_grader(settings.reward).close()  # a reward of the overrides may not exist
    if output is not None:
        write_text(output, recipe)
        print(f"recipe in {output}; try it with: score train {output} --smoke 2", file=sys.stderr)
    if as_json:
        keys = [line._asdict() for line in made.lines]
        print(json.dumps({"program": made.program, "recipe": settings.model_dump(mode="json"), "keys": keys}))
    elif output is None:
        sys.stdout.write(recipe)


def _print_keys(made: Conversion) -> None:
    from rich.console import Console
    from rich.table import Table

    from score_rl.prior.conversion import shorten

    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    table = Table(title=f"{made.source} ({made.program})", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("theirs", overflow="fold", max_width=32)
    table.add_column("value", overflow="fold", max_width=24)
    table.add_column("")
    table.add_column("ours", overflow="fold", max_width=44)
    table.add_column("how")
    for line in made.lines:
        value = shorten(line.value)
        if not (line.key.startswith("(") or line.key in made.given):
            value += " (their default)"
        table.add_row(*map(_plain, (line.key, value, line.kind, line.target, line.note)))
    console.print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write; new or empty.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Add the adapter to the base model's weights; needs no peft then.")
    ] = False,
    stage: Annotated[str | None, typer.Option(help="Which stage's model: stage1, ...; the last by default.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Write a run's model or adapter with tokenizer, chat template and model card, as transformers and peft load it.

    score export runs/mine -o exported --merge
    score export runs/mine -o exported-stage1 --stage stage1
    """
    import warnings

    from transformers.utils import logging

    from score_rl.export import export as write
    from score_rl.run import check_writable

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # peft calls what transformers has renamed; the user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    check_writable(output.parent)
    done = write(run, output, stage=stage, merge=merge)
    if as_json:
        print(json.dumps(done._asdict() | {"path": str(done.path)}))
        return
    print(f"{done.kind} of {done.stage} in {done.path}, with README.md; the licence there is yours to fill in")
    if done.gap is not None:
        print(f"merged weights against model with adapter: {done.gap:.2g} nats per token apart", file=sys.stderr)
