"""Full training state, written in one step: a killed run goes on from the last complete checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from score_rl.errors import CheckpointError
from score_rl.policy import Policy
from score_rl.processes import Group
from score_rl.records import write_directory
from score_rl.shards import load_optimizer_state, whole_optimizer

ALONE = Group()


@dataclass
class Best:
    """The best checkpoint of a stage so far: its step and the rank it was chosen by (compared as a tuple)."""

    step: int
    rank: list[float]


@dataclass
class Progress:
    """Where a run stands. All randomness follows from the seed and these numbers, so there is no other random state.

    Attributes:
        stage: place in the run's plan of stages.
        step: steps done in this stage.
        total_steps: steps done in all stages.
        problems_seen: questions drawn so far; the place in the shuffled training data.
        beta2: the current pin, where a controller moves it.
        base_acc_t1: validation accuracy at attempt 1 before training.
        file_bytes: length of the files that only grow.
        watch: state of the collapse watch.
        micro_batch_tokens: what the memory turned out to be enough for, if less than the settings say.
    """

    stage: int = 0
    step: int = 0
    total_steps: int = 0
    problems_seen: int = 0
    beta2: float | None = None
    base_acc_t1: float | None = None
    best: Best | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    watch: dict[str, Any] | None = None
    micro_batch_tokens: int | None = None


def save_checkpoint(
    root: Path, progress: Progress, policy: Policy, optimizer: torch.optim.Optimizer, keep: int, group: Group = ALONE
) -> None:
    """Writes `root/step-N` completely or not at all, then deletes all but the newest `keep`.

    It holds whole tensors, however many processes hold parts of them, so any number of them can go on from it.

    Args:
        group: all of it is to call this; the first process writes.

    Raises:
        CheckpointError: the disk is full or `root` cannot be written; older checkpoints are untouched.
    """

    weights, moments, reference = policy.trained_state(), whole_optimizer(optimizer), policy.reference_state()

    def fill(directory: Path) -> None:
        save_file(_contiguous(weights), directory / "weights.safetensors")
        torch.save(moments, directory / "optimizer.pt")
        if reference is not None:
            save_file(_contiguous(reference), directory / "reference.safetensors")
        (directory / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")

    def write() -> None:
        write_directory(root / f"step-{progress.stage}-{progress.step:06d}", fill)
        for old in checkpoints(root)[:-keep]:
            shutil.rmtree(old)
        kept = best_path(root, progress.stage, progress.best.step) if progress.best else None
        for old in [*root.glob("best-*"), *root.glob("start-*")]:
            if old not in (kept, start_path(root, progress.stage)):
                shutil.rmtree(old)

    group.first(write)


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in root.glob("step-*-*") if (path / "progress.json").is_file()]
    return sorted(found, key=lambda path: tuple(int(part) for part in path.name.split("-")[1:]))


def read_progress(path: Path) -> Progress:
    """Where the run stood when the checkpoint was written.

    Raises:
        CheckpointError: the file is not what this version writes.
    """
    try:
        row = json.loads((path / "progress.json").read_text(encoding="utf-8"))
        best = row.pop("best")
        return Progress(best=Best(**best) if best else None, **row)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it to go on from the one before") from error


def load_weights(path: Path, policy: Policy) -> None:
    """Puts a checkpoint's weights and its reference into the policy."""
    policy.load_trained_state(load_file(path / "weights.safetensors"))
    reference = path / "reference.safetensors"
    policy.load_reference_state(load_file(reference) if reference.is_file() else None)


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Puts a checkpoint's optimiser state into a new optimiser of the same stage."""
    load_optimizer_state(optimizer, torch.load(path / "optimizer.pt", weights_only=True))


def best_path(root: Path, stage: int, step: int) -> Path:
    """Where the weights of a stage's best step lie."""
    return root / f"best-{stage}-{step:06d}"


def start_path(root: Path, stage: int) -> Path:
    """Where the weights lie that a stage began with."""
    return root / f"start-{stage}"


def save_best(root: Path, stage: int, step: int, policy: Policy, group: Group = ALONE) -> None:
    """Keeps the trained weights of one step; `group` as in `save_checkpoint`."""
    _save_trained(best_path(root, stage, step), policy, group)


def load_best(root: Path, stage: int, step: int, policy: Policy) -> None:
    """Puts back the weights that `save_best` kept."""
    policy.load_trained_state(load_file(best_path(root, stage, step) / "weights.safetensors"))


def save_start(root: Path, stage: int, policy: Policy, group: Group = ALONE) -> None:
    """Keeps the trained weights that a stage begins with, until the next one has a checkpoint."""
    _save_trained(start_path(root, stage), policy, group)


def load_start(root: Path, stage: int, policy: Policy) -> None:
    """Puts back the weights that `save_start` kept."""
    policy.load_trained_state(load_file(start_path(root, stage) / "weights.safetensors"))


def _save_trained(path: Path, policy: Policy, group: Group) -> None:
    weights = policy.trained_state()

    def fill(directory: Path) -> None:
        save_file(_contiguous(weights), directory / "weights.safetensors")

    group.first(lambda: write_directory(path, fill))


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: contiguous, and none sharing memory with another (tied weights)."""
    seen: set[int] = set()
    out = {}
    for name, tensor in state.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        out[name] = tensor.clone() if shared else tensor.contiguous()
    return out
