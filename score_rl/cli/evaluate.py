"""`score eval`: held-out problems, with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.cli.remote import Concurrency, Endpoint, Retries, endpoint_player
from score_rl.cli.subject import (
    Json,
    Overrides,
    Recipe,
    Seed,
    Stage,
    Subject,
    chat_of,
    is_run,
    policy_of,
    settings_of,
)
from score_rl.cli.tables import print_table
from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from score_rl.chat import Chat
    from score_rl.endpoint import EndpointPlayer
    from score_rl.episodes import Attempt, Problem
    from score_rl.evaluation import EpisodePlayer, Evaluation
    from score_rl.grading import Grader
    from score_rl.model_schema import ModelSettings
    from score_rl.policy import Policy
    from score_rl.processes import Group
    from score_rl.results import Partial
    from score_rl.schema import Settings
    from score_rl.tracking import Screen


FirstAttempts = Annotated[
    Path | None,
    typer.Option(metavar="FILE.jsonl", help="Correct the first attempts of this evaluation, not its own."),
]
Kl = Annotated[bool, typer.Option("--kl", help="Also write NAME.kl.jsonl: each token's KL to the reference.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; RUN/eval/NAME.json for a run.")]


def evaluate(
    subject: Subject,
    overrides: Overrides = None,
    attempts: Annotated[int | None, typer.Option(min=1, help="Attempts a problem; the recipe's by default.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Episodes a problem, drawn apart; 1 by default.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy, the default.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this mass alone.")] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="Other problems: what data.source takes.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="At most this many problems.")] = None,
    first_attempts: FirstAttempts = None,
    kl: Kl = False,
    endpoint: Endpoint = None,
    concurrency: Concurrency = None,
    retries: Retries = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what a killed evaluation has left.")] = False,
    stage: Stage = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Measure self-correction on held-out problems, with 95% intervals. Killed? The same command goes on.

    score eval runs/arithmetic
    score eval runs/arithmetic --attempts 10
    score eval runs/arithmetic --samples 8 --temperature 1
    score eval embedded --temperature 1 --json
    torchrun --nproc-per-node 8 -m score_rl eval runs/mine
    score eval MODEL --endpoint http://127.0.0.1:8000/v1 --recipe gsm8k -o model.json
    """
    from score_rl.run import check_writable

    given = {
        # The other keys of data belong to the source that is replaced.
        "data": None if data is None else json.dumps({"source": data}),
        "eval.attempts": attempts,
        "eval.samples": samples,
        "eval.sampling.temperature": temperature,
        "eval.sampling.top_p": top_p,
        "eval.problems": problems,
    }
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    settings, name = settings_of(subject, recipe, [*changes, *(overrides or [])], stage=stage, seed=seed)
    if output is None and is_run(subject):
        output = Path(subject) / "eval" / f"{_label(name, settings, data, first_attempts)}.json"
    if output is not None:
        check_writable(output.parent)
    from score_rl.evaluation import write_evaluation
    from score_rl.grading import make_grader
    from score_rl.processes import leave, start
    from score_rl.tracking import Screen

    group = start()
    screen = Screen(quiet=not group.is_first)
    with group.together():
        if endpoint is not None and group.size > 1:
            raise ConfigError(f"--endpoint with {group.size} processes: one asks it; start one, raise --concurrency")
        reference = _reference(subject, name, settings, output, endpoint) if kl else None
        remote = endpoint_player(settings, endpoint, concurrency, retries, screen)
        chat = chat_of(settings) if remote is None else None
        chosen = _problems(settings, chat, screen)
    partial = _open_partial(settings, chosen, output, first_attempts, remote, group, fresh=fresh)
    with group.together():
        grader = make_grader(settings.reward) if remote is None else remote.grader
        fixed = _fixed(first_attempts, settings, chosen, grader, chat)
        player, policy = _player(settings, chat, grader, remote, group)
    result = _play(player, grader, chosen, settings, fixed, partial, screen, name)
    leave()
    if not group.is_first:
        return
    if first_attempts is not None:
        result.metrics["first_attempts"] = str(first_attempts)
    if kl and output is not None and policy is not None and chat is not None:
        _write_kl(policy, chat, result, settings, reference, output, screen)
    if output is not None:
        write_evaluation(result, output)
    if partial is not None:
        partial.remove()
    _show(result, f"{subject} ({name})", name, output, screen, as_json=as_json)


def _show(result: Evaluation, title: str, name: str, output: Path | None, screen: Screen, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.metrics))
        return
    print_table(title, {name: result.metrics})
    if output is not None:
        screen.say(f"metrics in {output}, episodes in {output.with_suffix('.jsonl')}")


def _label(name: str, settings: Settings, data: str | None, first_attempts: Path | None) -> str:
    judged = settings.eval
    parts = [name, judged.split, str(judged.attempts), "attempts"]
    parts += [str(judged.samples), "samples"] if judged.samples > 1 else []
    parts += ["temperature", f"{judged.sampling.temperature:g}"] if judged.sampling.temperature else []
    parts += ["top-p", f"{judged.sampling.top_p:g}"] if judged.sampling.top_p < 1 else []
    parts += ["on", Path(data).stem] if data else []
    parts += ["after", first_attempts.stem] if first_attempts else []
    return "-".join(parts)


def _reference(
    subject: str, name: str, settings: Settings, output: Path | None, endpoint: str | None
) -> ModelSettings | None:
    """The model that `--kl` compares with; None where it is the policy without its adapter.

    Raises:
        ConfigError: there is none, or nowhere to write.
    """
    from score_rl.loading import is_adapter, model_directory
    from score_rl.run import RunDirectory

    if endpoint is not None:
        raise ConfigError("--kl: an endpoint does not tell it; give the model's directory, without --endpoint")
    if output is None:
        raise ConfigError("--kl: writes a file beside the metrics; say where with -o")
    if is_adapter(model_directory(settings.model, weights=False)):
        return None
    if not is_run(subject) or name == "base":
        what = "the base model is the reference itself" if is_run(subject) else f"{subject} has no reference"
        raise ConfigError(f"--kl: {what}; give a run with a finished stage, or an adapter")
    return RunDirectory(Path(subject)).load_settings().model.model_copy(update={"lora": None})


def _player(
    settings: Settings, chat: Chat | None, grader: Grader, remote: EndpointPlayer | None, group: Group
) -> tuple[EpisodePlayer, Policy | None]:
    """What plays, and its weights if they are here; of several processes each plays its share."""
    from score_rl.engines import check_engine, engine_player
    from score_rl.parallel import Parallel
    from score_rl.sharing import SharingPlayer

    if remote is not None or chat is None:
        assert remote is not None
        return remote, None
    check_engine(settings, trains=False)
    policy = policy_of(settings, chat)
    player = engine_player(settings, policy, chat, grader)
    return (player if group.size == 1 else SharingPlayer(player, Parallel(policy, group))), policy


def _problems(settings: Settings, chat: Chat | None, screen: Screen) -> list[Problem]:
    from score_rl.data.load import load_problems
    from score_rl.limits import check_room, keep_short
    from score_rl.loading import context_length

    chosen = load_problems(settings.data, settings.eval.split)[: settings.eval.problems]
    if chat is None:
        # Without the tokenizer nobody knows here how long they are; an endpoint refuses what it cannot hold.
        return chosen
    chosen = keep_short(chosen, chat, settings.eval.split, screen.say)
    limits = [settings.eval.max_new_tokens] * settings.eval.attempts
    check_room(chosen, chat, limits, context_length(settings.model), key="eval")
    return chosen


def _open_partial(
    settings: Settings,
    problems: list[Problem],
    output: Path | None,
    first_attempts: Path | None,
    remote: EndpointPlayer | None,
    group: Group,
    *,
    fresh: bool,
) -> Partial | None:
    """What an earlier call has left, or an empty file for what this one plays; None where nothing is written."""
    if output is None:
        return None
    from score_rl.evaluation import plan_of
    from score_rl.results import Partial, identity, partial_path
    from score_rl.rollout import Player

    def opened() -> Partial:
        if remote is None:
            from score_rl.loading import weights_fingerprint  # and with it torch, which a server's client does without

            weights = weights_fingerprint(settings.model)
        else:
            weights = f"those of {remote.model} at {remote.url}"
        told = identity(settings, weights, problems, first_attempts)
        partial = Partial(partial_path(output), told, settings.eval.samples)
        at_once = (remote or Player).problems_at_once(plan_of(settings.eval)) * group.size
        partial.open(len(problems), at_once, fresh=fresh)
        return partial

    partial = group.first(opened)
    partial.writes = group.is_first
    return partial


def _fixed(
    file: Path | None, settings: Settings, problems: list[Problem], grader: Grader, chat: Chat | None
) -> list[list[Attempt]] | None:
    if file is None:
        return None
    from score_rl.evaluation import fixed_attempts

    if settings.eval.attempts < 2:
        raise ConfigError(f"--first-attempts {file}: eval.attempts=1 corrects nothing; set --attempts 2 or more")
    return fixed_attempts(file, problems, settings.eval.samples, grader, chat)


def _play(
    player: EpisodePlayer,
    grader: Grader,
    problems: list[Problem],
    settings: Settings,
    fixed: list[list[Attempt]] | None,
    partial: Partial | None,
    screen: Screen,
    name: str,
) -> Evaluation:
    from score_rl.evaluation import evaluate as play

    done = partial.problems if partial is not None else 0
    if partial is not None and done:
        screen.say(f"{partial.path}: {done} of {len(problems)} problems are done, going on with the others")
    try:
        with screen.task(f"{name} evaluation", len(problems), done) as advance:
            return play(
                player,
                problems,
                settings.eval,
                seed=settings.seed,
                progress=lambda n: advance(n, ""),
                first_attempts=fixed,
                partial=partial,
            )
    except KeyboardInterrupt:
        if partial is None:
            raise
        screen.say(f"interrupted: what is finished is in {partial.path}, and the same command goes on from there")
        raise typer.Exit(130) from None
    finally:
        grader.close()


def _write_kl(
    policy: Policy,
    chat: Chat,
    result: Evaluation,
    settings: Settings,
    reference: ModelSettings | None,
    output: Path,
    screen: Screen,
) -> None:
    """Writes NAME.kl.jsonl, and the mean KL of each attempt into the metrics."""
    from statistics import fmean

    from score_rl.loading import load_model
    from score_rl.records import to_lines, write_text
    from score_rl.token_kl import token_kl

    if reference is not None:
        policy.freeze_reference(load_model(reference))
    with screen.task("KL to the reference", len(result.episodes)) as advance:
        lines = list(
            token_kl(
                policy,
                chat,
                result.episodes,
                temperature=settings.eval.sampling.temperature or 1.0,
                max_tokens=settings.train.micro_batch_tokens,
                progress=lambda n: advance(n, ""),
            )
        )
    write_text(output.with_suffix(".kl.jsonl"), to_lines(lines))
    for k in range(settings.eval.attempts):
        result.metrics[f"kl/t{k + 1}"] = fmean(sum(line["attempts"][k]["kl"]) for line in lines)
