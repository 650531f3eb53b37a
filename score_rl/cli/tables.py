"""Results on the screen."""

from __future__ import annotations

import sys
from typing import Any


def print_table(title: str, results: dict[str, dict[str, Any]]) -> None:
    """A row for each evaluation, or one for each attempt of a single long one."""
    from rich.console import Console

    from score_rl.tracking import attempts_table, count_attempts, groups_table, result_table

    # A pipe has no width; the table must not be folded there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    first = next(iter(results.values()))
    wide = len(results) == 1 and count_attempts(first) > 3
    console.print(attempts_table(title, first) if wide else result_table(title, results))
    groups = groups_table(first) if len(results) == 1 else None
    if groups is not None:
        console.print(groups)
