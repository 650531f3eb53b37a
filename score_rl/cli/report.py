"""`score report`: one page that says whether a run self-corrects, and shows the attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run directories, shown and compared.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    megabytes: Annotated[
        float, typer.Option(min=0.2, help="How large the page may grow; transcripts that do not fit are left out.")
    ] = 3.0,
) -> None:
    """Write one self-contained HTML page: verdict, metrics with intervals, charts and transcripts.

    score report runs/arithmetic
    score report runs/arithmetic runs/other -o both.html
    """
    from score_rl.report import build
    from score_rl.run import check_writable

    check_writable(output.parent)
    path = build(runs, output, megabytes=megabytes)
    typer.echo(f"report in {path} ({path.stat().st_size / 1e6:.1f} MB)")
