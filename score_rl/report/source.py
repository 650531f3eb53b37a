"""What a report reads of a run directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from score_rl.errors import ConfigError, DataError
from score_rl.metrics import FIELDS
from score_rl.records import read_jsonl
from score_rl.run import RunDirectory, stage_plan
from score_rl.schema import Settings

_NUMERALS = {"stage1": "Stage I", "stage2": "Stage II"}


class Shown(NamedTuple):
    """What a report shows of an attempt; `correct` is None where the grader could not tell.

    `critique` is of the attempt before it, where one was asked for.
    """

    text: str
    answer: str | None
    correct: bool | None
    note: str | None
    length: int
    finished: bool
    critique: str | None = None


class Played(NamedTuple):
    """What a report shows of an episode; `attempts` in order, `kl` by attempt where it was stored."""

    problem: str
    question: str
    gold: str
    fields: dict[str, str]
    path: tuple[int, ...]
    attempts: tuple[Shown, ...]

    @property
    def graded(self) -> bool:
        """Whether every attempt has a grade that counts."""
        return all(attempt.correct is not None for attempt in self.attempts)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: flat metrics, and where its episodes are."""

    name: str
    title: str
    metrics: dict[str, Any]
    file: Path

    @property
    def size_bytes(self) -> int:
        """Of the file of episodes; 0 where there is none."""
        return self.file.stat().st_size if self.file.is_file() else 0

    def episodes(self) -> list[Played]:
        """Every episode, in the order of the file; none where there is no file.

        Raises:
            DataError: a line is no episode; the message names it.
        """
        if not self.file.is_file():
            return []
        return [_played(row, f"{self.file}:{number}") for number, row in read_jsonl(self.file)]

    def kl(self) -> dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]]:
        """KL to the reference by problem and path: for each attempt `tokens` and `kl`, in nats; empty if not stored.

        Raises:
            DataError: a line is not as it should be.
        """
        file = self.file.with_name(f"{self.file.stem}.kl.jsonl")
        if not file.is_file():
            return {}
        found = {}
        for line, row in read_jsonl(file):
            try:
                key = str(row["id"]), tuple(int(place) for place in row["path"])
                attempts = [
                    {"tokens": list(map(str, a["tokens"])), "kl": list(map(float, a["kl"]))} for a in row["attempts"]
                ]
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{file}:{line}: no line of KL ({error!r}); write it again with `score eval --kl`"
                ) from error
            found[key] = attempts
        return found


@dataclass(frozen=True)
class Run:
    """A run as a report shows it.

    Attributes:
        name: of the directory, made unique among the runs of a report.
        stages: title of each stage by its label, in the order in which they run.
        evaluations: before training and after each finished stage, in order.
        others: further evaluations in the directory, by name.
        steps: lines of metrics.jsonl.
    """

    path: Path
    name: str
    settings: Settings
    stages: dict[str, str]
    evaluations: list[Evaluation]
    others: list[Evaluation]
    steps: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether every stage has been evaluated."""
        return {evaluation.name for evaluation in self.evaluations} >= set(self.stages)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in directories, each with a name of its own.

    Raises:
        ConfigError: one is no run directory, or is there twice.
        DataError: a file cannot be read.
    """
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise ConfigError(f"{paths[place]}: is there twice; name each run once")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in resolved]
    if len(set(names)) < len(names):
        names = [str(path) for path in resolved]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(path: Path, name: str) -> Run:
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise ConfigError(f"{path}: no run (no config.yaml in it); give a directory that `score train` made")
    settings = directory.load_settings()
    stages = _stage_titles(settings)
    files = {file.stem: file for file in sorted(directory.eval.glob("*.json"))}
    own = [label for label in ("base", *stages) if label in files]
    titles = {"base": "Before training"} | {label: f"After {title}" for label, title in stages.items()}

    def evaluation(stem: str) -> Evaluation:
        file = files[stem]
        return Evaluation(stem, _title(stem, titles), _read_object(file), file.with_suffix(".jsonl"))

    environment = path / "environment.json"
    return Run(
        path,
        name,
        settings,
        stages,
        [evaluation(stem) for stem in own],
        [evaluation(stem) for stem in files if stem not in own],
        list(_finished_lines(directory.metrics)),
        _read_object(environment) if environment.is_file() else {},
    )


def _title(stem: str, titles: dict[str, str]) -> str:
    """`stage2-test-6-attempts` is what `score eval` makes of the model that `stage2` left."""
    label = max((label for label in titles if stem == label or stem.startswith(f"{label}-")), key=len, default=None)
    if label is None:
        return stem
    return titles[label] + (f": {stem[len(label) + 1 :].replace('-', ' ')}" if stem != label else "")


def _stage_titles(settings: Settings) -> dict[str, str]:
    titles = {}
    for label, index in stage_plan(settings):
        stage = settings.stages[index]
        title = _NUMERALS.get(stage.kind, stage.label)
        if stage.label != stage.kind and stage.kind in _NUMERALS:
            title = f"{title} ({stage.label})"
        titles[label] = title if label == stage.label else f"{title}, iteration {label.rpartition('-')[2]}"
    return titles


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}); evaluate again or delete it") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(content).__name__}; evaluate again or delete it")
    return content


def _finished_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that may grow while it is read: its last line counts once it has ended."""
    if not file.is_file():
        return
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON Lines ({error})") from error
    yield from (row for row in rows if isinstance(row, dict))


def _played(row: dict[str, Any], place: str) -> Played:
    try:
        problem = row["problem"]
        if not row["attempts"]:
            raise ValueError("no attempts")
        answer, meta = problem["answer"], problem.get("meta") or {}
        return Played(
            str(problem["id"]),
            str(problem["question"]),
            answer if isinstance(answer, str) else " | ".join(map(str, answer)),
            {name: str(meta[name]) for name in FIELDS if meta.get(name) not in (None, "")},
            tuple(int(number) for number in row["path"]),
            tuple(_shown(attempt) for attempt in row["attempts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: no episode ({error!r}); evaluate again or delete the file") from error


def _shown(attempt: dict[str, Any]) -> Shown:
    grade, counted = attempt["grade"] or {}, attempt.get("num_tokens")
    reward, answer, note = grade.get("reward"), grade.get("answer"), grade.get("note")
    critique = attempt.get("critique")
    return Shown(
        str(attempt["text"]),
        None if answer is None else str(answer),
        None if reward is None else bool(grade["correct"]),
        None if note is None else str(note),
        len(attempt["token_ids"]) if counted is None else int(counted),
        bool(attempt["finished"]),
        None if critique is None else str(critique["text"]),
    )
