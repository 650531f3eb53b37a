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
    attempts = sorted(
        (key for key in first if key.startswith("acc/t") and "." not in key), key=lambda key: int(key[5:])
    )
    keys = [*attempts, f"delta/t1_t{len(attempts)}", "delta/i_c", "delta/c_i", f"unchanged/t{len(attempts)}"]
    names = [
        *(f"acc@{key[4:]}" for key in attempts),
        f"delta(t1,t{len(attempts)})",
        "i->c",
        "c->i",
        f"unchanged@t{len(attempts)}",
    ]
    table = Table(title=title, caption=f"{first['problems']} problems ({first['split']} split), percent [95% interval]")
    table.add_column("")
    shown = [(key, name) for key, name in zip(keys, names, strict=True) if key in first]
    for _, name in shown:
        table.add_column(name, justify="right")
    if len(attempts) > 1:
        table.add_column("McNemar p", justify="right")
    for label, metrics in results.items():
        cells = [_cell(metrics, key) for key, _ in shown]
        if len(attempts) > 1:
            cells.append(f"{metrics[f'mcnemar_p/t1_t{len(attempts)}']:.2g}")
        table.add_row(label, *cells)
    return table


def _cell(metrics: Mapping[str, float | int | str], key: str) -> str:
    value, low, high = (100 * float(metrics[k]) for k in (key, f"{key}.low", f"{key}.high"))
    sign = "+" if key.startswith("delta/t1") else ""
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"
