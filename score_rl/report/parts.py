"""The parts of a report on one run: tables and charts made from its metrics and from what was counted in episodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from score_rl.monitor import WINDOW
from score_rl.report.charts import Axes, Series, flow, histogram, intervals, line_chart, whole_percent
from score_rl.report.source import Evaluation, Run
from score_rl.report.summary import Summary
from score_rl.report.svg import Chart
from score_rl.report.text import number, percent, short

FIVE = {
    "acc/t1": ("acc@t1", "right at attempt 1"),
    "acc/t2": ("acc@t2", "right at attempt 2"),
    "delta/t1_t2": ("Δ(t1, t2)", "the difference"),
    "delta/i_c": ("i→c", "wrong, then right"),
    "delta/c_i": ("c→i", "right, then wrong"),
}
"""The paper's five metrics, with their names and what they say."""

WATCHED = {
    "watch/copying": "attempt 2 repeats attempt 1",
    "watch/farming": "attempt 1 falls while the difference rises",
    "watch/length_t1": "attempt 1 halved or doubled in length",
    "watch/length_t2": "attempt 2 halved or doubled in length",
    "watch/kl_t1": "KL of attempt 1 above its band",
    "watch/no_signal": "nearly all groups have equal rewards",
}


class Cell(NamedTuple):
    """A value with its interval, in percent; empty where it was not measured."""

    value: str
    interval: str


class Line(NamedTuple):
    """A row of the table of metrics."""

    title: str
    detail: str
    cells: list[Cell]


class Flag(NamedTuple):
    """Steps in which one warning of the collapse watch held without a break."""

    key: str
    stage: str
    first: int
    last: int

    @property
    def words(self) -> str:
        """What was seen."""
        return WATCHED.get(self.key, self.key.removeprefix("watch/"))


def table(evaluations: Sequence[Evaluation]) -> list[Line]:
    """The five metrics of evaluations, a row for each."""
    return [Line(e.title, _how(e.metrics), [cell(e.metrics, key) for key in FIVE]) for e in evaluations]


def cell(metrics: Mapping[str, Any], key: str) -> Cell:
    """A metric with its interval."""
    value, low, high = (number(metrics, f"{key}{end}") for end in ("", ".low", ".high"))
    if value is None:
        return Cell("", "")
    sign = key.startswith("delta/t1")
    if low is None or high is None:
        return Cell(percent(value, sign=sign), "")
    return Cell(percent(value, sign=sign), f"{percent(low, sign=sign)} to {percent(high, sign=sign)}")


def _how(metrics: Mapping[str, Any]) -> str:
    problems, samples, warm = (number(metrics, key) for key in ("problems", "samples", "temperature"))
    parts = [f"{problems:,.0f} {metrics.get('split', '')} problems".replace("  ", " ")] if problems else []
    if samples and samples > 1:
        parts.append(f"{samples:.0f} samples each")
    if warm is not None:
        parts.append("greedy" if warm == 0 else f"temperature {warm:g}")
    return ", ".join(parts)


def flows(evaluations: Sequence[Evaluation], summaries: Mapping[str, Summary]) -> list[Chart]:
    """Right and wrong from attempt 1 to attempt 2, for each evaluation that has both."""
    return [
        flow(e.title, summaries[e.name].flow) for e in evaluations if e.name in summaries and summaries[e.name].flow
    ]


def rewriting(evaluations: Sequence[Evaluation], summaries: Mapping[str, Summary]) -> list[Chart]:
    """Histograms of edit-distance ratios on one scale."""
    found = [(e, summaries[e.name]) for e in evaluations if e.name in summaries and summaries[e.name].measured]
    most = max((max(s.identical, *s.ratios) / s.measured for _, s in found), default=1.0)
    charts = []
    for evaluation, s in found:
        note = f"{percent(s.identical / s.measured)}% of second attempts are the first one unchanged."
        if s.too_long:
            note += f" {s.too_long:,} pairs are too long to compare and left out."
        charts.append(histogram(evaluation.title, note, s.identical, s.ratios, most))
    return charts


def flags(run: Run) -> list[Flag]:
    """What the collapse watch said, with the steps."""
    found: list[Flag] = []
    for row in run.steps:
        step, stage = int(number(row, "step") or 0), str(row.get("stage", ""))
        for key in sorted(k for k in row if k.startswith("watch/") and number(row, k)):
            place = next((i for i, f in enumerate(found) if f[:2] == (key, stage) and f.last == step - 1), None)
            if place is None:
                found.append(Flag(key, stage, step, step))
            else:
                found[place] = found[place]._replace(last=step)
    return found


def curves(run: Run, flagged: Sequence[Flag]) -> list[Chart]:
    """Training curves over all stages, with the steps that the collapse watch marked."""
    rows = [(step, row) for row in run.steps if (step := number(row, "step")) is not None]
    begins: dict[str, float] = {}
    for step, row in rows:
        if step > 0:
            begins.setdefault(str(row.get("stage", "")), step)
    stages = [(step, run.stages.get(label, label)) for label, step in begins.items()]

    def series(key: str, name: str, style: str) -> Series:
        points = [(step, value) for step, row in rows if (value := number(row, key)) is not None]
        checked = key.startswith("validation/")
        return Series(name, style, points, smooth=1 if checked else WINDOW)

    def chart(title: str, note: str, lines: list[Series], watched: tuple[str, ...] = (), **more: Any) -> Chart | None:
        marked = [(f.first, f.last) for f in flagged if f.key in watched]
        return line_chart(title, note, lines, Axes("step", stages=stages, flags=marked, **more))

    share: dict[str, Any] = {"y_format": whole_percent, "y_most": (0.0, 1.0)}
    nats: dict[str, Any] = {"y_format": short, "y_least": (0.0, 0.0), "y_most": (0.0, float("inf"))}

    def both(stem: str) -> list[Series]:
        return [series(f"{stem}{k}", f"attempt {k}", f"t{k}") for k in (1, 2)]

    changed = [("delta/t1_t2", "Δ(t1, t2)", "t2"), ("delta/i_c", "i→c", "won"), ("delta/c_i", "c→i", "lost")]
    unchanged, silent = series("unchanged/t2", "unchanged", "t2"), series("groups/no_signal", "no signal", "t2")
    sampled = f"Sampled on training problems; mean of the last {WINDOW} steps."
    long = ("watch/length_t1", "watch/length_t2")
    found = [
        chart("Right answers in training", sampled, both("acc/t"), ("watch/farming",), **share),
        chart("Right answers in validation", "Held-out problems.", both("validation/acc/t"), **share),
        chart("Change from attempt 1 to 2", sampled, [series(*c) for c in changed], y_format=whole_percent),
        chart("Unchanged answers", "Attempt 2 answers as attempt 1 did.", [unchanged], ("watch/copying",), **share),
        chart("KL to the reference", "Nats per attempt.", both("kl/t"), ("watch/kl_t1",), **nats),
        chart("Length", "Mean tokens per attempt.", both("length/t"), long, **nats),
        chart("Groups without a signal", "All samples have the same reward.", [silent], ("watch/no_signal",), **share),
    ]
    return [c for c in found if c is not None]


def over_attempts(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Accuracy at each attempt, for evaluations with more than two."""
    charts = []
    for e in evaluations:
        points, band = _with_band(e.metrics, r"acc/t(\d+)")
        if len(points) > 2:
            line = Series("accuracy", "t2", points, band)
            axes = Axes("attempt", whole_percent, y_most=(0.0, 1.0), x_ticks=[x for x, _ in points])
            charts.append(line_chart("Accuracy over attempts", _of(e), [line], axes))
    return [c for c in charts if c is not None]


def _of(evaluation: Evaluation) -> str:
    """Of which model a chart is, and how it was asked."""
    how, model = _how(evaluation.metrics), evaluation.title.partition(":")[0]
    return f"{model}, {how}." if how else f"{model}."


def over_tokens(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Accuracy of ways to spend tokens: many first attempts, long chains, or both (paper, Figure 1 right)."""
    charts = []
    for e in evaluations:
        lines, ticks = [], set()
        for style, (kind, words) in zip(("t1", "won", "t2"), _SPENDING.items(), strict=True):
            points, band = _with_band(e.metrics, rf"scaling/{kind}@(\d+)")
            cost = {n: number(e.metrics, f"scaling/{kind}@{n:g}.tokens") for n, _ in points}
            placed = [(tokens, y) for n, y in points if (tokens := cost[n])]
            bands = [(tokens, low, high) for n, low, high in band if (tokens := cost[n])]
            lines.append(Series(words, style, sorted(placed), sorted(bands) if kind == "mixed" else ()))
            ticks |= {x for x, _ in placed}
        axes = Axes("generated tokens a problem", whole_percent, y_most=(0.0, 1.0), log_x=True, x_ticks=_apart(ticks))
        if max(len(line.points) for line in lines) > 1:
            charts.append(line_chart("Accuracy against tokens", _of(e), lines, axes))
    return [c for c in charts if c is not None]


_SPENDING = {
    "parallel": "many first attempts, majority",
    "sequential": "chains, majority of last attempts",
    "mixed": "chains, majority of all attempts",
}


def _apart(values: set[float]) -> list[float]:
    """Of values on a logarithmic axis those far enough apart for their numbers."""
    kept: list[float] = []
    for value in sorted(values):
        if not kept or value > 1.45 * kept[-1]:
            kept.append(value)
    return kept


def over_samples(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """pass@n and maj@n, for evaluations with several samples a problem."""
    charts = []
    for e in evaluations:
        last = max((int(m[1]) for key in e.metrics if (m := re.fullmatch(r"pass/t(\d+)@\d+", key))), default=0)
        lines = []
        for k, style in dict.fromkeys([(1, "t1"), (last, "t2")]):
            for kind, look in (("pass", style), ("maj", f"{style} dashed")):
                points, _ = _with_band(e.metrics, rf"{kind}/t{k}@(\d+)")
                lines.append(Series(f"{kind}@n, attempt {k}", look, points))
        ns = {x for line in lines for x, _ in line.points}
        axes = Axes("samples n", whole_percent, y_most=(0.0, 1.0), log_x=True, x_ticks=sorted(ns))
        if len(ns) > 1:
            note = f"{_of(e)} pass@n: one of n is right; maj@n: the most frequent answer is."
            charts.append(line_chart("Several samples", note, lines, axes))
    return [c for c in charts if c is not None]


def by_field(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Accuracy at both attempts by the values of a field of the data, for the last evaluation that has any."""
    for e in reversed(evaluations):
        fields: dict[str, list[tuple[str, str]]] = {}
        for key in e.metrics:
            if found := re.fullmatch(r"by/([^=]+)=(.*)/acc/t1", key, flags=re.DOTALL):
                fields.setdefault(found[1], []).append((found[2], key.removesuffix("/acc/t1")))
        charts = []
        for name, values in fields.items():
            rows = []
            for value, stem in sorted(values):
                problems = number(e.metrics, f"{stem}/problems")
                marks = [(style, _ends(e.metrics, f"{stem}/acc/t{k}")) for k, style in ((1, "t1"), (2, "t2"))]
                rows.append((value, f"{problems:,.0f} problems" if problems else "", marks))
            charts.append(intervals(f"By {name}", e.title, rows, [("t1", "attempt 1"), ("t2", "attempt 2")]))
        if charts:
            return charts
    return []


def _ends(metrics: Mapping[str, Any], key: str) -> tuple[float, float, float] | None:
    value, low, high = (number(metrics, f"{key}{end}") for end in ("", ".low", ".high"))
    return None if value is None else (value, value if low is None else low, value if high is None else high)


def _with_band(
    metrics: Mapping[str, Any], pattern: str
) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """Points whose x is the number in the key, and intervals where the metrics have them."""
    points, band = [], []
    for key in metrics:
        found, ends = re.fullmatch(pattern, key), _ends(metrics, key)
        if found and ends:
            points.append((float(found[1]), ends[0]))
            if number(metrics, f"{key}.low") is not None:
                band.append((float(found[1]), ends[1], ends[2]))
    return sorted(points), sorted(band)
