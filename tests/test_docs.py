"""The page that defines the metrics, compared with what a run writes: no key is missing there, and none is made up."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from graded import episode

from score_rl.episodes import Critique, Episode
from score_rl.evaluation import count
from score_rl.metrics import transitions
from score_rl.monitor import Watch
from score_rl.schema import EvalSettings, SamplingSettings
from score_rl.stats import Interval, paired_difference, wilson

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
PLACES = {"step", "traces", "offline", "validation", "eval", "sometimes"}
INTERVALS = {"Wilson", "Tango", "bootstrap", "none"}
WATCHED = [
    {"unchanged/t2": 1.0, "acc/t1": first, "delta/t1_t2": delta, "length/t1": length, "length/t2": length}
    | {"kl/t1": 9.0, "groups/no_signal": 1.0}
    for first, delta, length in [(0.5, 0.0, 100.0)] * 10 + [(0.1, 0.4, 10.0)] * 10
]


class Row(NamedTuple):
    key: str
    places: frozenset[str]
    unit: str
    interval: str
    definition: str


def documented() -> list[Row]:
    """The rows of the page's tables of keys."""
    rows = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| `") else []
        if len(cells) == 5:
            rows.append(Row(cells[0].strip("`"), frozenset(cells[1].split(", ")), *cells[2:]))
    return rows


def general(key: str) -> str:
    """The key with the numbers of its (last) attempt and of its draws left open, and the problems it is for."""
    key = re.sub(r"^by/\w+=.*?/(?=acc|delta|problems)", "by/FIELD=VALUE/", key)
    return re.sub(r"@\d+", "@n", re.sub(r"t\d+(?=@|$)", "tK", key))


def values(written: dict[str, object]) -> set[str]:
    """Keys of an evaluation, the ends of intervals left out."""
    return {general(key) for key in written if not key.endswith((".low", ".high"))}


def bounded(written: dict[str, object], end: str) -> set[str]:
    """Keys that have that end of an interval."""
    return {general(key.removesuffix(f".{end}")) for key in written if key.endswith(f".{end}")}


def written_while_training(run: Path) -> dict[str, set[str]]:
    """Keys of `metrics.jsonl` by the place that the page gives them, with their prefix removed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys: dict[str, set[str]] = {"step": set(), "offline": set(), "validation": set()}
    for key in {key for line in lines for key in line}:
        prefix, _, rest = key.partition("/")
        place = prefix if prefix in ("offline", "validation") else "step"
        keys[place].add(general(key if place == "step" else rest))
    return keys


def test_the_page_has_one_row_for_each_key_with_known_places_and_intervals():
    rows = documented()
    assert len(rows) > 30
    assert len({row.key for row in rows}) == len(rows)
    assert all(row.places <= PLACES and row.interval in INTERVALS for row in rows)
    assert all(row.unit and len(row.definition) > 5 for row in rows)


@pytest.mark.parametrize("place", ["step", "offline", "validation"])
def test_the_page_defines_the_keys_of_a_run_and_no_others(tiny_run, place):
    written = written_while_training(tiny_run)[place]
    if place == "step":
        # A run of a few steps cannot show every way to collapse, so the rest of the warnings is taken from their maker.
        watch = Watch(kl_band=0.5)
        warned = {general(key) for metrics in WATCHED for key in watch.look(metrics)}
        assert {key for key in written if key.startswith("watch/")} <= warned
        written |= warned
    rows = [row for row in documented() if place in row.places]
    assert written <= {general(row.key) for row in rows}
    assert written >= {general(row.key) for row in rows if "sometimes" not in row.places or place == "step"}


@pytest.mark.parametrize("name", ["base", "stage1", "stage2"])
def test_the_page_defines_the_keys_of_an_evaluation_and_no_others(tiny_run, name):
    written = json.loads((tiny_run / "eval" / f"{name}.json").read_text())
    rows = [row for row in documented() if "eval" in row.places or row.key.startswith("rate/")]
    assert values(written) | {"rate/fix", "rate/break"} == {row.key for row in rows}
    for end in ("low", "high"):
        wanted = {row.key for row in rows if row.interval != "none"}
        assert bounded(written, end) | {"rate/fix", "rate/break"} == wanted


def test_the_page_defines_what_only_some_evaluations_have():
    graded = []
    for number in range(20):
        for sample in range(2):
            made = episode("rwwr"[number % 4] + "rrw"[(number + sample) % 3], problem=f"p{number}", path=(sample, 0))
            graded.append(replace(made, problem=replace(made.problem, meta={"level": number % 2})))
    criticised = replace(graded[0].attempts[1], critique=Critique((1, 2), "No.", finished=True))
    graded[0] = replace(graded[0], attempts=(graded[0].attempts[0], criticised))
    settings = EvalSettings(samples=2, sampling=SamplingSettings(temperature=1.0))
    written = count(graded, settings, 0) | {"kl/t1": 0.0, "first_attempts": "a.jsonl"}
    rows = {row.key: row for row in documented() if {"eval", "sometimes"} & row.places}
    assert values(written) == rows.keys() - {"mcnemar_p/t1_tK"}
    for end in ("low", "high"):
        assert bounded(written, end) == {key for key in values(written) if rows[key].interval != "none"}


def test_each_interval_is_the_one_that_the_page_names(tiny_run):
    written = json.loads((tiny_run / "eval" / "stage2.json").read_text())
    lines = (tiny_run / "eval" / "stage2.jsonl").read_text().splitlines()
    episodes = [Episode.from_json(json.loads(line)) for line in lines]
    kinds = {row.key: row.interval for row in documented()}
    seen = set()
    for key in [key for key in written if f"{key}.low" in written and not key.startswith(("rate/", "scaling/"))]:
        found = Interval(written[key], written[f"{key}.low"], written[f"{key}.high"])
        if kinds[general(key)] == "Wilson":
            expected = wilson(round(written[key] * len(episodes)), len(episodes))
        else:
            expected = paired_difference(*transitions(episodes, 1, int(key[-1])), len(episodes))
        seen.add(kinds[general(key)])
        assert found == expected
    assert seen == {"Wilson", "Tango"}
