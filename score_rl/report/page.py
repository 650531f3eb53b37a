"""Puts the parts of a report together into one page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from score_rl.report.source import Run


def compose(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{metrics.get('acc/t1', '')}</td><td>{metrics.get('acc/t2', '')}</td></tr>"
        for run in runs
        for name, metrics in run.evaluations.items()
    )
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Report</title><table>{rows}</table></html>\n'
