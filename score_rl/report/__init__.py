"""The report of runs: one HTML file that holds everything it shows and asks no network for anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from score_rl.records import write_text


def render(runs: Sequence[Path]) -> str:
    """The report of run directories as the text of one HTML page; a run may still be training.

    Raises:
        ConfigError: a path is no run directory.
        DataError: a file of a run cannot be read.
    """
    from score_rl.report.page import compose
    from score_rl.report.source import read_run

    return compose([read_run(run) for run in runs])


def build(runs: Sequence[Path], output: Path) -> Path:
    """Writes the report of `runs` to `output` in one step and returns its path.

    Raises:
        ScoreError: as `render`; or the file cannot be written.
    """
    write_text(output, render(runs))
    return output
