"""What tables and figures need of a finished run, counted from its run directory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from score_rl.episodes import Attempt, Episode
from score_rl.metrics import edit_ratio
from score_rl.records import read_jsonl
from score_rl.results import episodes_path, read_episodes
from score_rl.run import RunDirectory, environment
from score_rl.sweep import Run

POINTS = 60
"""Of a curve, at most."""
BINS = 20
CURVES: tuple[str, ...] = ("acc/", "reward/", "unchanged/", "delta/", "rate/", "kl/", "entropy/", "groups/", "length/")
CURVES += ("traces/", "kept/", "edit_ratio/")
"""Starts of the metrics whose course is kept, also behind `offline/` and `validation/`."""


def make_result(run: Run, path: Path, seconds: float, threads: int) -> dict[str, Any]:
    """The content of a run's result.

    Args:
        path: the run directory, finished.
        seconds: that it took.
        threads: that it ran on.

    Raises:
        DataError: a file of the run cannot be read.
    """
    directory = RunDirectory(path)
    files = {name: directory.eval / f"{name}.json" for name in [*run.labels, *run.evaluations]}
    episodes = read_episodes(episodes_path(files[run.labels[-1]]))
    stored = sum(1 for file in sorted((path / "offline").glob("*.jsonl")) for _ in read_jsonl(file))
    return {
        "row": run.row,
        "seed": run.seed,
        "seconds": seconds,
        "steps": run.steps,
        "attempts_sampled": run.attempts + stored,
        "environment": environment(run.settings) | {"threads": threads},
        "evaluations": {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()},
        "final": run.labels[-1],
        "outcomes": outcomes(episodes),
        "edits": edits(episodes),
        "curves": curves([row for _, row in read_jsonl(directory.metrics)] if run.train else []),
    }


def outcomes(episodes: Sequence[Episode]) -> dict[str, str]:
    """`problems`, a digest of ids and questions in order, and for each attempt a character an episode.

    1 is right, 0 is wrong, and - is an attempt that the grader could not judge.
    """
    asked = json.dumps([[episode.problem.id, episode.problem.question] for episode in episodes])
    told = {"problems": hashlib.sha256(asked.encode()).hexdigest()[:16]}
    for k in range(len(episodes[0].attempts)):
        told[f"t{k + 1}"] = "".join(_mark(episode.attempts[k]) for episode in episodes)
    return told


def _mark(attempt: Attempt) -> str:
    if attempt.grade is None or attempt.grade.reward is None:
        return "-"
    return "1" if attempt.grade.correct else "0"


def edits(episodes: Sequence[Episode]) -> list[int]:
    """Episodes by `edit_ratio` of attempts 1 and 2, in equal bins of [0, 1]; 1 itself is in the last one."""
    counts = [0] * BINS
    for episode in episodes:
        if len(episode.attempts) > 1:
            ratio = edit_ratio(*episode.texts[:2])
            counts[min(BINS - 1, int(ratio * BINS))] += 1
    return counts


def curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Step and value of each metric that is kept, neighbours averaged to at most `POINTS` points."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            kept = key.removeprefix("offline/").removeprefix("validation/").startswith(CURVES)
            if kept and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(key, []).append((row["step"], value))
    return {key: thinned(points) for key, points in sorted(found.items())}


def thinned(points: Sequence[tuple[float, float]], most: int = POINTS) -> list[list[float]]:
    """Means of as few neighbours as leave at most `most` points.

    >>> thinned([(1, 0.0), (2, 1.0), (3, 5.0)], most=2)
    [[1.5, 0.5], [3.0, 5.0]]
    """
    size = max(1, -(-len(points) // most))
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [[fmean(x for x, _ in part), fmean(y for _, y in part)] for part in parts]
