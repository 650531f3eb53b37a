"""The model card of an exported run: what it was trained on and how, what was measured, and both attempts in Python."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from score_rl.chat import Chat
from score_rl.data.files import HUB_NAME
from score_rl.errors import DataError
from score_rl.run import RunDirectory
from score_rl.schema import Settings, StageSettings
from score_rl.tracking import count_attempts

_QUESTION = "question2468"
SAMPLE = """
stops = model.generation_config.eos_token_id
END = [%(end)s, *([stops] if isinstance(stops, int) else stops or [])]


def attempt(context):
    ids = torch.tensor([context])
    options = {"max_new_tokens": %(limit)d, "do_sample": False, "eos_token_id": END, "pad_token_id": END[0]}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(context):].tolist()


def encode(text):
    return tokenizer(text, add_special_tokens=False).input_ids
"""
VERBATIM = """question = %(question)s
# What the chat template puts in front of a question, behind it, and between two attempts; and how many tokens of the
# latter an attempt's last token stands for.
BEFORE = %(before)s
AFTER = %(after)s
BRIDGE = %(bridge)s
CLOSED = %(closed)s
%(sample)s

context = encode(BEFORE + question + AFTER)
first = attempt(context)
second_context = context + first + encode(BRIDGE)[CLOSED.get(first[-1], 0):]
second = attempt(second_context)
"""
RENDERED = """INSTRUCTION = %(instruction)s
%(sample)s

def render(turns):
    return encode(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **%(options)s))


turns = %(turns)s
first = attempt(render(turns))
turns.append({"role": "assistant", "content": %(prefix)stokenizer.decode(first, skip_special_tokens=True)})
turns.append({"role": "user", "content": INSTRUCTION})
second = attempt(render(turns))
"""


def model_card(
    run: RunDirectory, label: str, settings: Settings, chat: Chat, *, base: str, adapter: bool, question: str
) -> str:
    """The card of one stage's model, as Markdown.

    Args:
        base: the model that it was trained from.
        adapter: it is an adapter, to be loaded on top of `base`.
        question: of the data, for the example.

    Raises:
        DataError: a file of figures that cannot be read.
    """
    published = HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
    head = ["---"]
    head += [f"base_model: {base}"] if published else []
    head += [f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    head += [
        "tags: [self-correction, score-rl]",
        "# license: yours to choose, within those of base model and data",
        "---",
    ]
    told = "; ".join(f"`{instruction}`" for instruction in chat.instructions)
    parts = [
        "\n".join(head),
        f"# {settings.name}: {label}",
        f"`{settings.model.path}`, trained with SCoRe (Kumar et al., arXiv 2409.12917) to correct its own answers: "
        f"it answers a question, is told {told}, and answers again.",
        "## Figures\n\n" + figures(run, label) + _caution(settings, adapter),
        "## Both attempts in Python\n\n" + usage(settings, chat, base=base if adapter else None, question=question),
        "## Training\n\n" + training(run, label, settings),
    ]
    return "\n\n".join(parts) + "\n"


def _caution(settings: Settings, adapter: bool) -> str:
    if adapter or settings.model.quantize is None:
        return ""
    return f"\n\nMeasured with the base model in {settings.model.quantize}; the weights here are at full width."


def figures(run: RunDirectory, label: str) -> str:
    """Tables of every stored evaluation of the base model and of this stage, one for each way of measuring."""
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for name, title in (("base", "before"), (label, "after")):
        for path in sorted([*run.eval.glob(f"{name}.json"), *run.eval.glob(f"{name}-*.json")]):
            metrics = _read(path)
            drawn = (metrics["temperature"], metrics.get("top_p", 1.0), metrics.get("samples", 1))
            fixed = metrics.get("first_attempts")
            how = (metrics["split"], metrics["problems"], *drawn, fixed, count_attempts(metrics))
            groups.setdefault(how, []).append((title, metrics))
    tables = [_table(how, rows) for how, rows in groups.items()]
    return "\n\n".join(tables) if tables else "Nothing was measured."


def _read(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return {"split": metrics["split"], "problems": metrics["problems"], **metrics}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no evaluation that can be read ({error!r}); remove it or run score eval") from error


def _table(how: tuple[Any, ...], rows: list[tuple[str, dict[str, Any]]]) -> str:
    split, problems, temperature, top_p, samples, fixed, attempts = how
    drawn = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    drawn += f", top-p {top_p:g}" if top_p < 1 else ""
    drawn += f", {samples} samples each" if samples > 1 else ""
    drawn += f", first attempts of {fixed}" if fixed else ""
    keys = [f"acc/t{k}" for k in sorted({1, 2, attempts}) if k <= attempts]
    keys += [f"delta/t1_t{attempts}", "delta/i_c", "delta/c_i"] if attempts > 1 else []
    names = [key.replace("acc/", "acc@").replace("delta/t1_", "delta t1 to ") for key in keys]
    names = [name.replace("delta/i_c", "wrong to right").replace("delta/c_i", "right to wrong") for name in names]
    lines = [
        f"{problems} problems of the {split} split, {drawn}, {attempts} attempt{'s' if attempts > 1 else ''}; percent "
        "with 95% intervals:",
        "",
        f"| | {' | '.join(names)} |",
        f"|{' --- |' * (len(keys) + 1)}",
    ]
    for title, metrics in rows:
        cells = [" ".join(_percent(metrics, key)) for key in keys]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(metrics: dict[str, Any], key: str) -> Iterable[str]:
    value, low, high = (100 * float(metrics[name]) for name in (key, f"{key}.low", f"{key}.high"))
    sign = "+" if key.startswith("delta/t1") else ""
    return f"{value:{sign}.1f}", f"[{low:{sign}.1f}, {high:{sign}.1f}]"


def usage(settings: Settings, chat: Chat, *, base: str | None, question: str) -> str:
    """A Python program that makes both attempts, in contexts that equal those of training token for token.

    Args:
        base: where the model is that an adapter is for; None for a whole model.
    """
    load = ["model = AutoModelForCausalLM.from_pretrained(path)"]
    imports = ["import torch"]
    if base is not None:
        imports.append("from peft import PeftModel")
        load = [
            f"base = AutoModelForCausalLM.from_pretrained({base!r})  # where the base model is",
            "model = PeftModel.from_pretrained(base, path)",
        ]
    imports.append("from transformers import AutoModelForCausalLM, AutoTokenizer")
    start = [*imports, "", 'path = "."  # this directory', "tokenizer = AutoTokenizer.from_pretrained(path)", *load]
    end = ["", "for ids in (first, second):", "    print(tokenizer.decode(ids, skip_special_tokens=True))"]
    code = "\n".join(start) + "\n" + _both_attempts(settings, chat, question).rstrip() + "\n" + "\n".join(end)
    return f"From this directory:\n\n```python\n{code}\n```"


def _both_attempts(settings: Settings, chat: Chat, question: str) -> str:
    sample = (
        SAMPLE % {"limit": settings.eval.max_new_tokens, "end": ", ".join(map(str, sorted(chat.end_ids)))}
    ).strip() + "\n"
    opening = chat.open(_QUESTION)
    before, found, after = str(chat.tokenizer.decode(opening, skip_special_tokens=False)).partition(_QUESTION)
    bridge_ids = chat.bridges[chat.instruction(_QUESTION, 1)]
    bridge = str(chat.tokenizer.decode(bridge_ids, skip_special_tokens=False))
    again = [tuple(chat.template.encode(text)) for text in (before + _QUESTION + after, bridge)]
    if chat.settings.history == "verbatim" and found and again == [opening, bridge_ids]:
        rest = {end: len(chat.follow_up(_QUESTION, (), (end,), [], 1)) - 1 for end in sorted(chat.end_ids)}
        return VERBATIM % {
            "question": repr(question),
            "before": repr(before),
            "after": repr(after),
            "bridge": repr(bridge),
            "closed": {end: len(bridge_ids) - length for end, length in rest.items()},
            "sample": sample,
        }
    turns = chat.template.folded(chat.turns(question))
    return RENDERED % {
        "turns": [{"role": turn.role, "content": turn.content} for turn in turns],
        "instruction": repr(chat.instructions[0]),
        "prefix": f"{chat.prefix!r} + " if chat.prefix else "",
        "sample": sample,
        "options": chat.template.options,
    }


def training(run: RunDirectory, label: str, settings: Settings) -> str:
    """Settings in short, and where it ran."""
    model, reward = settings.model, settings.reward
    how = "the whole model"
    if model.lora is not None:
        how = f"LoRA, rank {model.lora.rank}, alpha {model.lora.alpha}, on {model.lora.targets}"
        how += f", base model held in {model.quantize}" if model.quantize else ""
    extractor = f", answer found by `{reward.extractor}`" if reward.extractor else ""
    extra = "".join(f", and `{part.fn}` times {part.weight:g}" for part in reward.also)
    options = f" with {settings.data.options}" if settings.data.options else ""
    lines = [
        f"- data: `{settings.data.source}`{options}",
        f"- trained: {how}; weights: {model.dtype}",
        f"- reward: `{reward.fn}`{extractor}{extra}",
        f"- seed: {settings.seed}",
    ]
    for stage in settings.stages:
        lines.append(f"- {stage.label}: {_stage(stage)}")
        if stage.label == label:
            break
    path = run.path / "environment.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {number}" for name, number in there["versions"].items() if number)
        lines.append(f"- trained and measured on: {there['platform']}, Python {there['python']}, {versions}")
    return "\n".join(lines)


def _stage(stage: StageSettings) -> str:
    branch = " x ".join(map(str, stage.branch))
    parts = [f"{stage.kind}, {stage.steps} steps of {stage.problems} questions ({branch} attempts each)"]
    if stage.kind == "sft":
        parts += [f"traces {stage.traces}" + " with right to right" * stage.keep_correct, f"{stage.rounds} rounds"]
        parts += ["all attempts of a trace trained" if stage.credit == "all" else "its last attempt trained"]
    else:
        parts += [f"alpha {stage.alpha:g}"] if stage.kind == "stage2" else []
        parts += [f"beta1 {stage.beta1:g}"]
        parts += [f"beta2 {stage.beta2:g}"] if stage.kind in ("stage1", "substage") else []
        parts += [f"KL {stage.kl.estimator} in the {stage.kl.placement}", f"baseline {stage.advantage}"]
    parts += [f"learning rate {stage.lr:g} ({stage.schedule})", f"temperature {stage.sampling.temperature:g}"]
    return ", ".join([*parts, f"at most {stage.max_new_tokens} tokens"])
