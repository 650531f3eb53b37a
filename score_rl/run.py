"""The run directory: what commands leave for each other and for people."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from score_rl.errors import CheckpointError, ConfigError
from score_rl.records import to_lines, write_text
from score_rl.schema import Settings
from score_rl.settings import differing_keys, parse, parse_yaml

LIBRARIES = ("score-rl", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
OURS: tuple[str, ...] = ("config.yaml", "environment.json", "metrics.jsonl", "episodes", "checkpoints", "eval")
OURS += ("offline", "traces", "report.html", "trackers.json", "tensorboard", "wandb")

FREE = ("log.", "parallel.", "engine.")
"""Settings that a run may go on with changed, since they do not change what is computed."""


class RunDirectory:
    """Paths of a run, and the files that grow while it trains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.eval = path / "eval"
        self.report = path / "report.html"

    def episodes(self, label: str) -> Path:
        """Training episodes that are kept of one stage."""
        return self.path / "episodes" / f"{label}.jsonl"

    def model(self, label: str) -> Path:
        """The model or adapter that a stage ends with."""
        return self.path / label

    def check(self, settings: Settings, *, fresh: bool) -> None:
        """Refuses a directory that this run must not go on in; changes nothing.

        Raises:
            ConfigError: it holds a run with other settings, or something that is no run.
            CheckpointError: it cannot be written.
        """
        check_writable(self.path)
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not self.config.is_file():
            raise ConfigError(f"{self.path}: not empty and no run (no config.yaml); choose another directory with -o")
        changed = [key for key in differing_keys(self.load_settings(), settings) if not key.startswith(FREE)]
        if changed and not fresh:
            raise ConfigError(
                f"{self.path}: holds a run with other settings ({'; '.join(changed)}); "
                "use them, choose another directory with -o, or discard the run with --fresh"
            )

    def begin(self, settings: Settings, *, fresh: bool) -> None:
        """Makes the directory and writes config and environment; with `fresh` an earlier run in it is deleted."""
        if fresh and self.config.is_file():
            stages = [self.model(label) for label, _ in stage_plan(self.load_settings())]
            for old in [*(self.path / name for name in OURS), *stages]:
                if old.is_dir():
                    shutil.rmtree(old)
                else:
                    old.unlink(missing_ok=True)
        if not self.config.is_file() or self.load_settings() != settings:  # those in FREE may have changed
            write_text(self.config, settings.dump())
        write_text(self.path / "environment.json", json.dumps(environment(settings), indent=1) + "\n")

    def load_settings(self) -> Settings:
        """The resolved settings that the run was started with.

        Raises:
            ConfigError: no config.yaml, or one that this version cannot read.
        """
        try:
            text = self.config.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{self.config}: cannot be read ({error.strerror})") from error
        return parse(parse_yaml(text, str(self.config)), str(self.config))

    def append(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Adds lines to a file of the run.

        Raises:
            CheckpointError: the disk is full or the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(to_lines(rows))
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be written ({error.strerror}); the last checkpoint is intact"
            ) from error

    def growing(self) -> list[Path]:
        """Files that are only appended to."""
        return [self.metrics, *sorted((self.path / "episodes").glob("*.jsonl"))]

    def sizes(self) -> dict[str, int]:
        """Synced length in bytes of each growing file, by path within the run."""
        sizes = {}
        for path in self.growing():
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                sizes[str(path.relative_to(self.path))] = path.stat().st_size
        return sizes

    def rewind(self, sizes: dict[str, int]) -> None:
        """Cuts the growing files back to what they were when a checkpoint was written.

        Raises:
            CheckpointError: one is shorter than it was.
        """
        for path in self.growing():
            size = sizes.get(str(path.relative_to(self.path)), 0)
            if path.is_file():
                if path.stat().st_size < size:
                    raise CheckpointError(f"{path}: shorter than when the checkpoint was written; start with --fresh")
                os.truncate(path, size)


def check_writable(directory: Path) -> None:
    """Refuses a directory that could not be made or written, before there is anything to write.

    Raises:
        CheckpointError: the nearest part of the path that exists is no directory, or cannot be written.
    """
    parent = next(p for p in (directory, *directory.parents) if p.exists())
    if not parent.is_dir():
        raise CheckpointError(f"{directory}: {parent} is no directory; choose another one with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{directory}: {parent} cannot be written; choose another directory with -o")


def environment(settings: Settings) -> dict[str, Any]:
    """Versions, platform, git commit and seed."""

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = (
        subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip() if shutil.which("git") else ""
    )
    return {
        "seed": settings.seed,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "git_commit": commit or None,
        "versions": {name: installed(name) for name in LIBRARIES},
    }


def final_model(run: Path) -> Path:
    """The directory of the last model that a run has finished.

    Raises:
        ConfigError: no stage has finished.
    """
    directory = RunDirectory(run)
    labels = [label for label, _ in stage_plan(directory.load_settings())]
    for label in reversed(labels):
        if (directory.model(label) / "tokenizer_config.json").is_file():
            return directory.model(label)
    raise ConfigError(f"{run}: no stage has finished; run `score train` on it again to go on")


def stage_plan(settings: Settings) -> list[tuple[str, int]]:
    """Label and place in `settings.stages` of every stage in the order they run; later iterations are numbered."""
    return [
        (stage.label if iteration == 1 else f"{stage.label}-{iteration}", index)
        for iteration in range(1, settings.train.iterations + 1)
        for index, stage in enumerate(settings.stages)
    ]
