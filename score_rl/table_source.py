"""What tables and figures read of a sweep's directory: sweep.yaml, results/*.json and which runs have failed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from score_rl.compare import Outcomes
from score_rl.errors import ConfigError, DataError
from score_rl.settings import explain, parse_yaml
from score_rl.sweep_schema import RowSettings, SweepSettings

EDIT_BINS = 20
PAPER = {"acc_t1", "acc_t2"}
_MARKS = {"0": False, "1": True, "-": None}

Metrics = Mapping[str, Any]
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        problems: digest of the problems that `first` and `second` are about.
        first, second: whether each attempt of the final evaluation was right, an entry an episode; None where the
            grader could not tell.
        edits: episodes by the edit-distance ratio of their two attempts, in `EDIT_BINS` equal bins of 0 to 1.
        curves: of training, by metric.
    """

    file: Path
    seed: int
    seconds: float
    steps: int
    attempts_sampled: int
    environment: dict[str, Any]
    evaluations: dict[str, Metrics]
    final: Metrics
    problems: str
    first: list[bool | None]
    second: list[bool | None]
    edits: list[int]
    curves: dict[str, Curve]

    @cached_property
    def outcomes(self) -> Outcomes:
        """Right and wrong by problem; the problems are named by their places."""
        size = int(self.final.get("samples", 1))
        samples: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
        for place, (t1, t2) in enumerate(zip(self.first, self.second, strict=True)):
            of_problem = samples.setdefault((str(place // size), ""), [])
            if t1 is not None and t2 is not None:
                of_problem.append((t1, t2))
        return Outcomes(self.file, 2, samples)


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        seeds: all that were asked for.
        trained: False where the base model is evaluated as it is.
        paper: accuracies at attempts 1 and 2 that the paper gives, as fractions.
        extra: names of the evaluations that are made beside the runs' own.
        results: by seed, in the order of `seeds`.
        failed: seeds whose run has failed.
    """

    name: str
    title: str
    seeds: list[int]
    trained: bool
    paper: tuple[float, float] | None
    extra: list[str] = field(default_factory=list)
    results: dict[int, Result] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether all seeds are there."""
        return len(self.results) == len(self.seeds)

    @property
    def status(self) -> str:
        """How many of the seeds are there, in words.

        >>> Row("a", "A", [0, 1], True, None, failed=[1]).status
        'not run, 1 failed'
        """
        done, planned = len(self.results), len(self.seeds)
        failed = f"{len(self.failed)} failed" if self.failed else ""
        if self.finished:
            return str(done)
        if not done:
            return "failed" if len(self.failed) == planned else ", ".join(filter(None, ["not run", failed]))
        return ", ".join(filter(None, [f"{done} of {planned} seeds", failed]))


@dataclass(frozen=True)
class Sweep:
    """A sweep with what has been run of it.

    Attributes:
        rows: by name, in the order of the file.
        reference: name of the row that others are compared with, if any.
        tables: title and rows of each table, by name.
    """

    path: Path
    name: str
    rows: dict[str, Row]
    reference: str | None
    tables: dict[str, tuple[str, list[str]]]


def is_sweep(path: Path) -> bool:
    """Whether a path is the directory of a sweep."""
    return (path / "sweep.yaml").is_file()


def read_sweep(path: Path) -> Sweep:
    """The sweep in a directory; what has not been run yet is missing from its rows.

    Raises:
        ConfigError: no sweep, or one that was evaluated with a single attempt.
        DataError: a file of it cannot be read.
    """
    if not is_sweep(path):
        raise ConfigError(f"{path}: no sweep (no sweep.yaml in it); give the directory that `score sweep` writes")
    file = path / "sweep.yaml"
    try:
        settings = SweepSettings.model_validate(parse_yaml(_read(file), str(file)))
    except ValidationError as error:
        raise DataError(explain(str(file), error, SweepSettings)) from error
    rows = {name: _row(path, name, row, settings) for name, row in settings.rows.items()}
    tables = {name: (table.title or name, table.rows) for name, table in settings.tables.items()}
    return Sweep(path, settings.name, rows, settings.reference, tables or {"all": (settings.name, list(rows))})


def _row(path: Path, name: str, row: RowSettings, settings: SweepSettings) -> Row:
    seeds = settings.seeds_of(name)
    if row.paper and row.paper.keys() != PAPER:
        raise DataError(
            f"{path / 'sweep.yaml'}: rows.{name}.paper has {', '.join(row.paper)}; give acc_t1 and acc_t2, in percent"
        )
    paper = (row.paper["acc_t1"] / 100, row.paper["acc_t2"] / 100) if row.paper else None
    found = {seed: path / "results" / name / f"seed-{seed}.json" for seed in seeds}
    results = {seed: _result(file, seed) for seed, file in found.items() if file.is_file()}
    lost = [s for s in seeds if s not in results and (path / "failures" / name / f"seed-{s}.txt").is_file()]
    extra = [*settings.evaluations, *row.evaluations]
    return Row(name, row.title or name, seeds, row.train, paper, extra, results, lost)


def _result(file: Path, seed: int) -> Result:
    try:
        row = json.loads(_read(file))
        outcomes = row["outcomes"]
        found = Result(
            file=file,
            seed=seed,
            seconds=float(row["seconds"]),
            steps=int(row["steps"]),
            attempts_sampled=int(row["attempts_sampled"]),
            environment=dict(row["environment"]),
            evaluations=dict(row["evaluations"]),
            final=dict(row["evaluations"][row["final"]]),
            problems=str(outcomes["problems"]),
            first=[_MARKS[mark] for mark in outcomes["t1"]],
            second=[_MARKS[mark] for mark in outcomes.get("t2", "")],
            edits=[int(count) for count in row["edits"]],
            curves={k: [(float(x), float(y)) for x, y in points] for k, points in row["curves"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file}: no result of a run ({error!r}); delete it and run `score sweep` again") from error
    if found.first and not found.second:
        raise ConfigError(f"{file}: evaluated with one attempt, and tables compare two; set eval.attempts=2")
    if not found.first or len(found.first) != len(found.second) or len(found.edits) != EDIT_BINS:
        raise DataError(
            f"{file}: {len(found.first)} first and {len(found.second)} second attempts and {len(found.edits)} bins of "
            f"edits; expected equally many and {EDIT_BINS}; delete it and run `score sweep` again"
        )
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
