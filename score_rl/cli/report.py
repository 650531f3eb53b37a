"""`score report`: one page that says whether a run self-corrects, and shows the attempts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from score_rl.errors import ConfigError


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Run directories, shown and compared; or one sweep.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The HTML file to write; report.html by default.")
    ] = None,
    megabytes: Annotated[
        float, typer.Option(min=0.2, help="How large the page may grow; transcripts that do not fit are left out.")
    ] = 3.0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write nothing: serve the page to this machine while runs train.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="With --watch: where; 8642 by default, 0 for any that is free.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: verdict, metrics with intervals, charts and transcripts.

    score report runs/arithmetic
    score report runs/arithmetic runs/other -o both.html
    score report runs/arithmetic --watch
    score report sweeps/paper -o paper.html
    """
    from score_rl.report import build, render
    from score_rl.run import check_writable

    if watch:
        if output is not None:
            raise ConfigError(f"-o {output}: --watch serves the page and writes none; leave one of the two out")
        from score_rl.watch import PORT, LivePage, LiveServer, serve

        page = LivePage(lambda: render(runs, megabytes=megabytes), runs)
        serve(LiveServer(page, PORT if port is None else port))
        return
    if port is not None:
        raise ConfigError(f"--port {port}: only for --watch; add it or leave the port out")
    output = output or Path("report.html")
    if output.is_dir():
        raise ConfigError(f"-o {output}: is a directory; name the HTML file to write")
    check_writable(output.parent)
    path = build(runs, output, megabytes=megabytes)
    typer.echo(f"report in {path} ({path.stat().st_size / 1e6:.1f} MB)")
