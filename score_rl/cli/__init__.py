"""The command line: `score train`, `score eval`, `score solve`, `score grade`, ..."""

from __future__ import annotations

import sys

import typer

from score_rl.cli.compare import compare, power
from score_rl.cli.convert import export, import_config
from score_rl.cli.data import app as data
from score_rl.cli.data_tools import hard, profile
from score_rl.cli.evaluate import evaluate
from score_rl.cli.grade import grade
from score_rl.cli.report import report
from score_rl.cli.solve import solve
from score_rl.cli.sweep import sweep
from score_rl.cli.table import table
from score_rl.cli.train import train
from score_rl.errors import ScoreError
from score_rl.launcher import speaks

app = typer.Typer(
    help="Train a language model to correct its own mistakes (SCoRe), and see honestly whether it does.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command("eval")(evaluate)
app.command()(solve)
app.command()(grade)
app.command()(report)
app.command()(compare)
app.command()(power)
app.command()(sweep)
app.command()(table)
app.add_typer(data, name="data")
data.command()(hard)
data.command()(profile)
app.command("import-config")(import_config)
app.command()(export)


def main() -> None:
    """Runs the command line; an error that the user can mend is one line and exit code 2."""
    try:
        app()
    except ScoreError as error:
        if speaks(error):
            print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        if error.told:
            from score_rl.processes import leave

            leave()
        sys.exit(2)


if __name__ == "__main__":
    main()
