"""What a person sees while a run trains: a progress bar in a terminal, plain lines elsewhere, then the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    table = Table(title=title, caption=_caption(first))
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
    table = Table(title=title, caption=f"{_caption(metrics)}; {changes}")
    for name in ("attempt", "accuracy", "delta from t1", "unchanged", "McNemar p"):
        table.add_column(name, justify="right")
    table.add_row("t1", _cell(metrics, "acc/t1"))
    for k in range(2, count_attempts(metrics) + 1):
        cells = [_cell(metrics, key) for key in (f"acc/t{k}", f"delta/t1_t{k}", f"unchanged/t{k}")]
        p = metrics.get(f"mcnemar_p/t1_t{k}")  # which an evaluation with several samples has not
        table.add_row(f"t{k}", *cells, "" if p is None else f"{p:.2g}")
    return table


def count_attempts(metrics: Mapping[str, float | int | str]) -> int:
    """Attempts that an evaluation has."""
    return sum(key.startswith("acc/t") and "." not in key for key in metrics)


def _caption(metrics: Mapping[str, float | int | str]) -> str:
    return f"{metrics['problems']} problems ({metrics['split']} split), percent [95% interval]"


def _cell(metrics: Mapping[str, float | int | str], key: str) -> str:
    value, low, high = (100 * float(metrics[k]) for k in (key, f"{key}.low", f"{key}.high"))
    sign = "+" if key.startswith("delta/t1") else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
