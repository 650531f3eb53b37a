"""The kinds of charts that a report has; each takes numbers and gives a drawing with its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from markupsafe import Markup

from score_rl.report.svg import WIDTH, Chart, Format, Frame, drawing, element, path, text, ticks
from score_rl.report.text import percent, short

Point = tuple[float, float]
MOST_POINTS, MOST_ROWS = 240, 40


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        style: class that gives its colour.
        points: x and y, x rising.
        band: x, low and high of an interval around it.
        smooth: the line is the mean of so many last points, and the points themselves a faint line behind it.
    """

    name: str
    style: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    smooth: int = 1


@dataclass(frozen=True)
class Axes:
    """How a line chart is labelled.

    Attributes:
        y_name: stands above the y axis, where no stage's name does.
        stages: x at which each stage begins, with its name.
        flags: first and last x of what is marked.
    """

    x_name: str
    y_format: Format
    y_least: tuple[float, float] | None = None
    y_most: tuple[float, float] | None = None
    stages: Sequence[tuple[float, str]] = ()
    flags: Sequence[tuple[float, float]] = ()
    log_x: bool = False
    x_ticks: Sequence[float] | None = None
    x_format: Format = field(default=short)
    y_name: str = ""


def line_chart(title: str, note: str, series: Sequence[Series], axes: Axes) -> Chart | None:
    """Lines over x; None where there is no point to draw."""
    series = [line for line in series if line.points]
    if not series:
        return None
    xs = [x for line in series for x, _ in line.points]
    y_ticks = _y_ticks(series, axes)
    x_span = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    frame = Frame(x_span, (y_ticks[0], y_ticks[-1]), log_x=axes.log_x)
    x_ticks = axes.x_ticks or [t for t in ticks(*x_span, 5) if min(xs) <= t <= max(xs)]
    drawn = [*_flags(frame, axes.flags), *frame.axes(x_ticks, y_ticks, axes.x_format, axes.y_format, axes.x_name)]
    drawn += _stages(frame, axes.stages)
    drawn += [text(6, frame.top - 10, axes.y_name, class_="axis")] if axes.y_name else []
    for line in series:
        drawn += _line(frame, line)
    svg = drawing(216, *drawn, label=f"{title}. {note}")
    return Chart(title, note, svg, [(line.style, line.name) for line in series], *_table(series, axes))


def _y_ticks(series: Sequence[Series], axes: Axes) -> list[float]:
    ys = [y for line in series for _, y in (_averaged(line) if line.smooth > 1 else line.points)]
    ys += [y for line in series for _, low, high in line.band for y in (low, high)]
    low, high = min(ys), max(ys)
    if axes.y_least:
        low, high = min(low, axes.y_least[0]), max(high, axes.y_least[1])
    if axes.y_most:
        low, high = max(low, axes.y_most[0]), min(high, axes.y_most[1])
    return ticks(low, high)


def _flags(frame: Frame, flags: Sequence[tuple[float, float]]) -> list[Markup]:
    drawn = []
    for first, last in flags:
        x, width = frame.x(first), max(2.0, frame.x(last) - frame.x(first))
        drawn.append(element("rect", x=x, y=frame.top, width=width, height=frame.bottom - frame.top, class_="flag"))
        drawn.append(element("rect", x=x, y=frame.bottom, width=width, height=3, class_="flag-foot"))
    return drawn


def _stages(frame: Frame, stages: Sequence[tuple[float, str]]) -> list[Markup]:
    drawn = []
    for x, name in stages:
        at = frame.x(max(x, frame.x_span[0]))
        if at > frame.left + 1:
            drawn.append(element("path", d=path([(at, frame.top - 14), (at, frame.bottom)]), class_="stage"))
        drawn.append(text(at + 4, frame.top - 6, name if len(name) < 20 else f"{name[:18]}…", class_="axis"))
    return drawn


def _averaged(line: Series) -> list[Point]:
    """Means of the last `smooth` points, one for each point."""
    ys = [y for _, y in line.points]
    return [(x, fmean(ys[max(0, place - line.smooth + 1) : place + 1])) for place, (x, _) in enumerate(line.points)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS`: means of as many neighbours as it takes."""
    size = -(-len(points) // MOST_POINTS)
    blocks = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(block[-1][0], fmean(y for _, y in block)) for block in blocks] if size > 1 else list(points)


def _line(frame: Frame, line: Series) -> list[Markup]:
    def place(points: Sequence[Point]) -> list[Point]:
        return [(frame.x(x), frame.y(y)) for x, y in points]

    drawn = []
    if line.band:
        edge = place([(x, high) for x, _, high in line.band]) + place([(x, low) for x, low, _ in reversed(line.band)])
        drawn.append(element("path", d=path(edge) + "Z", class_=f"band {line.style}"))
    if line.smooth > 1:
        drawn.append(element("path", d=path(place(_thinned(line.points))), class_=f"faint {line.style}"))
    points = place(_thinned(_averaged(line) if line.smooth > 1 else line.points))
    if len(points) == 1:
        return [*drawn, element("circle", cx=points[0][0], cy=points[0][1], r=3, class_=f"dot {line.style}")]
    drawn.append(element("path", d=path(points), class_=f"line {line.style}"))
    if len(points) <= 12:
        drawn += [element("circle", cx=x, cy=y, r=2.5, class_=f"dot {line.style}") for x, y in points]
    return drawn


def _table(series: Sequence[Series], axes: Axes) -> tuple[list[str], list[list[str]]]:
    """Head and rows: every x, or as many as a reader can bear at equal distances, and the last."""
    xs = sorted({x for line in series for x, _ in line.points})
    if len(xs) > MOST_ROWS:
        xs = [*xs[:: -(-len(xs) // MOST_ROWS)], xs[-1]]
    values = [dict(line.points) for line in series]
    intervals = [{x: (low, high) for x, low, high in line.band} for line in series]
    rows = []
    for x in dict.fromkeys(xs):
        cells = []
        for line, ends in zip(values, intervals, strict=True):
            cell = axes.y_format(line[x]) if x in line else ""
            if x in ends:
                cell += f" [{axes.y_format(ends[x][0])}, {axes.y_format(ends[x][1])}]"
            cells.append(cell)
        if any(cells):
            rows.append([axes.x_format(x), *cells])
    return [axes.x_name, *(line.name for line in series)], rows


def histogram(title: str, note: str, same: int, bins: Sequence[int], most: float) -> Chart:
    """Shares over equal bins from 0 to 1, with a bar of its own in front for what is exactly 0.

    Args:
        most: share at the top of the chart, so that several can be compared.
    """
    total = same + sum(bins)
    shares = [count / total for count in bins]
    y_ticks = ticks(0.0, max(most, 0.01))
    frame = Frame((0.0, 1.0), (0.0, y_ticks[-1]), left=78, edge=40, top=10)
    drawn = frame.axes([0.0, 0.25, 0.5, 0.75, 1.0], y_ticks, lambda x: f"{x:g}", whole_percent, "edit-distance ratio")
    drawn.append(text(50, frame.bottom + 15, "same", anchor="middle"))
    width = (frame.right - frame.left) / len(bins)
    names = [f"{k / len(bins):g} to {(k + 1) / len(bins):g}" for k in range(len(bins))]
    bars = [(42.0, 16.0, same / total, "same", "identical texts")]
    bars += [(frame.left + k * width + 1, width - 2, share, "t2", names[k]) for k, share in enumerate(shares)]
    for x, wide, share, style, name in bars:
        if share:
            top = min(frame.y(share), frame.bottom - 1)
            hint = element("title", f"{name}: {percent(share)}%")
            size = {"x": x, "y": top, "width": wide, "height": frame.bottom - top}
            drawn.append(element("rect", hint, **size, rx=1, class_=f"bar {style}"))
    rows = [[name, f"{percent(share)}%"] for _, _, share, _, name in bars if share]
    svg = drawing(216, *drawn, label=f"{title}. {note}")
    return Chart(title, note, svg, [], ["edit-distance ratio", "share"], rows)


def whole_percent(value: float) -> str:
    """A share at an axis."""
    return f"{100 * value:.3g}%".replace("-", "−")


def flow(title: str, counts: Mapping[tuple[bool, bool], int]) -> Chart:
    """How right and wrong first attempts became right and wrong second ones: bands as thick as their shares."""
    total = sum(counts.values())
    share = {key: counts.get(key, 0) / total for key in ((True, True), (True, False), (False, True), (False, False))}
    height, top, gap, left, right, bar = 150.0, 22.0, 14.0, 62.0, WIDTH - 62.0, 7.0
    before = {True: top, False: top + gap + height * (share[True, True] + share[True, False])}
    after = {True: top, False: top + gap + height * (share[True, True] + share[False, True])}
    names = {(True, True): "keep", (True, False): "lost", (False, True): "won", (False, False): "miss"}
    drawn = [text(left, 11, "attempt 1", class_="axis"), text(right, 11, "attempt 2", anchor="end", class_="axis")]
    starts, ends = dict(before), dict(after)
    bands = []
    for key in share:
        thick = height * share[key]
        if thick:
            band = _ribbon(left + bar, right - bar, starts[key[0]], ends[key[1]], max(thick, 0.8), names[key])
            bands.append((thick, band))
        starts[key[0]] += thick
        ends[key[1]] += thick
    drawn += [band for _, band in sorted(bands, key=lambda item: -item[0])]  # where two cross, the thin one is on top
    for x, anchor, at, places, index in (
        (left, "end", left - 6, before, 0),
        (right - bar, "start", right + 6, after, 1),
    ):
        for is_right in (True, False):
            held = sum(part for key, part in share.items() if key[index] is is_right)
            word = "right" if is_right else "wrong"
            y, thick = places[is_right], max(height * held, 0.8)
            drawn.append(element("rect", x=x, y=y, width=bar, height=thick, class_=f"node {word}"))
            middle = min(max(y + thick / 2, top + 10), top + gap + height - 12)
            drawn.append(text(at, middle - 1, word, anchor=anchor))
            drawn.append(text(at, middle + 13, f"{percent(held)}%", anchor=anchor, class_="number"))
    words = {"won": "i→c, corrected", "lost": "c→i, broken", "keep": "stayed right", "miss": "stayed wrong"}
    by_name = {names[key]: part for key, part in share.items()}
    legend = [(f"flow-{name}", f"{words[name]} {percent(by_name[name])}%") for name in words]
    note = ", ".join(name for _, name in legend)
    rows = [[words[name], str(counts.get(key, 0)), f"{percent(share[key])}%"] for key, name in names.items()]
    svg = drawing(top + height + gap + 4, *drawn, label=f"{title}: {note}.")
    return Chart(title, "", svg, legend, ["from attempt 1 to attempt 2", "episodes", "share"], rows)


def _ribbon(x0: float, x1: float, y0: float, y1: float, thick: float, style: str) -> Markup:
    middle = (x0 + x1) / 2
    top = f"M{x0:.1f} {y0:.1f}C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    low0, low1 = y0 + thick, y1 + thick
    back = f"L{x1:.1f} {low1:.1f}C{middle:.1f} {low1:.1f} {middle:.1f} {low0:.1f} {x0:.1f} {low0:.1f}Z"
    return element("path", d=top + back, class_=f"ribbon {style}")


Ends = tuple[float, float, float]


def intervals(
    title: str,
    note: str,
    rows: Sequence[tuple[str, str, Sequence[tuple[str, Ends | None]]]],
    legend: list[tuple[str, str]],
) -> Chart:
    """Shares with their intervals, a row for each name: (name, detail, marks), a mark being a style and its ends."""
    step, top = 34.0, 8.0
    bottom = top + step * len(rows)
    frame = Frame((0.0, 1.0), (0.0, 1.0), left=16, right=WIDTH - 20, top=top, bottom=bottom)
    drawn = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(element("path", d=path([(frame.x(share), top), (frame.x(share), bottom)]), class_="grid"))
        drawn.append(text(frame.x(share), bottom + 15, whole_percent(share), anchor="middle"))
    cells = []
    for place, (name, detail, marks) in enumerate(rows):
        y = top + step * place + 11
        drawn.append(text(frame.left, y, name if len(name) < 34 else f"{name[:32]}…", class_="name"))
        drawn.append(text(frame.right, y, detail, anchor="end", class_="fact"))
        for number, (style, ends) in enumerate(marks):
            if ends:
                at = y + 7 + 6 * number
                line = path([(frame.x(ends[1]), at), (frame.x(ends[2]), at)])
                drawn.append(element("path", d=line, class_=f"whisker {style}"))
                drawn.append(element("circle", cx=frame.x(ends[0]), cy=at, r=3, class_=f"dot {style}"))
        shown = [f"{percent(e[0])}% [{percent(e[1])}, {percent(e[2])}]" if e else "" for _, e in marks]
        cells.append([name, detail, *shown])
    svg = drawing(bottom + 22, *drawn, label=f"{title}. {note}")
    return Chart(title, note, svg, legend, ["", "", *(name for _, name in legend)], cells)
