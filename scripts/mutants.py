"""Do the tests notice a fault? Puts one fault at a time into a copy of the package and runs the tests that should.

    python scripts/mutants.py                  every fault
    python scripts/mutants.py kl draws         only those whose name or file contains one of the words
    python scripts/mutants.py --list           names, files and tests

Exit code 1 if a fault survives, if its place in the source is not found exactly once, or if the tests it is left to
fail without it. The faults are in `mutants_training.py`, `mutants_sampling.py` and `mutants_runs.py`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mutant_table import Mutant
from mutants_runs import RUNS
from mutants_sampling import SAMPLING
from mutants_training import TRAINING

MUTANTS = [*TRAINING, *SAMPLING, *RUNS]

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("score_rl", "tests", "docs", "pyproject.toml")
LIMIT_SECONDS = 600
"""A fault that makes the tests run this long is noticed by anyone."""


class Verdict(NamedTuple):
    """What became of a mutant: killed or not, by which test or why not."""

    killed: bool
    by: str


def copy_project(target: Path) -> None:
    """Copies what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            # Byte code is told from its source by size and second, which a swap of two letters does not change.
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(source, target / name)


def run_tests(project: Path, files: Sequence[str]) -> tuple[int, str]:
    """Exit code and output of pytest in the copy, stopped at the first failure."""
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *files]
    try:
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, f"FAILED (still running after {LIMIT_SECONDS} s)"
    return done.returncode, done.stdout + done.stderr


def try_mutant(project: Path, mutant: Mutant) -> Verdict:
    """Puts the fault in, runs its tests and takes it out again."""
    path = project / "score_rl" / mutant.file
    original = path.read_text(encoding="utf-8")
    if original.count(mutant.old) != 1:
        return Verdict(False, f"the old text is found {original.count(mutant.old)} times in {mutant.file}")
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, output = run_tests(project, mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")
    if code == 0:
        return Verdict(False, "all tests pass")
    failed = re.search(r"^FAILED (?:tests/)?(.+?)(?: - .*)?$", output, re.MULTILINE)
    if code != 1 or not failed:  # not collected, or an import that broke: no test has said anything
        return Verdict(False, f"pytest ended with {code}: {(output.strip().splitlines() or ['no output'])[-1]}")
    return Verdict(True, failed[1])


def chosen(words: Sequence[str]) -> list[Mutant]:
    """The mutants that the words ask for; all without words."""
    return [m for m in MUTANTS if not words or any(word in m.name or word in m.file for word in words)]


def main() -> int:
    """Prints a line for each mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("words", nargs="*", help="parts of names or files")
    parser.add_argument("--list", action="store_true", help="show the faults and stop")
    options = parser.parse_args()
    mutants = chosen(options.words)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.file:15} {mutant.name}  <- {' '.join(mutant.tests)}")
        return 0
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory)
        copy_project(project)
        code, output = run_tests(project, sorted({file for m in mutants for file in m.tests}))
        if code != 0:
            print(f"the tests do not pass without a fault:\n{output}")
            return 1
        survivors = 0
        for number, mutant in enumerate(mutants, start=1):
            begun = time.monotonic()
            verdict = try_mutant(project, mutant)
            survivors += not verdict.killed
            word = "killed  " if verdict.killed else "SURVIVED"
            took = time.monotonic() - begun
            print(f"{number:3} {word} {took:4.0f} s  {mutant.name} | {verdict.by}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
