"""One step's gradient by two real processes that talk over gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "processes_gradients.py"


def test_the_first_gradient_is_that_of_one_process() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    memory, cases = rows[0], rows[1:]
    assert len(cases) == 2 * 2 * 6 and all(case["processes"] == 2 for case in cases)
    assert {case["case"]: case["gradient"] for case in cases if case["gradient"] > 1e-6} == {}
    assert {case["case"]: case["metrics"] for case in cases if case["metrics"] > 1e-6} == {}
    # Halved from the second process's two rows at once, and the first one follows.
    assert memory["enough"][0] == memory["enough"][1] < 99 and memory["gradient"] < 1e-6
