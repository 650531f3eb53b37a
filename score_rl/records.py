"""JSON Lines, and files that are either complete or not there."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from score_rl.errors import CheckpointError, DataError

_SURROGATE = re.compile("[\ud800-\udfff]")


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers, from 1, and rows of a JSON Lines file; empty lines are passed over.

    Raises:
        DataError: the file is missing, or a line is no JSON object; the message names file and line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
                    yield number, row
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON ({error.msg}); write one object a line") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def to_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(f"{_line(row)}\n" for row in rows)


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # A server may send half of a surrogate pair, which has no UTF-8; escaped it is read back as it was.
    return json.dumps(row) if _SURROGATE.search(text) else text


def sync_directory(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes the content of `path` survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Writes `path` in one step: a reader, or a restart, finds the old content or the new, never half.

    Raises:
        CheckpointError: the disk is full or the directory cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        sync_file(partial)
        os.replace(partial, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes the directory `path` in one step, with what `fill` writes into it; an older one is replaced.

    Raises:
        CheckpointError: the disk is full or the directory cannot be written; an older `path` is still there.
    """
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        partial.mkdir()
        fill(partial)
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                sync_file(file)
        sync_directory(partial)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        sync_directory(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # torch and safetensors report a full disk each with a class of their own
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise CheckpointError(f"{path}: cannot be written ({error})") from error
