"""Makes the runs of a sweep in processes of their own, so that one that crashes takes no other with it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from score_rl.errors import ConfigError
from score_rl.records import write_text
from score_rl.sweep import Run, Sweep, SweepDirectory

LINE_SECONDS = 60.0
"""Without a terminal, at most one line in this time about runs that are going on."""
LOG_LINES = 40
"""Of the log of a run that crashed, kept with its failure."""
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class Estimate(NamedTuple):
    """What the runs that are left take.

    Attributes:
        seconds: of each of them, by name; empty where nothing was measured.
        source: what the seconds are from.
    """

    seconds: dict[str, float]
    source: str


def estimate(
    runs: Sequence[Run],
    results: Mapping[str, Mapping[str, Any]],
    timed: float | None = None,
    lacking: Mapping[str, Sequence[str]] | None = None,
) -> Estimate:
    """Seconds of each run that is left: the mean of its row's results, or else in proportion to `Run.weight`.

    Args:
        results: of the runs that need no training any more, by name.
        timed: seconds for each unit of weight, for as long as no run that trains is done.
        lacking: evaluations that some of those still need, by the run's name.
    """
    lacking = lacking or {}
    by_row: dict[str, list[float]] = {}
    for run in runs:
        if run.name in results:
            by_row.setdefault(run.row, []).append(results[run.name]["seconds"])
    means = {row: sum(found) / len(found) for row, found in by_row.items()}
    rate, source = timed, "steps timed just now"
    trained = [run for run in runs if run.name in results and run.train]  # the others mostly start up
    if trained:
        rate = sum(results[run.name]["seconds"] for run in trained) / sum(run.weight for run in trained)
        source = "the runs that are done"
    if rate is None:
        return Estimate({}, source)
    left = {run.name: means.get(run.row, rate * run.weight) for run in runs if run.name not in results}
    left |= {run.name: rate * run.extra_weight(lacking[run.name]) for run in runs if run.name in lacking}
    return Estimate(left, source)


def threads_of(sweep: Sweep, jobs: int) -> int:
    """Threads that each run gets."""
    return sweep.settings.threads or max(1, (os.cpu_count() or 1) // jobs)


class Worker:
    """A process that makes runs, its lines and its log."""

    def __init__(self, arguments: Sequence[str], names: Sequence[str], log: Path, threads: int) -> None:
        self.names = deque(names)  # whose end has not been told
        self.log = log
        self.begun = time.monotonic()
        self._rest = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        shared = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with log.open("w", encoding="utf-8") as errors:
            # The worker stops when its end of standard input is closed, so also when this process is killed.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "score_rl.sweep_worker", *arguments, *names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**QUIET, **os.environ, **shared},
            )

    def read(self) -> list[dict[str, Any]] | None:
        """Lines that have come; None once there are no more."""
        assert self.process.stdout is not None
        found = os.read(self.process.stdout.fileno(), 65536)
        if not found:
            return None
        *lines, self._rest = (self._rest + found).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self) -> int:
        """Its exit status, once it has said all."""
        assert self.process.stdin is not None and self.process.stdout is not None
        code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        return code

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def time_a_weight(sweep: Sweep, threads: int) -> float:
    """Seconds for each unit of `Run.weight`, from two steps of each stage of the reference or another row.

    Raises:
        ConfigError: it does not run.
    """
    trained = [run for run in sweep.runs if run.train]
    run = next((run for run in trained if run.row == sweep.settings.reference), trained[0])
    with tempfile.TemporaryDirectory() as name:
        directory = SweepDirectory(Path(name))
        directory.begin(sweep)
        worker = Worker(["--time", name], [run.name], directory.log(run.name), threads)
        found: list[float] = []
        try:
            while (lines := worker.read()) is not None:
                found += [line["seconds_a_weight"] for line in lines if "seconds_a_weight" in line]
        except BaseException:
            worker.process.kill()
            raise
        finally:
            worker.wait()
        if not found:
            told = (worker.last_words().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(f"rows.{run.row}: does not run: {told}")
    return found[0]


class Board:
    """What a person sees while a sweep goes on: a bar for the runs and one for each that is running, or plain lines."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        columns = (TextColumn("{task.description:<28}"), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._live = console.is_terminal
        self._said = time.monotonic()
        self._tasks: dict[str, TaskID] = {}
        self._all = self._bars.add_task("runs", total=total, completed=done, note="")

    def __enter__(self) -> Board:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, line: Mapping[str, Any], left: str) -> None:
        """Where a run is."""
        name, where = line["run"], f"{line['task']} {line['note']}".rstrip()
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=None, note="")
        self._bars.update(self._tasks[name], completed=line["done"], total=line["total"] or None, note=where)
        self._bars.update(self._all, note=left)
        if not self._live and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            self.say(f"{name}: {line['done']}/{line['total']} {where}; {self._count()}, {left}".removesuffix(", "))

    def end(self, name: str, text: str, done: int, left: str) -> None:
        """A run is over."""
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        self._bars.update(self._all, completed=done, note=left)
        self.say(text if self._live else f"{text}; {self._count()}, {left}".removesuffix(", "))

    def _count(self) -> str:
        task = self._bars.tasks[self._all]
        return f"{task.completed:.0f} of {task.total:.0f} runs"


class Outcome(NamedTuple):
    """How a call ended: runs that failed, by name; and the signal that stopped it, if one did."""

    failed: list[str]
    signal: int | None


def make_runs(
    sweep: Sweep,
    directory: SweepDirectory,
    *,
    jobs: int,
    batch: int = 1,
    timed: float | None = None,
    console: Console | None = None,
) -> Outcome:
    """Makes the runs that are not done, `jobs` at once; the directory is `locked` and begun.

    Args:
        batch: runs that a process makes in turn.
        timed: as of `estimate`.
    """
    return _Making(sweep, directory, jobs, timed, console or Console(stderr=True, highlight=False)).make(batch)


class _Making:
    def __init__(self, sweep: Sweep, directory: SweepDirectory, jobs: int, timed: float | None, console: Console):
        self.sweep, self.directory, self.jobs, self.timed = sweep, directory, jobs, timed
        self.threads = threads_of(sweep, jobs)
        self.results, self.lacking = directory.trained(sweep.runs)
        self.board = Board(console, len(sweep.runs), self._done)
        self.workers: list[Worker] = []
        self.failed: list[str] = []
        self.signal: int | None = None

    @property
    def _done(self) -> int:
        return len(self.results) - len(self.lacking)

    def make(self, batch: int) -> Outcome:
        left = [run.name for run in self.sweep.runs if run.name not in self.results or run.name in self.lacking]
        for name in left:
            self.directory.failure(name).unlink(missing_ok=True)
        waiting = deque(left[start : start + batch] for start in range(0, len(left), batch))
        with selectors.DefaultSelector() as selector, self.board, _heeding(self._stop):
            try:
                while self.workers or (waiting and self.signal is None):
                    while waiting and len(self.workers) < self.jobs and self.signal is None:
                        self._start(waiting.popleft(), selector)
                    for key, _ in selector.select():
                        lines = key.data.read()
                        for line in lines or ():
                            self._take(key.data, line)
                        if lines is None:
                            selector.unregister(key.fileobj)
                            waiting.extendleft(self._end(key.data))
            except BaseException:
                for worker in self.workers:
                    worker.process.kill()
                raise
        return Outcome(self.failed, self.signal)

    def _start(self, names: list[str], selector: selectors.BaseSelector) -> None:
        worker = Worker([str(self.directory.path)], names, self.directory.log(names[0]), self.threads)
        self.workers.append(worker)
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _take(self, worker: Worker, line: dict[str, Any]) -> None:
        name = line["run"]
        if "finished" in line:
            worker.names.remove(name)
            (run,) = (run for run in self.sweep.runs if run.name == name)
            self.results |= self.directory.results([run])
            self.lacking.pop(name, None)
            self._tell(name, f"{name}: {self.results[name]['seconds']:.0f} s")
        elif "failed" in line:
            worker.names.remove(name)
            self._fail(name, line["failed"])
        else:
            self.board.show(line, self._left())

    def _end(self, worker: Worker) -> list[list[str]]:
        """Notes a run in which a worker died; gives what that one would have made next."""
        code = worker.wait()
        self.workers.remove(worker)
        if not worker.names or self.signal is not None:
            return []
        name = worker.names.popleft()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        write_text(self.directory.failure(name), f"the process was {how}\n{worker.last_words()}\n")
        self._fail(name, f"the process was {how}")
        return [list(worker.names)] if worker.names else []

    def _fail(self, name: str, why: str) -> None:
        self.failed.append(name)
        self._tell(name, f"{name}: failed: {why} ({self.directory.failure(name)})")

    def _tell(self, name: str, text: str) -> None:
        self.board.end(name, text, self._done + len(self.failed), self._left())

    def _left(self) -> str:
        """How long the others take, in words."""
        seconds = estimate(self.sweep.runs, self.results, self.timed, self.lacking).seconds
        seconds = {key: value for key, value in seconds.items() if key not in self.failed}
        alone = [worker for worker in self.workers if len(worker.names) == 1]
        spent = sum(min(time.monotonic() - w.begun, seconds.get(w.names[0], 0.0)) for w in alone)
        return f"{duration(max(0.0, sum(seconds.values()) - spent) / self.jobs)} left" if seconds else ""

    def _stop(self, number: int) -> None:
        if self.signal is None:
            self.board.say("the runs finish their step and save (once more to stop at once)")
        for worker in self.workers:
            if self.signal is None:
                worker.process.terminate()
            else:
                worker.process.kill()
        self.signal = number


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(50), duration(600), duration(9000)
    ('50 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def _heeding(stop: Callable[[int], None]) -> Iterator[None]:
    """Calls `stop` with the number of SIGINT or SIGTERM."""

    def heed(number: int, frame: FrameType | None) -> None:
        stop(number)

    old = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
