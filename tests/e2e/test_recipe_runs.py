"""Every recipe that ships, with a miniature of its model on a handful of its data: trained, evaluated, exported.

Where SCORE_DATA names the folder of the real files, they are used too.
"""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tiny import SIZE
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedConfig, Qwen2Config, Qwen3Config
from wild_chat import make_tokenizer

from score_rl.data.load import load_problems
from score_rl.episodes import Episode
from score_rl.export import export
from score_rl.grading import make_grader
from score_rl.loading import load_model
from score_rl.schema import ModelSettings, Settings
from score_rl.settings import load, recipe_names
from score_rl.train import Trainer

REAL = os.environ.get("SCORE_DATA")
CONFIG = SIZE | {
    "intermediate_size": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SHORT = ["train.validation_problems=2", "eval.problems=2", "eval.max_new_tokens=6", "reward.workers=1"]
SHORT += [f"stages.{n}.{change}" for n in (0, 1) for change in ("steps=2", "problems=2", "max_new_tokens=[6, 6]")]
SUMS = [(f"Ann has {a} nuts and finds {a + 1} more. How many are there?", 2 * a + 1) for a in range(8)]

Data = Callable[[Path], list[str]]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gsm8k(folder: Path) -> list[str]:
    write(folder / "train.jsonl", [{"question": q, "answer": f"Count them.\n#### {n}"} for q, n in SUMS])
    write(folder / "test.jsonl", [{"question": f"{n} nuts and 2 nuts?", "answer": f"#### {n + 2}"} for n in (1, 3)])
    return ["data.options.validation=2"]


def competition(folder: Path) -> list[str]:
    def row(number: int, part: str) -> dict[str, Any]:
        question, answer = SUMS[number]
        return {"problem": question, "answer": rf"\frac{{{2 * answer}}}{{2}}", "unique_id": f"{part}/algebra/{number}"}

    write(folder / "train.jsonl", [row(n, "train") for n in range(5)] + [row(5, "test")])
    write(folder / "test.jsonl", [row(n, "test") for n in (6, 7)])
    return ["data.options.validation=2"]


def programs(folder: Path) -> list[str]:
    def row(number: int) -> dict[str, Any]:
        tests = [f"assert add_{number}(1) == {1 + number}", f"assert add_{number}(-1) == {number - 1}"]
        code = f"def add_{number}(x):\r\n    return x + {number}"
        text = f"Write a function that adds {number}."
        return {"text": text, "code": code, "task_id": number, "test_list": tests, "test_setup_code": ""}

    for place, name in enumerate(("prompt", "train", "validation", "test")):
        write(folder / f"{name}.jsonl", [row(10 * place + n) for n in range(5)])
    prompt = 'def double(x):\n    """Twice x."""\n'
    check = "def check(candidate):\n    assert candidate(2) == 4\n"
    human = {"task_id": "HumanEval/0", "prompt": prompt, "entry_point": "double", "test": check}
    write(folder / "humaneval" / "test.jsonl", [human | {"canonical_solution": "    return 2 * x\n"}])
    return [f"data.options.humaneval_path={folder / 'humaneval'}"]


def questions(folder: Path) -> list[str]:
    write(folder / "validation.jsonl", [{"question": q, "answer": [str(n), f"{n} nuts"]} for q, n in SUMS])
    return ["data.options.train=4", "data.options.validation=2", "data.options.test=2"]


class Small(NamedTuple):
    """What a recipe runs on here: family and template of its model, its data, and what its grader takes for right."""

    family: type[PreTrainedConfig]
    template: str
    data: Data
    folder: str
    right: str
    wrong: str


SENTENCE = "Final Answer: The final answer is ${}$. I hope it is correct."
DOUBLE = "```python\ndef double(x):\n    return x {} 2\n```"
SMALL = {
    "gsm8k": Small(Qwen2Config, "qwen2_5", gsm8k, "gsm8k", "They have 3 nuts.", SENTENCE.format(4) + " Not 3."),
    "gsm8k-qwen3": Small(Qwen3Config, "qwen3", gsm8k, "gsm8k", SENTENCE.format("3.00"), SENTENCE.format(13)),
    "math": Small(Qwen2Config, "qwen2_5", competition, "math500", SENTENCE.format("13"), "It is 13."),
    "paper-math": Small(Gemma2Config, "gemma", competition, "math500", r"So $\boxed{13}$.", SENTENCE.format("26")),
    "mbpp": Small(Qwen2Config, "qwen2_5", programs, "mbpp", DOUBLE.format("*"), DOUBLE.format("+ 1 -")),
    "paper-mbpp": Small(Gemma2Config, "gemma", programs, "mbpp", "    return 2 * x\n[DONE]", "    return x\n[DONE]"),
    "qa": Small(Qwen2Config, "qwen2_5", questions, "nq_open", "Final Answer: ANSWER", "Final Answer: no nuts"),
}


def make_model(small: Small, folder: Path) -> Path:
    """A directory with a randomly initialised miniature of the recipe's model, its tokenizer and its template."""
    tokenizer = make_tokenizer(small.template)
    torch.manual_seed(0)
    config = small.family(vocab_size=len(tokenizer), **CONFIG)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def miniature(name: str, folder: Path) -> Settings:
    data = [f"data.options.path={folder / 'data'}", *SMALL[name].data(folder / "data")]
    return load(name, [*SHORT, f"model.path={make_model(SMALL[name], folder / 'model')}", *data])


def real(name: str, folder: Path) -> Settings:
    at = f"data.options.path={REAL}/{SMALL[name].folder}"
    also = [f"data.options.humaneval_path={REAL}/humaneval"] if SMALL[name].data is programs else []
    # A vocabulary of 800 pieces writes a prompt with three times the tokens of a real one.
    changes = [*SHORT, at, *also, "chat.max_prompt_tokens=3072"]
    return load(name, [f"model.path={make_model(SMALL[name], folder / 'model')}", *changes])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_run(settings: Settings, run: Path) -> None:
    """Trains; all figures are there and are numbers, and the export gives the log-probs of the stage's model."""
    results = Trainer(settings, run).train()
    assert list(results) == ["base", "stage1", "stage2"]
    metrics = lines(run / "metrics.jsonl")
    assert [(m["stage"], m["stage_step"]) for m in metrics] == [
        ("base", 0), ("stage1", 1), ("stage1", 2), ("stage2", 1), ("stage2", 2)
    ]  # fmt: skip
    for m in metrics[1:]:
        assert m["ungraded"] == 0
        assert math.isfinite(m["loss"]) and math.isfinite(m["optim/grad_norm"])
        assert m["engine_gap/t2"] < 0.1
    for name, figures in results.items():
        episodes = [Episode.from_json(row) for row in lines(run / "eval" / f"{name}.jsonl")]
        assert figures["problems"] == len(episodes) > 0
        assert all(len(episode.attempts) == 2 and episode.graded for episode in episodes)
    merge = settings.model.lora is not None
    done = export(run, run.parent / "exported", merge=merge)
    assert (done.kind, done.stage) == ("model", "stage2")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    ours = load_model(ModelSettings(path=str(run / "stage2"), dtype="float32"))
    theirs = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32)
    with torch.no_grad():
        gap = (ours(input_ids=ids).logits - theirs(input_ids=ids).logits).abs().max()
    # Merged weights are rounded to the type that the base model is stored in.
    assert gap < (0.05 if merge else 1e-5)


def test_every_recipe_but_the_embedded_task_has_a_miniature():
    assert sorted([*SMALL, "arithmetic", "walk"]) == recipe_names()


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_both_stages_evaluates_and_exports(name, tmp_path):
    settings = miniature(name, tmp_path)
    check_run(settings, tmp_path / "run")
    problem = load_problems(settings.data, "test")[0]
    grader = make_grader(settings.reward)
    try:
        assert grader(SMALL[name].right.replace("ANSWER", problem.answers[0]), problem).correct
        assert not grader(SMALL[name].wrong, problem).correct
    finally:
        grader.close()


@pytest.mark.skipif(REAL is None, reason="SCORE_DATA does not name the folder of the real files")
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_both_stages_on_the_real_files(name, tmp_path):
    check_run(real(name, tmp_path), tmp_path / "run")
