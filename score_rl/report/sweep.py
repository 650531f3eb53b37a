"""The page of a sweep: its tables and figures in one file."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

import score_rl
from score_rl.figures import figures
from score_rl.report.page import digest_of, style, template_of
from score_rl.table import cost, tables
from score_rl.table_source import read_sweep
from score_rl.table_text import grids


def render_sweep(path: Path) -> str:
    """The sweep in a directory as the text of one HTML page.

    Raises:
        ConfigError: no sweep, or rows of one table that were evaluated on different problems.
        DataError: a file of it cannot be read.
    """
    sweep = read_sweep(path)
    drawn, css = figures(sweep), style()
    policy = f"default-src 'none'; style-src {digest_of(css)}; img-src data:; base-uri 'none'; form-action 'none'"
    return str(
        template_of("sweep.html").render(
            title=sweep.name,
            policy=policy,
            css=Markup(css),
            cost=cost(sweep).words,
            tables=[{"grids": grids(table), "notes": table.notes} for table in tables(sweep)],
            figures=[figure for figure in drawn if figure.charts],
            left_out=[figure.left_out for figure in drawn if not figure.charts],
            settings=(path / "sweep.yaml").read_text(encoding="utf-8"),
            version=score_rl.__version__,
        )
    )
