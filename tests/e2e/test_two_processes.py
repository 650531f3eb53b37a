"""Two real processes that talk over gloo, launched as users launch them, against one process alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from score_rl.settings import load
from score_rl.train import Trainer

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LORA = ["model.lora={rank: 4, alpha: 8}"]
SUM = """
def reward(prediction, problem):
    return sum(map(ord, prediction)) % 7 / 6
"""
"""A reward that a random model earns often. Without one its only gradient is that of a KL of 0, which is rounding."""
WITHIN = 2e-5
"""Relative, between metrics of a run and of the same run in other batches; what batching alone did is below."""


def settings_of(model: Path) -> list[str]:
    """Both stages with everything that processes have to agree on: stored attempts, adaptive pin, chosen weights."""
    (model.parent / "sum.py").write_text(SUM)
    stage = "problems: 5, branch: [2, 2], max_new_tokens: [6, 6], kl: {estimator: exact}, lr: 1.0e-4"
    return [
        f"model.path={model}",
        f"reward={{fn: {model.parent / 'sum.py'}:reward}}",
        "data.options={digits: 4, train: 40, validation: 7, test: 9}",
        "train.validate_every=4",
        "train.checkpoint_every=2",
        "train.save_total_limit=100",
        "eval.max_new_tokens=6",
        f"stages=[{{kind: stage1, steps: 6, offline_fraction: 0.4, advantage: sibling, beta2: 0.2, "
        f"adaptive_beta2: {{target: 0.01}}, {stage}}}, {{kind: stage2, steps: 4, alpha: 2, {stage}}}]",
    ]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def largest_difference(left: Path, right: Path) -> float:
    """Of all metrics of all steps, relative to the larger of 1 and the metric; names and steps must be equal."""
    worst = 0.0
    for a, b in zip(metrics_of(left), metrics_of(right), strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            if isinstance(value, str):
                assert value == b[key]
            else:
                worst = max(worst, abs(value - b[key]) / max(1.0, abs(value)))
    return worst


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it has ended well."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


def error_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def train_in_two(runs: dict[Path, list[str]]) -> None:
    """One run after another by the same two processes, each with its settings."""
    words = [word for path, settings in runs.items() for word in ("--", str(path), *settings)]
    finish(launch(str(HERE / "processes_runs.py"), *words[1:]))


def test_a_run_of_two_processes_has_the_numbers_of_one(tmp_path: Path, tiny_model: Path) -> None:
    models = {"whole": settings_of(tiny_model), "adapter": [*settings_of(tiny_model), *LORA]}
    kinds = ("ddp", "fsdp")
    train_in_two(
        {tmp_path / f"{name}-{k}": [*own, f"parallel.kind={k}"] for name, own in models.items() for k in kinds}
    )
    for name, own in models.items():
        Trainer(load("arithmetic", own), tmp_path / name).train()
        for kind in kinds:
            assert largest_difference(tmp_path / name, tmp_path / f"{name}-{kind}") < WITHIN
            assert_equal_files(tmp_path / name, tmp_path / f"{name}-{kind}")
    others = ["train.rollout_rows=4", "train.micro_batch_tokens=40", "eval.rows=2"]
    Trainer(load("arithmetic", [*models["whole"], *others]), tmp_path / "batched").train()
    assert 0 < largest_difference(tmp_path / "whole", tmp_path / "batched") < WITHIN


def assert_equal_files(one: Path, other: Path) -> None:
    """The same files of a run, the same transcripts, and models that load with the same weights."""
    from safetensors.torch import load_file

    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (one, other)]
    assert names[0] == names[1]
    for stage in ("stage1", "stage2"):
        (weights,) = [path.name for path in (one / stage).glob("*.safetensors")]
        left, right = load_file(one / stage / weights), load_file(other / stage / weights)
        assert left.keys() == right.keys()
        assert max(float((left[name] - right[name]).abs().max()) for name in left) < 1e-3


def test_a_run_goes_on_with_another_number_of_processes_after_one_was_killed(tmp_path: Path, tiny_model: Path) -> None:
    """Two processes into Stage I, one of them killed; one alone into Stage II; two of the other kind to the end."""
    models = {"whole": settings_of(tiny_model), "adapter": [*settings_of(tiny_model), *LORA]}
    kinds = {"whole": ("fsdp", "ddp"), "adapter": ("ddp", "fsdp")}
    last = {}
    for name, own in models.items():
        run, settings = tmp_path / name, [*own, "stages.0.steps=12"]
        Trainer(load("arithmetic", settings), tmp_path / f"{name}-undisturbed").train()
        first, second = (f"parallel.kind={kind}" for kind in kinds[name])
        train_until_one_is_killed(run, [*settings, first])
        Trainer(load("arithmetic", [*settings, first]), run).train()
        for path in (run / "checkpoints").glob("step-*"):  # as if it had been killed there
            if path.name > "step-1-000002":
                shutil.rmtree(path)
        last[run] = [*settings, second]
    train_in_two(last)
    for name in models:
        assert largest_difference(tmp_path / f"{name}-undisturbed", tmp_path / name) < WITHIN


def train_until_one_is_killed(run: Path, settings: list[str]) -> None:
    process = launch(str(HERE / "processes_runs.py"), str(run), *settings)
    wait_for_lines(process, run, 4)
    pids = [int((run.parent / f"pid-{rank}").read_text()) for rank in (0, 1)]
    os.kill(pids[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    saved = sorted((run / "checkpoints").glob("step-0-*"))[-1]
    assert f"another process of the run is gone; the same command goes on from {saved}" in errors, errors
    assert not any(is_alive(pid) for pid in pids)


def test_a_signal_to_any_process_ends_all_of_them_after_the_step_which_is_saved(
    tmp_path: Path, tiny_model: Path
) -> None:
    run = tmp_path / "run"
    many = [*settings_of(tiny_model), "stages.0.steps=5000", "train.checkpoint_every=5000", "train.validate_every=5000"]
    process = launch(str(HERE / "processes_runs.py"), str(run), *many)
    wait_for_lines(process, run, 3)
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
    os.kill(pids[1], signal.SIGTERM)
    process.communicate()
    lines = metrics_of(run)
    (saved,) = (run / "checkpoints").glob(f"step-0-{len(lines) - 1:06d}")
    assert json.loads((saved / "progress.json").read_text())["total_steps"] == len(lines) - 1
    assert not any(is_alive(pid) for pid in pids)


REWARD = """
import os
from score_rl.errors import DataError

def reward(prediction, problem):
    if os.environ["RANK"] == "1":
        raise DataError("the second process cannot grade")
    return 1.0
"""


def test_what_fails_in_one_process_is_one_line_and_ends_all(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    settings = [*settings_of(tiny_model), "reward={fn: '" + str(tmp_path / "mine.py") + ":reward'}"]
    process = launch("-m", "score_rl", "train", "arithmetic", *settings, "-o", str(tmp_path / "run"))
    out, errors = process.communicate()
    assert process.returncode != 0 and out == ""
    assert error_lines(errors) == ["error: process 1 of 2: the second process cannot grade"]
    assert "exitcode  : 2" in errors


def test_more_processes_than_questions_are_refused_in_one_line(tmp_path: Path, tiny_model: Path) -> None:
    settings = [*settings_of(tiny_model), "stages.1.problems=1"]
    process = launch("-m", "score_rl", "train", "arithmetic", *settings, "-o", str(tmp_path / "run"))
    _, errors = process.communicate()
    assert error_lines(errors) == [
        "error: stages.1.problems=1: fewer questions a step than the 2 processes; raise it, or start 1 or fewer"
    ]
    assert "exitcode  : 2" in errors and not (tmp_path / "run").exists()


def test_processes_with_different_settings_are_refused_in_one_line(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m score_rl train arithmetic seed=$RANK -o {tmp_path / 'run'}"
    process = launch("--no-python", "bash", "-c", command)
    _, errors = process.communicate()
    assert error_lines(errors) == [
        "error: the processes have different settings; give all of them the same recipe and command"
    ]
    assert "exitcode  : 2" in errors and not (tmp_path / "run").exists()


def wait_for_lines(process: subprocess.Popen[str], run: Path, number: int) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < number:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            raise AssertionError(process.communicate())


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
