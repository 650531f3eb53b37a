"""Settings of a stage of traces: what is refused and how they are read, planned and shown on the page of baselines."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from test_traces import sft

from score_rl.errors import ConfigError
from score_rl.planning.costs import Prompts, stage_cost
from score_rl.schema import Settings
from score_rl.settings import parse, parse_yaml


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": 3.0}, r"alpha=3\.0: kind sft has no use for it; leave it out"),
        ({"gamma": 0.8}, r"gamma=0\.8: kind sft has no use"),
        ({"beta1": 0.01}, r"beta1=0\.01: kind sft has no use"),
        ({"offline_fraction": 0.5}, r"offline_fraction=0\.5: kind sft has no use"),
        ({"advantage": "rloo"}, r"advantage='rloo': kind sft has no use"),
        ({"reference": "stage_start"}, r"reference='stage_start': kind sft has no use"),
        ({"kind": "stage2", "rounds": 3}, r"rounds=3: kind stage2 has no use for it"),
        ({"kind": "stage1", "keep_correct": True}, r"keep_correct=True: kind stage1 has no use"),
        ({"rounds": 8}, r"rounds=8 is more than steps=7"),
        ({"traces": "pairs", "branch": [8], "max_new_tokens": [8]}, r"branch=\[8\] has 1 attempts; a pair has 2"),
        ({"traces": "pairs", "max_new_tokens": [8, 9]}, r"max_new_tokens=\[8, 9\]: traces=pairs .*one limit"),
        ({"keep_correct": True, "branch": [8], "max_new_tokens": [8]}, r"keep_correct=true: traces of one attempt"),
        ({"sampling": {"temperature": 0.0}}, r"sampling\.temperature=0 draws every sample alike"),
    ],
)
def test_what_a_stage_of_traces_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    content = {"name": "test", "stages": [{"kind": "sft", "steps": 7, "branch": [2, 2]} | fields]}
    with pytest.raises(ConfigError, match=rf"^a\.yaml: stages\.0: .*{message}"):
        parse(content, "a.yaml")


def test_settings_of_traces_are_read_as_they_were_written_and_know_no_reward_of_a_step() -> None:
    made = Settings(name="test", stages=[sft(rounds=2, credit="all")])
    assert made.stages[0].length_norm == "token" and made.stages[0].advantage == "none"
    assert sft().credit == "last" and sft(kind="multi_turn", advantage="none").credit == "all"
    assert parse(made.model_dump(mode="json"), "dump") == made
    content = made.model_dump(mode="json") | {"train": {"select": "train_reward"}}
    with pytest.raises(ConfigError, match=r"train\.select=train_reward: a stage of kind sft samples at the start"):
        parse(content, "a.yaml")


def test_a_step_of_traces_costs_no_reference_in_a_plan() -> None:
    made = Settings(name="test", stages=[sft(traces="pairs")])
    cost = stage_cost("sft", made.stages[0], made, Prompts(20.0, 24, 5, "given"))
    assert (cost.reference_passes, cost.scoring_passes, cost.episodes) == (0, 0, 64 * 2)


def test_every_stage_list_of_the_page_is_one_of_160_steps() -> None:
    page = (Path(__file__).parent.parent / "docs" / "baselines.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n)+", page.partition("## More attempts")[0], re.MULTILINE)
    found = []
    for block in blocks:
        stages = parse_yaml(textwrap.dedent(block), "baselines.md")
        alone = [stages] if "kind: stage1" in block else [[stage] for stage in stages]
        found += [parse({"name": "test", "stages": part}, "baselines.md").stages for part in alone]
    assert len(found) == 9
    assert {sum(stage.steps for stage in stages) for stages in found} == {160}
    assert {(stage.problems, stage.episodes // stage.problems, stage.lr) for stages in found for stage in stages} == {
        (64, 8, 3e-4),
        (64, 16, 3e-4),
    }
