"""A process that a sweep starts: `python -m score_rl.sweep_worker DIR ROW/seed-S ...` makes these runs in turn.

What it says on standard output is for the sweep: a JSON object a line. An error of one run is kept in the sweep's
`failures`, and the next run begins. SIGTERM, and the end of the sweep's own process, stop it once the step that it is
in is finished and saved.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from score_rl.chat import Chat
from score_rl.data.load import load_problems
from score_rl.engines import check_engine, engine_player
from score_rl.errors import ScoreError
from score_rl.evaluation import evaluate, fixed_attempts, plan_of, write_evaluation
from score_rl.grading import Grader, make_grader
from score_rl.interrupts import Interrupted
from score_rl.limits import check_room, keep_short
from score_rl.loading import context_length, load_policy, load_tokenizer, weights_fingerprint
from score_rl.records import read_jsonl, write_text
from score_rl.results import Partial, episodes_path, identity, partial_path
from score_rl.run import RunDirectory
from score_rl.schema import Settings
from score_rl.sweep import Run, SweepDirectory, attempts_a_step
from score_rl.sweep_result import make_result
from score_rl.sweep_schema import Judged
from score_rl.tracking import Screen
from score_rl.train import Trainer

Send = Callable[[dict[str, Any]], None]


class Told(Screen):
    """A screen whose bars are lines for the sweep; what is said goes to the run's log."""

    def __init__(self, run: str, send: Send) -> None:
        super().__init__()
        self._run, self._send = run, send

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """As `Screen.task`."""
        state = {"done": done}

        def advance(units: int, note: str) -> None:
            state["done"] += units
            self._send({"run": self._run, "task": name, "done": state["done"], "total": total, "note": note})

        advance(0, "")
        yield advance


def make_run(run: Run, directory: SweepDirectory, threads: int, screen: Screen) -> None:
    """Trains and evaluates, or goes on with it, and writes the run's result.

    Raises:
        ScoreError: the run cannot be made.
        Interrupted: after SIGTERM, once the step is finished and saved.
    """
    path = directory.run(run.name)
    # An evaluation that is added later makes a run no other; it stays of the machine that it was trained on.
    old = directory.trained([run]).results.get(run.name)
    begun, before = time.monotonic(), _step_seconds(path) if old is None else old["seconds"]
    if run.train:
        Trainer(run.settings, path, screen=screen).train()
    else:
        own = RunDirectory(path)
        own.check(run.settings, fresh=False)
        own.begin(run.settings, fresh=False)
    _evaluate(run, path, screen)
    seconds = time.monotonic() - begun + before
    result = make_result(run, path, seconds, threads)
    if old is not None:
        result["environment"] = old["environment"]
    write_text(directory.result(run.name), json.dumps(result) + "\n")
    directory.failure(run.name).unlink(missing_ok=True)


def _step_seconds(path: Path) -> float:
    """Seconds of the steps that earlier calls have made."""
    file = RunDirectory(path).metrics
    if not file.is_file():
        return 0.0
    times = ("time/rollout_seconds", "time/update_seconds")
    try:
        return sum(row.get(key, 0.0) for _, row in read_jsonl(file) for key in times)
    except ScoreError:  # a last line that was half written, which the run cuts off
        return 0.0


def _evaluate(run: Run, path: Path, screen: Screen) -> None:
    """What the run's last model, or the model as it is, is evaluated on, less what is there."""
    wanted = dict(run.evaluations) if run.train else {"base": run.settings.eval, **run.evaluations}
    wanted = {name: settings for name, settings in wanted.items() if not _file(path, name).is_file()}
    if not wanted:
        return
    settings = run.settings
    if run.train:
        model = {"path": str(RunDirectory(path).model(run.labels[-1])), "revision": None}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=model)})
    check_engine(settings, trains=False)
    chat = Chat(load_tokenizer(settings.model), settings.chat)
    grader = make_grader(settings.reward)
    import torch

    policy = load_policy(settings.model, chat.tokenizer, seed=settings.seed)
    policy = policy.to("cuda" if torch.cuda.is_available() else "cpu")
    player = engine_player(settings, policy, chat, grader)
    try:
        for name, judged in wanted.items():
            from_base = isinstance(judged, Judged) and judged.first_attempts is not None
            fixed = episodes_path(_file(path, "base")) if from_base else None
            changed = settings.model_copy(update={"eval": judged})
            _evaluate_one(changed, player, chat, grader, fixed, _file(path, name), screen)
    finally:
        grader.close()


def _file(path: Path, name: str) -> Path:
    return RunDirectory(path).eval / f"{name}.json"


def _evaluate_one(
    settings: Settings, player: Any, chat: Chat, grader: Grader, fixed: Path | None, output: Path, screen: Screen
) -> None:
    judged = settings.eval
    problems = load_problems(settings.data, judged.split)[: judged.problems]
    problems = keep_short(problems, chat, judged.split, screen.say)
    limits = [judged.max_new_tokens] * judged.attempts
    check_room(problems, chat, limits, context_length(settings.model), key="eval")
    told = identity(settings, weights_fingerprint(settings.model), problems, fixed)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Partial(partial_path(output), told, judged.samples)
    partial.open(len(problems), player.problems_at_once(plan_of(judged)))
    starts = None if fixed is None else fixed_attempts(fixed, problems, judged.samples, grader, chat)
    with screen.task(f"{output.stem} evaluation", len(problems), partial.problems) as advance:
        result = evaluate(
            player,
            problems,
            judged,
            seed=settings.seed,
            progress=lambda n: advance(n, ""),
            first_attempts=starts,
            partial=partial,
        )
    if fixed is not None:
        result.metrics["first_attempts"] = fixed.stem
    write_evaluation(result, output)
    partial.remove()


def seconds_a_weight(run: Run, screen: Screen) -> float:
    """Seconds for each unit of `Run.weight`, from the second of two steps of each stage, made for the purpose."""
    content = run.settings.model_dump(mode="json")
    for stage in content["stages"]:
        stage["steps"] = 2 * stage.get("rounds", 1)
    content["train"] |= {"validation_problems": 1, "iterations": 1, "validate_every": 1000, "checkpoint_every": 1000}
    content["eval"]["problems"] = 1
    settings = Settings.model_validate(content)
    with tempfile.TemporaryDirectory() as directory:
        Trainer(settings, Path(directory) / "run", screen=screen).train()
        rows = [row for _, row in read_jsonl(Path(directory) / "run" / "metrics.jsonl")]
    last = [row for row in rows if row["stage"] != "base"]
    last = [a for a, b in zip(last, [*last[1:], None], strict=True) if b is None or b["stage"] != a["stage"]]
    seconds = [row["time/rollout_seconds"] + row["time/update_seconds"] for row in last]
    whole = zip(seconds, run.settings.stages, strict=True)
    total = sum(second * stage.steps for second, stage in whole)
    return total / sum(stage.steps * attempts_a_step(stage) for stage in run.settings.stages)


def _run_all(directory: SweepDirectory, names: list[str], send: Send) -> int:
    import torch

    for run in directory.load_runs(names):
        send({"run": run.name, "task": "loading", "done": 0, "total": 0, "note": ""})
        screen = Told(run.name, send)
        try:
            with _alone(directory.run(run.name)):
                make_run(run, directory, torch.get_num_threads(), screen)
        except Interrupted as interrupted:
            return interrupted.exit_code
        except Exception as error:
            told = f"{type(error).__name__}: {error}\n" if isinstance(error, ScoreError) else traceback.format_exc()
            write_text(directory.failure(run.name), told)
            send({"run": run.name, "failed": str(error).partition("\n")[0] or type(error).__name__})
        else:
            send({"run": run.name, "finished": True})
    return 0


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until a process that a killed sweep has left behind has saved and gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _leave_with_parent() -> None:
    """Asks this process to stop once the sweep's, which has the other end of standard input, has gone."""
    while os.read(0, 4096):  # not through sys.stdin, whose lock this thread would hold when Python shuts down
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _take_stdout() -> TextIO:
    """The pipe to the sweep; what anybody else prints goes to the log."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def main(arguments: list[str]) -> int:
    """Makes the runs that are named behind the directory; or, with `--time` in front, times the steps of one."""
    pipe = _take_stdout()

    def send(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=pipe, flush=True)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the sweep too, which then sends SIGTERM
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if arguments[0] == "--time":
        (run,) = SweepDirectory(Path(arguments[1])).load_runs(arguments[2:])
        send({"seconds_a_weight": seconds_a_weight(run, Told(run.name, send))})
        return 0
    return _run_all(SweepDirectory(Path(arguments[0])), arguments[1:], send)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
