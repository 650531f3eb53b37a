"""Sweep directories made by hand: what `score sweep` leaves, with outcomes that a test chooses."""

import json
from pathlib import Path
from typing import Any

import yaml

from score_rl.metrics import put
from score_rl.stats import wilson
from score_rl.table import Table, tables
from score_rl.table_source import read_sweep

Outcome = tuple[str, str]


def bits(kept: int, won: int, lost: int, missed: int) -> Outcome:
    """Attempts 1 and 2, a character a problem: right and right, wrong and right, right and wrong, wrong and wrong."""
    return "1" * kept + "0" * won + "1" * lost + "0" * missed, "1" * kept + "1" * won + "0" * lost + "0" * missed


def write_result(sweep: Path, row: str, seed: int, outcome: Outcome, **more: Any) -> Path:
    """One result; `more` replaces parts of it, and `evaluations` are added."""
    t1, t2 = outcome
    final: dict[str, Any] = {"problems": len(t1), "samples": 1, "identical/t2": 0.25}
    same = sum(a == b for a, b in zip(t1, t2, strict=True))
    put(final, "unchanged/t2", wilson(same, len(t1)))
    fixed = sum(a == "0" and b == "1" for a, b in zip(t1, t2, strict=True))
    if "0" in t1:
        put(final, "rate/fix", wilson(fixed, t1.count("0")))
    result = {
        "row": row,
        "seed": seed,
        "seconds": 90.0,
        "steps": 10,
        "attempts_sampled": 1000,
        "environment": {"processors": 2, "platform": "Linux"},
        "final": "stage2",
        "outcomes": {"problems": "d1", "t1": t1, "t2": t2},
        "edits": [4, *[0] * 18, 4],
        "curves": {},
    } | {key: value for key, value in more.items() if key != "evaluations"}
    result["evaluations"] = {"base": {}, "stage2": final} | more.get("evaluations", {})
    file = sweep / "results" / row / f"seed-{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    return file


def write_sweep(path: Path, rows: dict[str, dict[str, Any]], **more: Any) -> Path:
    """A sweep without results; the first row is the reference."""
    path.mkdir(parents=True, exist_ok=True)
    content = {"name": "made", "reference": next(iter(rows)), "seeds": [0], "rows": rows} | more
    (path / "sweep.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def table_of(path: Path) -> Table:
    """The one table of a sweep."""
    [found] = tables(read_sweep(path))
    return found
