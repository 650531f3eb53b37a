"""The recipes that ship: that they mean what their comments and their page say."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from wild_chat import make_tokenizer

from score_rl.chat import Chat
from score_rl.data.load import load_problems, load_splits
from score_rl.grading import make_grader
from score_rl.planning import RunPlan, make_plan
from score_rl.planning.costs import assume_prompts
from score_rl.planning.shapes import Shape, known_config
from score_rl.schema import Settings
from score_rl.settings import load, parse_yaml, read_recipe, recipe_names

REAL = os.environ.get("SCORE_DATA")
FILE = Path(__file__).parent.parent / "docs" / "recipes.md"
PAGE = FILE.read_text(encoding="utf-8")
NAMES = [name for name in recipe_names() if name not in ("arithmetic", "walk")]
MATHS = ["gsm8k", "gsm8k-qwen3", "math", "paper-math"]
TEMPLATES = {"Qwen2.5": "qwen2_5", "Qwen3": "qwen3", "gemma": "gemma"}

MATH_PROMPT = (
    "You are a math expert. When you respond, respond only with the Solution of the final Problem, thinking step by "
    "step. At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)
MATH_CORRECTION = (
    "There might be an error in the solution above because of lack of understanding of the question. Please correct "
    "the error, if any, and rewrite the solution. Only output the final solution! At the end of the Solution, when you "
    'give your final answer, write it in the form "Final Answer: The final answer is $answer$. I hope it is correct."'
)
CODE_CORRECTION = (
    "# There might be an error in the code above because of lack of understanding of the question. Please correct the "
    "error, if any, and rewrite the solution. Only output the final correct Python program!"
)


@pytest.fixture(scope="module")
def plans() -> dict[str, RunPlan]:
    """The plan of every recipe where neither model nor data can be had."""
    found = {}
    for name in NAMES:
        settings = load(name)
        shape = Shape(known_config(settings.model.path), "table")
        found[name] = make_plan(settings, shape=shape, prompts=assume_prompts(settings.chat))
    return found


def template_of(settings: Settings) -> str:
    return next(template for family, template in TEMPLATES.items() if family in settings.model.path)


# -- what they say -----------------------------------------------------------------------------------------------------


def test_the_prompts_of_mathematics_are_the_papers_word_for_word():
    for name in MATHS:
        chat = load(name).chat
        assert (chat.system, chat.instruction) == (MATH_PROMPT, MATH_CORRECTION), name


def test_the_prompts_of_code_are_the_papers_word_for_word():
    for name in ("mbpp", "paper-mbpp"):
        settings = load(name)
        assert (settings.chat.system, settings.chat.instruction) == (None, CODE_CORRECTION)
        assert settings.data.options == {"shots": 3, "test": "humaneval"}


class Published(NamedTuple):
    """A column of Table 8; the temperature is 1, alpha 10 and beta1 0.01 in both."""

    lr: float
    steps: int
    batch: int
    beta2: float


TABLE_8 = {"paper-math": Published(5e-6, 3000, 512, 0.1), "paper-mbpp": Published(1e-5, 1500, 128, 0.25)}


@pytest.mark.parametrize("name", TABLE_8)
def test_the_papers_runs_have_the_hyper_parameters_of_its_table_8(name):
    settings, published = load(name), TABLE_8[name]
    first, second = settings.stages
    assert (first.kind, second.kind) == ("stage1", "stage2")
    assert first.steps + second.steps == published.steps
    for stage in (first, second):
        assert stage.episodes == published.batch
        assert stage.sampling.temperature == 1.0
        assert (stage.lr, stage.beta1, stage.gamma) == (published.lr, 0.01, 0.0)
    assert (first.beta2, second.alpha) == (published.beta2, 10.0)
    assert (settings.optim.kind, settings.optim.weight_decay) == ("adamw", 0.0)  # Adam
    assert settings.model.lora is None
    assert settings.train.select == "train_reward"
    assert (settings.eval.sampling.temperature, settings.eval.attempts) == (0.0, 2)


OPEN = ["kl", "reference", "advantage", "length_norm", "offline_fraction", "schedule", "warmup_steps"]
OPEN += ["max_new_tokens", "branch", "problems"]


@pytest.mark.parametrize("name", TABLE_8)
def test_what_the_paper_leaves_open_stands_in_its_recipes_and_not_in_a_default(name):
    _, content = read_recipe(name)
    for stage in content["stages"]:
        assert set(OPEN) <= set(stage)
    assert set(content["optim"]) == {"kind", "betas", "eps", "weight_decay", "max_grad_norm"}


def test_training_on_the_tests_of_math_is_by_name_and_with_a_warning():
    assert load("math").data.options == {"variant": "7.5k"}
    assert load("paper-math").data.options == {"variant": "12k"}
    text = (Path(__file__).parent.parent / "score_rl" / "recipes" / "paper-math.yaml").read_text()
    assert "WARNING, contaminated by construction" in text


def test_the_thinking_switch_is_stated_for_the_model_that_has_one():
    assert load("gsm8k-qwen3").chat.enable_thinking is False
    assert all(load(name).chat.enable_thinking is None for name in NAMES if name != "gsm8k-qwen3")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("paper-")])
def test_a_recipe_of_ours_trains_an_adapter_with_the_papers_coefficients(name):
    settings = load(name)
    first, second = settings.stages
    assert settings.model.lora is not None and settings.model.gradient_checkpointing
    assert (second.alpha, first.beta1, second.beta1) == (10.0, 0.01, 0.01)
    assert first.beta2 == (0.25 if name == "mbpp" else 0.1)
    assert not first.cautions() + second.cautions()


# -- that they resolve -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_reward_of_a_recipe_exists_and_takes_its_options(name):
    make_grader(load(name, ["reward.workers=1"]).reward).close()


@pytest.mark.parametrize("name", NAMES)
def test_the_prompts_of_a_recipe_go_into_the_chat_template_of_its_family(name):
    settings = load(name)
    chat = Chat(make_tokenizer(template_of(settings)), settings.chat)
    text = chat.tokenizer.decode(chat.open("How many?"))
    assert (settings.chat.system or "How many?") in text and "How many?" in text
    assert str(settings.chat.instruction) in chat.tokenizer.decode(chat.bridges[0])
    assert text.endswith("<think>\n\n</think>\n\n") == (name == "gsm8k-qwen3")


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_episode_of_a_recipe_fits_into_its_models_context(name, plans):
    assert plans[name].positions is not None and plans[name].longest <= plans[name].positions


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_into_the_gpu_that_it_is_for(name, plans):
    # A tenth for the allocator, half a GiB for the context.
    size = 80e9 if name.startswith("paper-") else 24e9
    assert 1.1 * max(plans[name].peaks.values()) + 2**29 < size


# -- their page --------------------------------------------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading of the page, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def planned_row(name: str, plan: RunPlan) -> list[str]:
    steps = sum(stage.steps for stage in plan.stages)
    passes = max(stage.rollout_passes for stage in plan.stages)
    sizes = [plan.held.total, plan.peaks["sampling"], plan.peaks["update"]]
    return [
        name,
        f"{plan.held.trained / 1e6:,.1f} of {plan.held.parameters / 1e6:,.1f}",
        *(f"{size / 2**30:.1f}" for size in sizes),
        f"{steps:,}",
        f"{max(stage.sampled_tokens for stage in plan.stages):,}",
        f"{passes:,}",
        f"{plan.sampled_tokens / 1e6:,.1f}",
    ]


def test_the_page_has_the_figures_of_the_plans(plans):
    assert rows_of("What they cost") == [planned_row(name, plans[name]) for name in NAMES]


def test_the_page_names_every_recipe_with_its_model_and_data():
    rows = rows_of("What there is")
    assert [row[0] for row in rows] == ["arithmetic", "walk", *NAMES]
    for name, model, data, *_ in rows:
        settings = load(name)
        assert settings.model.path in model and settings.data.source in data


ASSIGNMENT = re.compile(r"([\w.]+)=(\[[^]]*\]|\{[^}]*\}|[^\s,;`]+)")


def test_the_page_says_of_table_8_what_the_recipes_hold():
    rows = rows_of("Table 8 and ours")
    assert len(rows) > 20
    for what, _, *ours in rows:
        for name, cell in zip(("paper-math", "paper-mbpp"), ours[:2], strict=True):
            for key, value in ASSIGNMENT.findall(cell):
                content: object = load(name).model_dump(mode="json")
                for part in key.split("."):
                    content = content[int(part)] if isinstance(content, list) else content[part]  # type: ignore[index]
                assert content == parse_yaml(value, str(FILE)), (what, key)


def test_the_page_says_that_none_has_been_run_on_released_weights():
    assert "None of these recipes has been run on released weights here" in " ".join(PAGE.split())


# -- the real files ----------------------------------------------------------------------------------------------------

SIZES = {
    "gsm8k": (6973, 500, 1319),
    "gsm8k-qwen3": (6973, 500, 1319),
    "math": (6971, 500, 5000),
    "paper-math": (11_471, 500, 500),
    "mbpp": (371, 90, 164),
    "paper-mbpp": (371, 90, 164),
    "qa": (2610, 500, 500),
}
FOLDERS = {"gsm8k": "gsm8k", "math": "math500", "mbpp": "mbpp", "qa": "nq_open"}


def real(name: str) -> Settings:
    source = load(name).data.source
    also = [f"data.options.humaneval_path={REAL}/humaneval"] if source == "mbpp" else []
    return load(name, [f"data.options.path={REAL}/{FOLDERS[source]}", *also])


@pytest.mark.skipif(REAL is None, reason="SCORE_DATA does not name the folder of the real files")
@pytest.mark.parametrize("name", NAMES)
def test_the_real_files_give_the_splits_that_a_recipe_says_and_share_no_question(name):
    assert tuple(map(len, load_splits(real(name).data, "test"))) == SIZES[name]


@pytest.mark.skipif(REAL is None, reason="SCORE_DATA does not name the folder of the real files")
@pytest.mark.parametrize("name", ["gsm8k", "mbpp", "qa"])
def test_no_real_prompt_can_be_longer_than_the_limit_of_its_recipe(name):
    settings = real(name)
    for split in ("train", "validation", "test"):
        longest = max(len(problem.question) for problem in load_problems(settings.data, split))
        # Two letters a token is less than any of these texts has.
        assert (longest + len(settings.chat.system or "")) / 2 < (settings.chat.max_prompt_tokens or 0) + 250
