"""`score data hard` and `score data profile`: what a model fails, and how long its attempts are."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from score_rl.cli.subject import Json, Overrides, Recipe, Seed, Subject, chat_of, player_of, settings_of
from score_rl.errors import ConfigError


def hard(
    subject: Subject,
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory of the new data set.")],
    overrides: Overrides = None,
    train: Annotated[
        int | None, typer.Option(min=1, help="Training problems to keep; all that are left by default.")
    ] = None,
    validation: Annotated[
        int | None, typer.Option(min=1, help="Validation problems to keep; as many as for the test by default.")
    ] = None,
    test: Annotated[int | None, typer.Option(min=1, help="Test problems to keep; a tenth by default.")] = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Keep the problems that a model fails: its first greedy attempt is wrong.

    Problems of the training split are tried in the seed's order, all of them or until --train (with the others) is
    full. Killed? The same command goes on from what has been tried.

      score data hard embedded -o data/hard --train 200 --test 50
      score data hard my.yaml -o data/hard eval.max_new_tokens=1024
    """
    from score_rl.data.load import load_problems
    from score_rl.hard import Sizes, find_hard, reading, write_hard
    from score_rl.limits import check_room, keep_short
    from score_rl.loading import context_length
    from score_rl.run import check_writable
    from score_rl.tracking import Screen

    check_writable(output.parent)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output}: is there and not empty; choose another directory with -o")
    settings, _ = settings_of(subject, recipe, overrides or [], seed=seed)
    screen, chat = Screen(), chat_of(settings)
    problems = keep_short(load_problems(settings.data, "train"), chat, "train", screen.say)
    limits = [settings.eval.max_new_tokens]
    check_room(problems, chat, limits, context_length(settings.model), key="eval")
    player = player_of(settings, chat)
    try:
        with screen.task("greedy attempts", len(problems)) as advance:
            sizes = Sizes(train, validation, test)
            found = find_hard(player, problems, settings, output, sizes, progress=lambda n: advance(n, ""))
    finally:
        player.grader.close()
    write_hard(found, settings, output)
    record = found.record(settings)
    if as_json:
        print(json.dumps({"output": str(output), "read": reading(found, output), **record}))
        return
    print(
        f"{record['tried']} of {len(problems)} problems tried, {record['wrong']} wrong at attempt 1 "
        f"({record['wrong_and_cut_off']} of them cut off at eval.max_new_tokens={settings.eval.max_new_tokens}), "
        f"{record['ungraded']} ungraded; accuracy {100 * record['acc/t1']:.1f}% "
        f"[{100 * record['acc/t1.low']:.1f}, {100 * record['acc/t1.high']:.1f}]"
    )
    print(f"kept: {record['train']} train, {record['validation']} validation, {record['test']} test, in {output}")
    screen.say(f"train on them with: {reading(found, output)!r}")
    screen.say("on these this model's acc/t1 is 0 by selection, so some of any gain at attempt 1 is chance")


def profile(
    subject: Subject,
    overrides: Overrides = None,
    problems: Annotated[int, typer.Option(min=1, help="Training problems to roll out.")] = 50,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the page here, e.g. profile.md.")] = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Measure prompts and attempts before training, and suggest limits.

    Training problems get two attempts each, sampled as in training: lengths, thoughts, truncation, grades, the parts of
    the reward, and tokens a second, as Markdown.

      score data profile my.yaml --problems 50 -o profile.md
      score data profile runs/mine --json
    """
    from score_rl.chat import fitting
    from score_rl.data.load import load_problems
    from score_rl.limits import check_room
    from score_rl.loading import context_length
    from score_rl.profile import markdown, profiled_limits
    from score_rl.profile import profile as measure
    from score_rl.records import write_text
    from score_rl.run import check_writable
    from score_rl.tracking import Screen

    if output is not None:
        check_writable(output.parent)
    settings, _ = settings_of(subject, recipe, overrides or [], seed=seed)
    train = load_problems(settings.data, "train")
    chat = chat_of(settings)
    kept, limits = fitting(train, chat).kept, profiled_limits(settings)
    check_room(kept, chat, limits, context_length(settings.model), key=f"the limits of {settings.name}")
    player = player_of(settings, chat)
    try:
        with Screen().task("two attempts", min(problems, len(train))) as advance:
            found = measure(player, train, settings, problems, progress=lambda n: advance(n, ""))
    finally:
        player.grader.close()
    if output is not None:
        write_text(output, markdown(found))
        print(f"profile in {output}", file=sys.stderr)
    if as_json:
        print(json.dumps(found))
    elif output is None:
        sys.stdout.write(markdown(found))
