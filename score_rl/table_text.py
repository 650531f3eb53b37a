"""Tables of a sweep as text: what stands in each cell, and Markdown, CSV, LaTeX and JSON made of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from score_rl.compare import p_text
from score_rl.report.text import percent, visible
from score_rl.stats import Interval
from score_rl.table import BUDGET, COMPARED, FIXED, RATES, Difference, Line, Table

SHOWN = {
    "acc/t1": "acc@t1",
    "acc/t2": "acc@t2",
    "delta/t1_t2": "Δ(t1,t2)",
    "delta/i_c": "i→c",
    "delta/c_i": "c→i",
    "unchanged/t2": "unchanged",
}
SPENT = dict(zip(BUDGET, ("best of 2 (oracle)", "majority of 2", "acc@t2, sampled"), strict=True))
CORRECTIONS = {
    "fix rate, own t1": ("own", "rate/fix"),
    "fix rate, base's t1": ("fixed", "rate/fix"),
    "break rate, own t1": ("own", "rate/break"),
    "break rate, base's t1": ("fixed", "rate/break"),
    "acc@t2, base's t1": ("fixed", "acc/t2"),
}

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~$&])")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "−": "$-$", "Δ": r"$\Delta$", "→": r"$\to$",
    "`": r"\textasciigrave{}",
}  # fmt: skip


class Cell(NamedTuple):
    """A value and, where there is one, its interval."""

    value: str
    interval: str = ""

    @property
    def text(self) -> str:
        """Both in one."""
        return f"{self.value} [{self.interval}]" if self.interval else self.value


class Grid(NamedTuple):
    """Cells to be shown: a title, heads of all columns, and rows that begin with the name of one."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[Cell]]]


def grids(table: Table) -> list[Grid]:
    """What is shown of a table: its values, and where there are any its differences, equal budgets and corrections."""
    found = [Grid(table.title, ["", "seeds", *SHOWN.values()], [_values(line) for line in table.lines])]
    compared = [line for line in table.lines if line.row is not table.reference]
    if table.reference is not None and table.tests:
        paper = any(d.paper is not None for line in compared for d in line.differences.values())
        heads = ["", "pairs"]
        for key in COMPARED:
            heads += [SHOWN[key], "p (Holm)", "so", *(["as the paper"] if paper else [])]
        rows = [_differences(line, paper) for line in compared]
        found.append(Grid(f"{table.title}: difference from {table.reference.title}", heads, rows))
    spent = [line for line in table.lines if line.budget]
    if spent:
        rows = [(line.row.title, [_cell(line.budget.get(key)) for key in BUDGET]) for line in spent]
        found.append(Grid(f"{table.title}: two sampled attempts a problem", ["", *SPENT.values()], rows))
    corrected = [line for line in table.lines if line.fixed]
    if corrected:
        rows = [
            (line.row.title, [_cell(getattr(line, side).get(key)) for side, key in CORRECTIONS.values()])
            for line in corrected
        ]
        title = f"{table.title}: corrections of own and of the base model's first attempts"
        found.append(Grid(title, ["", *CORRECTIONS], rows))
    return found


def _values(line: Line) -> tuple[str, list[Cell]]:
    cells = [_cell(line.values.get(key), sign=key == "delta/t1_t2") for key in SHOWN]
    return line.row.title, [Cell(line.status), *cells]


def _cell(interval: Interval | None, *, sign: bool = False) -> Cell:
    if interval is None:
        return Cell("")
    value, low, high = (percent(x, sign=sign) for x in interval)
    return Cell(value, f"{low}, {high}")


def _differences(line: Line, paper: bool) -> tuple[str, list[Cell]]:
    cells = [Cell(str(line.pairs) if line.pairs else "none")]
    for key in COMPARED:
        found = line.differences.get(key)
        cells += [Cell("")] * (4 if paper else 3) if found is None else _difference(found, paper)
    return line.row.title, cells


def _difference(found: Difference, paper: bool) -> list[Cell]:
    said = Cell("") if found.paper is None else Cell(str(found.direction), percent(found.paper, sign=True))
    shown = [_cell(found.interval, sign=True), Cell(p_text(found.p_holm)), Cell(found.verdict)]
    return [*shown, said] if paper else shown


def one_line(text: str) -> str:
    """Text from outside without line breaks, and with what cannot be seen spelled out."""
    return " ".join(visible(text).split())


def escape_markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, also in a cell.

    >>> escape_markdown("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints as it is.

    >>> escape_latex("50% of $x_1$")
    '50\\% of \\$x\\_1\\$'
    """
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def markdown(name: str, tables: Sequence[Table], figures: Sequence[tuple[str, str]], left_out: Sequence[str]) -> str:
    """All tables as a Markdown page, with the figures behind them.

    Args:
        figures: title and path of each.
        left_out: a sentence for each that could not be drawn.
    """
    parts = [f"# {escape_markdown(name)}"]
    for table in tables:
        for place, grid in enumerate(grids(table)):
            parts.append(f"{'##' if place == 0 else '###'} {escape_markdown(grid.title)}")
            parts.append(_markdown_grid(grid))
        parts += [escape_markdown(note) for note in table.notes]
    if figures or left_out:
        parts.append("## Figures")
    parts += [f"![{escape_markdown(title)}]({path})" for title, path in figures]
    return "\n\n".join([*parts, *left_out]) + "\n"


def _markdown_grid(grid: Grid) -> str:
    rows = [[escape_markdown(title), *(cell.text for cell in cells)] for title, cells in grid.rows]
    ruler = ["---", *("---:" for _ in grid.heads[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [grid.heads, ruler, *rows])


def latex(tables: Sequence[Table]) -> str:
    """All tables as LaTeX with booktabs."""
    parts = [r"% needs \usepackage{booktabs}"]
    for table in tables:
        for place, grid in enumerate(grids(table)):
            label = f"tab:{table.name}" + ("" if place == 0 else f"-{place + 1}")
            note = " ".join(table.notes) if place == 0 else ""
            parts.append(_latex_grid(grid, label, note))
    return "\n\n".join(parts) + "\n"


def _latex_grid(grid: Grid, label: str, note: str) -> str:
    def written(cell: Cell) -> str:
        ends = rf" {{\scriptsize {escape_latex(f'[{cell.interval}]')}}}" if cell.interval else ""
        return escape_latex(cell.value) + ends

    rows = [[escape_latex(title), *map(written, cells)] for title, cells in grid.rows]
    caption = f"{escape_latex(grid.title)}. {escape_latex(note)}".strip()
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.heads) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(map(escape_latex, grid.heads))} \\",
            r"\midrule",
            *(rf"{' & '.join(row)} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def records(table: Table) -> list[dict[str, Any]]:
    """A flat record for each row of a table: fractions, not rounded; what is not there is None."""
    found = []
    for line in table.lines:
        row: dict[str, Any] = {"table": table.name, "row": line.row.name, "title": line.row.title}
        row |= {"status": line.status, "seeds": len(line.row.results), "planned": len(line.row.seeds)}
        for key in SHOWN:
            row |= _flat(key, line.values.get(key))
        row["pairs"] = line.pairs
        for key in COMPARED:
            d = line.differences.get(key)
            row |= _flat(f"difference/{key}", d and d.interval)
            said = (None,) * 5 if d is None else (d.p, d.p_holm, d.verdict, d.paper, d.direction)
            names = ("p", "p_holm", "verdict", "paper", "direction")
            row |= {f"difference/{key}.{name}": value for name, value in zip(names, said, strict=True)}
        for key in BUDGET:
            row |= _flat(f"sampled/{key}", line.budget.get(key))
        for key in FIXED:
            row |= _flat(f"fixed/{key}", line.fixed.get(key))
        for key in RATES:
            row |= _flat(f"own/{key}", line.own.get(key))
        found.append(row)
    return found


def _flat(key: str, interval: Interval | None) -> dict[str, float | None]:
    value, low, high = interval or (None, None, None)
    return {key: value, f"{key}.low": low, f"{key}.high": high}


def as_csv(tables: Sequence[Table]) -> str:
    """All tables as one CSV table, in fractions.

    Titles that a spreadsheet would run as a formula get an apostrophe in front.
    """
    rows = [row for table in tables for row in records(table)]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        title = one_line(row["title"])
        writer.writerow(row | {"title": f"'{title}" if title[:1] in tuple("=+-@") else title})
    return file.getvalue()
