"""The settings files of two earlier programs, rebuilt from what is known of them, become recipes that train."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from their_settings import FILES, TARGETS, WORDS, by571, vityavitalich

from score_rl.cli import main
from score_rl.cli.convert import import_config as command
from score_rl.errors import ConfigError
from score_rl.prior import import_config
from score_rl.prior.by571 import By571
from score_rl.prior.conversion import Line, leaf_names, shorten
from score_rl.prior.vityavitalich import VityaVitalich
from score_rl.settings import load, parse, parse_yaml
from score_rl.train import Trainer


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes their file into an empty directory, with `2e-5` as people write it, without quotes."""
    monkeypatch.chdir(tmp_path)

    def file(content: dict[str, object]) -> Path:
        path = tmp_path / "theirs.yaml"
        path.write_text(yaml.safe_dump(content).replace("'2e-5'", "2e-5").replace("'5e-6'", "5e-6"))
        return path

    return file


@pytest.fixture
def data(tmp_path) -> Path:
    """A small data set here, with the columns of all the files."""
    directory = tmp_path / "data"
    directory.mkdir()
    number = 0
    for part, size in (("train", 40), ("test", 8)):
        rows = []
        for _ in range(size):
            number += 1
            answer = f"{number} + 1 = {number + 1}\n#### {number + 1}"
            question = f"{number} + 1"
            rows.append(
                {"question": question, "answer": answer, "problem": question, "unique_id": f"{part}/{number}"}
                | {"final_answer_solution": rf"so \boxed{{{number + 1}}}"}
            )
        (directory / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def line(made, key: str) -> Line:
    (found,) = [line for line in made.lines if line.key == key]
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_theirs_has_a_line_and_the_recipe_reads_back(write, data, name):
    made = import_config(write(FILES[name]), [f"data.source={data}"])
    schema = By571 if "by571" in name else VityaVitalich
    assert sorted({line.key for line in made.lines if line.key[0] != "("}) == sorted(leaf_names(schema))
    assert all(line.kind != "refused" for line in made.lines)
    assert all(line.note for line in made.lines if line.kind != "same")
    assert parse(parse_yaml(made.recipe(), "recipe"), "recipe") == made.settings()


@pytest.mark.parametrize("name", FILES)
def test_each_file_trains_two_steps(write, data, tiny_model, name):
    local = [f"data.source={data}", f"model.path={tiny_model}", "model.quantize=null", "optim.kind=adamw"]
    local += ["model.lora={rank: 2}"] if "older" not in name else []
    Path("recipe.yaml").write_text(import_config(write(FILES[name]), local).recipe())
    short = ["chat.system=null", "chat.instruction=again", "eval.max_new_tokens=4", "model.dtype=auto"]
    short += ["chat.max_prompt_tokens=64"]  # the small model takes 128 in all
    settings = load("recipe.yaml", short)
    for i in range(len(settings.stages)):
        short += [f"stages.{i}.steps={2 if len(settings.stages) == 1 else 1}", f"stages.{i}.max_new_tokens=[4, 4]"]
    results = Trainer(load("recipe.yaml", short), Path("run")).train()
    assert list(results) == ["base", *(stage.label for stage in settings.stages)]
    lines = [json.loads(text) for text in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert results["base"]["problems"] == 8


def test_by571_gsm8k_becomes_this_recipe(write):
    made = import_config(write(FILES["by571 gsm8k"]), train_rows=7473)
    stages = {"branch": [1, 1], "max_new_tokens": [840, 840], "sampling": {"temperature": 0.6}, "beta1": 0.01}
    stages |= {"problems": 32, "length_norm": "sequence", "lr": 2e-5, "advantage": "none", "kl": {"estimator": "k2"}}
    # 5% of 7,473 validate, 373; the other 7,100 are 221.9 steps of 32
    assert made.settings().model_dump(exclude_unset=True) == {
        "name": "score-gsm8k",
        "seed": 3407,
        "model": {
            "path": "Qwen/Qwen3-0.6B",
            "dtype": "bfloat16",
            "quantize": None,
            "lora": {"rank": 16, "alpha": 16, "dropout": 0.0, "targets": TARGETS},
            "gradient_checkpointing": True,
        },
        "data": {
            "source": "openai/gsm8k",
            "config": "main",
            "revision": None,
            "question_field": "question",
            "answer_field": "answer",
            "splits": {"train": "train[:-373]", "validation": "train[-373:]", "test": "test[:200]"},
        },
        "chat": {"system": WORDS["system"], "instruction": WORDS["self_correction"], "max_prompt_tokens": 1024},
        "reward": {"fn": "format_and_match", "extractor": "gsm8k_hash"},
        "stages": [
            {"kind": "stage1", "steps": 222, "beta2": 0.1, **stages},
            {"kind": "stage2", "steps": 222, "alpha": 10.0, "bonus_on": "correct", **stages},
        ],
        "optim": {"kind": "adamw_8bit", "weight_decay": 0.01, "max_grad_norm": 1e9},
        "train": {"checkpoint_every": 50, "select": "last"},
        "eval": {"problems": 200, "max_new_tokens": 840, "sampling": {"temperature": 0.0}},
    }


def test_vityavitalich_with_lora_becomes_this_recipe(write):
    made = import_config(write(FILES["vityavitalich newer"]), processes=2)
    content = made.settings().model_dump(exclude_unset=True)
    # 1 x 4 x 2 processes are 8 questions a step; 100 episodes are 12.5 steps
    assert content["stages"] == [
        {
            "kind": "stage1",
            "problems": 8,
            "branch": [1, 1],
            "steps": 13,
            "max_new_tokens": [1024, 1024],
            "sampling": {"temperature": 0.9},
            "beta1": 0.1,
            "beta2": 0.2,
            "kl": {"estimator": "k1", "placement": "reward"},
            "advantage": "none",
            "length_norm": "none",
            "lr": 5e-5,
            "schedule": "cosine",
            "warmup_steps": 100,
        }
    ]
    assert content["model"]["lora"] == {"rank": 32, "alpha": 8, "dropout": 0.1, "targets": TARGETS}
    assert content["data"]["splits"] == {"train": "train[:95%]", "validation": "train[95%:]", "test": "test"}
    assert content["reward"] == {"fn": "math_acc", "options": {"mode": "final"}}
    assert content["train"] == {"checkpoint_every": 1, "select": "last"}
    # after 13 of 100 steps of warm-up the rate is 13 / 101 of itself
    assert line(made, "num_warmup_steps").note == "longer than the 13 steps: the rate ends at 13% of itself"
    assert line(made, "lora_dropout").kind == "differs"
    assert "no gradient reaches attempt 1" in line(made, "init_kl_coef").note


def test_vityavitalich_stage_2_trains_the_whole_model_with_one_beta1(write):
    made = import_config(write(FILES["vityavitalich older"]))
    (stage,) = made.settings().stages
    assert (stage.kind, stage.alpha, stage.beta1, stage.problems, stage.steps) == ("stage2", 0.5, 0.1, 2, 500)
    assert made.settings().model.lora is None
    assert line(made, "init_kl_coef").kind == "differs"
    assert line(made, "lora_rank").kind == "left out"


@pytest.mark.parametrize(
    ("key", "value", "kind", "target"),
    [
        ("train.length_norm", "constant", "same", "stages.*.length_norm=constant"),
        ("train.checkpoint_every", 7, "same", "train.checkpoint_every=7"),
        ("reward.fn", "exact_match", "same", "reward.fn=exact_match"),
        ("reward.fn", "strict_format_and_match", "differs", "reward.fn=strict_format_and_match"),
        ("prompts.system", "", "same", "chat.system=null"),
        ("dataset.revision", "refs/convert/parquet", "same", "data.revision=refs/convert/parquet"),
        ("model.load_in_4bit", True, "same", "model.quantize=4bit"),
        (
            "train.max_new_tokens_attempt2",
            500,
            "differs",
            "stages.*.max_new_tokens=[840, 500], eval.max_new_tokens=840",
        ),
        ("train.stage2_epochs", 3, "differs", "stages.1.steps=6"),
    ],
)
def test_by571_keys(write, key, value, kind, target):
    made = import_config(write(by571("gsm8k", **{key: value})), train_rows=60)
    found = line(made, key)
    assert (found.kind, found.target) == (kind, target)
    made.settings()


def test_a_bonus_on_a_reward_of_right_and_wrong_alone_is_the_same_here(write):
    made = import_config(write(by571("gsm8k", **{"reward.fn": "exact_match"})), train_rows=60)
    assert line(made, "train.alpha").kind == "same"
    assert "bonus_on" not in made.settings().stages[1].model_fields_set
    shaped = import_config(write(FILES["by571 gsm8k"]), train_rows=60)
    assert "stages.1.bonus_on=reward" in line(shaped, "train.alpha").note


def test_one_split_is_cut_into_three(write, data):
    content = by571("gsm8k", **{"dataset.split": "train", "dataset.test_split_size": 10})
    made = import_config(write(content), train_rows=105)
    splits = made.settings().data.splits
    # 10 of 105 rows are the test split, a twentieth of the other 95 validates, and 91 train, in 3 steps of 32
    assert (splits.train, splits.validation, splits.test) == ("train[10:-4]", "train[-4:]", "train[:10]")
    assert made.settings().stages[0].steps == 3


def test_a_copy_with_its_own_validation_part_is_not_cut(write, data):
    rows = (data / "test.jsonl").read_text().replace(" + 1", " + 2")
    (data / "validation.jsonl").write_text(rows)
    settings = import_config(write(FILES["by571 gsm8k"]), [f"data.source={data}"]).settings()
    assert (settings.data.splits.train, settings.data.splits.validation) == ("train", "validation")
    assert (settings.data.config, settings.stages[0].steps) == (None, 2)  # 40 rows, 32 a step


def test_data_that_is_given_whole_is_taken_as_it_is(write):
    options = "data={source: arithmetic, options: {digits: 3, train: 100, validation: 4, test: 4}}"
    settings = import_config(write(FILES["by571 gsm8k"]), [options]).settings()
    assert settings.data.source == "arithmetic"
    assert settings.stages[0].steps == 4  # 100 rows, 32 a step


def test_splits_that_are_given_are_counted_and_not_cut(write, data):
    splits = "data.splits={train: 'train[:33]', validation: 'train[33:]', test: test}"
    settings = import_config(write(FILES["by571 gsm8k"]), [f"data.source={data}", splits]).settings()
    assert settings.data.splits.train == "train[:33]"
    assert settings.stages[0].steps == 2  # 33 rows, 32 a step
    older = import_config(write(FILES["vityavitalich older"]), [f"data.source={data}", splits]).settings()
    assert older.data.splits.train == "train[:33]"
    with pytest.raises(ConfigError, match="the training rows must be counted"):  # they are on the hub
        import_config(write(FILES["by571 gsm8k"]), [splits]).settings()


def test_a_copy_whose_parts_are_called_otherwise_is_refused(write, data):
    (data / "train.jsonl").rename(data / "train_2k.jsonl")
    for name in ("by571 gsm8k", "vityavitalich newer"):
        with pytest.raises(ConfigError, match=r"no part 'train' \(found: test, train_2k\); say with data.splits what"):
            import_config(write(FILES[name]), [f"data.source={data}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"train.stage1_epochs=1: the training rows must be counted: --train-rows N, .*; else set stages.0.steps="),
        (
            {"dataset.split": "train"},
            r"dataset.split=train: to cut it, its rows must be counted: --train-rows N; else set data.splits=...",
        ),
        (
            {"reward.fn": "format_and_mach"},
            r"not shipped with theirs; did you mean format_and_match\?; else set reward.fn",
        ),
        (
            {"reward.answer_extractor": "mine"},
            r"reward.answer_extractor=mine: not shipped .* else set reward.extractor",
        ),
        ({"train.generation_temperature": 0}, r"greedy, .*; else set stages.0.sampling.temperature=... stages.1"),
        ({"model.chat_template": "qwen-2.5"}, r"model.chat_template=qwen-2.5: Unsloth would .*; else set model.path"),
    ],
)
def test_what_has_no_equal_is_refused_and_names_what_to_set(write, changes, message):
    made = import_config(write(by571("gsm8k", **changes)))
    with pytest.raises(ConfigError, match=message):
        made.settings()


def test_an_override_answers_for_what_has_no_equal(write, data):
    content = by571("gsm8k", **{"reward.fn": "mine", "train.generation_temperature": 0})
    mine = ["reward.fn=exact_match", "stages.0.sampling.temperature=0.5", "stages.1.sampling.temperature=0.8"]
    made = import_config(write(content), [f"data.source={data}", *mine])
    settings = made.settings()
    assert (settings.reward.fn, settings.stages[1].sampling.temperature) == ("exact_match", 0.8)
    assert "# - reward.fn: not shipped with theirs" in made.recipe()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            by571("gsm8k", **{"train.lerning_rate": 1.0}),
            {},
            r"unknown key train.lerning_rate; did you mean train.learning",
        ),
        (vityavitalich("older", stage2_alfa=1), {}, r"unknown key stage2_alfa; did you mean stage2_alpha\?"),
        ({"model": {"name": "x"}, "run_name": "x"}, {}, "key wandb_project is missing; their program needs it too"),
        (by571("gsm8k", **{"train.alpha": "ten"}), {}, "train.alpha='ten': Input should be a valid number"),
        ({"epochs": 3}, {}, r"neither of BY571/SCoRe \(sections model, dataset, .*\) nor of VityaVitalich/SCoRe"),
        ({"name": "x", "stages": []}, {}, "has stages, so it is a recipe already; train it with score train"),
        (vityavitalich("older", train_stage=3), {}, "train_stage=3: Input should be 1 or 2"),
        (by571("gsm8k"), {"processes": 2}, "--processes 2: BY571/SCoRe has one process"),
        (vityavitalich("older"), {"train_rows": 2}, "--train-rows 2: VityaVitalich/SCoRe counts episodes"),
        (
            by571("gsm8k", **{"dataset.split": "train"}),
            {"train_rows": 150},
            "150 rows of 'train' leave none to train on",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_error(write, content, options, message):
    with pytest.raises(ConfigError, match=message):
        import_config(write(content), **options)


def test_a_list_or_no_file_is_an_error(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected keys and values, found list"):
        import_config(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        import_config(tmp_path / "gone.yaml")


def test_question_answering_reads_the_answer_behind_the_marker(write):
    content = vityavitalich("older", task_type="qa", evaluator_function="f1", evaluator_answer_marker="So:")
    settings = import_config(write(content)).settings()
    assert settings.reward.fn == "f1"
    assert settings.reward.options == {"mode": "final", "marker": "So:"}
    assert settings.chat.system is not None and "So:" in settings.chat.system


def test_a_task_or_a_reward_that_theirs_does_not_have_is_refused(write):
    for changes, message in (({"task_type": "maths"}, "did you mean math"), ({"evaluator_function": "bleu"}, "bleu")):
        with pytest.raises(ConfigError, match=message):
            import_config(write(vityavitalich("older", **changes))).settings()


def test_the_command_writes_the_recipe_and_a_table_of_all_keys(write, capsys):
    command(write(FILES["by571 gsm8k"]), None, Path("recipe.yaml"), 7473)
    out, err = capsys.readouterr()
    assert out == ""
    for key in leaf_names(By571):
        assert key in err
    for word in ("differs", "left out", "K3 in the loss", "stages.*.kl.estimator=k2", "(their default)"):
        assert word in err
    assert load("recipe.yaml").stages[1].steps == 222
    assert "# - train.length_norm: an attempt's length is what was drawn" in Path("recipe.yaml").read_text()


def test_the_command_prints_the_recipe_or_json(write, capsys):
    path = write(FILES["vityavitalich newer"])
    command(path)
    assert parse(parse_yaml(capsys.readouterr().out, "out"), "out").name == "test_lora"
    command(path, as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["program"] == "VityaVitalich/SCoRe"
    assert {key["key"] for key in printed["keys"]} >= set(leaf_names(VityaVitalich))
    assert printed["recipe"]["name"] == "test_lora"


def test_a_reward_that_does_not_exist_is_refused_before_anything_is_written(write):
    with pytest.raises(ConfigError, match=r"reward.fn=exact: unknown reward; did you mean exact_match"):
        command(write(FILES["by571 gsm8k"]), ["reward.fn=exact"], Path("recipe.yaml"), 100)
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize("arguments", [["import-config", "gone.yaml"], ["export", "gone", "-o", "out"]])
def test_the_commands_are_there_and_a_mistake_is_one_line(write, monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", ["score", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: gone") and err.count("\n") == 1


def test_values_are_shown_as_yaml_has_them():
    assert [shorten(value) for value in (True, None, 1.0, "a\nb", 1, 0)] == ["true", "null", "1.0", "a b", "1", "0"]
    assert len(shorten("x" * 100)) == 40


def test_it_loads_no_heavy_library(write):
    import subprocess

    code = (
        "import sys; from pathlib import Path; from score_rl.prior import import_config;"
        "import_config(Path('theirs.yaml'), train_rows=100).recipe();"
        "print([n for n in ('torch', 'transformers', 'peft', 'datasets') if n in sys.modules])"
    )
    write(FILES["by571 gsm8k"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
