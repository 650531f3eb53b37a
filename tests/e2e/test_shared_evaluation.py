"""`score eval` launched as several processes: one evaluation, not copies of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from score_rl.cli import main

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EVALUATION = ["eval", "embedded", "--problems", "31", "eval.rows=8", "--json"]


def evaluate(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TWO, "-m", "score_rl", *EVALUATION, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_two_processes_evaluate_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--samples", "2", "--temperature", "1"]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    monkeypatch.setattr(sys, "argv", ["score", *EVALUATION, *options, "-o", str(one)])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    alone = capsys.readouterr().out
    rows = one.with_suffix(".jsonl").read_text().splitlines()
    shared = evaluate(*options, "-o", str(two))
    assert shared.returncode == 0, shared.stderr
    assert len(shared.stdout.splitlines()) == 1
    assert json.loads(shared.stdout) == pytest.approx(json.loads(alone))
    found = [json.loads(row) for row in two.with_suffix(".jsonl").read_text().splitlines()]
    assert found == [json.loads(row) for row in rows]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.jsonl", "two.json", "two.jsonl"]


def test_one_process_alone_asks_an_endpoint(tmp_path: Path) -> None:
    done = evaluate("--endpoint", "http://127.0.0.1:9/v1", "-o", str(tmp_path / "e.json"))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line == "error: --endpoint with 2 processes: one asks it; start one, raise --concurrency"
    assert list(tmp_path.iterdir()) == []
