"""The report of runs or of a sweep: one HTML file that holds everything it shows and asks no network for anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from score_rl.errors import ConfigError
from score_rl.records import write_text

MEGABYTES = 3.0
"""How large a page may grow with transcripts."""


def render(runs: Sequence[Path], *, megabytes: float = MEGABYTES) -> str:
    """The report of run directories, or of a sweep's, as the text of one HTML page; a run may still be training.

    Args:
        megabytes: transcripts are put in until the page is this large; the page says what was left out.

    Raises:
        ConfigError: a path is no run directory, or a sweep among others.
        DataError: a file of a run cannot be read.
    """
    from score_rl.table_source import is_sweep

    sweeps = [path for path in runs if is_sweep(path)]
    if sweeps:
        if len(runs) > 1:
            raise ConfigError(f"{sweeps[0]}: a sweep has a page of its own; give it alone, or runs without it")
        from score_rl.report.sweep import render_sweep

        return render_sweep(sweeps[0])
    from score_rl.report.page import compose
    from score_rl.report.source import read_runs

    return compose(read_runs(runs), int(megabytes * 1e6))


def build(runs: Sequence[Path], output: Path, *, megabytes: float = MEGABYTES) -> Path:
    """Writes the report of `runs` to `output` in one step and returns its path.

    Raises:
        ScoreError: as `render`; or the file cannot be written.
    """
    write_text(output, render(runs, megabytes=megabytes))
    return output
