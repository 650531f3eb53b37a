"""Training's numbers to TensorBoard, Weights & Biases and trackio, for whoever asks (`log.to`)."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy

from score_rl.episodes import Episode
from score_rl.errors import MissingExtra
from score_rl.records import write_text
from score_rl.run import RunDirectory
from score_rl.schema import LogSettings, Settings

Metrics = Mapping[str, Any]


class Entry(NamedTuple):
    """What one step has to show.

    Attributes:
        metrics: the step's line of metrics.jsonl without `step`.
        lengths: tokens of every attempt by `lengths/tK`, to draw histograms from.
        columns: of the table of episodes; empty without one.
        rows: of that table.
    """

    metrics: Metrics
    lengths: Mapping[str, Sequence[int]] = {}
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


class Tracker(Protocol):
    """One place that shows a run's numbers; any call may raise what its library raises."""

    def log(self, step: int, entry: Entry) -> None:
        """Shows an entry at a step; a step may come twice, first with its numbers and then with an evaluation's."""

    def finish(self, failed: bool) -> None:
        """Hands over what is still held back."""


class TensorBoard:
    """Event files in `RUN/tensorboard`; what an earlier process wrote from `next_step` on is taken back."""

    def __init__(self, run: RunDirectory, settings: Settings, identity: str, next_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=next_step)
        if next_step == 0:
            self._writer.add_text("settings", "```yaml\n" + settings.dump() + "```", 0)

    def log(self, step: int, entry: Entry) -> None:
        """Scalars, histograms, and text for the stage's name and the table."""
        for key, value in entry.metrics.items():
            if isinstance(value, str):
                self._writer.add_text(key, value, step)
            else:
                self._writer.add_scalar(key, float(value), step)
        for key, lengths in entry.lengths.items():
            self._writer.add_histogram(key, numpy.array(lengths), step)
        if entry.rows:
            self._writer.add_text("episodes", markdown_table(entry.columns, entry.rows), step)
        self._writer.flush()  # otherwise a killed run loses two minutes

    def finish(self, failed: bool) -> None:
        """Closes the file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, kept in `RUN/wandb`; its environment variables hold, e.g. WANDB_MODE=offline."""

    def __init__(self, run: RunDirectory, settings: Settings, identity: str, next_step: int) -> None:
        import wandb

        self._library = wandb
        self._run = wandb.init(
            project=settings.log.project or os.environ.get("WANDB_PROJECT", DEFAULT_PROJECT),
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            id=identity,
            name=os.environ.get("WANDB_NAME", run.path.resolve().name),
            config=settings.model_dump(mode="json"),
            resume="allow",
        )

    def log(self, step: int, entry: Entry) -> None:
        """Values, `wandb.Histogram`s and a `wandb.Table`."""
        values: dict[str, Any] = dict(entry.metrics)
        values |= {key: self._library.Histogram(list(lengths)) for key, lengths in entry.lengths.items()}
        if entry.rows:
            data = [list(row) for row in entry.rows]
            values["episodes"] = self._library.Table(columns=list(entry.columns), data=data)
        self._run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        """Waits until everything is written or sent."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of trackio in its own store; its environment variables hold, e.g. TRACKIO_DIR and TRACKIO_SPACE_ID."""

    def __init__(self, run: RunDirectory, settings: Settings, identity: str, next_step: int) -> None:
        import trackio

        self._library = trackio
        project = settings.log.project or DEFAULT_PROJECT
        with redirect_stdout(sys.stderr):  # it prints, and standard output carries results alone
            config = settings.model_dump(mode="json")
            self._run = trackio.init(project=project, name=identity, config=config, resume="allow", embed=False)

    def log(self, step: int, entry: Entry) -> None:
        """Values, `trackio.Histogram`s and a `trackio.Table`."""
        values: dict[str, Any] = dict(entry.metrics)
        values |= {key: self._library.Histogram(list(lengths)) for key, lengths in entry.lengths.items()}
        if entry.rows:
            data = [list(row) for row in entry.rows]
            values["episodes"] = self._library.Table(columns=list(entry.columns), data=data)
        self._run.log(values, step=step)

    def finish(self, failed: bool) -> None:
        """Waits until everything is written or sent."""
        with redirect_stdout(sys.stderr):
            self._library.finish()


DEFAULT_PROJECT = "score"
TRACKERS: dict[str, Callable[[RunDirectory, Settings, str, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
REWINDING = ("tensorboard",)
"""Those that take back what they have shown; to the others a step that they have is not shown again."""


def check_installed(settings: LogSettings) -> None:
    """Refuses a tracker whose package is not there.

    Raises:
        MissingExtra: names the extra.
    """
    for name in settings.to:
        try:
            version(name)  # not `find_spec`, which takes a directory `wandb` left by a run for the package
        except PackageNotFoundError as error:
            message = f"log.to={name} needs the {name} package: pip install 'score-rl[{name}]'"
            raise MissingExtra(message) from error


class Trackers:
    """The trackers of a run; one that fails is left out from then on, with a warning, and training goes on.

    `RUN/trackers.json` holds the run's name with the services and what each has been given, so that a run which goes
    on does so in the same place. It is written before a step is shown: what a killed service had not yet stored is
    missing there at worst, and nothing is there twice.
    """

    def __init__(self, settings: Settings, run: RunDirectory, say: Callable[[str], None]) -> None:
        self._settings, self._run, self._say = settings, run, say
        self._file = run.path / "trackers.json"
        self._open: dict[str, Tracker] = {}
        self._state: dict[str, Any] = {}

    def begin(self, next_step: int) -> None:
        """Opens them.

        Args:
            next_step: the first step that is still to come; 0 is the model before training.
        """
        if not self._settings.log.to:
            return
        self._state = _read(self._file) or {"id": f"{self._run.path.resolve().name}-{secrets.token_hex(4)}"}
        for name in self._settings.log.to:
            shown = self._state.setdefault(name, {"step": -1, "evaluations": {}})
            if name in REWINDING:
                kept = {label: step for label, step in shown["evaluations"].items() if step < next_step}
                self._state[name] = {"step": next_step - 1, "evaluations": kept}
        self._save()
        for name in dict.fromkeys(self._settings.log.to):
            self._guard(name, self._start, name, next_step)

    def _start(self, name: str, next_step: int) -> None:
        self._open[name] = TRACKERS[name](self._run, self._settings, self._state["id"], next_step)

    def step(self, step: int, metrics: Metrics, episodes: Sequence[Episode], kept: int) -> None:
        """Shows a step's line of metrics.jsonl, the lengths of its attempts, and the first `kept` of its episodes.

        Every `log.every` steps, and always where the line has a validation.
        """
        if step % self._settings.log.every and not any(key.startswith("validation/") for key in metrics):
            return
        waiting = [name for name in self._open if step > self._state[name]["step"]]
        if not waiting:
            return
        for name in waiting:
            self._state[name]["step"] = step
        self._show(waiting, step, Entry(metrics, _lengths(episodes), *_table(episodes[:kept])))

    def evaluation(self, label: str, step: int, metrics: Metrics) -> None:
        """Shows a held-out evaluation under `eval/`, without the ends of its intervals and without subgroups."""
        waiting = [name for name in self._open if label not in self._state[name]["evaluations"]]
        if not waiting:
            return
        for name in waiting:
            self._state[name]["evaluations"][label] = step
        numbers = {
            f"eval/{key}": value
            for key, value in metrics.items()
            if "/" in key and "." not in key and not key.startswith("by/")
        }
        self._show(waiting, step, Entry(numbers))

    def finish(self, failed: bool) -> None:
        """Closes them; with `failed` the services say so."""
        for name in list(self._open):
            self._guard(name, self._open.pop(name).finish, failed)

    def _show(self, names: Sequence[str], step: int, entry: Entry) -> None:
        self._save()
        for name in names:
            self._guard(name, self._open[name].log, step, entry)

    def _save(self) -> None:
        write_text(self._file, json.dumps(self._state, indent=1) + "\n")

    def _guard(self, name: str, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        # Whatever goes wrong in a service must not cost a run of days, and each library has errors of its own.
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            self._say(f"warning: {name}: {reason}; nothing more is logged there, metrics.jsonl has everything")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table whose cells show as they are, whatever a model has written into them."""

    def cell(value: Any) -> str:
        # Every sign that means something to Markdown or HTML, as a number.
        text = "".join(f"&#{ord(sign)};" if sign in "&<>|`*_[]\\$#!~\"'" else sign for sign in str(value))
        return "<br>".join(text.splitlines())

    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell(value) for value in line)} |" for line in lines)


def _read(file: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    return {}


def _lengths(episodes: Sequence[Episode]) -> dict[str, list[int]]:
    own = [episode for episode in episodes if episode.attempts[0].sampled] or episodes  # as `length/tK` does
    attempts = len(own[0].attempts) if own else 0
    return {f"lengths/t{k}": [e.attempts[k - 1].length for e in own] for k in range(1, attempts + 1)}


def _table(episodes: Sequence[Episode]) -> tuple[list[str], list[list[Any]]]:
    if not episodes:
        return [], []
    columns = ["problem", "question", "answer"]
    for k in range(1, len(episodes[0].attempts) + 1):
        columns += [f"attempt {k}", f"extracted {k}", f"correct {k}", f"reward {k}"]
    rows = []
    for episode in episodes:
        row: list[Any] = [episode.problem.id, episode.problem.question, " or ".join(episode.problem.answers)]
        for attempt in episode.attempts:
            assert attempt.grade is not None
            row += [attempt.text, attempt.grade.answer or "", attempt.correct, attempt.grade.reward]
        rows.append(row)
    return columns, rows
