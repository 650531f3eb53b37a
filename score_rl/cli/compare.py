"""`score compare` and `score power`: whether one model is better than another, and how many problems that takes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.cli.subject import Json
from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from score_rl.compare import Comparison

_SIDE = "A run (its last stage), RUN:NAME (RUN/eval/NAME), or a .json of `score eval`; several seeds with commas."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="What is compared with A, as many seeds.")],
    common: Annotated[bool, typer.Option("--common", help="Compare on the problems that all have in common.")] = False,
    delta: Annotated[
        float | None, typer.Option(min=0, max=100, help="Say how many problems a difference of so many points needs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test whether B is better than A on the same problems: first attempt, last attempt, and the delta between them.

    B - A with paired 95% intervals, p-values corrected for the three tests (Holm), and where they can't be told apart
    the number of problems that would do.

      score compare runs/mine:base runs/mine
      score compare runs/single-turn runs/mine --delta 2
      score compare runs/a0,runs/a1,runs/a2 runs/b0,runs/b1,runs/b2
    """
    from score_rl.compare import caution, in_words, read_outcomes, shared_problems
    from score_rl.compare import compare as test

    if delta == 0:
        raise ConfigError("--delta 0: no number of problems shows a difference of nothing; give points above 0")
    wanted = None if delta is None else delta / 100
    sides = [[read_outcomes(source) for source in side.split(",")] for side in (a, b)]
    everything = [*sides[0], *sides[1]]
    keys = shared_problems(everything, common=common)
    rows = test(sides[0], sides[1], keys, wanted)
    asked = len(set().union(*(side.samples for side in everything)))
    files = [[str(outcomes.file) for outcomes in side] for side in sides]
    words = [in_words(row, len(keys), delta=wanted) for row in rows]
    if as_json:
        found = {"a": files[0], "b": files[1], "problems": len(keys), "left_out": asked - len(keys)}
        comparisons = [_json(row, sentence) for row, sentence in zip(rows, words, strict=True)]
        print(json.dumps(found | {"comparisons": comparisons, "caution": caution(rows)}))
        return
    left_out = f", {asked - len(keys)} left out (not in all, or not graded)" if asked > len(keys) else ""
    console = _console()
    _print_rows(console, f"A: {', '.join(files[0])}\nB: {', '.join(files[1])}\n{len(keys)} problems{left_out}", rows)
    for line in [*words, *filter(None, [caution(rows)])]:
        console.print(line, markup=False, highlight=False)


def _json(row: Comparison, sentence: str) -> dict[str, object]:
    difference = {"difference": row.difference.value, "low": row.difference.low, "high": row.difference.high}
    fields = {k: v for k, v in row._asdict().items() if k != "difference"}
    return {**fields, **difference, "better": row.better, "sentence": sentence}


def _print_rows(console: Console, title: str, rows: list[Comparison]) -> None:
    from rich.text import Text

    from score_rl.compare import p_text

    console.print(Text(title))
    table = right_table("percent", "A", "B", "B - A", "95%", "p", "p (Holm)")
    for row in rows:
        value, low, high = (100 * x for x in row.difference)
        numbers = f"{100 * row.a:.1f}", f"{100 * row.b:.1f}", f"{value:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
        table.add_row(*map(Text, (row.key, *numbers, p_text(row.p), p_text(row.p_holm))))
    console.print(table)


def right_table(*heads: str) -> Table:
    """An empty table whose columns but the first stand to the right."""
    from rich.table import Column, Table

    return Table(heads[0], *(Column(head, justify="right") for head in heads[1:]), box=None)


def power(
    delta: Annotated[float, typer.Option(min=0, max=100, help="True difference of two accuracies, in points.")],
    discordant: Annotated[
        float, typer.Option(min=0, max=100, help="Percent of problems that one side has right and the other wrong.")
    ],
    target: Annotated[float, typer.Option("--power", help="Percent of evaluations that should show it.")] = 80,
    problems: Annotated[list[int] | None, typer.Option(min=1, help="The power on so many; can be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Say how many problems the exact McNemar test needs to show a difference, and its power on what you have.

    Two attempts, or two models on the same problems. `score eval` shows what is discordant: i_c and c_i together.

      score power --delta 2 --discordant 6
      score power --delta 4.4 --discordant 7.2 --problems 250 --power 90
    """
    if not 0 < delta <= discordant:
        raise ConfigError(
            f"--delta {delta:g} --discordant {discordant:g}: delta must be above 0 and at most discordant, of which it "
            "is a part"
        )
    if not 5 < target < 100:
        raise ConfigError(f"--power {target:g}: give percent between 5 and 100, e.g. 80")
    from score_rl.power import mcnemar_power, mcnemar_problems
    from score_rl.stats import wald_difference

    change, share = delta / 100, discordant / 100
    needed = mcnemar_problems(change, share, target / 100)
    sizes = sorted({164, 500, 1319, 5000, needed, *(problems or [])})
    powers = {number: mcnemar_power(number, change, share) for number in sizes}
    if as_json:
        print(json.dumps({"problems_needed": needed, "power": powers}))
        return
    from rich.text import Text

    console = _console()
    console.print(
        f"{needed:,} problems give a power of {target:g}% for a difference of {delta:g} points where {discordant:g}% "
        "of the problems differ (exact McNemar test, two-sided, 0.05).",
        highlight=False,
    )
    table = right_table("problems", "power", "95% interval to expect")
    for number, chance in powers.items():
        expected = wald_difference(number * (share + change) / 2, number * (share - change) / 2, number)
        ends = f"[{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]"
        table.add_row(*map(Text, (f"{number:,}", f"{100 * chance:.0f}%", ends)))
    console.print(table)


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)
