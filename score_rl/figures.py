"""The paper's figures from a sweep: a panel for each row, on one scale, as charts of a page and as files of SVG."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

from score_rl.report.charts import Axes, Point, Series, histogram, intervals, line_chart, whole_percent
from score_rl.report.page import text_of
from score_rl.report.svg import WIDTH, Chart, Ticks, element, text
from score_rl.report.text import percent
from score_rl.table import after_fixed, evaluation, measured
from score_rl.table_source import Metrics, Row, Sweep

GAP, MARGIN, COLUMNS = 40, 24, 2
_NO_XML = re.compile("[\ufffe\uffff]")


class Figure(NamedTuple):
    """Panels that belong together.

    Attributes:
        name: of its file, without the ending.
        needs: what a sweep must have for it; it has no panels without.
        legend: class and name of the lines in all panels.
    """

    name: str
    title: str
    note: str
    needs: str
    charts: list[Chart]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Of all panels, each entry once."""
        return list(dict.fromkeys(entry for chart in self.charts for entry in chart.legend))

    @property
    def left_out(self) -> str:
        """Why there is no such figure."""
        return f"No figure of {self.title[0].lower()}{self.title[1:]}: it needs {self.needs}."


def figures(sweep: Sweep) -> list[Figure]:
    """All figures that are known, also those without a panel."""
    return [_edits(sweep), _accuracies(sweep), _answers(sweep), _fixed(sweep), _scaling(sweep), _attempts(sweep)]


def _of_seeds(row: Row, number: int) -> str:
    return f"{number} of {len(row.seeds)} seeds." if number < len(row.seeds) else f"{number} seed{'s' * (number > 1)}."


def _edits(sweep: Sweep) -> Figure:
    counted = []
    for row in sweep.rows.values():
        bins = [sum(counts) for counts in zip(*(result.edits for result in row.results.values()), strict=True)]
        if sum(bins):
            same = sum(round(r.final.get("identical/t2", 0) * sum(r.edits)) for r in row.results.values())
            counted.append((row, min(same, bins[0]), [max(0, bins[0] - same), *bins[1:]]))
    most = max((max(same, *bins) / (same + sum(bins)) for _, same, bins in counted), default=1.0)
    charts = []
    for row, same, bins in counted:
        unchanged = percent(same / (same + sum(bins)))
        note = f"{_of_seeds(row, len(row.results))} {unchanged}% of second attempts are the first one unchanged."
        charts.append(histogram(row.title, note, same, bins, most))
    return Figure(
        "edits",
        "How much the second attempt rewrites",
        "Episodes of the final evaluation by the edit-distance ratio of their two attempts, as the paper draws of its "
        "models: 0 is the same text, 1 keeps nothing. Bars are shares of episodes.",
        "a finished run",
        charts,
    )


def _curve(row: Row, key: str, name: str, style: str, value: Callable[[float], float] = float) -> Series:
    """The mean over seeds at the steps that all of them have, and the lowest and highest as a band."""
    seeds = [dict(result.curves[key]) for result in row.results.values() if result.curves.get(key)]
    steps = sorted(set(seeds[0]).intersection(*seeds[1:])) if seeds else []
    found = [(step, [value(seed[step]) for seed in seeds]) for step in steps]
    band = [(step, min(values), max(values)) for step, values in found] if len(seeds) > 1 else []
    return Series(name, style, [(step, fmean(values)) for step, values in found], band)


def _panels(
    rows: Sequence[tuple[Row, list[Series]]],
    names: tuple[str, str],
    *,
    log_x: bool = False,
    x_ticks: Ticks | None = None,
) -> list[Chart]:
    """A line chart of shares for each row, all with the same scale of y; `names` are those of the axes."""
    drawn = [(row, [line for line in lines if line.points]) for row, lines in rows]
    ys = [y for _, lines in drawn for line in lines for _, y in line.points]
    ys += [y for _, lines in drawn for line in lines for _, low, high in line.band for y in (low, high)]
    charts = []
    for row, lines in drawn:
        axes = Axes(
            names[0],
            whole_percent,
            y_least=(min(ys), max(ys)) if ys else None,
            y_most=(0.0, 1.0),
            log_x=log_x,
            x_ticks=x_ticks,
            y_name=names[1],
        )
        charts.append(line_chart(row.title, _of_seeds(row, len(row.results)), lines, axes))
    return [chart for chart in charts if chart is not None]


BANDS = "Means over seeds; shades go from the lowest to the highest seed."


def _accuracies(sweep: Sweep) -> Figure:
    rows = [(row, [_curve(row, f"acc/t{k}", f"attempt {k}", f"t{k}") for k in (1, 2)]) for row in sweep.rows.values()]
    return Figure(
        "training",
        "Right answers over training",
        f"At each attempt, sampled on training problems (paper, figures 5 and 6). {BANDS}",
        "a finished run that trains",
        _panels(rows, ("step", "right answers")),
    )


def _beside_reference(sweep: Sweep, draw: Callable[[Row, str, str], Series]) -> list[tuple[Row, list[Series]]]:
    """Each row's line in front of the reference's; rows without a line of their own are left out."""
    reference = None if sweep.reference is None else sweep.rows[sweep.reference]
    found = []
    for row in sweep.rows.values():
        behind = [draw(reference, reference.title, "t1")] if reference is not None and row is not reference else []
        own = draw(row, "this row" if reference is not None else "mean", "t2")
        if own.points:
            found.append((row, [*behind, own]))
    return found


def _answers(sweep: Sweep) -> Figure:
    def draw(row: Row, name: str, style: str) -> Series:
        return _curve(row, "unchanged/t2", name, style, lambda unchanged: 1 - unchanged)

    return Figure(
        "answers",
        "Changed answers over training",
        f"How often attempt 2 gives another answer than attempt 1 (paper, figure 5b). {BANDS}",
        "a finished run that trains with two attempts",
        _panels(_beside_reference(sweep, draw), ("step", "changed answers")),
    )


def _fixed(sweep: Sweep) -> Figure:
    rows = []
    for row in sweep.rows.values():
        stored = _curve(row, "offline/delta/i_c", "of a fixed first attempt", "t1")
        if stored.points:
            rows.append((row, [stored, _curve(row, "delta/i_c", "of the model's own", "t2")]))
    return Figure(
        "fixed",
        "Corrections of fixed and of own first attempts",
        "Second attempts after first ones of the base model, and after the model's own (paper, figure 4): at the end, "
        "of wrong first attempts the share put right, with 95% intervals; in training, episodes from wrong to right. "
        f"{BANDS}",
        "an evaluation that goes on from the base model's first attempts, e.g. evaluations.fixed={first_attempts: "
        "base}, or a row with stages.N.offline_fraction above 0",
        _corrections(sweep) + _panels(rows, ("step", "wrong, then right")),
    )


def _corrections(sweep: Sweep) -> list[Chart]:
    """A panel for the rows with an evaluation that goes on from the base model's first attempts."""
    rows = []
    for row in sweep.rows.values():
        seeds = after_fixed(row)
        marks = measured(seeds, "rate/fix"), measured([result.final for result in row.results.values()], "rate/fix")
        if marks[0]:
            rows.append((row.title, f"{len(seeds)} seed{'s' * (len(seeds) > 1)}", [("t1", marks[0]), ("t2", marks[1])]))
    legend = [("t1", "of a fixed first attempt"), ("t2", "of the model's own")]
    return [intervals("Wrong first attempts put right", "After training.", rows, legend)] if rows else []


SPENT = {
    "parallel": ("t1", "first attempts alone"),
    "sequential": ("won", "chains, by their last attempts"),
    "mixed": ("t2", "chains, by all their attempts"),
}


def _evaluations(row: Row, key: str) -> list[Metrics]:
    """Those of its runs that have a metric."""
    found = (evaluation(row, result, key) for result in row.results.values())
    return [metrics for metrics in found if metrics is not None]


def _with_intervals(seeds: Sequence[Metrics], pattern: str, name: str, style: str) -> Series:
    """Points whose x is the number in the metric's key."""
    points: list[Point] = []
    band = []
    for key in dict.fromkeys(key for metrics in seeds for key in metrics):
        match, found = re.fullmatch(pattern, key), measured(seeds, key)
        if match and found:
            points.append((float(match[1]), found.value))
            band.append((float(match[1]), found.low, found.high))
    return Series(name, style, sorted(points), sorted(band))


def _scaling(sweep: Sweep) -> Figure:
    rows, ns = [], set()
    for row in sweep.rows.values():
        seeds = _evaluations(row, "scaling/parallel@2")
        lines = [_with_intervals(seeds, rf"scaling/{way}@(\d+)", name, style) for way, (style, name) in SPENT.items()]
        if max(len(line.points) for line in lines) > 1:
            rows.append((row, lines))
            ns |= {x for line in lines for x, _ in line.points}
    return Figure(
        "scaling",
        "Majority votes of more attempts",
        "Right answers where so many attempts vote: side by side, or as chains of two (paper, figure 1). Shades are "
        "95% intervals.",
        "an evaluation of several samples, e.g. evaluations.sampled={samples: 8, temperature: 0.7}",
        _panels(rows, ("attempts a problem", "right answers"), log_x=True, x_ticks=sorted(ns)),
    )


def _attempts(sweep: Sweep) -> Figure:
    def draw(row: Row, name: str, style: str) -> Series:
        seeds = _evaluations(row, "acc/t3")
        return _with_intervals(seeds, r"acc/t(\d+)", name, style)

    rows = _beside_reference(sweep, draw)
    ticks = sorted({x for _, lines in rows for line in lines for x, _ in line.points})
    return Figure(
        "attempts",
        "Right answers at each of many attempts",
        "Of one chain (paper, figure 8). Shades are 95% intervals.",
        "an evaluation of three attempts or more, e.g. evaluations.ten={attempts: 10}",
        _panels(rows, ("attempt", "right answers"), x_ticks=ticks),
    )


def as_file(figure: Figure) -> str:
    """The figure as the text of an SVG file that needs nothing else: panels side by side under a title and a legend."""
    columns = min(COLUMNS, len(figure.charts))
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    head, y = _words(MARGIN, MARGIN + 14.0, figure.title, 60, "title"), MARGIN + 14.0
    y += 22 * (len(head) - 1) + 20
    lines = _words(MARGIN, y, figure.note, 118, "note")
    head, y = [*head, *lines], y + 16 * len(lines) + 4
    drawn, y = _legend(figure.legend, width, y)
    head += drawn
    for begin in range(0, len(figure.charts), columns):
        panels = figure.charts[begin : begin + columns]
        words = [(textwrap.wrap(p.title, 46) or [""], textwrap.wrap(p.note, 60)) for p in panels]
        room = max(19 * len(titles) + 16 * len(notes) for titles, notes in words) + 8
        for place, panel in enumerate(panels):
            x = MARGIN + place * (WIDTH + GAP)
            named = _words(x, y + 14, panel.title, 46, "panel")
            head += [*named, *_words(x, y + 14 + 19 * len(named), panel.note, 60, "note")]
            head.append(_placed(panel.svg, x, y + room))
        y += room + max(_height(panel.svg) for panel in panels) + 28
    content = [element("style", Markup(_style())), element("title", figure.title)]
    content.append(element("rect", width=width, height=y, fill="#ffffff"))
    size = {"xmlns": "http://www.w3.org/2000/svg", "width": width, "height": y, "viewBox": f"0 0 {width} {y:g}"}
    label = f"{figure.title}. {figure.note}"
    return _NO_XML.sub("�", str(element("svg", *content, *head, **size, role="img", aria_label=label))) + "\n"


def _words(x: float, y: float, words: str, most: int, style: str) -> list[Markup]:
    """Text in lines of `most` letters."""
    step = {"title": 22, "panel": 19}.get(style, 16)
    return [text(x, y + step * k, line, class_=style) for k, line in enumerate(textwrap.wrap(words, most))]


def _legend(legend: Sequence[tuple[str, str]], width: float, y: float) -> tuple[list[Markup], float]:
    """The entries in as many lines as they take, and where what comes next begins."""
    drawn: list[Markup] = []
    x = float(MARGIN)
    for style, name in legend:
        name = textwrap.shorten(name, 60, placeholder="…") or name[:59]
        room = 40 + 7 * len(name)
        if x > MARGIN and x + room > width:
            x, y = float(MARGIN), y + 18
        drawn.append(element("path", d=f"M{x:g} {y - 4:g}h16", class_=f"line {style}"))
        drawn.append(text(x + 22, y, name, class_="note"))
        x += room
    return drawn, y + (22 if legend else 6)


def _height(svg: Markup) -> float:
    found = re.search(r'viewBox="0 0 \d+ ([\d.]+)"', svg)
    assert found is not None, "every chart says its size"
    return float(found[1])


def _placed(svg: Markup, x: float, y: float) -> Markup:
    size = Markup('<svg x="{:g}" y="{:g}" width="{:g}" height="{:g}" ').format(x, y, WIDTH, _height(svg))
    return Markup(svg.replace("<svg ", size, 1))


def _style() -> str:
    """The page's own style of charts with its colours by day, since a file lies on paper of its own."""
    colours = dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", text_of("report.css")))
    rules = re.sub(r"var\(--([\w-]+)\)", lambda name: colours[name[1]], text_of("charts.css"))
    rules = re.sub(r"light-dark\((#\w+), #\w+\)", r"\1", rules)
    return (
        f'svg {{ font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}\n{rules}'
        f"svg text.title {{ font-size: 18px; font-weight: 600; fill: {colours['ink']}; }}\n"
        f"svg text.panel {{ font-size: 14px; font-weight: 600; fill: {colours['ink']}; }}\n"
        f"svg text.note {{ font-size: 12px; fill: {colours['soft']}; }}\n"
    )
