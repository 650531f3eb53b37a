"""Two real processes that talk over gloo, launched as users launch them, against one process alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.parametrize("lora", [True, False], ids=["an adapter", "the whole model"])
def test_a_run_of_two_processes_has_the_numbers_of_one(tmp_path: Path, tiny_model: Path, lora: bool) -> None:
    settings = [*settings_of(tiny_model), *(LORA if lora else [])]
    others = ["train.rollout_rows=4", "train.micro_batch_tokens=40", "eval.rows=2"]
    kinds = [
        word for kind in ("ddp", "fsdp") for word in ("--", str(tmp_path / kind), f"parallel.kind={kind}", *settings)
    ]
    finish(launch(str(HERE / "processes_runs.py"), *kinds[1:]))
    Trainer(load("arithmetic", settings), tmp_path / "one").train()
    Trainer(load("arithmetic", [*settings, *others]), tmp_path / "batched").train()
    batching = largest_difference(tmp_path / "one", tmp_path / "batched")
    assert 0 < batching < WITHIN
    for kind in ("ddp", "fsdp"):
        assert largest_difference(tmp_path / "one", tmp_path / kind) < WITHIN
        assert_equal_files(tmp_path / "one", tmp_path / kind)


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


# Once in about ten times on a busy machine the process that is left ends without its line; nobody knows why yet.
@pytest.mark.xfail(strict=False, reason="the line of the process that is left is missing now and then")
@pytest.mark.parametrize("kinds", [("ddp", "fsdp"), ("fsdp", "ddp")], ids=["ddp to fsdp", "fsdp to ddp"])
def test_a_run_goes_on_with_another_number_of_processes_after_one_was_killed(
    tmp_path: Path, tiny_model: Path, kinds: tuple[str, str]
) -> None:
    settings = [*settings_of(tiny_model), *(LORA if kinds[0] == "ddp" else []), "stages.0.steps=12"]
    Trainer(load("arithmetic", settings), tmp_path / "undisturbed").train()
    run = tmp_path / "run"
    script, first, last = str(HERE / "processes_runs.py"), *(f"parallel.kind={kind}" for kind in kinds)

    killed = launch(script, str(run), *settings, first)
    wait_for_lines(killed, run, 4)
    pids = [int((tmp_path / f"pid-{rank}").read_text()) for rank in (0, 1)]
    os.kill(pids[1], signal.SIGKILL)
    _, errors = killed.communicate(timeout=60)
    assert killed.returncode != 0
    saved = sorted((run / "checkpoints").glob("step-0-*"))[-1]
    assert f"another process of the run is gone; the same command goes on from {saved}" in errors, errors
    assert not any(is_alive(pid) for pid in pids)

    alone = subprocess.Popen([sys.executable, script, str(run), *settings, first], env=ENVIRONMENT)
    wait_for_lines(alone, run, len(metrics_of(run)) + 2)
    alone.send_signal(signal.SIGTERM)
    assert alone.wait() == 128 + signal.SIGTERM

    finish(launch(script, str(run), *settings, last))
    assert largest_difference(tmp_path / "undisturbed", run) < WITHIN


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


def wait_for_lines(process: subprocess.Popen[str], run: Path, number: int) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < number:
        assert process.poll() is None, process.communicate()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
