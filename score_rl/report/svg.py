"""Drawing by numbers: elements of SVG, scales, ticks and axes. Colours are classes that the style sheet fills."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from score_rl.report.text import visible

WIDTH = 360
"""Of every chart, in the units in which letters are 11 high: also a phone shows them at their size."""

Ticks = Sequence[float]
Format = Callable[[float], str]


@dataclass(frozen=True)
class Chart:
    """A drawing, and the same in words and as a table for whoever cannot see it.

    Attributes:
        legend: class and name of what is drawn.
        head: of the table; `rows` its cells.
    """

    title: str
    note: str
    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """An element; text and attribute values are escaped, `_` in attribute names stands for `-`, numbers are rounded."""
    written = Markup("").join(
        Markup(' {}="{}"').format(Markup(name.rstrip("_").replace("_", "-")), _value(value))
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(
        escape(visible(c) if isinstance(c, str) and not isinstance(c, Markup) else c) for c in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inner)


def _value(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}".removesuffix(".0")
    return visible(value) if isinstance(value, str) else value


def drawing(height: float, *children: object, label: str) -> Markup:
    """The outermost element; `label` is what a screen reader says instead of it."""
    return element("svg", *children, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str | None = None) -> Markup:
    """A line of text."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def path(points: Iterable[tuple[float, float]]) -> str:
    """A polyline as path data."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """About `number` round values that enclose `low` and `high`.

    >>> ticks(0.12, 0.83)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = high - low
    if span <= max(1e-9 * abs(high), 1e-100):  # one value, but for rounding
        span = abs(high) if abs(high) > 1e-100 else 1.0
    raw = span / number
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Frame:
    """The area in which points are drawn, with its scales.

    Attributes:
        x_span, y_span: smallest and largest value of each axis.
        edge: where lines across begin; `left` if not given.
        log_x: equal ratios of x are equally far apart.
    """

    x_span: tuple[float, float]
    y_span: tuple[float, float]
    left: float = 40
    right: float = WIDTH - 12
    top: float = 20
    bottom: float = 178
    edge: float | None = None
    log_x: bool = False

    def x(self, value: float) -> float:
        """Where a value lies from the left."""
        (low, high), value = self.x_span, value
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.left + (self.right - self.left) * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        """Where a value lies from the top; what lies outside is drawn at the edge."""
        low, high = self.y_span
        share = (value - low) / (high - low) if high > low else 0.5
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, share))

    def axes(self, x_ticks: Ticks, y_ticks: Ticks, x_format: Format, y_format: Format, x_name: str) -> list[Markup]:
        """Lines across at `y_ticks`, numbers at both axes, and the name of the x axis."""
        drawn = []
        edge = self.left if self.edge is None else self.edge
        for value in y_ticks:
            line = "zero" if value == 0 else "grid"
            drawn.append(element("path", d=path([(edge, self.y(value)), (self.right, self.y(value))]), class_=line))
            drawn.append(text(edge - 6, self.y(value) + 3.5, y_format(value), anchor="end"))
        for value in x_ticks:
            drawn.append(text(self.x(value), self.bottom + 15, x_format(value), anchor="middle"))
        drawn.append(text((self.left + self.right) / 2, self.bottom + 31, x_name, anchor="middle", class_="axis"))
        return drawn
