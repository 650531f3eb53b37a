"""BY571/SCoRe's settings as a recipe: one file for both stages, Unsloth models, prompts and rewards by name."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

from pydantic import Field

from score_rl.prior.conversion import Conversion, cut_validation
from score_rl.registry import suggest
from score_rl.schema import Fraction, NonNegative, Positive, Schema

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Lora(Schema):
    """Low-rank adapters."""

    r: Positive = 16
    alpha: Positive = 16
    dropout: Fraction = 0.0
    target_modules: list[str] = TARGETS


class Model(Schema):
    """Their section `model`."""

    name: str
    max_seq_length: Positive
    load_in_4bit: bool
    chat_template: str
    fast_inference: bool = False
    fast_inference_gpu_mem: float = 0.5
    lora: Lora = Lora()


class Dataset(Schema):
    """Their section `dataset`."""

    name: str
    config_name: str | None = None
    input_field: str
    target_field: str
    test_split_size: Positive
    split: str | None = None
    revision: str | None = None


class Prompts(Schema):
    """Their section `prompts`."""

    system: str
    self_correction: str


class Reward(Schema):
    """Their section `reward`."""

    fn: str
    answer_extractor: str


class Train(Schema):
    """Their section `train`."""

    stage1_batch_size: Positive
    stage2_batch_size: Positive
    learning_rate: float
    stage1_epochs: Positive
    stage2_epochs: Positive
    beta1: NonNegative
    beta2: NonNegative
    alpha: NonNegative
    max_new_tokens_attempt1: Positive
    max_new_tokens_attempt2: Positive
    max_prompt_length_attempt1: Positive
    max_prompt_length_attempt2: Positive
    generation_temperature: NonNegative
    seed: int
    checkpoint_every: int = Field(default=0, ge=0)
    length_norm: Literal["sequence", "constant"] = "sequence"


class Eval(Schema):
    """Their section `eval`."""

    batch_size: Positive = 1
    max_examples: Positive = 200
    generation_temperature: NonNegative = 0.0


class Output(Schema):
    """Their section `output`."""

    dir: str = "outputs"


class By571(Schema):
    """Their file."""

    run_name: str
    wandb_project: str
    model: Model
    dataset: Dataset
    prompts: Prompts
    reward: Reward
    train: Train
    eval: Eval = Eval()
    output: Output = Output()


def convert(theirs: By571, made: Conversion, train_rows: int | None) -> None:
    """Fills `made` from their settings.

    Args:
        train_rows: rows of their training split, where the data is not on this machine.
    """
    made.same("run_name", theirs.run_name, {"name": theirs.run_name})
    made.same("train.seed", theirs.train.seed, {"seed": theirs.train.seed}, "theirs starts every adapter from 3407")
    _model(theirs.model, made)
    rows = _data(theirs.dataset, made, train_rows)
    _words(theirs, made)
    _reward(theirs.reward, made)
    _stages(theirs, made)
    _steps(theirs.train, made, rows)
    _fixed(made)
    _evaluation(theirs.eval, made)
    made.left_out("wandb_project", theirs.wandb_project, "a run writes metrics.jsonl; nobody needs an account to train")
    made.left_out(
        "output.dir",
        theirs.output.dir,
        f"say where when training: score train -o {theirs.output.dir}/{theirs.run_name}",
    )


def _model(model: Model, made: Conversion) -> None:
    note = "theirs loads it through Unsloth, here transformers does; model.loader=unsloth is there and has not been run"
    made.same("model.name", model.name, {"model.path": model.name, "model.dtype": "bfloat16"}, note)
    four = {"model.quantize": "4bit"} if model.load_in_4bit else {"model.quantize": None}
    made.same("model.load_in_4bit", model.load_in_4bit, four)
    if model.chat_template:
        note = "Unsloth would put a template of that name over the model's own; use a copy of the model with it"
        made.refuse("model.chat_template", model.chat_template, ["model.path"], note)
    else:
        made.same("model.chat_template", "", {}, "the tokenizer's own")
    lora = model.lora
    made.same("model.lora.r", lora.r, {"model.lora.rank": lora.r})
    made.same("model.lora.alpha", lora.alpha, {"model.lora.alpha": lora.alpha})
    made.same("model.lora.dropout", lora.dropout, {"model.lora.dropout": lora.dropout})
    made.same("model.lora.target_modules", lora.target_modules, {"model.lora.targets": lora.target_modules})
    put_checkpointing = {"model.gradient_checkpointing": True}
    made.same("(gradient checkpointing)", True, put_checkpointing, "always on in theirs; costs time, changes no number")
    made.left_out(
        "model.max_seq_length", model.max_seq_length, "a row is as long as its prompt and its attempts, never cut"
    )
    note = "theirs fills the GPU with a vLLM engine and then samples without it"
    made.left_out("model.fast_inference", model.fast_inference, note)
    made.left_out("model.fast_inference_gpu_mem", model.fast_inference_gpu_mem, note)


def _data(data: Dataset, made: Conversion, train_rows: int | None) -> int | None:
    """Fills in the data and its splits; returns the rows that train, or None where nobody knows."""
    made.same("dataset.name", data.name, {"data.source": data.name})
    made.same("dataset.input_field", data.input_field, {"data.question_field": data.input_field})
    made.same("dataset.target_field", data.target_field, {"data.answer_field": data.target_field})
    hub = {
        "dataset.config_name": ("data.config", data.config_name),
        "dataset.revision": ("data.revision", data.revision),
    }
    store = made.store()
    for key, (ours, value) in hub.items():
        if store is not None and value is not None:
            made.left_out(key, value, "for the hub; data.source is a copy on this machine")
        else:
            made.same(key, value, {ours: value})
    if made.says_splits:
        for key in ("split", "test_split_size"):
            made.left_out(f"dataset.{key}", getattr(data, key), "an override says which rows are which split")
        return train_rows or made.count_problems()
    part, size = data.split or "train", data.test_split_size
    rows = made.count_rows(part) or train_rows
    if data.split is not None and rows is None:
        made.refuse("dataset.split", part, ["data.splits"], "to cut it, its rows must be counted: --train-rows N")
        made.refuse("dataset.test_split_size", size, ["data.splits"], "its rows must be counted: --train-rows N")
        return None
    cut = cut_validation(store, part, rows, held=size if data.split is not None else 0)
    splits = {"data.splits.train": cut.train, "data.splits.validation": cut.validation}
    if data.split is not None:
        made.same("dataset.split", part, {})
        note = "the first rows are held out, as in theirs; what validates is not trained on"
        made.differs("dataset.test_split_size", size, splits | {"data.splits.test": f"{part}[:{size}]"}, note)
    else:
        made.same("dataset.split", None, {})
        note = (
            "theirs trains on the rest of the part test, which makes the result on it incomparable; here nobody does "
            f"(as theirs: data.splits.train='{cut.train}+test[{size}:]'), and what validates is not trained on"
        )
        made.differs("dataset.test_split_size", size, splits | {"data.splits.test": f"test[:{size}]"}, note)
    return cut.rows


def _words(theirs: By571, made: Conversion) -> None:
    prompts, train = theirs.prompts, theirs.train
    made.same("prompts.system", prompts.system, {"chat.system": prompts.system or None})
    note = (
        "attempt 1 stands in front of it token for token; theirs decodes it and renders it again, where a template may "
        "remove the thoughts that attempt 2 is to check (as theirs: chat.history=template)"
    )
    made.differs(
        "prompts.self_correction", prompts.self_correction, {"chat.instruction": prompts.self_correction}, note
    )
    limit = train.max_prompt_length_attempt1
    note = "a problem with a longer prompt is left out and counted; theirs cuts the prompt's end off"
    made.differs("train.max_prompt_length_attempt1", limit, {"chat.max_prompt_tokens": limit}, note)
    note = "nothing is cut: attempt 1 and the instruction always fit; theirs would cut off the instruction first"
    made.left_out("train.max_prompt_length_attempt2", train.max_prompt_length_attempt2, note)


_SHAPED = ("format_and_match", "strict_format_and_match")
_REWARDS = ("exact_match", *_SHAPED)
_EXTRACTORS = ("identity", "gsm8k_hash", "math_final_answer")


def _reward(reward: Reward, made: Conversion) -> None:
    if reward.fn not in _REWARDS:
        made.refuse("reward.fn", reward.fn, ["reward.fn"], f"not shipped with theirs{suggest(reward.fn, [*_REWARDS])}")
    elif reward.fn == "exact_match":
        made.same("reward.fn", reward.fn, {"reward.fn": "exact_match"})
    else:
        note = (
            "a block counts if it has something in it, so that the form is not to be had for nothing; accuracies count "
            "the match alone"
        )
        made.differs("reward.fn", reward.fn, {"reward.fn": reward.fn}, note)
    extractor = reward.answer_extractor
    if extractor in _EXTRACTORS:
        note = "where nothing is found the attempt is wrong; in theirs it equals a gold answer with nothing in it"
        made.differs("reward.answer_extractor", extractor, {"reward.extractor": extractor}, note)
    else:
        note = f"not shipped with theirs{suggest(extractor, [*_EXTRACTORS])}"
        made.refuse("reward.answer_extractor", extractor, ["reward.extractor"], note)


def _both(key: str, value: Any) -> dict[str, Any]:
    return {f"stages.0.{key}": value, f"stages.1.{key}": value}


def _stages(theirs: By571, made: Conversion) -> None:
    train = theirs.train
    made.same("(stages)", "one run, Stage I and II", {"stages.0.kind": "stage1", "stages.1.kind": "stage2"})
    for i, size in enumerate((train.stage1_batch_size, train.stage2_batch_size)):
        made.same(f"train.stage{i + 1}_batch_size", size, {f"stages.{i}.problems": size, f"stages.{i}.branch": [1, 1]})
    limits = [train.max_new_tokens_attempt1, train.max_new_tokens_attempt2]
    made.same("train.max_new_tokens_attempt1", limits[0], _both("max_new_tokens", limits))
    longest = {**_both("max_new_tokens", limits), "eval.max_new_tokens": max(limits)}
    if limits[0] == limits[1]:
        made.same("train.max_new_tokens_attempt2", limits[1], longest)
    else:
        note = "an evaluation has one limit for all attempts, here the larger one"
        made.differs("train.max_new_tokens_attempt2", limits[1], longest, note)
    temperature = train.generation_temperature
    if temperature > 0:
        note = (
            "drawn from the whole vocabulary and scored at the same temperature; theirs draws with the model's own "
            "top_p and top_k and scores at temperature 1, so what it trains is not what it drew"
        )
        made.differs("train.generation_temperature", temperature, _both("sampling.temperature", temperature), note)
    else:
        keys = [*_both("sampling.temperature", 0)]
        made.refuse(
            "train.generation_temperature", temperature, keys, "greedy, which gives a gradient nothing to compare"
        )
    note = "Eq. 3 holds attempt 2 in Stage I too; theirs in Stage II alone (as theirs: stages.0.beta1=0)"
    made.differs("train.beta1", train.beta1, _both("beta1", train.beta1), note)
    made.same("train.beta2", train.beta2, {"stages.0.beta2": train.beta2})
    if theirs.reward.fn in _SHAPED:
        note = (
            "the bonus is for turning a wrong answer right (Eq. 5); theirs multiplies the reward for the format too, "
            "and half as much for the answer (as theirs: stages.1.bonus_on=reward)"
        )
        made.differs("train.alpha", train.alpha, {"stages.1.alpha": train.alpha, "stages.1.bonus_on": "correct"}, note)
    else:
        made.same("train.alpha", train.alpha, {"stages.1.alpha": train.alpha})
    note = "an attempt's length is what was drawn; theirs counts the padding behind its end token too"
    (made.differs if train.length_norm == "sequence" else made.same)(
        "train.length_norm", train.length_norm, _both("length_norm", train.length_norm), note
    )
    made.same("train.learning_rate", train.learning_rate, _both("lr", train.learning_rate), "constant")


def _steps(train: Train, made: Conversion, rows: int | None) -> None:
    epochs, sizes = (train.stage1_epochs, train.stage2_epochs), (train.stage1_batch_size, train.stage2_batch_size)
    for i, (number, size) in enumerate(zip(epochs, sizes, strict=True)):
        key, ours = f"train.stage{i + 1}_epochs", f"stages.{i}.steps"
        if rows is None:
            note = "the training rows must be counted: --train-rows N, or data.source=DIR for a copy on this machine"
            made.refuse(key, number, [ours], note)
        else:
            note = f"{rows} rows, {size} a step; every pass in a new order, in theirs all in the order of the data"
            made.differs(key, number, {ours: number * ceil(rows / size)}, note)
    every = train.checkpoint_every
    if every:
        made.same("train.checkpoint_every", every, {"train.checkpoint_every": every}, "a run goes on from there")
    else:
        note = "theirs writes none within a stage; a run that is killed should not lose more than this"
        made.differs("train.checkpoint_every", every, {"train.checkpoint_every": 50}, note)


def _fixed(made: Conversion) -> None:
    """What stands in their program and in no key."""
    note = (
        "the gradient of K3 is that of KL(reference || policy); k2 has that of KL(policy || reference), which is in "
        "Eq. 2 to 4 (as theirs: stages.N.kl.estimator=k3)"
    )
    made.differs("(KL)", "K3 in the loss", _both("kl.estimator", "k2"), note)
    note = "rewards of 0 and more then push up all that is drawn; stages.N.advantage=batch_mean compares"
    made.same("(baseline)", "none", _both("advantage", "none"), note)
    note = "each stage starts with a fresh one; theirs keeps one over both"
    made.differs("(optimiser)", "AdamW8bit", {"optim.kind": "adamw_8bit", "optim.weight_decay": 0.01}, note)
    made.same("(gradient clipping)", "none", {"optim.max_grad_norm": 1e9})
    made.same("(kept weights)", "the last", {"train.select": "last"}, "train.select=validation would choose the best")


def _evaluation(evaluation: Eval, made: Conversion) -> None:
    made.same("eval.max_examples", evaluation.max_examples, {"eval.problems": evaluation.max_examples})
    warm = evaluation.generation_temperature
    made.same(
        "eval.generation_temperature",
        warm,
        {"eval.sampling.temperature": warm},
        "accuracies count right answers; what theirs calls acc is the mean reward, format included",
    )
    made.left_out("eval.batch_size", evaluation.batch_size, "memory alone: eval.rows (512) are decoded at once")
