"""The training loop: every stage is the same loop over a different `Objective`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from score_rl.checkpoint import (
    Best,
    Progress,
    best_path,
    checkpoints,
    load_best,
    load_optimizer,
    load_start,
    load_weights,
    read_progress,
    save_best,
    save_checkpoint,
    save_start,
)
from score_rl.draws import derive
from score_rl.engines import engine_player
from score_rl.episodes import Episode, Problem
from score_rl.errors import ProcessError, ProcessLost
from score_rl.evaluation import evaluate, write_evaluation
from score_rl.interrupts import Interrupted, StopRequest, heeding_signals
from score_rl.loading import load_model
from score_rl.material import load_material
from score_rl.monitor import Watch
from score_rl.parallel import check_parallel, make_parallel
from score_rl.processes import Group, noticing_losses, start
from score_rl.records import write_directory
from score_rl.report import build as build_report
from score_rl.run import RunDirectory, stage_plan
from score_rl.schedule import adapt_beta2, learning_rate, make_objective, rank
from score_rl.schema import EvalSettings, SamplingSettings, Settings, StageSettings
from score_rl.sharing import SharingPlayer
from score_rl.supply import Drawn, Rollouts, StageRun, Supply
from score_rl.traces import Traces
from score_rl.trackers import Trackers
from score_rl.tracking import Screen, step_note
from score_rl.update import accumulate_within_memory

Metrics = dict[str, Any]


class Trainer:
    """Trains a policy through the stages of its settings, in a run directory that it can go on from.

    Args:
        settings: of the run.
        path: the run directory.
        fresh: delete an earlier run there instead of going on from it.
        adapter: weights to start from, e.g. those of an earlier Stage I: a saved model or adapter directory.
        start_stage: first stage to train, counted from 1.
        group: the processes that train; those that this one was launched with when None.

    Raises:
        ScoreError: anything that can be known before model work starts; in all processes where it is so in one.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        *,
        fresh: bool = False,
        adapter: Path | None = None,
        start_stage: int = 1,
        screen: Screen | None = None,
        group: Group | None = None,
    ) -> None:
        self.settings = settings
        self.run = RunDirectory(path)
        self.group = group or start()
        self.screen = screen if screen is not None and self.group.is_first else Screen(quiet=True)
        self.plan = stage_plan(settings)
        self._fresh = fresh
        self._request = StopRequest()
        if not 1 <= start_stage <= len(self.plan):
            raise ValueError(f"start_stage={start_stage} is not among the {len(self.plan)} stages")
        dumped = self.group.gather(settings.dump)
        with self.group.together():
            if len(set(dumped)) > 1:
                raise ProcessError(
                    "the processes have different settings; give all of them the same recipe and command"
                )
            check_parallel(settings, self.group)
            if self.group.is_first:
                self.run.check(settings, fresh=fresh)
            material = load_material(settings, self.screen, adapter)
        self.train_problems, self.validation, self.held_out = material[:3]
        self.policy, self._start = material.policy, material.start
        self.parallel = make_parallel(settings, self.policy, self.group)
        with self.group.together():
            player = engine_player(settings, self.policy, material.chat, material.grader)
        self.player = SharingPlayer(player, self.parallel)
        self.progress = Progress(stage=start_stage - 1)
        self.watch = Watch()
        self.trackers = Trackers(settings, self.run, self.screen.say)

    def train(self) -> dict[str, Metrics]:
        """Runs or goes on with the run; returns the evaluations by name (`base`, then each stage's label).

        Raises:
            Interrupted: after SIGINT or SIGTERM, once the step is finished and saved.
            ProcessLost: another process is gone; says where the run can go on from.
            ScoreError: the run cannot be written or continued.
        """
        self.group.first(lambda: self.run.begin(self.settings, fresh=self._fresh))
        for stage in self.settings.stages:
            for caution in stage.cautions():
                self.screen.say(f"warning: {stage.label}: {caution}")
        for caution in self.policy.cautions():
            self.screen.say(f"warning: {caution}")
        finished = False
        try:
            with heeding_signals(self.screen.say, self.group) as self._request, noticing_losses():
                self._run_stages()
            finished = True
        except ProcessLost as error:
            saved = checkpoints(self.run.checkpoints)
            from_here = f"goes on from {saved[-1]}" if saved else "starts anew, as nothing was saved yet"
            raise ProcessLost(f"{error}; the same command {from_here}") from error
        finally:
            self.trackers.finish(not finished)
        return self.group.first(self._results)

    def _run_stages(self) -> None:
        found = self.group.first(lambda: checkpoints(self.run.checkpoints))
        optimizer = None
        if found:
            optimizer = self._resume(found[-1])
        else:
            self.group.first(lambda: self._begin({}, 0))
            self._validate_base()
        while self.progress.stage < len(self.plan):
            self._write_report()
            self._run_stage(optimizer)
            optimizer = None
        self._write_report()

    def _begin(self, file_bytes: dict[str, int], next_step: int) -> None:
        self.run.rewind(file_bytes)
        if self.progress.stage < len(self.plan):  # a finished run has nothing more to show
            self.trackers.begin(next_step)

    def _resume(self, path: Path) -> torch.optim.Optimizer | None:
        self._start = None
        with self.group.together():
            self.progress = read_progress(path)
        self.screen.say(f"going on from {path}")
        self.group.first(lambda: self._begin(self.progress.file_bytes, self.progress.total_steps + 1))
        load_weights(path, self.policy)
        if self.progress.step == 0:
            return None
        optimizer = self._make_optimizer(self._stage()[1])
        load_optimizer(path, optimizer)
        return optimizer

    def _stage(self) -> tuple[str, StageSettings]:
        label, index = self.plan[self.progress.stage]
        return label, self.settings.stages[index]

    def _make_optimizer(self, stage: StageSettings) -> torch.optim.Optimizer:
        return self.parallel.optimizer(self.settings.optim, stage.lr)

    def _validate_base(self) -> None:
        self._evaluate("base")
        validation = self._validate()
        self.progress.base_acc_t1 = validation["validation/acc/t1"]
        self._record({"stage": "base", "stage_step": 0, **validation})
        if self._start is not None:
            self.policy.load_trained_state(self._start)
            self._start = None
        self._save(self._make_optimizer(self._stage()[1]))

    def _run_stage(self, optimizer: torch.optim.Optimizer | None) -> None:
        label, stage = self._stage()
        if self.progress.step == 0:
            self._set_reference(stage)
            self.progress.beta2 = stage.beta2
            if stage.restarts:
                save_start(self.run.checkpoints, self.progress.stage, self.policy, self.group)
            self.watch = self._make_watch(stage)
        elif self.progress.watch is not None:
            self.watch = self._make_watch(stage)
            self.watch.load_state(self.progress.watch)
        optimizer = optimizer or self._make_optimizer(stage)
        supply = self._supply(label, stage)
        with self.group.together():
            self.player.player.prove()
        with self.screen.task(label, stage.steps, self.progress.step) as advance:
            while self.progress.step < stage.steps:
                begun = time.monotonic()
                drawn = supply.draw(self.progress.step, partial(self._leave_if_asked, stage, optimizer))
                if drawn.restart:
                    load_start(self.run.checkpoints, self.progress.stage, self.policy)
                    optimizer = self._make_optimizer(stage)
                metrics = self._step(label, stage, optimizer, drawn, time.monotonic() - begun)
                advance(1, step_note(metrics))
                self._leave_if_asked(stage, optimizer)
        self._finish_stage(label, stage)

    def _set_reference(self, stage: StageSettings) -> None:
        """A sub-stage is pinned to what the one before it produced; otherwise the reference is the base model."""
        moved = any(self.settings.stages[index].reference == "stage_start" for _, index in self.plan)
        if stage.reference == "stage_start":
            self.policy.freeze_reference(at_adapter=True)
        elif moved:
            whole = None if self.policy.has_adapter else load_model(self.settings.model, trains=True)
            self.policy.freeze_reference(whole)

    def _supply(self, label: str, stage: StageSettings) -> Supply:
        progress, settings = self.progress, self.settings
        work = StageRun(
            label=label,
            place=progress.stage,
            index=self.plan[progress.stage][1],
            begin=progress.problems_seen - progress.step * stage.problems,
            settings=settings,
            run=self.run,
            problems=self.train_problems,
            player=self.player,
            screen=self.screen,
        )
        return Traces(work) if stage.kind == "sft" else Rollouts(work, self.policy)

    def _step(
        self, label: str, stage: StageSettings, optimizer: torch.optim.Optimizer, drawn: Drawn, seconds: float
    ) -> Metrics:
        """One gradient, one optimiser step, and what is due after it."""
        progress, seed = self.progress, self.settings.seed
        started = time.monotonic()
        cap = self.settings.engine.cap if drawn.on_policy else None
        objective = replace(make_objective(stage, progress.beta2), importance_cap=cap)
        self.policy.train()
        max_tokens = progress.micro_batch_tokens or self.settings.train.micro_batch_tokens
        others = (self.group.rank,) if self.group.rank else ()  # as each has rows of its own
        metrics: Metrics
        metrics, enough = accumulate_within_memory(
            self.policy,
            drawn.episodes,
            stage,
            objective,
            max_tokens=max_tokens,
            seed=derive(seed, "dropout", progress.stage, progress.step, *others) & (2**63 - 1),
            complete=drawn.complete,
            parallel=self.parallel,
        )
        if enough < max_tokens:
            progress.micro_batch_tokens = enough
            self.screen.say(f"out of memory: train.micro_batch_tokens is {enough} from here on, for {max_tokens}")
        if not drawn.on_policy:  # the rest compares the policy with what sampled them
            metrics = {"loss": metrics["loss"]}
        metrics["optim/lr"] = learning_rate(stage, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = metrics["optim/lr"]
        metrics["optim/grad_norm"] = self.parallel.step(optimizer, self.settings.optim.max_grad_norm)
        if progress.beta2 is not None and stage.kind in ("stage1", "substage"):
            metrics["optim/beta2"] = progress.beta2
            progress.beta2 = adapt_beta2(progress.beta2, metrics.get("kl/t1", 0.0), stage)
        metrics |= drawn.metrics
        metrics["time/rollout_seconds"], metrics["time/update_seconds"] = seconds, time.monotonic() - started
        progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
        progress.problems_seen += stage.problems
        self._after_step(label, stage, metrics, drawn.episodes)
        if self._is_due(stage):
            self._save(optimizer)
        return metrics

    def _is_due(self, stage: StageSettings) -> bool:
        train, step = self.settings.train, self.progress.step
        return step == stage.steps or step % train.checkpoint_every == 0 or step % train.validate_every == 0

    def _after_step(self, label: str, stage: StageSettings, metrics: Metrics, episodes: Sequence[Episode]) -> None:
        """Warns, validates and chooses, and writes the step's line and some of its episodes."""
        train, progress = self.settings.train, self.progress
        for key, warning in self.watch.look({k: v for k, v in metrics.items() if isinstance(v, float)}).items():
            metrics[key] = 1.0
            if progress.step % 10 == 0:
                self.screen.say(f"{label} step {progress.step}: {warning}")
        if progress.step % train.validate_every == 0 or progress.step == stage.steps:
            metrics |= self._validate()
        self._choose(stage, metrics)
        self._record({"stage": label, "stage_step": progress.step, **metrics}, episodes)

    def _choose(self, stage: StageSettings, metrics: Metrics) -> None:
        """Keeps the weights of this step if they are the best of the stage so far (`train.select`)."""
        progress = self.progress
        base = metrics.get("validation/acc/t1", 0.0) if progress.base_acc_t1 is None else progress.base_acc_t1
        found = rank(self.settings.train, metrics, base, due=self._is_due(stage))
        if found is not None and (progress.best is None or found > progress.best.rank):
            save_best(self.run.checkpoints, progress.stage, progress.step, self.policy, self.group)
            progress.best = Best(progress.step, found)

    def _finish_stage(self, label: str, stage: StageSettings) -> None:
        """Saves the chosen weights as the stage's model, evaluates them and moves on to the next stage."""
        progress = self.progress
        best = best_path(self.run.checkpoints, progress.stage, progress.best.step if progress.best else 0)
        if progress.best is not None and self.group.first(best.exists):
            load_best(self.run.checkpoints, progress.stage, progress.best.step, self.policy)
            if progress.best.step != stage.steps:
                self.screen.say(
                    f"{label}: step {progress.best.step} chosen by train.select={self.settings.train.select}"
                )
        state = self.policy.saved_state()
        self.group.first(lambda: write_directory(self.run.model(label), lambda path: self.policy.save(path, state)))
        self._evaluate(label)
        progress.stage, progress.step, progress.best, progress.watch = progress.stage + 1, 0, None, None
        if progress.stage < len(self.plan):
            self._save(self._make_optimizer(self._stage()[1]))
        else:
            self._save(self._make_optimizer(stage))

    def _make_watch(self, stage: StageSettings) -> Watch:
        target = stage.adaptive_beta2.target if stage.adaptive_beta2 else 0.25
        return Watch(kl_band=2 * target if stage.kind in ("stage1", "substage") else None)

    def _validate(self) -> Metrics:
        settings = self.settings.eval.model_copy(
            update={"split": "validation", "samples": 1, "sampling": SamplingSettings(temperature=0.0)}
        )
        with self.screen.task("validation", len(self.validation)) as advance:
            metrics = self._play(self.validation, settings, advance).metrics
        shown = [key for key in metrics if "/" in key and "." not in key and not key.startswith(("by/", "scaling/"))]
        return {f"validation/{key}": metrics[key] for key in shown}

    def _evaluate(self, label: str) -> None:
        with self.screen.task(f"{label} evaluation", len(self.held_out)) as advance:
            result = self._play(self.held_out, self.settings.eval, advance)

        def write() -> None:
            write_evaluation(result, self.run.eval / f"{label}.json")
            self.trackers.evaluation(label, self.progress.total_steps, result.metrics)

        self.group.first(write)

    def _write_report(self) -> None:
        """Writes what there is to look at so far."""
        if not self.group.is_first:
            return
        try:
            build_report([self.run.path], self.run.report)
        except Exception as error:  # no fault of a page is worth the run that it shows
            say = f"{error}; the run is not affected, try `score report {self.run.path}`"
            self.screen.say(f"warning: {self.run.report}: not written: {' '.join(say.split())}")

    def _play(self, problems: Sequence[Problem], settings: EvalSettings, advance: Any) -> Any:
        return evaluate(
            self.player, problems, settings, seed=self.settings.seed, progress=lambda number: advance(number, "")
        )

    def _record(self, metrics: Metrics, episodes: Sequence[Episode] = ()) -> None:
        step, kept = self.progress.total_steps, self.settings.train.log_episodes

        def write() -> None:
            self.run.append(self.run.metrics, [{"step": step, **metrics}])
            rows = [episode.to_json() | {"step": step} for episode in episodes[:kept]]
            if rows:
                self.run.append(self.run.episodes(metrics["stage"]), rows)
            self.trackers.step(step, metrics, episodes, kept)

        self.group.first(write)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        self.progress.file_bytes = self.group.first(self.run.sizes)
        self.progress.watch = self.watch.state()
        keep = self.settings.train.save_total_limit
        save_checkpoint(self.run.checkpoints, self.progress, self.policy, optimizer, keep, self.group)

    def _results(self) -> dict[str, Metrics]:
        import json

        labels = ["base", *(label for label, _ in self.plan)]
        files = {label: self.run.eval / f"{label}.json" for label in labels}
        return {label: json.loads(file.read_text()) for label, file in files.items() if file.is_file()}

    def _leave_if_asked(self, stage: StageSettings, optimizer: torch.optim.Optimizer) -> None:
        number = self.group.largest(self._request.signal or 0)  # whichever process it came to
        if number:
            if not self._is_due(stage):
                self._save(optimizer)
            raise Interrupted(number)
