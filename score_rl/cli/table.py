"""`score table`: what a sweep has found, on the screen and as files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from score_rl.cli.compare import right_table
from score_rl.cli.subject import Json

if TYPE_CHECKING:
    from score_rl.figures import Figure
    from score_rl.table import Cost, Table


def table(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The directory of a sweep, finished or not.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where files go; the sweep's own by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a sweep's tables, and write them as tables.md, tables.csv and tables.tex, with the figures as SVG.

    Every value has a 95% interval over seeds and problems; every row is tested against the reference on the same
    problems. The files are the same whatever order the runs were made in; what they cost is in cost.md.

      score table sweeps/paper
      score table sweeps/paper -o docs/paper-table
    """
    from score_rl.figures import figures
    from score_rl.run import check_writable
    from score_rl.table import cost, tables
    from score_rl.table_source import read_sweep

    directory = output or sweep
    found = read_sweep(sweep)
    check_writable(directory)
    made, drawn, paid = tables(found), figures(found), cost(found)
    _write(directory, found.name, made, drawn, paid)
    if as_json:
        from score_rl.table_text import records

        print(json.dumps({"rows": [row for one in made for row in records(one)], "cost": paid._asdict()}))
        return
    _print(made, paid, [figure.left_out for figure in drawn if not figure.charts])
    typer.echo(f"tables.md, tables.csv, tables.tex, cost.md and figures/ are in {directory}")


def _write(directory: Path, name: str, made: list[Table], drawn: list[Figure], paid: Cost) -> None:
    from score_rl.figures import as_file
    from score_rl.records import write_text
    from score_rl.table_text import as_csv, latex, markdown

    shown = [(figure.title, f"figures/{figure.name}.svg") for figure in drawn if figure.charts]
    left_out = [figure.left_out for figure in drawn if not figure.charts]
    for figure in drawn:
        file = directory / "figures" / f"{figure.name}.svg"
        if figure.charts:
            write_text(file, as_file(figure))
        else:
            file.unlink(missing_ok=True)
    write_text(directory / "tables.md", markdown(name, made, shown, left_out))
    write_text(directory / "tables.csv", as_csv(made))
    write_text(directory / "tables.tex", latex(made))
    write_text(directory / "cost.md", f"{paid.words}\n")


def _print(made: list[Table], paid: Cost, left_out: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    from score_rl.table_text import grids, one_line

    # A pipe has no width; the table must not be folded there.
    console = Console(width=None if sys.stdout.isatty() else 200)
    for one in made:
        for grid in grids(one):
            shown = right_table(*grid.heads)
            for title, cells in grid.rows:
                shown.add_row(Text(one_line(title)), *(Text(cell.text) for cell in cells))
            console.print(Text(one_line(grid.title), style="bold"))
            console.print(shown)
            console.print()
        for note in one.notes:
            console.print(Text(one_line(note)))
    for line in [*left_out, f"{paid.words}."]:
        console.print(Text(line))
