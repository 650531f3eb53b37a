"""Episodes packed for the page: compressed lines of JSON that its script unpacks, as many as there is room for."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from score_rl.report.source import Played, Shown

HEAD_CHARACTERS, TAIL_CHARACTERS = 16_000, 4_000
"""What is kept of a longer text: its begin and its end."""

_SHORT = 2_000
_BETWEEN_LOOKS = 50
_GZIP = 31

Kl = Mapping[tuple[str, tuple[int, ...]], Sequence[Mapping[str, Any]]]


class Packed(NamedTuple):
    """Compressed episodes in base64, and how many of how many they are."""

    data: str
    episodes: int
    all_episodes: int
    problems: int
    all_problems: int
    samples: int
    cut: int

    @property
    def complete(self) -> bool:
        """Whether every episode is in it."""
        return self.episodes == self.all_episodes


def pack(episodes: Sequence[Played], kl: Kl, room: int) -> Packed:
    """The episodes that fit into `room` bytes of base64: first the first sample of each problem, then the second, ...

    A line is `[problem, sample, attempts]`, both counted from 0, and has the problem's own `[id, question, gold,
    fields]` behind them where the problem is there for the first time. An attempt is `[text, answer, correct, note,
    length, finished, kl]`.
    """
    places: dict[str, int] = {}
    seen: dict[str, int] = {}
    queue = []
    for episode in episodes:
        place = places.setdefault(episode.problem, len(places))
        sample = seen[episode.problem] = seen.get(episode.problem, -1) + 1
        queue.append((sample, place, episode))
    queue.sort(key=lambda item: item[:2])
    squeeze = zlib.compressobj(9, zlib.DEFLATED, _GZIP)
    parts, used, kept, cut = [], 0, 0, 0
    told: set[int] = set()
    for begin in range(0, len(queue), _BETWEEN_LOOKS):
        block = queue[begin : begin + _BETWEEN_LOOKS]
        lines = [_line(sample, place, episode, told, kl) for sample, place, episode in block]
        trial = squeeze.copy()
        part = trial.compress("".join(lines).encode("ascii")) + trial.flush(zlib.Z_SYNC_FLUSH)
        if (used + len(part)) * 4 / 3 > room:
            break
        squeeze, used, kept = trial, used + len(part), kept + len(block)
        parts.append(part)
        cut += sum(_is_long(a.text) for _, _, episode in block for a in episode.attempts)
    parts.append(squeeze.flush())
    return Packed(
        base64.b64encode(b"".join(parts)).decode("ascii"),
        kept,
        len(queue),
        len({place for _, place, _ in queue[:kept]}),
        len(places),
        max(seen.values(), default=-1) + 1,
        cut,
    )


def _line(sample: int, place: int, episode: Played, told: set[int], kl: Kl) -> str:
    stored = kl.get((episode.problem, episode.path), ())
    attempts = [_attempt(attempt, stored[k] if k < len(stored) else None) for k, attempt in enumerate(episode.attempts)]
    line: list[Any] = [place, sample, attempts]
    if place not in told:
        told.add(place)
        fields = {name: _trim(value, 100) for name, value in episode.fields.items()}
        line.append([_trim(episode.problem, 200), _cut(episode.question), _trim(episode.gold, _SHORT), fields])
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n"


def _attempt(attempt: Shown, kl: Mapping[str, Any] | None) -> list[Any]:
    row: list[Any] = [
        _cut(attempt.text),
        None if attempt.answer is None else _trim(attempt.answer, _SHORT),
        None if attempt.correct is None else int(attempt.correct),
        None if attempt.note is None else _trim(attempt.note, _SHORT),
        attempt.length,
        int(attempt.finished),
    ]
    if kl is not None and not _is_long(attempt.text):
        row.append([kl["tokens"], [round(1000 * nats) for nats in kl["kl"]]])
    return row


def _is_long(text: str) -> bool:
    return len(text) > HEAD_CHARACTERS + TAIL_CHARACTERS


def _cut(text: str) -> str | list[str | int]:
    """A text, or of a long one its begin, the number of characters left out, and its end."""
    if not _is_long(text):
        return text
    return [text[:HEAD_CHARACTERS], len(text) - HEAD_CHARACTERS - TAIL_CHARACTERS, text[-TAIL_CHARACTERS:]]


def _trim(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
