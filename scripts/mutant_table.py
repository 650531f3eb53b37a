"""What a row of the tables of faults is; the tables are `mutants_*.py`."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault: in `file` of the package, `old` (found exactly once) becomes `new`."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def faults(file: str, tests: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    """Rows of name, old and new text in one file; `tests` are the test files, without ending, that should notice."""
    paths = tuple(f"tests/{name}.py" for name in tests.split())
    return [Mutant(name, file, old, new, paths) for name, old, new in rows]
