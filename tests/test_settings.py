from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from score_rl.errors import ConfigError
from score_rl.schema import Settings
from score_rl.settings import differing_keys, load, override, parse, parse_yaml, recipe_names

NUMBERS = {
    "stages": [{"kind": "stage1", "steps": 3, "branch": [2, 2]}, {"kind": "stage2", "steps": 4, "branch": [2, 2]}]
}
CONTENT: dict[str, Any] = {"name": "tiny", **NUMBERS}


def with_stage(**fields: Any) -> dict[str, Any]:
    """One stage that is right apart from what `fields` changes."""
    stage = {"kind": "stage2", "steps": 1, "branch": [2, 2], **fields}
    stage.setdefault("max_new_tokens", [8] * len(stage["branch"]))
    return {"name": "tiny", "stages": [stage]}


def assigned(*assignments: str) -> Settings:
    content = yaml.safe_load(yaml.safe_dump(CONTENT))
    for assignment in assignments:
        override(content, assignment)
    return parse(content, "tiny.yaml")


def test_a_default_yields_to_the_recipe_and_the_recipe_to_an_override(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump({**CONTENT, "seed": 5, "optim": {"eps": 1e-6}}))
    from_recipe, changed = load(str(recipe)), load(str(recipe), ["seed=7"])
    assert (from_recipe.seed, changed.seed) == (5, 7)
    assert from_recipe.optim.eps == changed.optim.eps == 1e-6
    assert from_recipe.optim.max_grad_norm == 1.0  # the default beside a key that the recipe sets


def test_of_two_overrides_of_a_key_the_last_one_holds():
    assert assigned("seed=1", "seed=2").seed == 2


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_parses_and_is_named_as_its_file(name):
    assert load(name).name == name


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        pytest.param(
            "stages.1.steps=50", lambda s: (s.stages[0].steps, s.stages[1].steps) == (3, 50), id="a list item"
        ),
        pytest.param("stages.0.branch.1=5", lambda s: s.stages[0].branch == [2, 5], id="a number in a list"),
        pytest.param("stages.0.branch=[3, 4]", lambda s: s.stages[0].branch == [3, 4], id="a whole list"),
        pytest.param("stages.0.lr=1e-5", lambda s: s.stages[0].lr == 0.00001, id="1e-5 is a number"),
        pytest.param("stages.0.lr=3E-4", lambda s: s.stages[0].lr == 0.0003, id="3E-4 is a number"),
        pytest.param("stages.0.lr=.5e-3", lambda s: s.stages[0].lr == 0.0005, id=".5e-3 is a number"),
        pytest.param("stages.0.alpha_fix=", lambda s: s.stages[0].alpha_fix is None, id="nothing is null"),
        pytest.param("model.lora.rank=8", lambda s: s.model.lora.rank == 8, id="a key below one that was not set"),
        pytest.param("model.lora={}", lambda s: s.model.lora.rank == 16, id="defaults of one that was not set"),
        pytest.param("chat.instruction='a=b: c'", lambda s: s.chat.instruction == "a=b: c", id="text with signs"),
        pytest.param("model.path=/a b/c", lambda s: s.model.path == "/a b/c", id="a path with a blank"),
        pytest.param("data.options={digits: 3}", lambda s: s.data.options == {"digits": 3}, id="a mapping"),
    ],
)
def test_an_override_reaches(assignment, read):
    assert read(assigned(assignment))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", r"^seed: expected key\.path=value, e\.g\. stages\.1\.steps=50"),
        ("=3", r"^=3: expected key\.path=value"),
        ("stages.2.steps=1", r"^stages\.2\.steps: stages has items 0 to 1, not 2"),
        ("stages.first.steps=1", r"^stages\.first\.steps: stages has items 0 to 1, not first"),
        ("stages.-1.steps=1", r"^stages\.-1\.steps: stages has items 0 to 1, not -1"),
        ("name.first=1", r"^name\.first: name is 'tiny' and has no keys"),
        ("data.options=[1, ", r"^data\.options=\[1, :1: not valid YAML"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(assignment, message):
    with pytest.raises(ConfigError, match=message):
        assigned(assignment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sead=1", r"unknown key sead; did you mean seed\?"),
        ("trian.iterations=2", r"unknown key trian; did you mean train\?"),
        ("train.itterations=2", r"unknown key train\.itterations; did you mean train\.iterations\?"),
        ("stages.0.lrr=1.0", r"unknown key stages\.0\.lrr; did you mean stages\.0\.lr\?"),
        ("stages.1.kl.estimater=k1", r"unknown key stages\.1\.kl\.estimater; did you mean stages\.1\.kl\.estimator\?"),
        ("stages.0.sampling.temprature=1.0", r"did you mean stages\.0\.sampling\.temperature\?"),
        ("stages.0.adaptive_beta2={target: 0.1, rat: 0.2}", r"did you mean stages\.0\.adaptive_beta2\.rate\?"),
        ("model.lora.rnk=2", r"unknown key model\.lora\.rnk; did you mean model\.lora\.rank\?"),
        ("optim.zzz=2", r"unknown key optim\.zzz; known: kind, betas, eps, weight_decay, max_grad_norm"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(assignment, message):
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: .*{message}"):
        assigned(assignment)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        pytest.param("seed='1'", r"seed='1': .*valid integer", id="text is no number"),
        pytest.param("seed=1.0", r"seed=1\.0: .*valid integer", id="a fraction is no count"),
        pytest.param("seed=true", r"seed=True: .*valid integer", id="true is not 1"),
        pytest.param("seed=-1", r"seed=-1: .*greater than or equal to 0", id="a seed is not negative"),
        pytest.param("stages.0.lr=fast", r"stages\.0\.lr='fast': .*valid number", id="a word is no rate"),
        pytest.param("stages.0.lr=0.0", r"stages\.0\.lr=0\.0: .*greater than 0", id="a rate of zero"),
        pytest.param("optim.eps=.nan", r"optim\.eps=nan: .*finite", id="not a number"),
        pytest.param("stages.0.alpha=.inf", r"stages\.0\.alpha=inf: .*finite", id="infinity"),
        pytest.param("stages.0.steps=0", r"stages\.0\.steps=0: .*greater than 0", id="no steps"),
        pytest.param("stages.0.branch=[2, 0]", r"stages\.0\.branch\.1=0: .*greater than 0", id="no second attempts"),
        pytest.param("stages.0.branch=2", r"stages\.0\.branch=2: .*valid list", id="a number for a list"),
        pytest.param("name=yes", r"name=True: .*valid string", id="yes is no name"),
        pytest.param("model.gradient_checkpointing=1", r"checkpointing=1: .*valid boolean", id="1 is not true"),
        pytest.param("stages.0.kind=stage3", r"kind='stage3': Input should be 'stage1', 'stage2'", id="no such kind"),
        pytest.param("stages.0.sampling.top_p=1.5", r"top_p=1\.5: .*less than or equal to 1", id="top_p above 1"),
        pytest.param("stages=[]", r"stages=\[\]: .*at least 1 item", id="no stages"),
        pytest.param("stages.0={steps: 1}", r"key stages\.0\.kind is missing; set stages\.0\.kind=", id="no kind"),
        pytest.param("stages.0.name=../up", r"name='\.\./up': .*match pattern", id="a name that leaves the directory"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_key_and_value(assignment, message):
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: .*{message}"):
        assigned(assignment)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampling": {"top_p": 0.9}}, r"sampling\.top_p=0\.9, top_k=None, min_p=0 cut the distribution .*leave them"),
        ({"sampling": {"top_k": 5}}, r"top_k=5, min_p=0 cut the distribution"),
        ({"sampling": {"min_p": 0.1}}, r"min_p=0\.1 cut the distribution"),
        ({"sampling": {"temperature": 0.0}}, r"sampling\.temperature=0 draws every sample alike; use e\.g\. 1\.0"),
        ({"max_new_tokens": [8]}, "max_new_tokens has 1 entries and branch has 2; give one of each per attempt"),
        ({"kind": "single_turn"}, r"branch=\[2, 2\] has 2 attempts; single_turn has 1: branch=\[n\]"),
        ({"branch": [2]}, r"branch=\[2\] has 1 attempt; stage2 needs 2 or more: branch=\[n, m\]"),
        ({"kind": "stage1", "branch": [2, 1, 2]}, r"stage1 has 2 attempts; use kind substage for more"),
        ({"kind": "stage1", "gamma": 0.5}, r"gamma=0\.5: no credit may flow back to a pinned attempt"),
        ({"kind": "substage", "gamma": 0.5}, r"gamma belongs to stage2"),
        ({"kind": "stage1", "bonus_to": "all"}, r"bonus_to=all: stage1 has no bonus; it belongs to stage2"),
        (
            {"advantage": "sibling", "branch": [2, 1]},
            r"sibling needs branch\[-1\] >= 2, found branch=\[2, 1\]",
        ),
        ({"advantage": "rloo", "branch": [1, 1]}, r"advantage=rloo has no other attempt 1 .*\[1, 1\]"),
        ({"advantage": "grpo", "branch": [1, 1]}, r"advantage=grpo has no other attempt 1"),
        ({"advantage": "rloo", "branch": [1, 4]}, r"advantage=rloo has no other attempt 1 .*branch=\[1, 4\]"),
        ({"advantage": "rloo", "branch": [1, 4], "kind": "multi_turn"}, r"no other attempt 1 to compare"),
        ({"advantage": "sibling", "branch": [2, 1, 2]}, r"no other attempt 2 to compare .*branch=\[2, 1, 2\]"),
        (
            {"advantage": "batch_mean", "branch": [1, 2], "problems": 1},
            r"found problems=1, offline_fraction=0 and branch=\[1, 2\]; raise",
        ),
        (
            {"advantage": "batch_mean", "branch": [1, 2], "problems": 4, "offline_fraction": 0.75},
            r"found problems=4, offline_fraction=0.75 and branch=\[1, 2\]; raise",
        ),
        ({"kl": {"estimator": "exact", "placement": "reward"}}, r"use kl\.estimator=k1"),
        ({"adaptive_beta2": {"target": 0.1}}, r"adaptive_beta2 moves the pin of stage1 and substage; kind is stage2"),
        ({"offline_fraction": 0.5, "offline_attempts": 1}, r"offline_attempts=1 is fewer than branch\[0\]=2"),
    ],
)
def test_a_stage_whose_parts_do_not_fit_is_refused(fields, message):
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: stages\.0: .*{message}"):
        parse(with_stage(**fields), "tiny.yaml")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"kind": "stage1", "branch": [1, 4], "advantage": "sibling"}, id="a pinned attempt and its four"),
        pytest.param({"kind": "stage1", "branch": [1, 4], "advantage": "rloo"}, id="rloo behind a pinned attempt"),
        pytest.param({"branch": [1, 1], "advantage": "batch_mean"}, id="the paper's shape"),
        pytest.param({"branch": [1, 1], "advantage": "none"}, id="plain REINFORCE"),
        pytest.param({"kind": "single_turn", "branch": [4]}, id="one attempt"),
        pytest.param({"kind": "substage", "branch": [1, 1, 4], "advantage": "sibling"}, id="a sub-stage"),
        pytest.param({"kind": "multi_turn", "branch": [1, 2], "credit": "last"}, id="credit for the last one alone"),
        pytest.param({"kl": {"estimator": "k1", "placement": "reward"}}, id="the KL in the reward"),
    ],
)
def test_a_stage_whose_parts_fit_is_taken(fields):
    assert parse(with_stage(**fields), "tiny.yaml").stages[0].attempts == len(fields.get("branch", [2, 2]))


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["stages.1.kind=stage1"], r"the labels stage1, stage1; give each its own stages\.N\.name"),
        (["stages.0.name=eval"], r"stages\.N\.name=eval is taken by another part of the run directory"),
        (["stages.0.name=base"], r"stages\.N\.name=base is taken"),
        (["eval.split=validation"], r"eval\.split=validation is what train\.select=validation chooses on"),
    ],
)
def test_stages_and_evaluation_must_fit_together(assignments, message):
    with pytest.raises(ConfigError, match=rf"^tiny\.yaml: .*{message}"):
        assigned(*assignments)


def test_evaluating_on_validation_is_allowed_where_nothing_was_chosen_on_it():
    assert assigned("eval.split=validation", "train.select=last").eval.split == "validation"


@pytest.mark.parametrize("name", recipe_names())
def test_a_dumped_recipe_loads_back_as_the_same_object(name):
    settings = load(name, ["stages.0.lr=1e-5", "model.lora={}", "seed=3"])
    assert parse(parse_yaml(settings.dump(), "config.yaml"), "config.yaml") == settings


# Without controls and Unicode's own line ends: PyYAML writes those in a way that it reads back as blanks.
letters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), include_characters="\n\t")
words = st.text(letters, max_size=12) | st.sampled_from(
    ["1e-5", "3E4", "null", "yes", "- a", "a: b", "'", "012", "1:30", " "]
)


@given(name=words, instruction=words, options=st.dictionaries(words, words | st.integers() | st.none(), max_size=2))
def test_any_text_in_a_setting_survives_the_dump(name, instruction, options):
    content = {**CONTENT, "name": name, "chat": {"instruction": instruction}, "data": {"options": options}}
    settings = parse(content, "tiny.yaml")
    assert parse(parse_yaml(settings.dump(), "config.yaml"), "config.yaml") == settings


def test_differing_keys_name_each_setting_that_differs_and_no_other():
    new = assigned("stages.1.steps=9", "model.lora.rank=4", "data.options.digits=3", "stages.0.branch=[2, 4]")
    assert differing_keys(assigned(), assigned()) == []
    assert differing_keys(assigned(), new) == [
        "data.options.digits: 'unset' -> 3",
        "model.lora: None -> 'unset'",
        "model.lora.alpha: 'unset' -> 32",
        "model.lora.dropout: 'unset' -> 0.0",
        "model.lora.rank: 'unset' -> 4",
        "model.lora.targets: 'unset' -> 'all-linear'",
        "stages.0.branch: [2, 2] -> [2, 4]",
        "stages.1.steps: 4 -> 9",
    ]


def test_a_stage_more_is_seen_as_a_difference():
    content = {**CONTENT, "stages": [*CONTENT["stages"], {**CONTENT["stages"][1], "name": "again"}]}
    differing = differing_keys(assigned(), parse(content, "tiny.yaml"))
    assert "stages.2.name: 'unset' -> 'again'" in differing
    assert all(line.startswith("stages.2.") for line in differing)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("aritmetic", r"^aritmetic: no such recipe; did you mean arithmetic\?"),
        ("xyz", r"^xyz: no such recipe; shipped recipes: .*arithmetic.*\(or give the path of a \.yaml file\)"),
        ("missing.yaml", r"^missing\.yaml: no such file; shipped recipes: .*arithmetic"),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(recipe, message):
    with pytest.raises(ConfigError, match=message):
        load(recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"name: tiny\nseed: [1\n", r"tiny\.yaml:3: not valid YAML", id="a bracket left open"),
        pytest.param(b"- a\n- b\n", r"tiny\.yaml: expected keys and values, found list", id="a list"),
        pytest.param(b"", r"tiny\.yaml: expected keys and values, found NoneType", id="an empty file"),
        pytest.param(b"name: \xff\n", r"tiny\.yaml: cannot be read", id="another encoding"),
        pytest.param(b"name: !!python/object:os.system x\n", r"tiny\.yaml:1: not valid YAML", id="a Python object"),
    ],
)
def test_a_recipe_that_is_no_mapping_is_refused_by_file_and_line(tmp_path: Path, content, message):
    (tmp_path / "tiny.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(str(tmp_path / "tiny.yaml"))


def test_settings_cannot_be_changed_after_validation():
    with pytest.raises(ValueError, match="frozen"):
        assigned().seed = 1


def test_a_key_that_is_there_twice_is_refused_with_its_line():
    with pytest.raises(ConfigError, match=r"^mine\.yaml:3: not valid YAML \(key seed is there twice; keep one\)$"):
        parse_yaml("name: a\nseed: 1\nseed: 2\n", "mine.yaml")
