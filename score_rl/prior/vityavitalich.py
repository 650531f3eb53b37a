"""VityaVitalich/SCoRe's settings as a recipe: one stage a file, math or question answering, one or more processes."""

from __future__ import annotations

from math import ceil
from typing import Literal

from score_rl.prior.conversion import Conversion, cut_validation
from score_rl.registry import suggest
from score_rl.schema import Fraction, NonNegative, Positive, Schema

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MATH_SYSTEM = r"Work through the problem step by step. Put the final answer in \boxed{}."
QA_SYSTEM = "Think about the question in a few short steps. Then give the answer in a line that starts with: {marker}"


class VityaVitalich(Schema):
    """Their file, in its older state and its newer one, which has the keys of LoRA."""

    model_path: str
    cache_dir: str | None = None
    random_seed: int = 42
    wandb_project_name: str | None = None
    task_type: str
    data_path: str
    id_col: str | None = None
    question_col: str
    gold_col: str
    run_name: str
    evaluator_mode: Literal["default", "final"] = "default"
    evaluator_function: str
    evaluator_answer_marker: str | None = None
    few_shot_dir: str | None = None
    number_output_initial_generations: int | None = None
    temperature: NonNegative
    max_tokens: Positive
    train_stage: Literal[1, 2]
    per_device_train_batch_size: Positive
    gradient_accumulation_steps: Positive
    local_rollout_forward_batch_size: Positive | None = None
    total_episodes: Positive
    learning_rate: float
    num_warmup_steps: int = 0
    corr_kl_coef: NonNegative = 0.01
    init_kl_coef: NonNegative = 0.01
    save_steps: Positive | None = None
    stage2_alpha: NonNegative = 0.5
    use_lora: bool = False
    lora_rank: Positive | None = None
    lora_alpha: Positive | None = None
    lora_dropout: Fraction | None = None


def convert(theirs: VityaVitalich, made: Conversion, *, processes: int) -> None:
    """Fills `made` from their settings.

    Args:
        processes: that theirs would be launched on; their file does not say.
    """
    made.same("run_name", theirs.run_name, {"name": theirs.run_name})
    made.same("random_seed", theirs.random_seed, {"seed": theirs.random_seed}, "theirs has the same on all processes")
    _model(theirs, made)
    _data(theirs, made)
    _task(theirs, made)
    _stage(theirs, made)
    _batches(theirs, made, processes)
    _kl(theirs, made)
    _fixed(made)
    unused = "theirs reads it and then uses it nowhere"
    for key, why in (
        ("cache_dir", "say where with -o, and where the hub's files are with the variable HF_HOME"),
        ("wandb_project_name", "a run writes metrics.jsonl; nobody needs an account to train"),
        ("few_shot_dir", "theirs looks for a file in it that it does not ship, and goes on without examples"),
        ("number_output_initial_generations", unused),
        ("local_rollout_forward_batch_size", "memory alone: train.rollout_rows (512) are decoded at once"),
    ):
        made.left_out(key, getattr(theirs, key), why)


def _model(theirs: VityaVitalich, made: Conversion) -> None:
    made.same("model_path", theirs.model_path, {"model.path": theirs.model_path})
    note = "float32 where the whole model trains: in bfloat16 most steps of such a learning rate round away"
    if theirs.use_lora:
        made.same("(weights)", "bfloat16", {"model.dtype": "bfloat16"})
    else:
        made.differs("(weights)", "bfloat16", {"model.dtype": "auto"}, note)
        made.same("use_lora", False, {"model.lora": None}, "the whole model trains")
        for key in ("lora_rank", "lora_alpha", "lora_dropout"):
            made.left_out(key, getattr(theirs, key), "use_lora is not on")
        return
    made.same("use_lora", True, {"model.lora.targets": TARGETS})
    made.same("lora_rank", theirs.lora_rank, {"model.lora.rank": theirs.lora_rank or 16})
    made.same("lora_alpha", theirs.lora_alpha, {"model.lora.alpha": theirs.lora_alpha or 32})
    note = "it acts here; theirs sets it and then turns all dropout off (as theirs: model.lora.dropout=0)"
    dropout = theirs.lora_dropout or 0.0
    (made.differs if dropout else made.same)("lora_dropout", dropout, {"model.lora.dropout": dropout}, note)


def _data(theirs: VityaVitalich, made: Conversion) -> None:
    made.same("data_path", theirs.data_path, {"data.source": theirs.data_path})
    made.same("question_col", theirs.question_col, {"data.question_field": theirs.question_col})
    made.same("gold_col", theirs.gold_col, {"data.answer_field": theirs.gold_col})
    made.same("id_col", theirs.id_col, {"data.id_field": theirs.id_col})
    if made.says_splits:
        return
    cut = cut_validation(made.store(), "train", made.count_rows("train"))
    splits = {"data.splits.train": cut.train, "data.splits.validation": cut.validation, "data.splits.test": "test"}
    made.differs("(splits)", "train, test", splits, "theirs has no validation; what validates is not trained on")


_REWARDS = ("math_acc", "in_acc", "em", "f1")


def _task(theirs: VityaVitalich, made: Conversion) -> None:
    marker = theirs.evaluator_answer_marker
    note = (
        "other words, and the paper's instruction, for their built-in prompts, which send the system prompt as a user "
        "turn at attempt 1"
    )
    if theirs.task_type == "math":
        made.differs("task_type", "math", {"chat.system": MATH_SYSTEM}, note)
    elif theirs.task_type == "qa":
        system = QA_SYSTEM.format(marker=marker or "Final Answer:")
        made.differs("task_type", "qa", {"chat.system": system}, note)
    else:
        note = f"theirs has prompts for math and qa{suggest(theirs.task_type, ['math', 'qa'])}"
        made.refuse("task_type", theirs.task_type, ["chat.system"], note)
    name, mode = theirs.evaluator_function, theirs.evaluator_mode
    if name not in _REWARDS:
        note = f"not shipped with theirs{suggest(name, [*_REWARDS])}"
        made.refuse("evaluator_function", name, ["reward.fn"], note)
        made.refuse("evaluator_mode", mode, ["reward.fn"], "it depends on the function")
        made.refuse("evaluator_answer_marker", marker, ["reward.fn"], "it depends on the function")
        return
    if name == "math_acc":
        note = "answers are looked for in the same places and compared as mathematics, with a deadline"
        made.differs("evaluator_function", name, {"reward.fn": name}, note)
        kept = made.same if mode == "final" else made.differs
        kept("evaluator_mode", mode, {"reward.options.mode": "final"}, "theirs takes `final` for math whatever is set")
        made.left_out("evaluator_answer_marker", marker, "for question answering; math has extractors of its own")
        return
    made.same("evaluator_function", name, {"reward.fn": name})
    made.same("evaluator_mode", mode, {"reward.options.mode": mode})
    note = "the answer is behind the last one, in theirs behind the first, which may be in the reasoning"
    made.differs("evaluator_answer_marker", marker, {"reward.options.marker": marker} if marker else {}, note)


def _stage(theirs: VityaVitalich, made: Conversion) -> None:
    if theirs.train_stage == 1:
        made.same("train_stage", 1, {"stages.0.kind": "stage1"}, "add a stage of kind stage2 to run both in one go")
        made.left_out("stage2_alpha", theirs.stage2_alpha, "train_stage is 1")
    else:
        note = (
            "model.path is then the merged model of Stage I, which is the reference too, where the paper's is the base "
            "model (score train --start-stage 2 --resume-adapter on a recipe of both stages keeps it)"
        )
        made.differs("train_stage", 2, {"stages.0.kind": "stage2"}, note)
        note = "attempt 1 earns its own reward alone; theirs credits both attempts with the bonus"
        made.differs("stage2_alpha", theirs.stage2_alpha, {"stages.0.alpha": theirs.stage2_alpha}, note)
    limits = {"stages.0.max_new_tokens": [theirs.max_tokens] * 2, "eval.max_new_tokens": theirs.max_tokens}
    made.same("max_tokens", theirs.max_tokens, limits)
    if theirs.temperature > 0:
        note = (
            "drawn from the whole vocabulary; theirs cuts at top_p 0.8 and top_k 50 and compares with a reference that "
            "is not cut, so equal models have a KL. Evaluations are greedy (as theirs: eval.sampling.temperature="
            f"{theirs.temperature:g})"
        )
        made.differs("temperature", theirs.temperature, {"stages.0.sampling.temperature": theirs.temperature}, note)
    else:
        note = "greedy, which gives a gradient nothing to compare"
        made.refuse("temperature", theirs.temperature, ["stages.0.sampling.temperature"], note)


def _batches(theirs: VityaVitalich, made: Conversion, processes: int) -> None:
    device, accumulated = theirs.per_device_train_batch_size, theirs.gradient_accumulation_steps
    problems = device * accumulated * processes
    steps = ceil(theirs.total_episodes / problems)
    together = f"{device} x {accumulated} x {processes} process{'es' if processes > 1 else ''} (--processes)"
    ours = {"stages.0.problems": problems, "stages.0.branch": [1, 1]}
    made.same("per_device_train_batch_size", device, ours, together)
    made.same("gradient_accumulation_steps", accumulated, ours, together)
    made.same("total_episodes", theirs.total_episodes, {"stages.0.steps": steps}, f"{steps} steps of {problems}")
    warm = {"stages.0.warmup_steps": theirs.num_warmup_steps}
    if theirs.num_warmup_steps >= steps:
        note = f"longer than the {steps} steps: the rate ends at {steps / (theirs.num_warmup_steps + 1):.0%} of itself"
        made.same("num_warmup_steps", theirs.num_warmup_steps, warm, note)
    else:
        made.same("num_warmup_steps", theirs.num_warmup_steps, warm)
    note = "cosine to 0 over the steps; in their older state it is back at the full rate at the end"
    made.differs(
        "learning_rate",
        theirs.learning_rate,
        {"stages.0.lr": theirs.learning_rate, "stages.0.schedule": "cosine"},
        note,
    )
    if theirs.save_steps is not None:
        made.same(
            "save_steps", theirs.save_steps, {"train.checkpoint_every": theirs.save_steps}, "a run goes on from there"
        )


def _kl(theirs: VityaVitalich, made: Conversion) -> None:
    note = "each attempt's KL is in its own reward; theirs puts both in what every attempt earns"
    made.differs("(KL)", "k1 in the reward", {"stages.0.kl": {"estimator": "k1", "placement": "reward"}}, note)
    first, second = theirs.init_kl_coef, theirs.corr_kl_coef
    made.same("corr_kl_coef", second, {"stages.0.beta1": second})
    if theirs.train_stage == 1:
        note = "it holds attempt 1; in theirs no gradient reaches attempt 1 in Stage I"
        made.differs("init_kl_coef", first, {"stages.0.beta2": first}, note)
    elif first == second:
        made.same("init_kl_coef", first, {"stages.0.beta1": second})
    else:
        note = f"Stage II has one beta1 for both attempts, here corr_kl_coef={second:g}"
        made.differs("init_kl_coef", first, {"stages.0.beta1": second}, note)


def _fixed(made: Conversion) -> None:
    """What stands in their program and in no key."""
    note = "stages.N.advantage=batch_mean compares what is drawn, for less variance"
    made.same("(baseline)", "none", {"stages.0.advantage": "none"}, note)
    made.same("(length)", "sum over tokens", {"stages.0.length_norm": "none"})
    made.same("(optimiser)", "Adam, clipped at 10", {"optim.weight_decay": 0.0, "optim.max_grad_norm": 10.0})
    made.same("(kept weights)", "the last", {"train.select": "last"}, "train.select=validation would choose the best")
