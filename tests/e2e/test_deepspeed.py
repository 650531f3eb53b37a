"""DeepSpeed's ZeRO-2 and ZeRO-3 in two real processes over gloo, against one process without it."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from test_two_processes import (
    HERE,
    LORA,
    WITHIN,
    assert_equal_files,
    finish,
    largest_difference,
    launch,
    settings_of,
)

from score_rl.errors import ConfigError
from score_rl.parallel import check_parallel
from score_rl.processes import Group
from score_rl.schema import OptimSettings
from score_rl.settings import load
from score_rl.train import Trainer
from score_rl.zero import configuration

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed, an extra")


SETTINGS = {"adapter": [*LORA, "stages.1.reference=stage_start"], "whole": []}
KINDS = {"adapter": ("zero3", "zero2"), "whole": ("zero2", "zero3")}


def own(name: str, model: Path) -> list[str]:
    return [*settings_of(model), *SETTINGS[name], "stages.0.steps=4", "stages.1.steps=3"]


@pytest.fixture(scope="module")
def gradients_and_runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[str, Path]:
    """What one launch of two processes prints, and the directory of the runs that it made."""
    root = tmp_path_factory.mktemp("deepspeed")
    runs = {f"{name}-two": [*own(name, tiny_model), f"parallel.kind={KINDS[name][0]}"] for name in SETTINGS}
    return train_in_two(root, runs, "deepspeed_gradients.py"), root


def train_in_two(root: Path, runs: dict[str, list[str]], script: str = "processes_runs.py") -> str:
    words = [word for name, settings in runs.items() for word in ("--", str(root / name), *settings)]
    return finish(launch(str(HERE / script), *words[1:]))


def test_the_first_gradient_is_that_of_one_process(gradients_and_runs: tuple[str, Path]) -> None:
    rows = [json.loads(line) for line in gradients_and_runs[0].splitlines()]
    assert len(rows) == 2 * 2 * 2 and all(row["processes"] == 2 for row in rows)
    assert {row["case"]: row["gradient"] for row in rows if row["gradient"] > 1e-6} == {}
    assert {row["case"]: row["metrics"] for row in rows if row["metrics"] > 1e-6} == {}


def test_a_run_has_the_numbers_of_one_process_and_goes_on_with_another_kind_and_number(
    gradients_and_runs: tuple[str, Path], tiny_model: Path
) -> None:
    root = gradients_and_runs[1]
    for name in SETTINGS:
        Trainer(load("arithmetic", own(name, tiny_model)), root / f"{name}-alone").train()
        assert largest_difference(root / f"{name}-alone", root / f"{name}-two") < WITHIN
        assert_equal_files(root / f"{name}-alone", root / f"{name}-two")

        # Two processes to the middle of Stage I, one to the middle of Stage II, and two of the other kind to the end.
        again = root / f"{name}-again"
        shutil.copytree(root / f"{name}-two", again)
        go_back(again, "step-0-000002")
        Trainer(load("arithmetic", own(name, tiny_model)), again).train()
        go_back(again, "step-1-000002")
    train_in_two(
        root, {f"{name}-again": [*own(name, tiny_model), f"parallel.kind={KINDS[name][1]}"] for name in SETTINGS}
    )
    for name in SETTINGS:
        assert largest_difference(root / f"{name}-alone", root / f"{name}-again") < WITHIN


def go_back(run: Path, checkpoint: str) -> None:
    """Makes a run what it was when it had just written a checkpoint."""
    for path in (run / "checkpoints").glob("step-*"):
        if path.name > checkpoint:
            shutil.rmtree(path)


@pytest.mark.parametrize(("kind", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_reads_what_is_shipped_as_it_is_meant(kind: str, stage: int, capfd: pytest.CaptureFixture) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    config = DeepSpeedConfig(configuration(kind, OptimSettings(max_grad_norm=0.5)))
    assert config.zero_enabled and config.zero_optimization_stage == stage
    assert config.gradient_clipping == 0.5 and config.gradient_accumulation_steps == 1
    assert not config.bfloat16_config.enabled and not config.float16_config.enabled


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_weights_of_16_bits_are_refused_where_they_train(kind: str) -> None:
    settings = [f"parallel.kind={kind}", "model.dtype=bfloat16"]
    check_parallel(load("arithmetic", [*settings, "model.lora={}"]), Group(0, 2))
    with pytest.raises(ConfigError, match=r"model.dtype=bfloat16: with parallel.kind=zero. DeepSpeed trains a float32"):
        check_parallel(load("arithmetic", settings), Group(0, 2))


def test_a_missing_deepspeed_is_said_before_any_model_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"parallel.kind=zero2 needs DeepSpeed: pip install 'score-rl\[deepspeed\]'"):
        check_parallel(load("arithmetic", ["parallel.kind=zero2"]), Group(0, 2))
