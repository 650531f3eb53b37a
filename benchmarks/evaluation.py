"""How long the statistics of a large evaluation take: `python benchmarks/evaluation.py`.

Makes episodes (10,000 problems, 8 samples, 2 attempts unless told otherwise), writes them as `score eval` does, and
times the reading, each part of the statistics and the report, on one core.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.evaluation import count
from score_rl.metrics import by_field, self_correction
from score_rl.results import episodes_path, read_episodes, write_files
from score_rl.scaling import scaling
from score_rl.schema import EvalSettings, SamplingSettings

WORDS = [f"word{number}" for number in range(400)]


def attempt(rng: random.Random, gold: int, chance: float) -> Attempt:
    """20 to 60 tokens that end in an answer, most often one of a few near the gold one where it is wrong."""
    correct = rng.random() < chance
    answer = None if rng.random() < 0.02 else str(gold if correct else gold + rng.randint(1, 5))
    words = rng.choices(WORDS, k=rng.randint(19, 59))
    correct = answer == str(gold)
    grade = Grade(correct, float(correct), answer)
    text = " ".join([*words, answer or ""])
    return Attempt((), tuple(rng.randrange(32_000) for _ in range(len(words) + 1)), text, True, grade=grade)


def episodes(problems: int, samples: int, attempts: int, seed: int) -> Iterator[Episode]:
    """Made-up episodes; each problem has a difficulty of its own, so that its samples resemble each other."""
    rng = random.Random(seed)
    for number in range(problems):
        gold, easy = rng.randrange(1000), rng.betavariate(0.8, 0.8)
        problem = Problem(f"test/{number}", f"question {number}", str(gold), {"level": rng.randint(1, 5)})
        for sample in range(samples):
            made = [attempt(rng, gold, easy)]
            while len(made) < attempts:
                # Half of the later attempts repeat the one before, as a model that corrects does.
                made.append(made[-1] if rng.random() < 0.5 else attempt(rng, gold, min(1, easy + 0.1)))
            yield Episode(problem, tuple(made), (sample, *(0 for _ in made[1:])))


@contextmanager
def timed(name: str, times: dict[str, float]) -> Iterator[None]:
    begun, worked = time.perf_counter(), time.process_time()
    yield
    times[name] = time.process_time() - worked
    print(f"{name:<24} {times[name]:6.1f} s of the core, {time.perf_counter() - begun:.1f} s on the clock", flush=True)


def report(run: Path, page: Path) -> None:
    from score_rl.report import build

    build([run], page)


def make_run(path: Path, settings: EvalSettings, made: list[Episode]) -> Path:
    """A run directory with this one evaluation, as `score eval RUN` leaves it."""
    from score_rl.run import RunDirectory
    from score_rl.settings import load

    run = RunDirectory(path)
    run.begin(load("arithmetic"), fresh=False)
    (path / "stage2").mkdir()
    target = run.eval / "stage2.json"
    write_files(target, count(made, settings, 0), made)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    size = (arguments.problems, arguments.samples, arguments.attempts)
    settings = EvalSettings(
        problems=size[0], samples=size[1], attempts=size[2], sampling=SamplingSettings(temperature=1.0)
    )
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        target = make_run(run, settings, list(episodes(*size, arguments.seed)))
        file = episodes_path(target)
        print(
            f"{size[0]} problems, {size[1]} samples, {size[2]} attempts: {file.stat().st_size / 1e6:.0f} MB", flush=True
        )
        with timed("reading", times):
            read = read_episodes(file)
        parts: dict[str, Callable[[], object]] = {
            "rates and intervals": lambda: self_correction(read),
            "votes and scaling": lambda: scaling(read, settings.samples),
            "groups of the data": lambda: by_field(read),
        }
        for name, part in parts.items():
            with timed(name, times):
                part()
        print(f"{'in all':<24} {sum(times.values()):6.1f} s of the core", flush=True)
        with timed("report", times):
            report(run, Path(directory) / "report.html")
        print(f"report.html: {(Path(directory) / 'report.html').stat().st_size / 1e6:.1f} MB")
    print(json.dumps({name: round(seconds, 2) for name, seconds in times.items()}))


if __name__ == "__main__":
    main()
