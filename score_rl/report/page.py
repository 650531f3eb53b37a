"""Puts the parts of a report together into one page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

import score_rl
import score_rl.report.parts as parts
from score_rl.report.differences import differences
from score_rl.report.source import Evaluation, Run
from score_rl.report.summary import Summary, summarise
from score_rl.report.text import finalize, script_json
from score_rl.report.transcripts import Packed, pack, share_room
from score_rl.report.verdict import judge
from score_rl.run import stage_plan

MOST_FLAGS = 12
SCRIPTS = ("diff.js", "text.js", "attempts.js", "report.js")


class Counted(NamedTuple):
    """What is kept of the episodes of each evaluation of all runs, by run and name."""

    summaries: dict[tuple[str, str], Summary]
    packed: dict[tuple[str, str], Packed]


def compose(runs: Sequence[Run], most_bytes: int) -> str:
    """The page as HTML, with transcripts until it is `most_bytes` long.

    Raises:
        DataError: an evaluation's file cannot be read.
    """
    counted = _count(runs, most_bytes)
    css, script = style(), "".join(map(text_of, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {digest_of(script)}; style-src {digest_of(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = template_of("page.html")
    content: dict[str, Any] = {
        "title": ", ".join(run.name for run in runs),
        "policy": policy,
        "css": Markup(css),
        "script": Markup(script),
        "views": [_view(run, counted, f"r{place}-" if len(runs) > 1 else "") for place, run in enumerate(runs)],
        "five": list(parts.FIVE.values()),
        "level": 2 if len(runs) == 1 else 3,
        "version": score_rl.__version__,
        **(_compared(runs, counted) if len(runs) > 1 else {}),
    }
    # Its size without transcripts, but with all that is said about those left out, tells how many fit.
    bare = template.render(**content, **_transcripts(runs, {name: p.within(0) for name, p in counted.packed.items()}))
    room = most_bytes - len(bare.encode("utf-8")) - 100 * len(counted.packed)
    return str(template.render(**content, **_transcripts(runs, share_room(counted.packed, room))))


def _count(runs: Sequence[Run], room: int) -> Counted:
    """Reads one evaluation after the other, so that only one is held at a time."""
    counted = Counted({}, {})
    for run in runs:
        for evaluation in (*run.evaluations, *run.others):
            episodes = evaluation.episodes()
            if episodes:
                counted.summaries[run.name, evaluation.name] = summarise(episodes)
                counted.packed[run.name, evaluation.name] = pack(episodes, evaluation.kl(), room)
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
        "made": _made(run),
        "table": parts.table(run.evaluations),
        "others": parts.table(run.others),
        "flows": parts.flows(run.evaluations, summaries),
        "flags": flagged[:MOST_FLAGS],
        "more_flags": len(flagged[MOST_FLAGS:]),
        "curves": parts.curves(run, flagged),
        "rewriting": parts.rewriting(run.evaluations, summaries),
        "more": [*parts.over_attempts(every), *parts.over_tokens(every), *parts.over_samples(every)],
        "groups": parts.by_field(every),
        "config": run.settings.dump(),
        "environment": json.dumps(run.environment, indent=1) if run.environment else "",
        "numbers": [(e.name, [(key, _plain(value)) for key, value in e.metrics.items()]) for e in every],
    }


def _made(run: Run) -> str:
    """What was trained on what, in a line."""
    settings = run.settings
    steps = sum(settings.stages[index].steps for _, index in stage_plan(settings))
    return f"Model {settings.model.path}, data {settings.data.source}, {steps:,} steps, seed {settings.seed}."


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _transcripts(runs: Sequence[Run], packed: Mapping[tuple[str, str], Packed]) -> dict[str, Any]:
    """What the script needs to know of each evaluation, and their data, in the same order."""
    index, episodes = [], []
    alone = len(runs) == 1
    for run in runs:
        for evaluation in (*run.evaluations, *run.others):
            found = packed.get((run.name, evaluation.name))
            if found is None:
                continue
            index.append(
                {
                    "key": evaluation.name if alone else f"{run.name}/{evaluation.name}",
                    "title": evaluation.title if alone else f"{run.name}: {evaluation.title}",
                    "samples": found.samples,
                    "notes": _left_out(evaluation, found),
                    "chosen": bool(run is runs[0] and run.evaluations and evaluation is run.evaluations[-1]),
                }
            )
            episodes.append(found.data)
    return {"index": script_json(index), "episodes": episodes}


def _left_out(evaluation: Evaluation, packed: Packed) -> list[str]:
    notes = []
    if packed.episodes < packed.all_episodes:
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
    return {"last_lines": lines, "pairs": differences(runs, counted.summaries)}


def template_of(name: str) -> Any:
    """A template of this package, which escapes all that it is given."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    env = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        loader=FunctionLoader(text_of),
    )
    return env.get_template(name)


def text_of(name: str) -> str:
    """A file that lies beside this one."""
    return files("score_rl.report").joinpath(name).read_text(encoding="utf-8")


def style() -> str:
    """The style sheet of a page with charts."""
    return text_of("report.css") + text_of("charts.css")


def digest_of(text: str) -> str:
    """What a content security policy allows an inline script or style by."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
