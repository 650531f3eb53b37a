"""Whole short runs: the same seed, other architectures with adapters, and the picture that the paper promises."""

import json
from pathlib import Path

import pytest
import torch
from tiny import SIZE

from score_rl.episodes import Grade, Problem
from score_rl.evaluation import at_temperature, evaluate
from score_rl.loading import embedded_path, load_policy
from score_rl.rewards import register_reward
from score_rl.schema import ModelSettings
from score_rl.settings import load
from score_rl.train import Trainer

TINY = ["train.validation_problems=16", "eval.problems=16", "stages.0.steps=2", "stages.1.steps=2"]
TINY += ["stages.0.problems=4", "stages.1.problems=4"]


def metrics_of(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_the_same_seed_gives_the_same_metrics_jsonl(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Trainer(load("arithmetic", [*TINY, f"seed={seed}"]), tmp_path / name).train()
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert metrics_of(tmp_path / "a")[1:] != metrics_of(tmp_path / "c")[1:]


def random_model(family: str, directory: Path) -> None:
    """A randomly initialised two-layer model with the embedded policy's tokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded_path())
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        **SIZE,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=family == "Qwen3",
    )
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@register_reward("even_length")
def even_length(prediction: str, problem: Problem, *, extract: object) -> Grade:
    """A random model never subtracts right, but half of its answers have an even number of characters."""
    correct = len(prediction) % 2 == 0
    return Grade(correct, float(correct), prediction)


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_a_random_model_trains_with_lora_and_its_adapter_loads_with_plain_peft(family: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    random_model(family, base)
    lora = [f"model.path={base}", "model.lora={rank: 4, alpha: 8}", "reward.fn=even_length"]
    trainer = Trainer(load("arithmetic", [*TINY, *lora, "stages.0.lr=0.01", "stages.1.lr=0.01"]), tmp_path / "run")
    results = trainer.train()
    assert list(results) == ["base", "stage1", "stage2"]

    ids = torch.tensor([[5, 9, 17, 33, 12, 8]])
    mask = torch.ones_like(ids)
    ours = load_policy(ModelSettings(path=str(tmp_path / "run" / "stage2")))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run" / "stage2").eval()
    expected = theirs(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(ours.eval()(ids, mask, mask[:, 1:].bool()).logprobs, expected)
    with theirs.disable_adapter():
        before = theirs(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert not torch.allclose(before, expected, atol=1e-4)


def test_on_the_embedded_task_stage_1_raises_acc_t2_and_holds_acc_t1_and_stage_2_raises_both(tmp_path: Path) -> None:
    short = ["train.validation_problems=200", "train.validate_every=20", "eval.problems=400"]
    short += ["stages.0.steps=20", "stages.1.steps=20", "eval.sampling.temperature=1.0"]
    short += ["stages.0.schedule=constant", "stages.1.schedule=constant", "stages.0.lr=6e-4", "stages.1.lr=6e-4"]
    trainer = Trainer(load("arithmetic", short), tmp_path / "run")
    results = trainer.train()
    base, first, second = results["base"], results["stage1"], results["stage2"]
    assert first["acc/t2"] > base["acc/t2.high"] + 0.1
    assert base["acc/t1.low"] < first["acc/t1"] < base["acc/t1.high"]
    assert second["acc/t1"] > first["acc/t1.high"]
    assert second["acc/t2"] > first["acc/t2"]
    greedy = evaluate(trainer.player, trainer.held_out, at_temperature(trainer.settings.eval, 0.0), seed=0).metrics
    assert greedy["delta/t1_t2.low"] > 0.05
