"""What a model's generation settings may do, which is to end attempts, and what not: no draw is another for them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_loading import SMALL, settings

from score_rl.chat import Chat
from score_rl.decode import TransformersEngine
from score_rl.evaluation import make_player
from score_rl.grading import make_grader
from score_rl.loading import load_policy, load_tokenizer
from score_rl.schema import ChatSettings, RewardSettings, SamplingSettings
from score_rl.settings import load
from score_rl.train import Trainer


def test_generation_settings_add_end_tokens_and_change_no_draw(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    peaked = {"temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "do_sample": True}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(peaked | {"eos_token_id": [1, 5, 6]}))
    drawn = {}
    for path in (tiny_model, tmp_path / "model"):
        tokenizer = load_tokenizer(settings(path))
        policy = load_policy(settings(path), tokenizer)
        chat = Chat(tokenizer, ChatSettings())
        player = make_player(policy, chat, make_grader(RewardSettings()))
        ends = frozenset(player.engine.end_ids.tolist())  # type: ignore[attr-defined]
        assert ends == chat.end_ids | ({5, 6} if path != tiny_model else set())
        session = TransformersEngine(policy.causal_lm, frozenset({1}), 0).open()
        keys = list(range(40))
        drawn[path] = session.sample([(2, 9, 3)] * 40, None, keys, SamplingSettings(), 5, last=True)
    one, other = drawn.values()
    assert one == other and len({sample.token_ids for sample in one}) > 30
    session = player.engine.open()
    stopped = session.sample([(2, 9, 3)] * 40, None, list(range(40)), SamplingSettings(), 5, last=True)
    assert any(sample.token_ids[-1] in (5, 6) and sample.finished for sample in stopped)


@pytest.mark.parametrize(
    "odd",
    [
        {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "min_p": 0.5},
        {"temperature": 0.6, "top_p": 0.9, "max_new_tokens": 1, "bad_words_ids": [[5], [6]]},
    ],
    ids=["peaked", "without do_sample, which transformers calls invalid"],
)
def test_a_run_on_a_model_with_generation_settings_is_the_run_without(
    odd: dict[str, object], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "odd")
    (tmp_path / "odd" / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **odd}))
    stage = "steps: 2, problems: 4, branch: [2, 2], max_new_tokens: [4, 6], lr: 0.01"
    stages = f"stages=[{{kind: stage1, {stage}}}, {{kind: stage2, {stage}}}]"
    found = []
    for path in (tiny_model, tmp_path / "odd"):
        run = tmp_path / f"run of {path.name}"
        results = Trainer(
            load("arithmetic", [SMALL, f"model.path={path}", "eval.max_new_tokens=6", stages]), run
        ).train()
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
        found.append((steps, {label: metrics["acc/t2"] for label, metrics in results.items()}))
        assert (run / "stage2" / "model.safetensors").is_file()
    assert found[0] == found[1]
