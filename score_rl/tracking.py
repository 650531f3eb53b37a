"""What a person sees while a run trains: a progress bar in a terminal, plain lines elsewhere, then the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 10.0
"""Without a terminal, at most one line of progress in this time."""


class Screen:
    """Progress and messages on standard error, so that standard output carries results alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A bar for `total` units; yields a function that advances it and sets the numbers beside it."""
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description:<16}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with Progress(*columns, console=self.console) as bar:
                task = bar.add_task(name, total=total, completed=done, note="")
                yield lambda units, note: bar.update(task, advance=units, note=note)
            return
        state = {"done": done, "said": 0.0}
        begun = time.monotonic()

        def advance(units: int, note: str) -> None:
            state["done"] += units
            now = time.monotonic()
            if now - state["said"] >= LINE_SECONDS or state["done"] == total:
                state["said"] = now
                left = (now - begun) / max(1, state["done"] - done) * (total - state["done"])
                self.say(f"{name} {state['done']}/{total}, {left:.0f} s left {note}".rstrip())

        yield advance


def step_note(metrics: Mapping[str, float]) -> str:
    """The numbers that matter of one training step."""
    shown = [("acc/t1", "t1"), ("acc/t2", "t2"), ("delta/i_c", "i->c"), ("delta/c_i", "c->i"), ("unchanged/t2", "same")]
    parts = [f"{name} {metrics[key]:.2f}" for key, name in shown if key in metrics]
    if "kl/t1" in metrics:
        parts.append(f"KL1 {metrics['kl/t1']:.3f}")
    return " ".join(parts)


def result_table(title: str, results: Mapping[str, Mapping[str, float | int | str]]) -> Table:
    """Accuracies and changes with their 95% intervals, in percent, a row for each evaluation."""
    first = next(iter(results.values()))
    attempts = count_attempts(first)
    last = f"t{attempts}"
    shown = {f"acc/t{k}": f"acc@t{k}" for k in range(1, attempts + 1)}
    if attempts > 1:
        shown |= {f"delta/t1_{last}": f"delta(t1,{last})", "delta/i_c": "i->c", "delta/c_i": "c->i"}
        shown |= {f"unchanged/{last}": f"unchanged@{last}"}
    several = len(results) > 1
    told = [line for label, found in results.items() for line in _rates(f"{label}: " if several else "", found)]
    told += [] if several else _votes(first)
    table = Table(title=title, caption=Text("\n".join([_caption(first), *told])))
    table.add_column("")
    for name in shown.values():
        table.add_column(name, justify="right")
    tested = f"mcnemar_p/t1_{last}" in first
    if tested:
        table.add_column("McNemar p", justify="right")
    for label, metrics in results.items():
        cells = [_cell(metrics, key) for key in shown]
        table.add_row(label, *cells, *([f"{metrics[f'mcnemar_p/t1_{last}']:.2g}"] if tested else []))
    return table


def attempts_table(title: str, metrics: Mapping[str, float | int | str]) -> Table:
    """One evaluation with many attempts, in percent, a row for each attempt."""
    changes = f"attempt 1 to 2: i->c {_cell(metrics, 'delta/i_c')}, c->i {_cell(metrics, 'delta/c_i')}"
    table = Table(
        title=title, caption=Text("\n".join([_caption(metrics), changes, *_rates("", metrics), *_votes(metrics)]))
    )
    tested = "mcnemar_p/t1_t2" in metrics  # which an evaluation with several samples has not
    for name in ("attempt", "accuracy", "delta from t1", "unchanged", *(["McNemar p"] if tested else [])):
        table.add_column(name, justify="right")
    table.add_row("t1", _cell(metrics, "acc/t1"))
    for k in range(2, count_attempts(metrics) + 1):
        cells = [_cell(metrics, key) for key in (f"acc/t{k}", f"delta/t1_t{k}", f"unchanged/t{k}")]
        table.add_row(f"t{k}", *cells, *([f"{metrics[f'mcnemar_p/t1_t{k}']:.2g}"] if tested else []))
    return table


def groups_table(metrics: Mapping[str, float | int | str]) -> Table | None:
    """Accuracies by level, subject and so on, in percent; None where the data has no such column."""
    groups = [key.removeprefix("by/").removesuffix("/problems") for key in metrics if key.startswith("by/")]
    groups = [group for group in groups if f"by/{group}/problems" in metrics]
    if not groups:
        return None
    keys = [key for key in ("acc/t1", "acc/t2", "delta/t1_t2") if f"by/{groups[0]}/{key}" in metrics]
    table = Table()
    for name in ("", "problems", *(key.replace("acc/", "acc@").replace("/t1_t2", "(t1,t2)") for key in keys)):
        table.add_column(name, justify="right" if name else "left")
    for group in groups:
        cells = [_cell(metrics, f"by/{group}/{key}") for key in keys]
        table.add_row(Text(group), str(metrics[f"by/{group}/problems"]), *cells)
    return table


def _rates(start: str, metrics: Mapping[str, float | int | str]) -> list[str]:
    """How many attempts are fixed and broken, in a line; none where neither can be."""
    told = {"rate/fix": "of wrong first attempts {} fixed", "rate/break": "of right ones {} broken"}
    found = [text.format(_cell(metrics, key)) for key, text in told.items() if key in metrics]
    return [start + ", ".join(found)] if found else []


def _votes(metrics: Mapping[str, float | int | str]) -> list[str]:
    """What votes give with all samples, a line for each attempt, and how attempts are spent best."""
    lines = []
    samples = max((int(key.rpartition("@")[2]) for key in metrics if _is_value(key, "maj/t1@")), default=1)
    for k in range(1, count_attempts(metrics) + 1) if samples > 1 else ():
        votes = [f"{way}@{samples} {_cell(metrics, f'{way}/t{k}@{samples}')}" for way in ("pass", "maj")]
        lines.append(f"t{k} {', '.join(votes)}")
    both = [int(key.rpartition("@")[2]) for key in metrics if _is_value(key, "scaling/sequential@")]
    n = max((n for n in both if f"scaling/parallel@{n}" in metrics), default=None)
    if n is not None:
        ways = [f"{way} {_cell(metrics, f'scaling/{way}@{n}')}" for way in ("parallel", "sequential", "mixed")]
        lines.append(f"majority of {n} attempts: {', '.join(ways)}")
    return lines


def _is_value(key: str, start: str) -> bool:
    return key.startswith(start) and "." not in key


def count_attempts(metrics: Mapping[str, float | int | str]) -> int:
    """Attempts that an evaluation has."""
    return sum(key.startswith("acc/t") and "." not in key for key in metrics)


def _caption(metrics: Mapping[str, float | int | str]) -> str:
    samples = int(metrics.get("samples", 1))
    drawn = f", {samples} samples each" if samples > 1 else ""
    fixed = f", first attempts of {metrics['first_attempts']}" if "first_attempts" in metrics else ""
    return f"{metrics['problems']} problems ({metrics['split']} split){drawn}{fixed}, percent [95% interval]"


def _cell(metrics: Mapping[str, float | int | str], key: str) -> str:
    value, low, high = (100 * float(metrics[k]) for k in (key, f"{key}.low", f"{key}.high"))
    sign = "+" if "delta/t1" in key else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
