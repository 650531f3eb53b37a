"""A real sweep, killed as a whole at several points: what it leaves behind is what an undisturbed one leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

SWEEP = {
    "name": "short",
    "overrides": [
        "train.select=last",
        "train.validate_every=1000",
        "train.checkpoint_every=1",
        "train.validation_problems=8",
        "eval.problems=12",
        "stages.0.problems=4",
        "stages.0.steps=6",
        "stages.1.problems=4",
        "stages.1.steps=6",
        "stages.1.offline_fraction=0.5",
        "stages.1.offline_attempts=8",
    ],
    "threads": 1,
    "reference": "score",
    "evaluations": {"sampled": {"samples": 2, "temperature": 0.7, "problems": 400}},
    "rows": {"score": {}, "base": {"train": False}},
    "tables": {"main": {"rows": ["base", "score"]}},
}

FIXED = {"fixed": {"first_attempts": "base", "problems": 12}}


def start(file: Path, directory: Path) -> subprocess.Popen:
    """In a process group of its own, with the runs that it starts."""
    command = [sys.executable, "-m", "score_rl", "sweep", str(file), "-o", str(directory)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def lines(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.is_file() else 0


def test_a_sweep_killed_anywhere_ends_with_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    file, whole = tmp_path / "short.yaml", tmp_path / "whole.yaml"
    file.write_text(json.dumps(SWEEP))  # which is YAML
    whole.write_text(json.dumps(SWEEP | {"evaluations": SWEEP["evaluations"] | FIXED}))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    process = start(whole, undisturbed)
    _, said = process.communicate()
    assert process.returncode == 0, said
    # Stage I: 6 steps of 4 questions with 2 + 8 attempts; Stage II: 8 + 8, less the 8 that two questions have stored.
    assert "2 runs of 2 rows, 0 done; 2 to make: 12 steps, 528 attempts sampled in training" in said

    run = killed / "runs" / "score" / "seed-0"
    points: list[tuple[str, Callable[[], bool], int]] = [
        ("within Stage I", lambda: lines(run) >= 3, signal.SIGKILL),
        ("in Stage II, by Ctrl-C", lambda: lines(run) >= 9, signal.SIGINT),
        ("in a later evaluation", lambda: (run / "eval" / "sampled.partial.jsonl").is_file(), signal.SIGKILL),
        ("behind the first result", lambda: (killed / "results" / "score" / "seed-0.json").is_file(), signal.SIGKILL),
    ]
    for where, reached, number in points:
        process = start(file, killed)
        while not reached():
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.02)
                pytest.fail(f"over before it was {where}: {process.communicate()}")
        os.killpg(process.pid, number)
        _, said = process.communicate()
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert f"0 of 2 runs are done; the same command goes on from here: score sweep {file} -o {killed}" in said
        else:
            assert process.returncode == -number
    # An evaluation is added at the end, also to the run that has its result.
    process = start(whole, killed)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "2 runs of 2 rows, 0 done; 1 to evaluate further; 1 to make: 0 steps, 0 attempts" in said
    assert contents(killed) == contents(undisturbed)
    assert not (killed / "failures").exists()
    assert tables(killed) == tables(undisturbed)


def contents(directory: Path) -> dict[str, str]:
    """The results as text, without what may differ, and the sweep's own files."""
    found = {name: (directory / name).read_text() for name in ("sweep.yaml", "runs.json")}
    for file in sorted((directory / "results").rglob("*.json")):
        result = json.loads(file.read_text())
        assert result.pop("seconds") > 0 and result.pop("environment")["threads"] == 1
        found[str(file.relative_to(directory))] = json.dumps(result)
    assert len(found) == 4
    return found


def tables(directory: Path) -> dict[str, bytes]:
    """The files that `score table` makes, but for what they cost."""
    subprocess.run([sys.executable, "-m", "score_rl", "table", str(directory)], check=True, capture_output=True)
    found = {name: (directory / name).read_bytes() for name in ("tables.md", "tables.csv", "tables.tex")}
    drawn = sorted((directory / "figures").iterdir())
    assert drawn, "no figure was drawn"
    return found | {figure.name: figure.read_bytes() for figure in drawn}
