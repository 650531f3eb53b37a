"""What a report reads of a run directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from score_rl.errors import ConfigError
from score_rl.run import RunDirectory, stage_plan
from score_rl.schema import Settings


@dataclass(frozen=True)
class Run:
    """A run as the report shows it."""

    path: Path
    settings: Settings
    labels: list[str]
    evaluations: dict[str, dict[str, Any]]


def read_run(path: Path) -> Run:
    """The run in a directory.

    Raises:
        ConfigError: it is no run directory.
    """
    directory = RunDirectory(path)
    if not directory.config.is_file():
        raise ConfigError(f"{path}: no run (no config.yaml in it); give a directory that `score train` made")
    settings = directory.load_settings()
    found = {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(directory.eval.glob("*.json"))}
    return Run(path, settings, ["base", *(label for label, _ in stage_plan(settings))], found)
