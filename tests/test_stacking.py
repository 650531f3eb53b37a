"""However an adapter goes on, the model is its base and one delta: the one in the file that was saved last."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import FIRST, inputs
from transformers import AutoModelForCausalLM

from score_rl.episodes import Grade, Problem
from score_rl.errors import ConfigError
from score_rl.export import export
from score_rl.policy import Policy
from score_rl.rewards import register_reward, rewards
from score_rl.settings import load
from score_rl.train import Trainer

SMALL = ["data.options={digits: 4, train: 20, validation: 4, test: 4}", "eval.problems=4", "eval.max_new_tokens=6"]
SMALL += ["reward.fn=even_texts", "train.validate_every=2", "train.select=last", "model.lora={rank: 4, alpha: 8}"]
PAIR = "branch: [2, 2], max_new_tokens: [6, 6], problems: 4, steps: 2"
TRIPLE = "branch: [2, 2, 2], max_new_tokens: [6, 6, 6], problems: 4, steps: 2"


@pytest.fixture(scope="module", autouse=True)
def rewarded():
    """A reward that a random model earns now and then, so that there is a gradient."""

    @register_reward("even_texts")
    def even_texts(prediction: str, problem: Problem, *, extract: object = None) -> Grade:
        correct = len(prediction) % 2 == 0
        return Grade(correct, float(correct), prediction)

    yield
    del rewards["even_texts"]


@pytest.fixture(scope="module")
def stacked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Stage I(a), I(b) against what I(a) ended with, and II against the base model, on one adapter."""
    stages = [
        f"{{kind: stage1, name: a, lr: 0.02, {PAIR}}}",
        f"{{kind: substage, name: b, lr: 0.02, reference: stage_start, {TRIPLE}}}",
        f"{{kind: stage2, name: c, lr: 0.02, {PAIR}}}",
    ]
    settings = load("arithmetic", [*SMALL, f"model.path={tiny_model}", f"stages=[{', '.join(stages)}]"])
    trainer = Trainer(settings, tmp_path_factory.mktemp("stacked") / "run")
    trainer.train()
    return trainer


def sums(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The base model's weights plus B A alpha / rank of each adapted layer, from the files."""
    weights, stored = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in weights:
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        if key.format("A") in stored:
            delta = stored[key.format("B")] @ stored[key.format("A")] * config["lora_alpha"] / config["r"]
            weights[name] = weights[name] + delta
    return weights


def scores(model: torch.nn.Module, policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return Policy(model.eval(), policy.tokenizer)(*inputs([FIRST])).logprobs


def test_a_stack_of_stages_is_one_delta_however_many_references_there_were(
    stacked: Trainer, tiny_model: Path, tmp_path: Path
) -> None:
    run = stacked.run.path
    in_memory = scores(stacked.policy.model, stacked.policy)
    moved = []
    for label in ("a", "b", "c"):
        assert {key.split(".")[-2] for key in load_file(run / label / "adapter_model.safetensors")} == {
            "lora_A",
            "lora_B",
        }
        expected = sums(tiny_model, run / label)
        export(run, tmp_path / label, stage=label, merge=True)
        merged = load_file(tmp_path / label / "model.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=0)
        moved.append(expected["model.layers.0.mlp.up_proj.weight"])
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run / "c"))
    assert torch.equal(scores(by_peft, stacked.policy), in_memory)
    assert all((one - other).abs().max() > 1e-3 for one, other in itertools.pairwise(moved))


@pytest.mark.parametrize("start", ["model.path", "--resume-adapter"])
def test_an_adapter_that_is_gone_on_with_is_not_put_on_itself(
    start: str, stacked: Trainer, tiny_model: Path, tmp_path: Path
) -> None:
    earlier = stacked.run.path / "a"
    where = f"model.path={earlier if start == 'model.path' else tiny_model}"
    stage = f"{{kind: stage2, lr: 1.0e-12, {PAIR}}}"  # a step that moves next to nothing
    trainer = Trainer(
        load("arithmetic", [*SMALL, where, f"stages=[{stage}]"]),
        tmp_path / "run",
        adapter=None if start == "model.path" else earlier,
    )
    trainer.train()
    before, after = sums(tiny_model, earlier), sums(tiny_model, tmp_path / "run" / "stage2")
    assert all(torch.allclose(before[name], after[name], atol=1e-7, rtol=0) for name in before)
    assert any(
        (before[name] - value).abs().max() > 1e-3 for name, value in load_file(tiny_model / "model.safetensors").items()
    )
    export(tmp_path / "run", tmp_path / "merged", merge=True)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.allclose(merged[name], before[name], atol=1e-6, rtol=0) for name in before)


def test_an_adapter_is_not_put_on_the_model_that_it_was_merged_into(
    stacked: Trainer, tiny_model: Path, tmp_path: Path
) -> None:
    run = stacked.run.path
    export(run, tmp_path / "merged", merge=True)
    stage = f"{{kind: stage2, lr: 0.02, {PAIR}}}"
    settings = load("arithmetic", [*SMALL, f"model.path={tmp_path / 'merged'}", f"stages=[{stage}]"])
    with pytest.raises(ConfigError) as caught:
        Trainer(settings, tmp_path / "run", adapter=run / "c")
    assert str(caught.value) == (
        f"--resume-adapter {run / 'c'}: cannot be loaded (it is an adapter of {tiny_model}, and the model is "
        f"{tmp_path / 'merged'}; check model.path)"
    )
    assert not (tmp_path / "run").exists()
