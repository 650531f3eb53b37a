"""Attempts side by side in a terminal, with what changed between them; text of a model is never trusted there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from score_rl.diff import compare

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.panel import Panel
    from rich.text import Text

REMOVED = "strike red"
ADDED = "bold green"
"""A line through it and bold type tell them apart where there are no colours."""

READABLE = 36
"""Columns that an attempt needs beside others; in a narrower terminal they stand one below the other."""

GAP = 1

REDRAW_SECONDS = 0.08
REDRAW_SHARE = 10
"""Tokens are shown when they come, unless drawing would take more than a tenth of the time."""

# Controls but newline and tab, soft hyphens, signs without width, those that turn the writing direction, and halves of
# characters. The joiners of Persian and of emoji stay.
_HARMFUL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Shown:
    """An attempt as a person sees it.

    Attributes:
        text: of the model, as it is.
        note: about it, below: that it was cut off.
        answer: what was extracted; None if nothing was, or nobody looked.
        done: whether no more of it comes.
        critique: what the model wrote of it; None where it was not asked to.
    """

    text: str = ""
    note: str = ""
    answer: str | None = None
    done: bool = True
    critique: str | None = None


def harmless(text: str, encoding: str = "utf-8") -> str:
    r"""The text with escapes for what moves a cursor, colours, hides or turns text, or is not in `encoding`.

    >>> print(harmless("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    escaped = _HARMFUL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return escaped.encode(encoding, "backslashreplace").decode(encoding)


def side_by_side(attempts: Sequence[Shown], console: Console) -> RenderableType:
    """Panels of the attempts, as many in a row as stay readable, no wider than their text; changed words are marked."""
    from rich.table import Table

    bodies = _bodies(attempts, console.encoding)
    wanted = max(map(_width, bodies, attempts))
    per_row = max(1, min(len(attempts), console.width // (min(wanted, READABLE) + GAP)))
    width = min(wanted, console.width // per_row - GAP)
    panels = [_panel(k, *both) for k, both in enumerate(zip(bodies, attempts, strict=True), start=1)]
    grid = Table.grid(padding=(0, GAP, 0, 0))
    for _ in range(per_row):
        grid.add_column(width=width)
    for start in range(0, len(panels), per_row):
        grid.add_row(*panels[start : start + per_row])
    return grid


def _bodies(attempts: Sequence[Shown], encoding: str) -> list[Text]:
    """The texts, with the words marked that the attempt before has not and that the next one has not."""
    from rich.text import Text

    texts = [harmless(attempt.text, encoding) for attempt in attempts]
    bodies = [Text(text, overflow="fold") for text in texts]
    for k in range(1, len(attempts)):
        if attempts[k].done:
            removed, added = compare(texts[k - 1], texts[k])
            for body, spans, style in ((bodies[k - 1], removed, REMOVED), (bodies[k], added, ADDED)):
                for start, end in spans:
                    body.stylize(style, start, end)
    for body, attempt in zip(bodies, attempts, strict=True):
        if attempt.answer is not None:
            body.append("\nanswer: ", "dim").append(harmless(attempt.answer, encoding))
        if attempt.critique is not None:
            body.append("\ncritique: ", "dim").append(harmless(attempt.critique, encoding), "italic")
    return bodies


def _width(body: Text, attempt: Shown) -> int:
    """Columns that a panel wants: frame and a blank on either side; title and note stand in the frame, so inlaid."""
    body = body.copy()
    body.expand_tabs()
    labels = 2 + max(len("attempt 1"), len(attempt.note))
    return 4 + max(labels, *(line.cell_len for line in body.split(allow_blank=True)))


def _panel(number: int, body: Text, attempt: Shown) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    note = Text(attempt.note, "dim") if attempt.note else None
    return Panel(body, title=f"attempt {number}", subtitle=note)


class _Tail:
    """The last lines of something, as many as fit on the screen: where new tokens come."""

    def __init__(self, whole: RenderableType) -> None:
        self.whole = whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        lines = console.render_lines(self.whole, options, pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


@contextmanager
def streaming(console: Console) -> Iterator[Callable[[Callable[[], Sequence[Shown]]], None]]:
    """Yields a function that draws the attempts in place of the last drawing; nothing of it stays.

    It may be called for each token: it asks for the attempts only if there is time to draw them. Without a terminal it
    draws nothing.
    """
    from rich.live import Live

    if not console.is_terminal or console.is_dumb_terminal:
        yield lambda look: None
        return
    next_time = 0.0
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def draw(look: Callable[[], Sequence[Shown]]) -> None:
            nonlocal next_time
            begun = time.monotonic()
            if begun >= next_time:
                live.update(_Tail(side_by_side(look(), console)), refresh=True)
                spent = time.monotonic() - begun
                next_time = begun + max(REDRAW_SECONDS, REDRAW_SHARE * spent)

        yield draw
