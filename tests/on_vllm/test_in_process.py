"""vLLM in the trainer's process: both stages, the same log-probs, and a tensor that stays behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from served import SHORT, score

from score_rl import vllm_engine
from score_rl.chat import Chat
from score_rl.decode import TransformersEngine
from score_rl.engines import make_engine
from score_rl.errors import SyncError
from score_rl.loading import load_policy, load_tokenizer
from score_rl.policy import Policy
from score_rl.schema import SamplingSettings
from score_rl.settings import load
from score_rl.synced import shaken
from score_rl.vllm_engine import VllmEngine, merged_weights

MISSING = "model.layers.1.mlp.up_proj.weight"
LEAVE_OUT = f"""
from score_rl import vllm_engine
every = vllm_engine.merged_weights
vllm_engine.merged_weights = lambda policy: ((n, v) for n, v in every(policy) if n != {MISSING!r})
"""


def steps_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@pytest.mark.parametrize("lora", [[], ["model.lora.rank=4"]], ids=["whole", "lora"])
def test_both_stages_train_on_attempts_whose_log_probs_are_the_trainers(wide: Path, tmp_path: Path, lora: list[str]):
    run = tmp_path / "run"
    told = [*SHORT, "stages.0.steps=3", "stages.1.steps=3", *lora]
    done = score("train", "arithmetic", f"model.path={wide}", "engine.kind=vllm", *told, "-o", str(run))
    assert done.returncode == 0, done.stderr[-2000:]
    steps = steps_of(run)[1:]
    assert [step["stage"] for step in steps] == ["stage1"] * 3 + ["stage2"] * 3
    gaps = [step[f"engine_gap/t{k}"] for step in steps for k in (1, 2)]
    assert max(gaps) < 1e-4  # nats a token; 1e-3 is what is asked for
    assert any(step["optim/grad_norm"] > 0 for step in steps)
    assert (run / "stage2" / ("adapter_config.json" if lora else "config.json")).is_file()


def test_a_run_in_which_a_tensor_is_not_sent_stops_before_its_first_step(wide: Path, tmp_path: Path):
    run = tmp_path / "run"
    arguments = ["train", "arithmetic", f"model.path={wide}", "engine.kind=vllm", *SHORT, "-o", str(run)]
    done = score(*arguments, code=LEAVE_OUT)
    assert done.returncode == 2
    assert "weights did not reach it" in done.stderr.splitlines()[-1]
    assert all(step["stage"] == "base" for step in steps_of(run))


@pytest.fixture(scope="module")
def engine(wide: Path) -> VllmEngine:
    settings = load("arithmetic", [f"model.path={wide}", "engine.kind=vllm"])
    tokenizer = load_tokenizer(settings.model)
    policy = load_policy(settings.model, tokenizer, trains=True)
    made = make_engine(settings, policy, Chat(tokenizer, settings.chat))
    assert isinstance(made, VllmEngine)
    return made


def test_every_tensor_that_stays_behind_is_noticed(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch):
    engine.prove()
    assert engine.gap is not None and engine.gap < 1e-4
    names = [name for name, _ in merged_weights(engine.policy)]
    # vLLM ties the embeddings to the head here, and the head comes last.
    for missing in set(names) - {"model.embed_tokens.weight"}:

        def all_but_one(policy: Policy, missing: str = missing) -> Any:
            return ((name, value) for name, value in merged_weights(policy) if name != missing)

        monkeypatch.setattr(vllm_engine, "merged_weights", all_but_one)
        with pytest.raises(SyncError, match="weights did not reach it"):
            engine.prove()
        monkeypatch.undo()
        engine.push()
    engine.compare()


def test_weights_that_were_not_pushed_at_all_are_noticed_and_a_push_mends_it(engine: VllmEngine):
    with shaken(engine.policy):
        with pytest.raises(SyncError):
            engine.compare()
        engine.push()
        engine.compare()
    engine.push()


def test_greedy_attempts_are_those_of_the_built_in_engine_and_end_as_there(engine: VllmEngine):
    policy = engine.policy
    settings = load("arithmetic", [])
    chat = Chat(policy.tokenizer, settings.chat)
    contexts = [chat.open(f"{a}234567890 - 0987654321") for a in range(1, 9)]
    built_in = TransformersEngine(policy.causal_lm, frozenset(engine.end_ids), policy.pad_id)
    for limit in (4, 12):  # cut off, and finished
        greedy = SamplingSettings(temperature=0.0)
        ours = built_in.open().sample(contexts, None, range(8), greedy, limit, last=True)
        theirs = engine.open().sample(contexts, None, range(8), greedy, limit, last=True)
        assert [s.token_ids for s in theirs] == [s.token_ids for s in ours]
        assert [s.finished for s in theirs] == [s.finished for s in ours] == [limit == 12] * 8
        for one, other in zip(theirs, ours, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_keys_decide_what_is_drawn_and_siblings_differ(engine: VllmEngine):
    chat = Chat(engine.policy.tokenizer, load("arithmetic", []).chat)
    contexts = [chat.open("1234567890 - 0987654321")] * 16
    warm = SamplingSettings(temperature=2.0)
    first = engine.open().sample(contexts, None, range(-8, 8), warm, 12)
    again = engine.open().sample(contexts, None, range(-8, 8), warm, 12)
    assert [s.token_ids for s in first] == [s.token_ids for s in again]
    assert len({s.token_ids for s in first}) > 8
