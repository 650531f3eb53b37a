"""Episodes packed for the page: compressed lines of JSON that its script unpacks, as many as there is room for."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

from score_rl.report.source import Played, Shown

Name = TypeVar("Name", bound=Hashable)

HEAD_CHARACTERS, TAIL_CHARACTERS = 16_000, 4_000
"""What is kept of a longer text: its begin and its end."""

_SHORT = 2_000
_EPISODES_A_BLOCK = 50
_RAW_DEFLATE, _END = -15, b"\x03\x00"

Kl = Mapping[tuple[str, tuple[int, ...]], Sequence[Mapping[str, Any]]]


class Block(NamedTuple):
    """Some compressed lines; each block needs those before it."""

    data: bytes
    episodes: int
    cut: int


@dataclass(frozen=True)
class Packed:
    """Compressed episodes.

    Attributes:
        blocks: the first sample of each problem comes before the second of any.
        all_episodes: how many the evaluation has; likewise problems, and samples of a problem.
    """

    blocks: list[Block]
    all_episodes: int
    all_problems: int
    samples: int

    @property
    def data(self) -> str:
        """Raw deflate in base64."""
        return base64.b64encode(b"".join(block.data for block in self.blocks) + _END).decode("ascii")

    @property
    def size_bytes(self) -> int:
        """Of `data`."""
        return _base64_bytes(sum(len(block.data) for block in self.blocks) + len(_END))

    @property
    def episodes(self) -> int:
        """How many are in it."""
        return sum(block.episodes for block in self.blocks)

    @property
    def problems(self) -> int:
        """How many problems have an episode in it."""
        return min(self.episodes, self.all_problems)

    @property
    def cut(self) -> int:
        """Attempts of which only the begin and the end are in it."""
        return sum(block.cut for block in self.blocks)

    def within(self, room: int) -> Packed:
        """As many of the blocks as make no more than `room` bytes."""
        kept, used = 0, len(_END)
        for block in self.blocks:
            used += len(block.data)
            if _base64_bytes(used) > room:
                break
            kept += 1
        return replace(self, blocks=self.blocks[:kept])


def _base64_bytes(size: int) -> int:
    return -(-size // 3) * 4


def share_room(packed: Mapping[Name, Packed], room: int) -> dict[Name, Packed]:
    """Each cut to an equal share of `room` bytes; what small ones leave of theirs, large ones can use."""
    found = {}
    ordered = sorted(packed, key=lambda name: packed[name].size_bytes)
    for place, name in enumerate(ordered):
        found[name] = packed[name].within(max(0, room) // (len(ordered) - place))
        room -= found[name].size_bytes
    return found


def pack(episodes: Sequence[Played], kl: Kl, room: int) -> Packed:
    """Episodes, as many as fit into `room` bytes: first the first sample of each problem, then the second, ...

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
    squeeze = zlib.compressobj(6, zlib.DEFLATED, _RAW_DEFLATE)
    blocks: list[Block] = []
    told: set[int] = set()
    used = 0
    for begin in range(0, len(queue), _EPISODES_A_BLOCK):
        some = queue[begin : begin + _EPISODES_A_BLOCK]
        lines = [_line(sample, place, episode, told, kl) for sample, place, episode in some]
        data = squeeze.compress("".join(lines).encode("ascii")) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        cut = sum(_is_long(attempt.text) for _, _, episode in some for attempt in episode.attempts)
        used += len(data)
        if _base64_bytes(used) > room:
            break
        blocks.append(Block(data, len(some), cut))
    return Packed(blocks, len(queue), len(places), max(seen.values(), default=-1) + 1)


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
    said = None if attempt.critique is None else f"after the critique: {attempt.critique}"
    note = "; ".join(filter(None, [attempt.note, said])) or None
    row: list[Any] = [
        _cut(attempt.text),
        None if attempt.answer is None else _trim(attempt.answer, _SHORT),
        None if attempt.correct is None else int(attempt.correct),
        None if note is None else _trim(note, _SHORT),
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
