"""What each stage of a list is pinned to: the base model, or what the stage before it ended with (paper, A.1)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import plain_logprobs
from transformers import AutoModelForCausalLM

from score_rl.episodes import Grade, Problem
from score_rl.rewards import register_reward, rewards
from score_rl.schema import StageSettings
from score_rl.settings import load
from score_rl.train import Trainer

SMALL = ["data.options={digits: 4, train: 20, validation: 4, test: 4}", "eval.problems=4", "eval.max_new_tokens=6"]
SMALL += ["reward.fn=odd_texts", "train.validate_every=9", "train.select=last"]
STEP = "steps: 1, problems: 4, lr: 0.02"
ROW = (2, 9, 10, 3, 12, 13, 14, 1)

# Appendix A.1: attempt 1 pinned to the base, then attempts 1 and 2 to what I(a) made, then all of them to the base.
THREE_ATTEMPTS = [
    f"{{kind: stage1, name: 1a, {STEP}, branch: [2, 2], max_new_tokens: [6, 6]}}",
    f"{{kind: substage, name: 1b, reference: stage_start, {STEP}, branch: [2, 1, 2], max_new_tokens: [6, 6, 6]}}",
    f"{{kind: stage2, {STEP}, branch: [4, 1, 1], max_new_tokens: [6, 6, 6]}}",
]
# Version 1 of the paper: Stage I again, which holds the first attempts that Stage II has learned.
INTERLEAVED = [
    f"{{kind: stage1, reference: stage_start, {STEP}, branch: [2, 2], max_new_tokens: [6, 6]}}",
    f"{{kind: stage2, {STEP}, branch: [4, 1], max_new_tokens: [6, 6]}}",
]


@pytest.fixture(scope="module", autouse=True)
def rewarded():
    """A reward that a random model earns now and then, so that there is a gradient."""

    @register_reward("odd_texts")
    def odd_texts(prediction: str, problem: Problem, *, extract: object = None) -> Grade:
        correct = len(prediction) % 2 == 1
        return Grade(correct, float(correct), prediction)

    yield
    del rewards["odd_texts"]


class Watched(Trainer):
    """A trainer that notes what the reference of each stage says."""

    def _set_reference(self, stage: StageSettings) -> None:
        super()._set_reference(stage)
        with torch.no_grad(), self.policy.reference() as model:
            self.references = [*getattr(self, "references", []), plain_logprobs(model, ROW)]


def said_by(directory: Path, base: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(base if (directory / "adapter_config.json").exists() else directory)
    if (directory / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(model, str(directory))
    with torch.no_grad():
        return plain_logprobs(model.eval(), ROW)


@pytest.mark.parametrize(
    ("stages", "iterations", "lora", "pinned_to"),
    [
        pytest.param(THREE_ATTEMPTS, 1, "null", ["base", "1a", "base"], id="three attempts, whole"),
        pytest.param(INTERLEAVED, 2, "{rank: 4, alpha: 8}", ["base", "base", "stage2", "base"], id="interleaved, LoRA"),
    ],
)
def test_each_stage_is_pinned_to_what_its_settings_name(
    stages: list[str], iterations: int, lora: str, pinned_to: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    content = [*SMALL, f"model.path={tiny_model}", f"model.lora={lora}", f"train.iterations={iterations}"]
    trainer = Watched(load("arithmetic", [*content, f"stages=[{', '.join(stages)}]"]), tmp_path / "run")
    trainer.train()
    labels = [label for label, _ in trainer.plan]
    said = {"base": said_by(tiny_model, tiny_model)}
    said |= {label: said_by(tmp_path / "run" / label, tiny_model) for label in labels}
    for label, name, found in zip(labels, pinned_to, trainer.references, strict=True):
        nearest = min(said, key=lambda other: float((said[other] - found).abs().max()))
        assert nearest == name, f"{label} is pinned to {nearest}"
        assert float((said[name] - found).abs().max()) < 1e-5
    gaps = [float((said[a] - said[b]).abs().max()) for a in said for b in said if a < b]
    assert min(gaps) > 1e-2, "the stages must move the model for this to show anything"
