"""The files of an evaluation: metrics, episodes, and the episodes of one that is not finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from score_rl.episodes import Episode, Problem
from score_rl.errors import CheckpointError, ConfigError, DataError
from score_rl.records import read_jsonl, sync_directory, to_lines, write_text
from score_rl.schema import Settings
from score_rl.settings import differences

SAMPLED_PLACES, PLACE_BYTES = 16, 2**16
"""Where the content of a large file is looked at, evenly spread, and how much of it each time."""


def to_row(episode: Episode) -> dict[str, Any]:
    """A line of an evaluation's episodes; contexts and the engine's log-probs, which follow from it, are left empty."""
    # As `Episode.to_json`, whose general way takes ten times as long over the token ids.
    return {
        "problem": vars(episode.problem),
        "attempts": [
            vars(a)
            | {"context_ids": [], "engine_logprobs": [], "grade": a.grade and vars(a.grade)}
            | {"critique": a.critique and vars(a.critique)}
            for a in episode.attempts
        ],
        "path": episode.path,
    }


def episodes_path(path: Path) -> Path:
    """Where the episodes of the evaluation stand whose metrics are in `path`."""
    return path.with_suffix(".jsonl")


def partial_path(path: Path) -> Path:
    """Where the episodes of an evaluation stand that is not finished."""
    return path.with_suffix(".partial.jsonl")


def read_episodes(path: Path) -> list[Episode]:
    """The episodes of an evaluation.

    Raises:
        DataError: the file cannot be read, or a line is no episode.
    """
    episodes = []
    for number, row in read_jsonl(path):
        try:
            episodes.append(Episode.from_json(row))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: no episode of an evaluation ({error!r})") from error
    return episodes


def write_files(path: Path, metrics: dict[str, Any], episodes: Sequence[Episode]) -> None:
    """Writes `path` (metrics, JSON) and its `.jsonl` sibling (episodes), episodes first."""
    write_text(episodes_path(path), to_lines(map(to_row, episodes)))
    write_text(path, json.dumps(metrics, indent=1) + "\n")


def identity(
    settings: Settings, weights: str, problems: Sequence[Problem], first_attempts: Path | None = None
) -> dict[str, Any]:
    """What an evaluation's episodes follow from; where two are equal, the episodes of one are those of the other.

    Args:
        weights: `fingerprint` of the model, or what else says which one it is.
        first_attempts: the file that attempt 1 is taken from, if it is.

    Raises:
        DataError: that file cannot be read.
    """
    asked = json.dumps([[p.id, p.question, p.answer] for p in problems])
    told = settings.model_dump(mode="json", include={"seed", "model", "data", "chat", "reward", "eval"})
    try:
        fixed = None if first_attempts is None else _digest(first_attempts.read_bytes())
    except OSError as error:
        raise DataError(f"--first-attempts {first_attempts}: cannot be read ({error.strerror})") from error
    return {**told, "weights": weights, "problems": _digest(asked.encode()), "first_attempts": fixed}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def fingerprint(directory: Path) -> str:
    """A digest of a model's files: their names and sizes, and of the content all, or samples of a large file's.

    Training moves every weight, so that a few places tell two models apart without reading all of them.
    """
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.iterdir() if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as content:
            for place in range(SAMPLED_PLACES):
                content.seek(place * max(PLACE_BYTES, size // SAMPLED_PLACES))
                digest.update(content.read(PLACE_BYTES))
    return digest.hexdigest()[:16]


class Partial:
    """Episodes that were played of an evaluation which may be killed, in a file beside its results.

    Attributes:
        path: the file.
        episodes: of the problems that are done, in order.
        writes: False in a process that only keeps the count, beside the one that writes.
    """

    def __init__(self, path: Path, identity: dict[str, Any], samples: int) -> None:
        self.path = path
        self.episodes: list[Episode] = []
        self.writes = True
        self._header = {"evaluation": identity}
        self._samples = samples

    @property
    def problems(self) -> int:
        """Problems that are done."""
        return len(self.episodes) // self._samples

    def open(self, problems: int, at_once: int, *, fresh: bool = False) -> None:
        """Reads what a killed evaluation has left, or starts the file.

        A part that was half written is played again as a whole: its problems were decoded together.

        Args:
            problems: of the whole evaluation.
            at_once: problems of a part.
            fresh: discard what there is.

        Raises:
            ConfigError: it was left by an evaluation of something else.
            DataError: it cannot be read.
            CheckpointError: it cannot be written.
        """
        lines = [] if fresh or not self.path.is_file() else self._complete_lines()
        if lines:
            found = self._read_header(lines[0])
            changed = differences(found, json.loads(json.dumps(self._header["evaluation"])))
            if changed:
                raise ConfigError(
                    f"{self.path}: left by an evaluation with other settings ({'; '.join(changed)}); use them, choose "
                    "another file with -o, or discard it with --fresh"
                )
        done = (len(lines) - 1) // self._samples
        rows = lines[1 : 1 + (done if done == problems else done // at_once * at_once) * self._samples]
        write_text(self.path, to_lines([self._header]) + "".join(rows))
        self.episodes = [Episode.from_json(json.loads(row)) for row in rows]

    def _complete_lines(self) -> list[str]:
        # Only "\n" ends a line: texts may hold other characters at which `splitlines` would cut.
        return [f"{line}\n" for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]]

    def _read_header(self, line: str) -> dict[str, Any]:
        try:
            return dict(json.loads(line)["evaluation"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}:1: not what an evaluation leaves; move it, or discard it with --fresh"
            ) from error

    def append(self, episodes: Sequence[Episode]) -> None:
        """Adds the episodes of a part, which a power cut no longer takes away.

        Raises:
            CheckpointError: the disk is full or the file cannot be written.
        """
        if self.writes:
            self._write(episodes)
        self.episodes += episodes

    def _write(self, episodes: Sequence[Episode]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_lines(map(to_row, episodes)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be written ({error.strerror})") from error

    def remove(self) -> None:
        """Takes the file away, once the evaluation's own are written."""
        self.path.unlink(missing_ok=True)
        sync_directory(self.path.parent)
