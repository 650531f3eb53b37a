"""Several seeds of a recipe, evaluated greedily and at temperature 1: `python benchmarks/seeds.py arithmetic -o DIR`.

A killed call goes on where it was: each seed is a run that `score train` resumes, and finished evaluations are kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

COLUMNS = ("acc/t1", "acc/t2", "delta/t1_t2", "delta/i_c", "delta/c_i", "unchanged/t2")


def score(*arguments: str) -> dict[str, Any]:
    """The JSON line that a `score` command ends with."""
    command = [sys.executable, "-m", "score_rl", *arguments, "--json"]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1])


def one_seed(recipe: str, seed: int, overrides: list[str], root: Path) -> dict[str, dict[str, Any]]:
    """Evaluations by stage name, with `T=1` behind those at temperature 1, and the seconds of training."""
    done = root / f"seed-{seed}.json"
    if done.is_file():
        return json.loads(done.read_text())
    run = root / f"{recipe}-{seed}"
    trained = score("train", recipe, *overrides, "--seed", str(seed), "-o", str(run))
    stages = [name for name in trained if name not in ("run", "seconds", "report")]
    found = {"seconds": trained["seconds"]} | {name: trained[name] for name in stages}
    for name in stages:
        found[f"{name} T=1"] = score("eval", str(run), "--stage", name, "--temperature", "1")
    found["10 attempts"] = score("eval", str(run), "--attempts", "10")
    done.write_text(json.dumps(found))
    return found


def cell(metrics: dict[str, Any], key: str) -> str:
    """Percent with its interval."""
    value, low, high = (100 * metrics[k] for k in (key, f"{key}.low", f"{key}.high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def tables(results: dict[int, dict[str, Any]]) -> str:
    """Markdown: means over seeds, then every seed with its intervals."""
    names = [name for name in results[min(results)] if name not in ("seconds", "10 attempts")]
    head = "| " + " | ".join(["", *COLUMNS]) + " |\n" + "| --- " * (1 + len(COLUMNS)) + "|\n"
    text = f"Mean over seeds {', '.join(map(str, results))}, percent (lowest to highest seed):\n\n" + head
    for name in names:
        cells = []
        for key in COLUMNS:
            values = [100 * found[name][key] for found in results.values()]
            cells.append(f"{fmean(values):.2f} ({min(values):.1f} to {max(values):.1f})")
        text += "| " + " | ".join([name, *cells]) + " |\n"
    text += "\nEach seed, percent [95% interval over problems]:\n\n" + head.replace("|  |", "| seed, model |", 1)
    for seed, found in results.items():
        for name in names:
            text += "| " + " | ".join([f"{seed}, {name}", *(cell(found[name], key) for key in COLUMNS)]) + " |\n"
    text += "\nTen greedy attempts after the last stage, acc@t1 to acc@t10, percent:\n\n"
    for seed, found in results.items():
        accuracies = [f"{100 * found['10 attempts'][f'acc/t{k}']:.1f}" for k in range(1, 11)]
        text += f"- seed {seed}: {', '.join(accuracies)}\n"
    seconds = [found["seconds"] for found in results.values()]
    return text + f"\nSeconds for `score train`, by seed: {', '.join(f'{s:.0f}' for s in seconds)}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in arguments.seeds:
        results[seed] = one_seed(arguments.recipe, seed, arguments.overrides, arguments.output)
        (arguments.output / "tables.md").write_text(tables(results))
    print(tables(results))


if __name__ == "__main__":
    main()
