"""Self-Refine: each later attempt comes behind a critique that the policy was asked for, and only attempts count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from graded import episodes
from scripted_server import serving
from test_endpoint import GREEDY, says
from test_endpoint import PROBLEMS as SUMS
from test_endpoint import player as asking
from test_rollout import GRADER, ScriptedEngine, plan
from tiny import SIZE
from tiny_chat import encode, make_chat
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from wild_chat import make_tokenizer

from score_rl.chat import Chat
from score_rl.chat_schema import ChatSettings
from score_rl.decode import TransformersEngine
from score_rl.episodes import Attempt, Critique, Episode, Problem
from score_rl.errors import ConfigError
from score_rl.layout import lay_out
from score_rl.metrics import attempt_shapes
from score_rl.results import read_episodes, write_files
from score_rl.rollout import Plan, Player
from score_rl.scaling import scaling
from score_rl.schema import SamplingSettings
from score_rl.settings import load, parse
from score_rl.token_kl import with_contexts
from score_rl.train import Trainer

FEEDBACK = "What is wrong with it?"
OPENING = "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
ASK = f"<|im_end|>\n<|im_start|>user\n{FEEDBACK}<|im_end|>\n<|im_start|>assistant\n"
REDO = "<|im_end|>\n<|im_start|>user\nRedo it.<|im_end|>\n<|im_start|>assistant\n"
ONE = [Problem("p", "1", "2")]


def answer_greedily(model: PreTrainedModel, context: list[int], ends: set[int], limit: int) -> list[int]:
    """The most probable tokens one after the other, from the model's logits alone."""
    said: list[int] = []
    while len(said) < limit and not (said and said[-1] in ends):
        with torch.no_grad():
            said.append(int(model(input_ids=torch.tensor([context + said])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("history", ["verbatim", "template"])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_self_refine_is_the_conversation_held_by_hand(history: str, seed: int) -> None:
    tokenizer = make_tokenizer("qwen2_5")
    torch.manual_seed(seed)
    config = Qwen2Config(vocab_size=len(tokenizer), intermediate_size=64, initializer_range=0.3, **SIZE)
    model = Qwen2ForCausalLM(config).eval()
    chat = Chat(tokenizer, ChatSettings(instruction="Redo it.", feedback=FEEDBACK, history=history))
    engine = TransformersEngine(model, chat.end_ids, pad_id=0)
    greedy = Plan((1, 1), (9, 9), SamplingSettings(temperature=0.0))
    (played,) = Player(engine, chat, GRADER).play([Problem("p", "What is 1 + 1?", "2")], greedy, ("test",))

    messages = [{"role": "user", "content": "What is 1 + 1?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    said = []
    for request in (FEEDBACK, "Redo it.", None):
        said.append(answer_greedily(model, ids, set(chat.end_ids), 9))
        if request is None:
            break
        text = tokenizer.decode(said[-1], skip_special_tokens=True)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": request}]
        if history == "template":
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        else:
            closing = "" if said[-1][-1] in chat.end_ids else "<|im_end|>"
            asked = f"{closing}\n<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
            ids = ids + said[-1] + tokenizer(asked, add_special_tokens=False)["input_ids"]
    first, second = played.attempts
    assert second.critique is not None and first.critique is None
    assert [list(one.token_ids) for one in (first, second.critique, second)] == said
    assert list(second.context_ids) == ids
    assert len({tuple(one) for one in said}) == 3, "three turns that are all different prove more"


@pytest.mark.parametrize("history", ["verbatim", "template"])
@pytest.mark.parametrize(
    ("keep", "carried"),
    [
        (None, f"2{ASK}Bad.{REDO}3{ASK}Good.{REDO}4{ASK}Hm.{REDO}"),
        (1, f"4{ASK}Hm.{REDO}"),
        (2, f"3{ASK}Good.{REDO}4{ASK}Hm.{REDO}"),
    ],
    ids=["all", "the latest", "the two latest"],
)
def test_a_context_carries_each_attempt_with_its_critique(history: str, keep: int | None, carried: str) -> None:
    chat = make_chat(feedback=FEEDBACK, history=history, keep_attempts=keep)
    script = [["2<|im_end|>"], ["Bad."], ["3"], ["Good.<|im_end|>"], ["4<|im_end|>"], ["Hm."], ["5"]]
    engine = ScriptedEngine(*script)
    (played,) = Player(engine, chat, GRADER).play(ONE, plan(1, 1, 1, 1), ("test",))
    assert [a.text for a in played.attempts] == ["2", "3", "4", "5"]
    assert [a.critique and a.critique.text for a in played.attempts] == [None, "Bad.", "Good.", "Hm."]
    assert played.attempts[3].context_ids == encode(OPENING + carried)
    asked = engine.calls[5]["contexts"][0]  # of the third critique
    assert asked == encode(OPENING + carried.removesuffix(f"Hm.{REDO}"))
    # Rows go on from one another; a critique may be as long as the attempt behind it; nothing follows the last.
    assert [call["parents"] for call in engine.calls] == [None, *[[0]] * 6]
    assert [call["limit"] for call in engine.calls] == [6, 5, 5, 4, 4, 3, 3]
    assert [call["last"] for call in engine.calls] == [False] * 6 + [True]
    assert len({call["keys"][0] for call in engine.calls}) == 7, "each draw has a key of its own"
    rebuilt = with_contexts(played, chat)
    assert rebuilt == played


def test_every_child_of_an_attempt_criticises_it_anew() -> None:
    engine = ScriptedEngine(["2", "3"], ["a", "b", "c", "d"], ["4", "5", "6", "7"])
    chat = make_chat(feedback=FEEDBACK)
    made = Player(engine, chat, GRADER).play(ONE, plan(2, 2), ("test",))
    assert [(e.attempts[0].text, e.attempts[1].critique.text, e.attempts[1].text) for e in made] == [  # type: ignore[union-attr]
        ("2", "a", "4"),
        ("2", "b", "5"),
        ("3", "c", "6"),
        ("3", "d", "7"),
    ]
    assert [call["parents"] for call in engine.calls] == [None, [0, 0, 1, 1], [0, 1, 2, 3]]
    carried = [f"2{ASK}a{REDO}", f"2{ASK}b{REDO}", f"3{ASK}c{REDO}", f"3{ASK}d{REDO}"]
    assert engine.calls[2]["contexts"] == [encode(OPENING + text) for text in carried]


def test_the_room_that_an_episode_needs_counts_critiques() -> None:
    plain, refined = make_chat(), make_chat(feedback=FEEDBACK)
    assert refined.feedback_bridge == encode(ASK)
    assert refined.episode_tokens([7, 5]) - plain.episode_tokens([7, 5]) == len(encode(ASK)) + 5
    parts = lay_out(refined, "1", 3)
    assert parts[2].context_ids == encode(f"{OPENING}first attempt{ASK}critique{REDO}second attempt{ASK}critique{REDO}")


def test_an_endpoint_is_asked_for_the_critique_and_then_for_the_attempt() -> None:
    texts = {1: "0", 3: "It should be 1.", 5: "1"}
    script = lambda number, request: says(texts[len(request["messages"])], tokens=4)  # noqa: E731
    with serving(script) as server:
        chat = ChatSettings(instruction="Redo it.", feedback=FEEDBACK)
        (played,) = asking(server, chat).play(SUMS[:1], GREEDY, (0, "evaluate"))
    assert [a.text for a in played.attempts] == ["0", "1"]
    assert played.attempts[1].critique == Critique((), "It should be 1.", True, 4)
    assert (played.attempts[0].cost, played.attempts[1].cost, played.attempts[1].length) == (4, 8, 4)
    assert [a.correct for a in played.attempts] == [False, True]
    said = [turn["content"] for turn in server.asked[-1]["messages"]]
    assert said == ["0 + 1", "0", FEEDBACK, "It should be 1.", "Redo it."]


def refined(*marks: str, tokens: int) -> list[Episode]:
    """Graded episodes whose second attempts come behind critiques of so many tokens; an attempt has three."""
    made = []
    for one in episodes(*marks):
        first, second = one.attempts
        critique = Critique(tuple(range(tokens)), "Hm.", finished=tokens < 9)
        fields = {name: getattr(second, name) for name in ("context_ids", "token_ids", "text", "finished", "grade")}
        made.append(Episode(one.problem, (first, Attempt(**fields, critique=critique)), one.path))
    return made


def test_critiques_count_as_cost_and_not_as_attempts() -> None:
    metrics = attempt_shapes(refined("wr", "ww", tokens=5))
    assert (metrics["length/t1"], metrics["length/t2"], metrics["critique_length/t2"]) == (3, 3, 5)
    assert metrics["critique_truncated/t2"] == 0 and "critique_length/t1" not in metrics
    assert attempt_shapes(refined("ww", tokens=9))["critique_truncated/t2"] == 1
    spent = scaling(refined("wr", "ww", tokens=5), 1)
    assert (spent["scaling/parallel@1.tokens"], spent["scaling/sequential@2.tokens"]) == (3, 3 + 5 + 3)
    assert spent["scaling/sequential@2"] == 0.5


def test_what_was_said_is_stored_and_read_back(tmp_path: Path) -> None:
    made = refined("wr", tokens=5)
    write_files(tmp_path / "a.json", {}, made)
    assert read_episodes(tmp_path / "a.jsonl") == made
    assert json.loads((tmp_path / "a.jsonl").read_text())["attempts"][1]["critique"]["text"] == "Hm."
    # An evaluation of a version that knew no critiques.
    row = made[0].to_json()
    for attempt in row["attempts"]:
        del attempt["critique"]
    assert Episode.from_json(row).attempts[1].critique is None


def test_training_with_critiques_is_refused_in_a_line(tmp_path: Path) -> None:
    settings = load("arithmetic", [f"chat.feedback={FEEDBACK}"])
    with pytest.raises(ConfigError, match=r"^chat\.feedback: critiques are not trained; leave it out here, and set"):
        Trainer(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["feedback", "keep"])
def test_an_empty_request_is_refused(key: str) -> None:
    content = load("arithmetic").model_dump(mode="json")
    content["chat"][key] = " "
    with pytest.raises(ConfigError, match=rf"chat.*{key}: empty; give it a text, or null"):
        parse(content, "mine.yaml")
