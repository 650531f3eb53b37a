"""Puts the parts of a report together into one page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

import score_rl
from score_rl.report import parts
from score_rl.report.source import Evaluation, Run
from score_rl.report.summary import Summary, summarise
from score_rl.report.text import finalize, script_json
from score_rl.report.transcripts import Packed, pack
from score_rl.report.verdict import judge

MOST_FLAGS = 12
RESERVED_BYTES = 60_000
"""Room for what is on the page beside charts, tables and transcripts."""


class Counted(NamedTuple):
    """What is kept of the episodes of each evaluation of all runs, by run and name."""

    summaries: dict[tuple[str, str], Summary]
    packed: dict[tuple[str, str], Packed]


def compose(runs: Sequence[Run], room: int) -> str:
    """The page as HTML, with as many transcripts as fit into `room` bytes.

    Raises:
        DataError: an evaluation's file cannot be read.
    """
    counted = _count(runs, room - RESERVED_BYTES)
    views = [_view(run, counted, f"r{place}-" if len(runs) > 1 else "") for place, run in enumerate(runs)]
    index, episodes = _index(runs, counted)
    css, script = _file("report.css"), _file("diff.js") + _file("report.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return _template().render(
        title=", ".join(run.name for run in runs),
        policy=policy,
        css=Markup(css),
        script=Markup(script),
        index=script_json(index),
        episodes=episodes,
        views=views,
        five=list(parts.FIVE.values()),
        level=2 if len(runs) == 1 else 3,
        version=score_rl.__version__,
        **(_compared(runs, counted) if len(runs) > 1 else {}),
    )


def _count(runs: Sequence[Run], room: int) -> Counted:
    """Reads one evaluation after the other, the small ones first: what they leave of their share others can use."""
    every = [(run.name, evaluation) for run in runs for evaluation in (*run.evaluations, *run.others)]
    every = [item for item in every if item[1].size_bytes]
    every.sort(key=lambda item: item[1].size_bytes)
    counted = Counted({}, {})
    for place, (name, evaluation) in enumerate(every):
        episodes = evaluation.episodes()
        counted.summaries[name, evaluation.name] = summarise(episodes)
        packed = pack(episodes, evaluation.kl(), max(0, room) // (len(every) - place))
        counted.packed[name, evaluation.name] = packed
        room -= len(packed.data)
    return counted


def _view(run: Run, counted: Counted, prefix: str) -> dict[str, Any]:
    """What the template shows of a run."""
    summaries = {name: summary for (owner, name), summary in counted.summaries.items() if owner == run.name}
    every = [*run.evaluations, *run.others]
    flagged = parts.flags(run)
    return {
        "id": prefix,
        "name": run.name,
        "stages": run.stages,
        "verdict": judge(run, summaries),
        "table": parts.table(run.evaluations),
        "others": parts.table(run.others),
        "flows": parts.flows(run.evaluations, summaries),
        "flags": flagged[:MOST_FLAGS],
        "more_flags": len(flagged[MOST_FLAGS:]),
        "curves": parts.curves(run, flagged),
        "rewriting": parts.rewriting(run.evaluations, summaries),
        "attempts": parts.over_attempts(every),
        "tokens": parts.over_tokens(every),
        "samples": parts.over_samples(every),
        "groups": parts.by_field(every),
        "config": run.settings.dump(),
        "environment": json.dumps(run.environment, indent=1) if run.environment else "",
        "numbers": [(e.name, [(key, _plain(value)) for key, value in e.metrics.items()]) for e in every],
    }


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _index(runs: Sequence[Run], counted: Counted) -> tuple[list[dict[str, Any]], list[str]]:
    """What the script needs to know of each evaluation, and their data, in the same order."""
    index, episodes = [], []
    for run in runs:
        for evaluation in (*run.evaluations, *run.others):
            packed = counted.packed.get((run.name, evaluation.name))
            if packed is None:
                continue
            alone = len(runs) == 1
            index.append(
                {
                    "key": evaluation.name if alone else f"{run.name}/{evaluation.name}",
                    "title": _called(evaluation) if alone else f"{run.name}: {_called(evaluation)}",
                    "samples": packed.samples,
                    "notes": _left_out(evaluation, packed),
                    "chosen": bool(run is runs[0] and run.evaluations and evaluation is run.evaluations[-1]),
                }
            )
            episodes.append(packed.data)
    return index, episodes


def _called(evaluation: Evaluation) -> str:
    return evaluation.title if evaluation.title == evaluation.name else f"{evaluation.title} ({evaluation.name})"


def _left_out(evaluation: Evaluation, packed: Packed) -> list[str]:
    notes = []
    if not packed.complete:
        kept = f"{packed.episodes:,} of {packed.all_episodes:,} episodes"
        problems = f"{packed.problems:,} of {packed.all_problems:,} problems"
        notes.append(
            f"This page holds {kept} ({problems}, first samples first); the others are in "
            f"eval/{evaluation.file.name}, or make the page larger with score report --megabytes."
        )
    if packed.cut:
        notes.append(
            f"{packed.cut:,} very long attempts are cut in the middle; eval/{evaluation.file.name} has them whole."
        )
    return notes


def _compared(runs: Sequence[Run], counted: Counted) -> dict[str, Any]:
    lines = []
    for run in runs:
        if run.evaluations:
            line = parts.table(run.evaluations[-1:])[0]
            lines.append(line._replace(title=run.name, detail=f"{line.title}, {line.detail}"))
    return {"last_lines": lines, "differences": ""}


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    env = Environment(autoescape=True, undefined=StrictUndefined, finalize=finalize, trim_blocks=True)
    return env.from_string(_file("page.html"))


def _file(name: str) -> str:
    return files("score_rl.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
