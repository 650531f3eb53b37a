"""Real processes, killed for real: what is left must go on to the very numbers of an undisturbed run."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from score_rl.cli import main
from score_rl.settings import load

SHORT = [
    "train.validation_problems=16",
    "train.validate_every=2",
    "train.checkpoint_every=1",
    "eval.problems=24",
    "stages.0.steps=5",
    "stages.1.steps=4",
    "stages.0.problems=4",
    "stages.1.problems=4",
    "stages.1.branch=[2, 2]",
    "stages.1.offline_fraction=0.25",
    "stages.0.adaptive_beta2={target: 0.01}",
]
LORA = ["model.lora={rank: 4, alpha: 8, dropout: 0.1}", "stages.0.lr=0.01", "stages.1.lr=0.01"]
KILLS = int(os.environ.get("SCORE_TEST_KILLS", "10"))

# The fork server imports once what a run needs; each run is then a fresh process that starts in no time.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["score_rl.train", "score_rl.report.page", "transformers.models.qwen3.modeling_qwen3", "peft", "scipy.stats"]
)


def run_here(path: str, overrides: list[str]) -> None:
    from score_rl.train import Trainer

    Trainer(load("arithmetic", overrides), Path(path)).train()


def start(path: Path, overrides: list[str]) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=run_here, args=(str(path), overrides))
    process.start()
    return process


def outcome(run: Path) -> dict[str, object]:
    """Final weights as bytes, evaluations, stored episodes, and metrics without the times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = [path for stage in ("stage1", "stage2") for path in sorted((run / stage).glob("*.safetensors"))]
    return {
        "metrics": [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines],
        "weights": {str(path.relative_to(run)): path.read_bytes() for path in weights},
        "eval": {path.name: path.read_text() for path in sorted((run / "eval").iterdir())},
        "episodes": {path.name: path.read_text() for path in sorted((run / "episodes").iterdir())},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed; also the first use of the fork server, whose own start is no part of a run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    process = start(run, SHORT)
    process.join()
    assert process.exitcode == 0
    return run


@pytest.mark.parametrize(
    ("overrides", "kills"),
    [(SHORT, KILLS), (SHORT + LORA, KILLS // 2)],
    ids=["the whole model", "an adapter with dropout"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, finished: Path, overrides: list[str], kills: int
) -> None:
    if overrides != SHORT:
        finished = tmp_path / "undisturbed"
        undisturbed = start(finished, overrides)
        undisturbed.join()
        assert undisturbed.exitcode == 0
    expected = outcome(finished)
    assert len(expected["metrics"]) == 1 + 5 + 4 and len(expected["weights"]) == 2

    run = tmp_path / "killed"
    struck = within_a_stage = 0
    for kill in range(kills):
        within_a_stage += stage_step(run) > 0
        process = start(run, overrides)
        if kill % 2:
            wait_for_half_written_checkpoint(process, run / "checkpoints")
        else:
            wait_for_a_step(process, run)
        process.kill()
        process.join()
        struck += process.exitcode == -signal.SIGKILL
    assert struck >= 3, "the run was over before it had been killed often enough to say anything"
    assert within_a_stage >= 2, "no kill left a stage half done, so that its optimiser was never needed"
    last = start(tmp_path / "killed", overrides)
    last.join()
    assert last.exitcode == 0
    assert outcome(tmp_path / "killed") == expected


def stage_step(run: Path) -> int:
    """Steps that the newest checkpoint has in its stage."""
    saved = sorted((run / "checkpoints").glob("step-*-*[0-9]"))
    return json.loads((saved[-1] / "progress.json").read_text())["step"] if saved else 0


def wait_for_a_step(process: multiprocessing.process.BaseProcess, run: Path) -> None:
    """Until the step after the one that the run goes on from has its line, which stands before its checkpoint."""
    wanted = stage_step(run) + 1

    def written() -> bool:
        lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
        return any(line.endswith("}") and json.loads(line)["stage_step"] > wanted for line in lines[-1:])

    while process.is_alive() and not written():
        process.join(0.01)


def wait_for_half_written_checkpoint(process: multiprocessing.process.BaseProcess, checkpoints: Path) -> None:
    left_by_the_last_kill = inodes(checkpoints)
    while process.is_alive() and not inodes(checkpoints) - left_by_the_last_kill:
        pass


def inodes(checkpoints: Path) -> set[int]:
    found = os.scandir(checkpoints) if checkpoints.is_dir() else []
    return {entry.inode() for entry in found if entry.name.endswith(".partial")}


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    model, metrics = finished / "stage2" / "model.safetensors", finished / "metrics.jsonl"
    written, lines = model.stat().st_mtime_ns, metrics.read_text()
    process = start(finished, SHORT)
    process.join()
    assert process.exitcode == 0
    assert model.stat().st_mtime_ns == written
    assert metrics.read_text() == lines


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    many = [*SHORT, "stages.0.steps=5000", "train.checkpoint_every=5000", "train.validate_every=5000"]
    command = [sys.executable, "-m", "score_rl", "train", "arithmetic", *many, "-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < 4:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
            raise AssertionError(process.communicate())
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert f"{number.name}: saved; the same command goes on from here" in errors
    lines = metrics.read_text().splitlines()
    (saved,) = (tmp_path / "run" / "checkpoints").glob(f"step-0-{len(lines) - 1:06d}")
    assert json.loads((saved / "progress.json").read_text())["total_steps"] == len(lines) - 1


def test_changed_settings_are_refused_with_the_keys_that_differ(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", "train", "arithmetic", *SHORT, "stages.1.lr=0.5", "-o", str(finished)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "stages.1.lr: 0.0003 -> 0.5" in capsys.readouterr().err.splitlines()[-1]
