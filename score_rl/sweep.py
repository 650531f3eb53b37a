"""A sweep's file, the runs that follow from it, and the directory that it is kept in."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from score_rl.errors import ConfigError
from score_rl.records import write_text
from score_rl.run import FREE, check_writable, stage_plan
from score_rl.schema import EvalSettings, Settings, StageSettings
from score_rl.settings import differences, explain, override, parse, parse_yaml, read_recipe
from score_rl.sweep_schema import Judged, SweepSettings

EVALUATION_WEIGHT = 0.25
"""What an attempt of an evaluation costs beside one that is trained on as well; about that on the embedded task."""

SMOKE_PROBLEMS = 16

OURS = ("sweep.yaml", "runs.json", "timing.json", "runs", "results", "failures", "logs")


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        evaluations: made of the last model, beside the run's own.
        train: False where the model is evaluated as it is.
    """

    row: str
    seed: int
    settings: Settings
    evaluations: dict[str, Judged]
    train: bool

    @property
    def name(self) -> str:
        """Its place in every part of the sweep's directory, `ROW/seed-S`."""
        return f"{self.row}/seed-{self.seed}"

    @property
    def labels(self) -> list[str]:
        """Names of the run's own evaluations, in order."""
        return ["base", *(label for label, _ in stage_plan(self.settings) if self.train)]

    @property
    def stages(self) -> list[StageSettings]:
        """The stages in the order they run."""
        return [self.settings.stages[index] for _, index in stage_plan(self.settings) if self.train]

    @property
    def steps(self) -> int:
        """Updates of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def attempts(self) -> int:
        """Attempts that training samples, stored first attempts not counted."""
        return sum(stage.steps * attempts_a_step(stage) for stage in self.stages)

    @property
    def weight(self) -> float:
        """What the run costs, in attempts that are sampled and trained on."""
        own = self.settings.eval
        evaluated = len(self.labels) * own.problems * own.samples * own.attempts
        if self.train:
            every, number = self.settings.train.validate_every, self.settings.train.validation_problems
            checks = 1 + sum(-(-stage.steps // every) for stage in self.stages)
            evaluated += checks * number * own.attempts
        return self.attempts + EVALUATION_WEIGHT * evaluated + self.extra_weight(self.evaluations)

    def extra_weight(self, names: Iterable[str]) -> float:
        """What the evaluations of these names cost, likewise."""
        chosen = [self.evaluations[name] for name in names]
        return EVALUATION_WEIGHT * sum(e.problems * e.samples * e.attempts for e in chosen)


def attempts_a_step(stage: StageSettings) -> int:
    """Attempts that a step samples: the nodes of all its questions' trees, less the first ones that are stored.

    >>> attempts_a_step(StageSettings(kind="stage2", steps=1, problems=10, branch=[8, 1]))
    160
    """
    nodes, total = 1, 0
    for children in stage.branch:
        nodes *= children
        total += nodes
    return stage.problems * total - stage.offline_problems * stage.branch[0]


class Sweep(NamedTuple):
    """A sweep's settings and its runs: the first seed of every row, then the second, and so on."""

    settings: SweepSettings
    runs: list[Run]


def sweep_names() -> list[str]:
    """Names of the sweeps that ship with the package."""
    directory = files("score_rl.recipes") / "sweeps"
    return sorted(file.name.removesuffix(".yaml") for file in directory.iterdir() if file.name.endswith(".yaml"))


def read_sweep(sweep: str, overrides: Sequence[str] = ()) -> Sweep:
    """A sweep given by shipped name or by path; every run's settings are read and checked.

    Args:
        overrides: `key=value`, of a key of the sweep (`seeds=[0]`, `rows.score.seeds=[0]`) or else of every row.

    Raises:
        ConfigError: no such file, or something in it that cannot be; names file, row and key.
    """
    source, content = _read(sweep)
    for assignment in overrides:
        if assignment.partition("=")[0].split(".")[0] in SweepSettings.model_fields:
            override(content, assignment)
        else:
            content["overrides"] = [*(content.get("overrides") or []), assignment]
    try:
        settings = SweepSettings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(source, error, SweepSettings)) from error
    rows = {row: _row(settings, row, f"{source}: rows.{row}") for row in settings.rows}
    most = max(len(runs) for runs in rows.values())
    return Sweep(settings, [runs[k] for k in range(most) for runs in rows.values() if k < len(runs)])


def _read(sweep: str) -> tuple[str, dict[str, Any]]:
    path = Path(sweep)
    if path.suffix in (".yaml", ".yml"):
        return read_recipe(sweep) if path.is_file() else _no_such(sweep)
    if sweep not in sweep_names():
        return _no_such(sweep)
    content = parse_yaml((files("score_rl.recipes") / "sweeps" / f"{sweep}.yaml").read_text(encoding="utf-8"), sweep)
    return sweep, content


def _no_such(sweep: str) -> tuple[str, dict[str, Any]]:
    near = get_close_matches(sweep, sweep_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(sweep_names())}"
    raise ConfigError(f"{sweep}: no such sweep; {hint} (or give the path of a .yaml file)")


def _row(sweep: SweepSettings, name: str, source: str) -> list[Run]:
    row = sweep.rows[name]
    try:
        _, content = read_recipe(row.recipe or sweep.recipe)
        if row.stages is not None:
            content["stages"] = row.stages
        for assignment in [*sweep.overrides, *row.overrides]:
            if assignment.partition("=")[0] == "seed":
                raise ConfigError(f"{assignment}: a sweep sets the seed; use seeds=[...]")
            override(content, assignment)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    settings = parse(content, source)
    own = ["base", *(label for label, _ in stage_plan(settings))]
    evaluations = {}
    for label, extra in {**sweep.evaluations, **row.evaluations}.items():
        if label in own:
            raise ConfigError(f"{source}: evaluations.{label}: the run makes one of that name; use another")
        try:
            evaluations[label] = extra.applied(settings.eval)
        except ValidationError as error:
            raise ConfigError(explain(f"{source}: evaluations.{label}", error, EvalSettings)) from error
        if extra.first_attempts is not None:
            _check_fixed(evaluations[label], settings.eval, f"{source}: evaluations.{label}")
    return [
        Run(name, seed, settings.model_copy(update={"seed": seed}), evaluations, row.train)
        for seed in sweep.seeds_of(name)
    ]


def _check_fixed(judged: Judged, own: EvalSettings, source: str) -> None:
    """Refuses first attempts that the run's own evaluation does not have."""
    if judged.attempts < 2:
        raise ConfigError(f"{source}: first_attempts with attempts=1 corrects nothing; set attempts to 2 or more")
    for key in ("problems", "samples"):
        asked, there = getattr(judged, key), getattr(own, key)
        if asked > there:
            raise ConfigError(
                f"{source}: first_attempts are those of the run's own evaluation, which has eval.{key}={there} and "
                f"not {asked}; lower the one or raise the other"
            )


def shortened(sweep: Sweep) -> Sweep:
    """Every row with its first seed, a step a stage (or a round of traces) and few problems: does all of it run?"""
    settings = sweep.settings.model_copy(update={"name": f"{sweep.settings.name}-smoke"})
    first = {run.row: run for run in reversed(sweep.runs)}
    rows = {name: row.model_copy(update={"seeds": [first[name].seed]}) for name, row in settings.rows.items()}
    settings = settings.model_copy(update={"rows": rows})
    return Sweep(settings, [_short(first[name]) for name in rows])


def _short(run: Run) -> Run:
    content = run.settings.model_dump(mode="json")
    for stage in content["stages"]:
        stage |= {"steps": stage.get("rounds", 1), "problems": min(SMOKE_PROBLEMS, stage["problems"])}
    train, own = content["train"], content["eval"]
    train["validation_problems"] = min(SMOKE_PROBLEMS, train["validation_problems"])
    own["problems"] = min(SMOKE_PROBLEMS, own["problems"])
    evaluations = {
        name: e.model_copy(update={"problems": min(SMOKE_PROBLEMS, e.problems), "samples": min(2, e.samples)})
        for name, e in run.evaluations.items()
    }
    return replace(run, settings=parse(content, f"--smoke: {run.row}"), evaluations=evaluations)


class Trained(NamedTuple):
    """The runs of a sweep that need no training any more.

    Attributes:
        results: by run.
        lacking: evaluations that some of them still need, by run.
    """

    results: dict[str, dict[str, Any]]
    lacking: dict[str, list[str]]


class SweepDirectory:
    """The files of a sweep: `sweep.yaml`, `runs.json` (what each row's runs are made of), and a file of each run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep = path / "sweep.yaml"
        self._rows = path / "runs.json"
        self._timing = path / "timing.json"

    def run(self, name: str) -> Path:
        """The run directory of `ROW/seed-S`."""
        return self.path / "runs" / name

    def result(self, name: str) -> Path:
        """What tables need of a run."""
        return self.path / "results" / f"{name}.json"

    def failure(self, name: str) -> Path:
        """Why a run was given up."""
        return self.path / "failures" / f"{name}.txt"

    def log(self, name: str) -> Path:
        """What the run had to say."""
        return self.path / "logs" / f"{name}.txt"

    def results(self, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
        """Results by run, of those of `runs` that are done: trained, and evaluated in every way that is asked for."""
        results, lacking = self.trained(runs)
        return {name: result for name, result in results.items() if name not in lacking}

    def _read_result(self, name: str) -> dict[str, Any] | None:
        file = self.result(name)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def trained(self, runs: Sequence[Run]) -> Trained:
        """Those of `runs` that have a result, unless an evaluation was added since and their directory is gone."""
        found = Trained({}, {})
        for run in runs:
            result, last = self._read_result(run.name), self.run(run.name) / "eval" / f"{run.labels[-1]}.json"
            lacks = [] if result is None else [name for name in run.evaluations if name not in result["evaluations"]]
            if result is not None and (last.is_file() or not lacks):
                found.results[run.name] = result
                if lacks:
                    found.lacking[run.name] = lacks
        return found

    def check(self, sweep: Sweep) -> None:
        """Refuses a directory that this sweep must not go on in; rows, seeds and evaluations may have been added.

        Raises:
            ConfigError: it holds a sweep with other settings, or something else.
            CheckpointError: it cannot be written.
        """
        check_writable(self.path)
        if not self._rows.is_file():
            others = sorted(file.name for file in self.path.iterdir()) if self.path.is_dir() else []
            others = [name for name in others if not name.startswith(".")]
            if others:
                raise ConfigError(
                    f"{self.path}: not empty ({others[0]}) and no sweep (no runs.json); choose another one with -o"
                )
            return
        changed = _changes(json.loads(self._rows.read_text(encoding="utf-8")), _contents(sweep))
        if changed:
            raise ConfigError(
                f"{self.path}: holds a sweep with other settings ({'; '.join(changed)}); "
                "use them, or choose another directory with -o"
            )

    def begin(self, sweep: Sweep) -> None:
        """Writes what the sweep is, so that a run can be made from the directory alone."""
        self.write_once(self._rows, json.dumps(_contents(sweep), indent=1) + "\n")
        self.write_once(self.sweep, sweep.settings.dump())

    @staticmethod
    def write_once(path: Path, text: str) -> None:
        """Writes a file unless it has that content."""
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)

    def read_timing(self) -> dict[str, Any] | None:
        """What was timed before any run was made; None if nothing was."""
        return json.loads(self._timing.read_text(encoding="utf-8")) if self._timing.is_file() else None

    def write_timing(self, timing: dict[str, Any]) -> None:
        """Keeps it for the next call."""
        self.write_once(self._timing, json.dumps(timing) + "\n")

    def clear(self) -> None:
        """Deletes the sweep in the directory, if there is one."""
        if self._rows.is_file():
            for name in OURS:
                part = self.path / name
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)

    def load_runs(self, names: Sequence[str]) -> list[Run]:
        """Runs by name, as the directory has them."""
        rows = json.loads(self._rows.read_text(encoding="utf-8"))["rows"]
        runs = []
        for name in names:
            row, _, seed = name.rpartition("/seed-")
            settings = parse(rows[row]["settings"] | {"seed": int(seed)}, f"{self._rows}: {row}")
            evaluations = {k: Judged.model_validate(v) for k, v in rows[row]["evaluations"].items()}
            runs.append(Run(row, int(seed), settings, evaluations, rows[row]["train"]))
        return runs

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps others from working on the sweep.

        Raises:
            ConfigError: somebody is at work on it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"{self.path}: another `score sweep` is at work on it; wait, or stop it") from error
            yield


def _contents(sweep: Sweep) -> dict[str, Any]:
    """What the results follow from."""
    rows: dict[str, Any] = {}
    for run in sweep.runs:
        row = rows.setdefault(
            run.row,
            {
                "train": run.train,
                "seeds": [],
                "settings": run.settings.model_dump(mode="json", exclude={"seed"}),
                "evaluations": {name: _content(judged) for name, judged in run.evaluations.items()},
            },
        )
        row["seeds"].append(run.seed)
    return {"threads": sweep.settings.threads, "rows": rows}


def _content(judged: Judged) -> dict[str, Any]:
    own = set() if judged.first_attempts else {"first_attempts"}
    return judged.model_dump(mode="json", exclude=own)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    changed = [] if old["threads"] == new["threads"] else [f"threads: {old['threads']} -> {new['threads']}"]
    for name, before in old["rows"].items():
        after = new["rows"].get(name)
        if after is None:
            changed.append(f"rows.{name}: gone")
            continue
        gone = [seed for seed in before["seeds"] if seed not in after["seeds"]]
        changed += [f"rows.{name}.seeds: {gone[0]} is gone"] if gone else []
        changed += (
            [] if before["train"] == after["train"] else [f"rows.{name}.train: {before['train']} -> {after['train']}"]
        )
        found = differences(before["settings"], after["settings"])
        changed += [f"rows.{name}.{key}" for key in found if not key.startswith(FREE)]
        kept = {key: after["evaluations"].get(key) for key in before["evaluations"]}
        changed += [f"rows.{name}.evaluations.{key}" for key in differences(before["evaluations"], kept)]
    return changed
