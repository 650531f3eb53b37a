"""`score data show`: the exact tokens of an episode, so that a new model is checked in a minute."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from score_rl.cli.subject import Json, Overrides, Recipe, Subject, is_run, settings_of

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from score_rl.chat import Chat
    from score_rl.layout import Part
    from score_rl.schema import Settings

app = typer.Typer(help="Look at data and prompts before training.", no_args_is_help=True, rich_markup_mode=None)

STYLES = {
    "context": "bright_black",
    "context, special": "magenta",
    "instruction": "yellow",
    "instruction, special": "yellow underline",
    "sampled": "bold green",
    "sampled, special": "bold green underline",
}


@app.command()
def show(
    subject: Subject,
    overrides: Overrides = None,
    question: Annotated[str | None, typer.Option(help="A question; the first training problem by default.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts.")] = 2,
    ids: Annotated[bool, typer.Option("--ids", help="One token a line, with its id.")] = False,
    recipe: Recipe = "arithmetic",
    as_json: Json = False,
) -> None:
    """Show the exact tokens of an episode: context, attempts, and what is trained.

    Only the tokenizer is loaded. The attempts are placeholders that end as the model ends its own.

      score data show arithmetic
      score data show models/Qwen3-1.7B chat.enable_thinking=false --question "What is 2 + 2?"
      score data show my.yaml chat.history=template --ids
    """
    from score_rl.chat import Chat
    from score_rl.layout import lay_out
    from score_rl.loading import context_length, load_tokenizer

    settings = _settings(subject, recipe, overrides or [])
    if question is None:
        from score_rl.data.load import load_problems

        question = load_problems(settings.data, "train")[0].question
    chat = Chat(load_tokenizer(settings.model), settings.chat)
    parts = lay_out(chat, question, attempts)
    record = describe(chat, settings, parts) | {"model_tokens": context_length(settings.model)}
    if as_json:
        print(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console

    # A pipe has no width; a line of tokens must not be folded there.
    console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    _print_summary(console, chat, record)
    for number, part in enumerate(parts, start=1):
        _print_part(console, chat, number, part, one_a_line=ids)


def _settings(subject: str, recipe: str, overrides: list[str]) -> Settings:
    # A run that has no finished model has a tokenizer all the same.
    return settings_of(subject, recipe, overrides, stage="base" if is_run(subject) else None)[0]


def describe(chat: Chat, settings: Settings, parts: list[Part]) -> dict[str, Any]:
    """What there is to know about an episode, for `--json` and for the lines above it."""
    decode = chat.tokenizer.decode
    bridges = [
        {"instruction": instruction, "ids": list(bridge), "text": decode(bridge)}
        for instruction, bridge in zip(chat.instructions, chat.bridges, strict=True)
    ]
    shown = [
        {
            "context_ids": list(part.context_ids),
            "context": decode(part.context_ids),
            "nested": part.nested,
            "instruction": part.instruction,
            "token_ids": list(part.token_ids),
            "text": decode(part.token_ids),
        }
        for part in parts
    ]
    return {
        "model": settings.model.path,
        "template": chat.template.name,
        "history": settings.chat.history,
        "enable_thinking": settings.chat.enable_thinking,
        "prefix": chat.prefix,
        "ends": {str(token): decode([token]) for token in sorted(chat.end_ids)},
        "bridges": bridges,
        "attempts": shown,
        "limits": {stage.label: chat.episode_tokens(stage.max_new_tokens) for stage in settings.stages},
    }


def _print_summary(console: Console, chat: Chat, record: dict[str, Any]) -> None:
    from rich.text import Text

    switch = {None: "the template's default", True: "on", False: "off"}[record["enable_thinking"]]
    opens = f"; the prompt opens with {record['prefix']!r}" if record["prefix"] else ""
    lines = {
        "model": f"{record['model']} ({len(chat.tokenizer)} tokens)",
        "template": record["template"],
        "history": f"{record['history']}; thinking: {switch}{opens}",
        "ends with": ", ".join(f"{text} ({token})" for token, text in record["ends"].items()),
    }
    for number, bridge in enumerate(record["bridges"], start=1):
        name = "bridge" if len(record["bridges"]) == 1 else f"bridge {number}"
        lines[name] = f"{bridge['text']!r} ({len(bridge['ids'])} tokens)"
    prompt = len(record["attempts"][0]["context_ids"])
    most = ", ".join(f"{label} {prompt + behind}" for label, behind in record["limits"].items())
    takes = f"; the model takes {record['model_tokens']}" if record["model_tokens"] else ""
    lines["at most"] = f"{most} tokens an episode with this question{takes}"
    for name, line in lines.items():
        console.print(Text(f"{name:<10} {line}"), soft_wrap=True)
    legend = Text("\n").append("context", STYLES["context"]).append("  ")
    legend.append("special token in it", STYLES["context, special"]).append("  ")
    legend.append("instruction", STYLES["instruction"]).append("  ")
    console.print(legend.append("sampled and trained", STYLES["sampled"]), soft_wrap=True)


def _print_part(console: Console, chat: Chat, number: int, part: Part, *, one_a_line: bool) -> None:
    from rich.text import Text

    whole = f"{len(part.context_ids)} tokens"
    if part.nested:
        whole += f", of which the first {part.nested} are the last context and its attempt"
    elif number > 1:
        whole += ", which do not start with the last context and its attempt"
    console.print(Text(f"\ncontext {number}: {whole}", "bold"), soft_wrap=True)
    console.print(_tokens(chat, part.context_ids, part.nested, part.instruction, one_a_line), soft_wrap=True)
    console.print(Text(f"\nattempt {number}: {len(part.token_ids)} tokens", "bold"), soft_wrap=True)
    console.print(_tokens(chat, part.token_ids, 0, None, one_a_line, "sampled"), soft_wrap=True)


def _tokens(
    chat: Chat,
    token_ids: tuple[int, ...],
    start: int,
    instruction: str | None,
    one_a_line: bool,
    style: str = "context",
) -> Text:
    """Tokens from `start` on, coloured; a newline is shown as well as made."""
    from rich.text import Text

    asked = _instruction_places(chat, token_ids, instruction)
    shown = Text()
    for place, piece in _pieces(chat, token_ids, start):
        kind = "instruction" if place in asked else style
        kind += ", special" if token_ids[place] in chat.template.controls else ""
        if one_a_line:
            shown.append(f"{place:>6} {token_ids[place]:>7} ").append(repr(piece) + "\n", STYLES[kind])
        else:
            shown.append(piece.replace("\n", "↵\n"), STYLES[kind])
    shown.rstrip()
    return shown


def _pieces(chat: Chat, token_ids: tuple[int, ...], start: int) -> list[tuple[int, str]]:
    """Each token's share of the text; a character of several tokens is shown with the last of them."""
    pieces, done = [], start
    for place in range(start, len(token_ids)):
        # With a few tokens in front, since some decoders take the first space of a text away.
        before = str(chat.tokenizer.decode(token_ids[max(0, done - 4) : done]))
        text = str(chat.tokenizer.decode(token_ids[max(0, done - 4) : place + 1]))
        if text.endswith("\ufffd") and place + 1 < len(token_ids):
            pieces.append((place, ""))
            continue
        pieces.append((place, text[len(before) :]))
        done = place + 1
    return pieces


def _instruction_places(chat: Chat, token_ids: tuple[int, ...], instruction: str | None) -> range:
    """The tokens of the last instruction in a context."""
    if instruction is None:
        return range(0)
    pieces = _pieces(chat, token_ids, 0)
    text = "".join(piece for _, piece in pieces)
    begin = text.rfind(instruction.strip())
    ends, length = [], 0
    for _, piece in pieces:
        length += len(piece)
        ends.append(length)
    first = next((n for n, end in enumerate(ends) if end > begin), 0)
    last = next((n for n, end in enumerate(ends) if end >= begin + len(instruction.strip())), len(ends) - 1)
    return range(first, last + 1) if begin >= 0 else range(0)
