"""`score sweep`: many runs, resumable, one directory."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.cli.subject import Json
from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from score_rl.sweep import Sweep, SweepDirectory

Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value ...]", help="Keys of the sweep, e.g. seeds=[0], or settings of every run."),
]


def sweep(
    file: Annotated[str, typer.Argument(metavar="SWEEP", help="A shipped sweep (paper, ablations) or a YAML file.")],
    overrides: Changes = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory of the sweep; runs/<its name> by default.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs that go on at once; they share the cores.")] = 1,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Each row with one seed, a step a stage and few problems: does all run?")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Run nothing: print runs, steps and what they would take.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every row of a sweep with every seed. Killed, or rows added? The same command goes on.

    score sweep paper --plan
    score sweep paper --jobs 2
    score sweep mine.yaml -o runs/mine seeds=[0]
    score table runs/paper
    """
    from score_rl.launcher import launched
    from score_rl.sweep import SweepDirectory, read_sweep, shortened
    from score_rl.sweeping import make_runs, threads_of

    if launched() > 1:
        raise ConfigError("score sweep starts the processes itself; call it without a launcher, with --jobs N")
    found = read_sweep(file, overrides or [])
    if smoke:
        found = shortened(found)
    directory = SweepDirectory(output or Path("runs") / found.settings.name)
    if plan:
        directory.check(found)
        _print_plan(found, directory, jobs, _timed(found, directory, jobs), as_json=as_json)
        return
    with directory.locked():
        if smoke:
            directory.clear()
        directory.check(found)
        rate = None if smoke else _timed(found, directory, jobs)
        directory.begin(found)
        if rate is not None:
            directory.write_timing({"seconds_a_weight": rate, "threads": threads_of(found, jobs)})
        if not smoke:
            _print_plan(found, directory, jobs, rate, as_json=False)
        batch = -(-len(found.runs) // jobs) if smoke else 1
        outcome = make_runs(found, directory, jobs=jobs, batch=batch, timed=rate)
    done = len(directory.results(found.runs))
    if outcome.signal is not None:
        words = [file, *(overrides or []), "-o", str(directory.path), *(["--jobs", str(jobs)] if jobs > 1 else [])]
        again = f"score sweep {shlex.join(words)}"
        typer.echo(f"{done} of {len(found.runs)} runs are done; the same command goes on from here: {again}", err=True)
        raise typer.Exit(128 + outcome.signal)
    if as_json:
        print(
            json.dumps({"sweep": str(directory.path), "runs": len(found.runs), "done": done, "failed": outcome.failed})
        )
    typer.echo(f"{done} of {len(found.runs)} runs are done, in {directory.path}", err=True)
    if outcome.failed:
        typer.echo(
            f"{len(outcome.failed)} failed, see {directory.path / 'failures'}; the same command tries them again",
            err=True,
        )
        raise typer.Exit(1)


def _timed(sweep: Sweep, directory: SweepDirectory, jobs: int) -> float | None:
    """Seconds for each unit of a run's weight; None where finished runs tell it."""
    from score_rl.sweeping import threads_of, time_a_weight

    done, _ = directory.trained(sweep.runs)
    names = [run.name for run in sweep.runs if run.train]
    if not names or any(name in done for name in names):
        return None
    threads = threads_of(sweep, jobs)
    stored = directory.read_timing()
    if stored is not None and stored["threads"] == threads:
        return float(stored["seconds_a_weight"])
    typer.echo("no run that trains is done, so two steps of each stage are timed first", err=True)
    return time_a_weight(sweep, threads)


def _print_plan(sweep: Sweep, directory: SweepDirectory, jobs: int, rate: float | None, *, as_json: bool) -> None:
    from score_rl.sweeping import duration, estimate, threads_of

    results, lacking = directory.trained(sweep.runs)
    left = [run for run in sweep.runs if run.name not in results]
    seconds, source = estimate(sweep.runs, results, rate, lacking)
    told = {
        "sweep": str(directory.path),
        "rows": len(sweep.settings.rows),
        "runs": len(sweep.runs),
        "done": len(results) - len(lacking),
        "to_evaluate": len(lacking),
        "steps": sum(run.steps for run in left),
        "attempts_sampled": sum(run.attempts for run in left),
        "jobs": jobs,
        "threads": threads_of(sweep, jobs),
        "processors": os.cpu_count(),
        "seconds": sum(seconds.values()) / jobs,
        "source": source,
    }
    if as_json:
        print(json.dumps(told | {"left": seconds}))
        return
    more = f"{len(lacking)} to evaluate further; " if lacking else ""
    typer.echo(
        f"{directory.path}: {len(sweep.runs)} runs of {told['rows']} rows, {told['done']} done; {more}"
        f"{len(left)} to make: {told['steps']:,} steps, {told['attempts_sampled']:,} attempts sampled in training; "
        f"about {duration(sum(seconds.values()) / jobs)} on this machine ({os.cpu_count()} cores, {jobs} at once, "
        f"{told['threads']} threads each), estimated from {source}",
        err=True,
    )
