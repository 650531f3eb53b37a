"""What a plan counts, against real steps, and how it is told."""

import copy
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaForCausalLM, Qwen2Config

from score_rl.chat import Chat
from score_rl.cli import main
from score_rl.decode import TransformersEngine
from score_rl.episodes import Attempt, Grade, Problem
from score_rl.errors import DataError
from score_rl.loading import load_tokenizer
from score_rl.planning import RunPlan, make_plan, rollouts, to_text
from score_rl.planning.costs import (
    Prompts,
    assume_prompts,
    contexts,
    continues,
    evaluation_costs,
    measure_prompts,
    stage_cost,
)
from score_rl.planning.memory import Peak, replay_prefill
from score_rl.planning.shapes import blank_model
from score_rl.policy import Policy
from score_rl.rollout import Plan, Player
from score_rl.schedule import make_objective
from score_rl.schema import ChatSettings, ModelSettings, Settings, StageSettings
from score_rl.settings import load
from score_rl.update import accumulate

SMALL = "data.options={digits: 4, train: 40, validation: 6, test: 8}"
PROMPTS = Prompts(20.0, 24, 5, "given")


def settings_with(*changes: str, recipe: str = "arithmetic") -> Settings:
    return load(recipe, list(changes))


class Counter:
    """Counts the calls of a module, and the tokens that were in them."""

    def __init__(self, module: nn.Module) -> None:
        self.calls = 0
        self.tokens = 0
        module.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: nn.Module, args: Any, options: Any) -> None:
        found = next((options[key] for key in ("input_ids", "hidden_states") if options.get(key) is not None), None)
        self.calls += 1
        self.tokens += (args[0] if found is None else found).shape[:2].numel()

    def reset(self) -> None:
        self.calls = self.tokens = 0


IN_REWARD = {"estimator": "k1", "placement": "reward"}
STEPS = {
    "stage1": {"kind": "stage1", "branch": [2, 2], "problems": 5},
    "stage2": {"kind": "stage2", "branch": [2, 1], "problems": 4},
    "no pin on attempt 2": {"kind": "stage1", "branch": [1, 2], "problems": 3, "beta1": 0.0},
    "no KL at all": {"kind": "stage2", "branch": [3, 1], "problems": 3, "beta1": 0.0},
    "KL in the reward": {"kind": "stage2", "branch": [2, 1], "problems": 4, "kl": IN_REWARD},
    "three attempts": {"kind": "substage", "branch": [1, 2, 2], "problems": 3},
    "stored first attempts": {"kind": "stage2", "branch": [2, 2], "problems": 6, "offline_fraction": 0.5},
}  # fmt: skip
CHATS = {"all attempts": {}, "one earlier attempt": {"keep_attempts": 1}}


def never_ending_policy(*, layers: int = 2, checkpointing: bool = False) -> Policy:
    """The token that ends an attempt has no chance, so that all attempts run to their limit."""
    config = tiny.make_model().config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    bias = torch.zeros(64)
    bias[1] = -1e4
    head = nn.Linear(32, 64)
    head.weight, head.bias = model.lm_head.weight, nn.Parameter(bias, requires_grad=False)
    model.lm_head = head
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(model, tiny.make_tokenizer())
    policy.freeze_reference()
    return policy


def grade(prediction: str, problem: Problem) -> Grade:
    return Grade(len(prediction) % 2 == 0, float(len(prediction) % 2), prediction)


class Grading:
    def __init__(self, grades: list[Grade]) -> None:
        self.grades = grades

    def result(self) -> list[Grade]:
        return self.grades


class Grader:
    """Grades by length."""

    def submit(self, predictions: Any, problems: Any) -> Grading:
        return Grading([grade(*pair) for pair in zip(predictions, problems, strict=True)])


def stored_attempt(chat: Chat, problem: Problem, token: int) -> Attempt:
    return Attempt(chat.open(problem.question), (token, 10, 11, 12), "", False, False, (), grade("", problem))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("chat_options", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("fields", STEPS.values(), ids=STEPS)
def test_a_step_takes_the_tokens_and_passes_that_the_plan_says(fields, chat_options, checkpointing):
    attempts = len(fields["branch"])
    stage = StageSettings(**{"steps": 3, "max_new_tokens": [4, 6, 3][:attempts], **fields})
    settings = settings_with("train.rollout_rows=8", "train.micro_batch_tokens=100")
    settings = settings.model_copy(
        update={
            "chat": ChatSettings(instruction="Redo.", **chat_options),
            "model": ModelSettings(gradient_checkpointing=checkpointing),
        }
    )
    policy = never_ending_policy(checkpointing=checkpointing)
    chat = Chat(policy.tokenizer, settings.chat)
    problems = [Problem(f"p{n}", f"{n} + {n}", "1") for n in range(stage.problems)]
    prompt = len(chat.open(problems[0].question))
    prompts = Prompts(float(prompt), prompt, len(chat.bridges[0]), "measured")
    cost = stage_cost("tiny", stage, settings, prompts)

    player = Player(TransformersEngine(policy.causal_lm, chat.end_ids, 0), chat, Grader())  # type: ignore[arg-type]
    # A layer that is run again is no call of the layer, but one of what is in it.
    decoder, layer = Counter(policy.causal_lm.model), Counter(policy.causal_lm.model.layers[0].self_attn)
    reference = Counter(policy._frozen[0].model)
    starts = [
        [stored_attempt(chat, p, 9 + j) for j in range(stage.branch[0])] if n < stage.offline_problems else None
        for n, p in enumerate(problems)
    ]
    plan = Plan(tuple(stage.branch), tuple(stage.max_new_tokens), stage.sampling, settings.train.rollout_rows)
    episodes = player.play(problems, plan, (0, "test"), first_attempts=starts)
    sampled = {(e.problem.id, e.path[: k + 1]): a for e in episodes for k, a in enumerate(e.attempts) if a.sampled}
    # The last token of an attempt is drawn and not read, unless the next one goes on from it.
    unread = [path for _, path in sampled if len(path) == attempts or not continues(settings.chat, len(path))]
    assert cost.sampled_tokens == sum(len(attempt.token_ids) for attempt in sampled.values())
    assert cost.rollout_passes == decoder.calls
    assert cost.prompt_tokens + cost.sampled_tokens - len(unread) == decoder.tokens

    for counter in (decoder, layer, reference):
        counter.reset()
    accumulate(policy.train(), episodes, stage, make_objective(stage), max_tokens=settings.train.micro_batch_tokens)
    assert len(episodes) == cost.episodes
    assert decoder.calls == cost.policy_passes + cost.scoring_passes
    assert decoder.tokens == cost.update_tokens * (2 if cost.scoring_passes else 1)
    assert layer.calls == decoder.calls + cost.repeated_passes
    assert reference.calls == cost.reference_passes


def test_rollouts_have_the_rows_and_tokens_that_their_parts_hold():
    settings = settings_with(
        "train.rollout_rows=20",
        "stages.0.problems=8",
        "stages.0.branch=[2, 3]",
        "stages.0.max_new_tokens=[10, 30]",
        "eval.rows=7",
        "eval.max_new_tokens=11",
        "chat.keep_attempts=null",
    )
    config = Qwen2Config(
        vocab_size=96, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    token = 3 * 2 * 2 * 16 * 4
    first, _, judged = rollouts(settings, PROMPTS, config, torch.float32)
    # 20 rows are three trees of 6: 6 first attempts of 24 + 10 tokens, 18 second ones behind 24 + 10 + 5.
    # Before the second ones a bridge of 5 is read, and the token before it, which was drawn and not read.
    readings = ((3, 24, 0), (6, 6, 33))
    assert first == ("stage1", 18, 69, 18 * 69 * token, 18 * 69 * token // 3, 18 * 96 * 24, readings)
    assert first.peak == 18 * 69 * token + 18 * 69 * token // 3 + 18 * 96 * 24
    # What is cached before the third attempt is more than what the third needs, which sees the second alone.
    three = {"branch": [1, 1, 1], "max_new_tokens": [10, 30, 2], "kind": "substage"}
    anew = settings.model_copy(
        update={"chat": ChatSettings(keep_attempts=1), "stages": [settings.stages[0].model_copy(update=three)]}
    )
    wide = rollouts(anew, PROMPTS, config, torch.float32)[0]
    assert wide.cache == 8 * (24 + 10 + 5 + 30) * token
    assert wide.readings == ((8, 24, 0), (8, 6, 33), (8, 24 + 30 + 5, 0))
    assert judged[:4] == ("evaluation", 7, 24 + 11 + 5 + 11, 7 * 51 * token)
    assert judged.peak == 7 * 51 * token + 7 * 51 * token // 3 + 7 * 96 * 12


@pytest.mark.parametrize(
    ("branch", "limits", "chat_options", "largest"),
    [
        ([2, 4], [40, 40], {}, "sampling"),
        ([8, 1], [120, 2], {}, "reading"),
        ([8, 1], [40, 2], {"instruction": "Redo it. " * 30}, "reading"),
        ([4, 1, 1], [2, 60, 2], {"keep_attempts": 1, "instruction": "Redo it. " * 30}, "reading"),
    ],
    ids=["the cache grows", "few tokens are read behind it", "many tokens are read behind it", "it is let go"],
)
def test_a_real_rollout_takes_the_memory_that_is_planned_and_no_more(branch, limits, chat_options, largest):
    settings = settings_with("train.rollout_rows=64")
    stage = StageSettings(kind="substage", steps=1, branch=branch, max_new_tokens=limits, problems=8)
    chat_settings = ChatSettings(**{"instruction": "Redo.", **chat_options})
    settings = settings.model_copy(update={"stages": [stage], "chat": chat_settings})
    policy = never_ending_policy(layers=8)
    chat = Chat(policy.tokenizer, chat_settings)
    prompt = len(chat.open("1 + 1"))
    prompts = Prompts(float(prompt), prompt, len(chat.bridges[0]), "measured")
    planned = rollouts(settings, prompts, policy.causal_lm.config, torch.float32)[0]
    blank = blank_model(ModelSettings(dtype="float32"), copy.deepcopy(policy.causal_lm.config))
    found = {"sampling": planned.peak, "reading": max(replay_prefill(blank, *reading) for reading in planned.readings)}
    assert max(found, key=lambda name: found[name]) == largest
    player = Player(TransformersEngine(policy.causal_lm, chat.end_ids, 0), chat, Grader())  # type: ignore[arg-type]
    plan = Plan(tuple(branch), tuple(limits), stage.sampling, 64)
    with Peak([*policy.parameters(), *policy._frozen[0].parameters()]) as counted:
        player.play([Problem(f"p{n}", f"{n} + {n}", "1") for n in range(8)], plan, (0, "test"))
    # While contexts are read, kernels on a GPU take a mask in the type of the numbers, which those here do without.
    assert (0.8 if largest == "sampling" else 0.5) * found[largest] < counted.peak < found[largest]


def test_without_the_hub_the_shapes_are_those_of_the_table(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "score_rl", "train", "gsm8k-qwen3", "--plan", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    found = json.loads(done.stdout)
    assert (found["shape"], found["model"]) == ("table", "Qwen/Qwen3-0.6B")
    assert found["prompts"] == assume_prompts(load("gsm8k-qwen3").chat)._asdict()
    assert [path.name for path in tmp_path.iterdir() if path.name == "runs"] == []


def test_what_the_chat_template_renders_anew_may_cost_less_than_planned_and_never_more():
    stage = StageSettings(kind="stage2", steps=1, problems=2, branch=[2, 1], max_new_tokens=[4, 6])
    settings = settings_with("train.micro_batch_tokens=100")
    nested, anew = (
        stage_cost("s", stage, settings.model_copy(update={"chat": ChatSettings(history=history)}), PROMPTS)
        for history in ("verbatim", "template")
    )
    assert (nested.rows, anew.rows) == (4, 8)
    # Behind the prompts of 20 tokens, contexts of 20 + 4 + 5: bridges alone where the cache goes on, else all of it.
    assert (nested.prompt_tokens, anew.prompt_tokens) == (2 * 20 + 4 * 5, 2 * 20 + 4 * 29)
    assert (nested.update_tokens, anew.update_tokens) == (4 * 35, 4 * (24 + 35))


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [(None, (20, 20 + 4 + 5, 20 + 4 + 5 + 6 + 5)), (1, (20, 20 + 4 + 5, 20 + 6 + 5)), (2, (20, 29, 40))],
)
def test_a_context_has_the_prompt_and_the_earlier_attempts_that_are_kept(keep, wanted):
    chat = ChatSettings(keep_attempts=keep)
    assert contexts([4, 6, 3], chat, 20.0, 5) == wanted
    assert [continues(chat, k) for k in (1, 2)] == [True, keep != 1]


def test_evaluations_are_counted_as_training_holds_them():
    settings = settings_with(
        "stages.0.steps=10",
        "stages.1.steps=7",
        "train.validate_every=4",
        "train.validation_problems=30",
        "eval.problems=100",
        "eval.max_new_tokens=9",
    )
    found = evaluation_costs(settings, 40)
    assert found["validation"] == (1 + 3 + 2, 30, 6 * 30 * 2 * 9)  # before, at 4, 8 and 10, at 4 and 7
    assert found["evaluation"] == (3, 40, 3 * 40 * 2 * 9)
    assert evaluation_costs(settings, None)["evaluation"].problems == 100


def test_prompts_are_measured_where_tokenizer_and_data_are_here():
    settings = settings_with(SMALL)
    prompts, held_out = measure_prompts(settings)
    assert held_out == 8
    assert prompts.source == "measured on 40 of 40 training problems and on those with most letters"
    assert prompts.longest == prompts.mean == len(embedded_chat().open("1234 - 0567"))
    assert prompts.bridge == len(embedded_chat().bridges[0])


def embedded_chat() -> Chat:
    return Chat(load_tokenizer(ModelSettings()), settings_with().chat)


def test_the_longest_prompt_is_found_among_those_with_most_letters_and_never_above_the_limit(tmp_path):
    rows = [{"question": f"{n} - 1", "answer": "1"} for n in range(2500)]
    rows[1] = {"question": "9" * 40 + " - 1", "answer": "1"}  # not among the 1,000 that are measured for the mean
    for split in ("train", "validation", "test"):
        chosen = rows if split == "train" else [{"question": f"{split} - 2", "answer": "1"}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    data = [f"data.source={tmp_path}", "data.options={}"]
    free, held_out = measure_prompts(settings_with(*data))
    limited, _ = measure_prompts(settings_with(*data, "chat.max_prompt_tokens=30"))
    longest = len(embedded_chat().open(rows[1]["question"]))
    assert (free.longest, limited.longest, held_out) == (longest, 30, 1)
    assert free.mean == limited.mean < 30 < longest


def test_prompts_that_are_too_long_are_not_measured():
    with pytest.raises(DataError, match=r"chat\.max_prompt_tokens=3: the training prompts are longer"):
        measure_prompts(settings_with(SMALL, "chat.max_prompt_tokens=3"))


def test_an_assumed_prompt_is_as_long_as_the_settings_allow():
    chat = ChatSettings(instruction="a" * 31, max_prompt_tokens=700)
    assert assume_prompts(chat)[:3] == (700.0, 700, 11 + 16)
    assert assume_prompts(ChatSettings())[1] == 512


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    return make_plan(settings_with(SMALL))


def test_the_most_at_once_is_what_is_held_and_the_largest_of_three_that_never_meet(plan):
    assert plan.peaks == {
        "sampling": plan.held.total + max(plan.prefill, max(rollout.peak for rollout in plan.rollouts)),
        "update": plan.held.total + plan.update.peak,
        "optimizer step": plan.held.total + plan.held.gradients,
    }


def test_the_whole_run_samples_what_its_steps_and_evaluations_do(plan):
    first, second = plan.stages
    assert first.sampled_tokens == 64 * (2 + 2 * 4) * 12
    assert second.sampled_tokens == 64 * (8 + 8) * 12
    held_out = sum(cost.sampled_tokens for cost in plan.evaluations.values())
    assert plan.sampled_tokens == 60 * first.sampled_tokens + 100 * second.sampled_tokens + held_out


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (None, "no GPU here to compare with"),
        (2**40, "fits into the 1024.00 of this GPU"),
        (2**10, "does not fit into the 0.00 of this GPU"),
    ],
)
def test_the_plan_says_whether_the_gpu_is_large_enough(plan, gpu, said):
    assert said in to_text(plan._replace(gpu=gpu), "arithmetic")


def test_the_text_has_the_figures_of_the_plan(plan):
    text = to_text(plan, "arithmetic")
    assert f"parameters: {plan.held.parameters:,} in all" in text
    assert f"{plan.stages[1].update_tokens:,}" in text
    assert f"in all: 160 steps, {plan.sampled_tokens:,} tokens sampled at most" in text
    assert "MiB" in text and "with gradient_checkpointing, for comparison" in text


def test_the_command_prints_a_plan_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    outputs = []
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["score", "train", "arithmetic", "--plan", SMALL, "stages.0.steps=7", *more])
        with pytest.raises(SystemExit, match="0"):
            main()
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith("arithmetic: embedded, float32, shapes from its config.json\n")
    found = json.loads(outputs[1])
    assert found["stages"][0]["steps"] == 7
    assert found["tokens"] == sum(stage["tokens"] for stage in found["stages"])
    assert list(tmp_path.iterdir()) == []
