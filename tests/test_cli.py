"""The command line: what it prints and returns, above all where the user has made a mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from score_rl.cli import main

SMALL = "data.options={digits: 4, train: 20, validation: 4, test: 4}"
TURN = "<{{ m.role }}>{{ m.content }}<end>"
LOOP = f"{{% for m in messages %}}{TURN}{{% endfor %}}{{% if add_generation_prompt %}}<assistant>{{% endif %}}"
SHORTENED = LOOP.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[:2] }}")
COUNTED = "{{ messages | length }}" + LOOP


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    """Runs the command line in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return run


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def refused(score, message: str, *arguments: object) -> None:
    """Asserts one line on standard error, exit code 2, nothing on standard output, and nothing written."""
    before = files()
    result = score(*arguments)
    assert len(result.errors) == 1, result.err
    assert message in result.errors[0]
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    assert files() == before


def test_a_wrong_key_is_one_line_and_nothing_else():
    # A process of its own: what a user sees, from the entry point on, without any library's noise.
    done = subprocess.run(
        [sys.executable, "-m", "score_rl", "train", "stages.0.lrr=1"], capture_output=True, text=True, check=False
    )
    assert done.stderr == "error: arithmetic: unknown key stages.0.lrr; did you mean stages.0.lr?\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_a_wrong_model_is_one_line_behind_the_progress(tmp_path):
    command = [sys.executable, "-m", "score_rl", "train", "model.path=gone", "-o", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    *progress, last = done.stderr.splitlines()
    assert [line.endswith(": loading") for line in progress] == [True]
    assert last == "error: model.path=gone: no such directory; give a transformers model directory or `embedded`"
    assert (done.returncode, done.stdout, list(tmp_path.iterdir())) == (2, "", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["stages.0.lrr=1"], "unknown key stages.0.lrr; did you mean stages.0.lr?", id="a wrong key"),
        pytest.param(["seed=one"], "seed='one': Input should be a valid integer", id="a wrong type"),
        pytest.param(["seed"], "seed: no such recipe", id="an override without a value"),
        pytest.param(["aritmetic"], "aritmetic: no such recipe; did you mean arithmetic?", id="a wrong recipe"),
        pytest.param(["gone.yaml"], "gone.yaml: no such file", id="a recipe file that is not there"),
        pytest.param(["data.source=gsm"], "data.source=gsm: neither a directory", id="an unknown data source"),
        pytest.param(["data.options.digits=2"], "digits=2 has too few problems for 55000", id="too few digits"),
        pytest.param(
            ["stages.0.branch=[2, 1]"],
            "stages.0: advantage=sibling needs branch[-1] >= 2, found branch=[2, 1]; use branch=[n, 2] or rloo",
            id="groups that do not fit",
        ),
        pytest.param(
            ["stages.1.sampling.top_p=0.9"],
            "stages.1: sampling.top_p=0.9, top_k=None, min_p=0 cut the distribution that the loss scores",
            id="sampling that does not match scoring",
        ),
        pytest.param(["--start-stage", 2], "--start-stage 2: starts from", id="a later stage without an adapter"),
        pytest.param(
            ["--resume-adapter", "gone"], "--resume-adapter gone: no such directory", id="an adapter that is not there"
        ),
        pytest.param(
            ["--start-stage", 3, "--resume-adapter", "."],
            "--start-stage 3: the recipe has 2 stages",
            id="a third of two stages",
        ),
    ],
)
def test_training_refuses_before_anything_is_loaded(score, arguments, message):
    refused(score, message, "train", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reward.fn=exact_mach"], "reward.fn=exact_mach: unknown reward; did you mean exact_match?"),
        (["reward.extractor=last_numbr"], "reward.extractor=last_numbr: unknown extractor; did you mean last_number?"),
        (["chat.system=Be brief.", "model.lora={targets: [gone]}"], "model.lora.targets=['gone']: Target modules"),
        (
            ["--resume-adapter", "empty"],
            "--resume-adapter empty: no config.json in it; give the directory of a saved model",
        ),
        (
            ["--resume-adapter", "empty", "model.lora={}"],
            "no adapter_model.safetensors in it; give the directory of a saved",
        ),
    ],
    ids=["an unknown reward", "an unknown extractor", "an unknown layer", "an empty adapter", "no adapter for lora"],
)
def test_training_refuses_what_does_not_go_with_the_model(score, tiny_model, arguments, message):
    Path("empty").mkdir()
    refused(score, message, "train", f"model.path={tiny_model}", SMALL, *arguments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("chat_template.jinja", None, "the tokenizer has no chat template", id="no chat template"),
        pytest.param(
            "chat_template.jinja",
            SHORTENED,
            "model does not render an assistant turn once and unchanged; set chat.history=template",
            id="a template that shortens earlier attempts",
        ),
        pytest.param(
            "chat_template.jinja",
            COUNTED,
            "model rewrites earlier turns once the conversation goes on, so contexts do not nest; "
            "set chat.history=template",
            id="a template that rewrites the beginning",
        ),
        pytest.param(
            "chat_template.jinja",
            "{% for m in %}",
            "model refuses the conversation",
            id="broken template",
        ),
        pytest.param("config.json", None, "no config.json in it", id="no config"),
        pytest.param("config.json", "{", "cannot be loaded", id="a broken config"),
        pytest.param("tokenizer.json", None, "cannot be loaded", id="no tokenizer"),
        pytest.param("tokenizer.json", "{", "cannot be loaded", id="a broken tokenizer"),
        pytest.param("model.safetensors", None, "cannot be loaded", id="no weights"),
        pytest.param("model.safetensors", "not tensors", "cannot be loaded", id="broken weights"),
    ],
)
def test_training_refuses_a_model_with(score, tiny_model, tmp_path, name, content, message):
    shutil.copytree(tiny_model, tmp_path / "model")
    if content is None:
        (tmp_path / "model" / name).unlink()
    else:
        (tmp_path / "model" / name).write_text(content)
    refused(score, message, "train", "model.path=model", SMALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "data.source=data: the train split is empty", id="no rows"),
        pytest.param(
            '{"question": "1", "answer": "1"}\n{"prompt": "1", "answer": "1"}\n',
            "data/train.jsonl:2: no field 'question' (fields: prompt, answer); set data.question_field",
            id="a row without question field",
        ),
        pytest.param('{"question": \n', "data/train.jsonl:1: not valid JSON", id="a line that is no JSON"),
    ],
)
def test_training_refuses_data_with(score, content, message):
    Path("data").mkdir()
    for split in ("train", "validation", "test"):
        Path("data", f"{split}.jsonl").write_text(content)
    refused(score, message, "train", "data.source=data", "data.options={}")


def test_training_refuses_a_directory_that_is_no_run(score):
    Path("papers").mkdir()
    Path("papers", "a.tex").write_text("")
    refused(score, "papers: not empty and no run (no config.yaml); choose another", "train", SMALL, "-o", "papers")
    refused(score, "papers: not empty and no run", "train", SMALL, "--fresh", "-o", "papers")


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_training_refuses_a_place_that_is_no_directory(score, place):
    Path("file").write_text("")
    refused(score, f"{place}: file is no directory; choose another one with -o", "train", SMALL, "-o", place)


@pytest.mark.skipif(not os.access("/proc", os.X_OK), reason="needs a directory that even root cannot write")
def test_training_refuses_a_directory_that_cannot_be_written(score, tiny_model):
    refused(score, "cannot be written", "train", f"model.path={tiny_model}", SMALL, "-o", "/proc/run")


def test_training_refuses_the_directory_of_a_run_with_other_settings(score, tiny_run):
    refused(score, "seed: 0 -> 5", "train", tiny_run / "config.yaml", "seed=5", "-o", tiny_run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "gone"], "model.path=gone: no such directory"),
        (["eval", "RUN", "--stage", "stage9"], "stage9 does not exist; the run has no such finished stage"),
        (["eval", "MODEL", "--stage", "base"], "is no run (no config.yaml in it)"),
        (["eval", "RUN", "eval.problem=3"], "unknown key eval.problem; did you mean eval.problems?"),
        (["eval", "MODEL", "--recipe", "gone"], "gone: no such recipe"),
        (["eval", "MODEL", "--samples", "2"], "eval: samples=2 with sampling.temperature=0 draws every sample alike"),
        (["eval", "MODEL", "--top-p", "2"], "eval.sampling.top_p=2.0: Input should be less than or equal to 1"),
        (["eval", "MODEL", "--data", "gone"], "data.source=gone: neither a directory"),
        (["eval", "MODEL", "--kl"], "--kl: writes a file beside the metrics; say where with -o"),
        (
            ["eval", "MODEL", "--kl", "-o", "a.json"],
            "has no reference; give a run with a finished stage, or an adapter",
        ),
        (["eval", "RUN", "--kl", "--stage", "base"], "--kl: the base model is the reference itself; give a run with"),
        (["eval", "MODEL", "--first-attempts", "gone.jsonl"], "gone.jsonl: cannot be read (No such file"),
        (["eval", "MODEL", "--first-attempts", "gone.jsonl", "-o", "a.json"], "gone.jsonl: cannot be read (No such"),
        (["eval", "MODEL", "--attempts", "1", "--first-attempts", "gone.jsonl"], "eval.attempts=1 corrects nothing"),
        (["solve", "gone", "1 - 1"], "model.path=gone: no such directory"),
    ],
)
def test_evaluating_and_solving_refuse(score, tiny_model, tiny_run, arguments, message):
    named = {"RUN": tiny_run, "MODEL": tiny_model}
    refused(score, message, *(named.get(argument, argument) for argument in arguments))


@pytest.mark.parametrize("arguments", [["train", "--nope"], ["eval", "embedded", "--attempts", "0"], ["evaluate"]])
def test_a_wrong_option_is_explained_with_exit_code_2(score, arguments):
    result = score(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_run_is_evaluated_into_its_eval_directory_and_on_standard_output(score, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    result = score("eval", "run", "--attempts", 2, "--json")
    metrics = json.loads(result.out)
    assert result.code == 0
    assert metrics == json.loads(Path("run/eval/stage2-test-2-attempts.json").read_text())
    assert (metrics["problems"], metrics["split"], metrics["temperature"]) == (8, "test", 0.0)
    assert metrics["delta/t1_t2"] == metrics["acc/t2"] - metrics["acc/t1"]
    assert len(Path("run/eval/stage2-test-2-attempts.jsonl").read_text().splitlines()) == 8
    assert json.loads(Path("run/eval/stage2.json").read_text())["acc/t3"] is not None  # the run's own is left alone


def test_an_evaluation_of_the_same_model_gives_what_the_run_has_stored(score, tiny_run):
    for stage in ("base", "stage1"):
        metrics = json.loads(score("eval", tiny_run, "--stage", stage, "-o", "out.json", "--json").out)
        assert metrics == json.loads((tiny_run / "eval" / f"{stage}.json").read_text())


def test_an_evaluation_that_could_not_be_written_is_refused_before_the_model_is_loaded(score):
    Path("file").write_text("")
    result = score("eval", "embedded", "--problems", "5", "-o", "file/x.json")
    assert result.code == 2
    assert result.err == "error: file: file is no directory; choose another one with -o\n"


def test_an_evaluation_prints_a_table_in_percent(score, tiny_run):
    result = score("eval", tiny_run, "--attempts", 2, "-o", "out.json")
    assert result.code == 0
    for word in ("acc@t1", "acc@t2", "delta(t1,t2)", "i->c", "c->i", "McNemar p", "8 problems (test split), percent"):
        assert word in result.out


def test_training_prints_one_line_of_json_and_goes_on_with_a_finished_run(score, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    result = score("train", "run/config.yaml", "-o", "run", "--json")
    printed = json.loads(result.out)
    assert result.code == 0
    assert printed.keys() == {"run", "seconds", "base", "stage1", "stage2"}
    assert printed["stage2"] == json.loads((tiny_run / "eval" / "stage2.json").read_text())
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tiny_run / "metrics.jsonl").read_bytes()


def test_a_smoke_run_takes_as_many_steps_as_it_says_and_keeps_all_else(score, tiny_model):
    few = [f"stages.{i}.problems=2" for i in (0, 1)]
    result = score("train", f"model.path={tiny_model}", SMALL, *few, "--smoke", 1, "-o", "run", "--json", "--seed", 4)
    assert result.code == 0
    steps = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [(step["stage"], step["stage_step"]) for step in steps] == [("base", 0), ("stage1", 1), ("stage2", 1)]
    assert json.loads(Path("run/environment.json").read_text())["seed"] == 4


def test_the_embedded_policy_is_evaluated(score):
    result = score("eval", "embedded", "--problems", 20, "--json")
    metrics = json.loads(result.out)
    assert result.code == 0
    assert metrics["problems"] == 20
    assert 0 < metrics["acc/t1"] < 1
    assert metrics["acc/t1.low"] < metrics["acc/t1"] < metrics["acc/t1.high"]
    assert files() == []


def test_the_embedded_policy_solves_in_two_attempts(score):
    question = "7034512345 - 1234567890"
    solved = json.loads(score("solve", "embedded", question, "--json").out)
    assert solved["question"] == question
    assert [attempt["finished"] for attempt in solved["attempts"]] == [True, True]
    assert all(attempt["text"].isdigit() and len(attempt["text"]) == 10 for attempt in solved["attempts"])


def test_solving_shows_the_attempts_side_by_side(score, tiny_model):
    result = score("solve", tiny_model, "12 - 3", "--attempts", 3)
    assert result.code == 0
    assert [f"attempt {k}" in result.out for k in (1, 2, 3, 4)] == [True, True, True, False]
