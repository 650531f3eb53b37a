"""A tokenizer's chat template: turns of a conversation in, text and token ids out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from score_rl.chat_schema import ChatSettings
from score_rl.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A code point that Unicode keeps free for use inside a program: it stands in no text, and no template looks for it.
_MARK = "\ufdd0"
_TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = "question2468"
_THOUGHTS = re.compile(r"\s*<think>(.*?)</think>(.*)", flags=re.DOTALL)
_THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Turn(NamedTuple):
    """One turn of a conversation; `role` is system, user or assistant, and `thoughts` are not part of the content."""

    role: str
    content: str
    thoughts: str | None = None


class Template:
    """Renders conversations, with what is odd about a family's template found out once.

    Args:
        tokenizer: of a chat model.
        settings: `template` replaces the tokenizer's own; `enable_thinking`, `template_options` and `date` are what it
            is told; a `system` prompt joins the first user turn if the template has no place for one.

    Raises:
        ConfigError: no template, one that cannot render a question, or an option that it does not know.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings) -> None:
        self.tokenizer = tokenizer
        self.name = f"chat.template={settings.template}"
        if settings.template is None:
            self.name = f"the chat template of {tokenizer.name_or_path or 'the model'}"
        self.text = _pin_date(_source(tokenizer, settings), settings.date, self.name)
        self._names = set(re.findall(r"\w+", re.sub(r"\{#.*?#\}", "", self.text, flags=re.DOTALL)))
        self.options = self._options(settings)
        self.controls = _control_tokens(tokenizer)
        """Text of each token that is special to the tokenizer, by its id."""
        longest_first = sorted(self.controls.values(), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        marked = "|".join(re.escape(f"{text[0]}{_MARK}{text[1:]}") for text in longest_first)
        self._marked = re.compile(f"({marked})" if marked else r"(?!)")
        self._parts = False
        self._folds_system = False
        self._parts = self._wants_parts()
        self._folds_system = bool(settings.system) and not self._shows(Turn("system", "prompt1357"))

    def render(self, turns: Sequence[Turn], *, prompt: bool) -> str:
        """Text of a conversation.

        Args:
            prompt: add what opens the assistant's next turn.

        Raises:
            ConfigError: the template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [self._message(turn) for turn in self.folded(turns)],
                    chat_template=self.text,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    **self.options,
                )
            )
        # A template that meets what it does not expect fails as Python does.
        except (TemplateError, TypeError, AttributeError, LookupError) as error:
            raise ConfigError(f"{self.name} refuses the conversation ({error})") from error

    def folded(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns as the template can take them: some have no place for a system prompt but the first user turn."""
        if not self._folds_system or turns[0].role != "system":
            return turns
        return [Turn(turns[1].role, f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:]]

    def literal(self, text: str) -> str:
        """The text, with what looks like a special token marked, so that `encode` leaves it text."""
        return self._control.sub(lambda found: found[0][0] + _MARK + found[0][1:], text)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered conversation; special tokens are recognised but where they were marked as text."""
        ids: list[int] = []
        for number, piece in enumerate(self._marked.split(text)):
            if piece:
                # The template writes every special token itself; adding a second beginning-of-text would be wrong.
                options = {"split_special_tokens": True} if number % 2 else {}
                ids += self.tokenizer(piece.replace(_MARK, ""), add_special_tokens=False, **options)["input_ids"]
        return ids

    def content(self, token_ids: Sequence[int]) -> str:
        """Text of tokens that `encode` reads as they were: a special token stays one, its letters stay letters."""
        pieces, run = [], list[int]()
        for token in token_ids:
            if token in self.controls:
                pieces += [self._text(run), self.controls[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, self._text(run)])

    def say(self, content: str) -> Turn:
        """An assistant turn, with closed thoughts at its start apart if the template has a place for them."""
        found = _THOUGHTS.fullmatch(content)
        if found is None or not any(map(self.mentions, _THOUGHT_FIELDS)):
            return Turn("assistant", content)
        return Turn("assistant", found[2].lstrip("\n"), found[1].strip("\n"))

    def holds_control(self, text: str) -> bool:
        """Whether a special token is in the text."""
        return self._control.search(text) is not None

    def mentions(self, name: str) -> bool:
        """Whether the template knows a variable of that name."""
        return name in self._names

    def _text(self, token_ids: list[int]) -> str:
        # Llama 3's settings ask for a clean-up that takes the space in front of a full stop away.
        text = str(self.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)) if token_ids else ""
        return self.literal(text)

    def _message(self, turn: Turn) -> dict[str, Any]:
        # Templates of models that also see images want a list of parts.
        content = [{"type": "text", "text": turn.content}] if self._parts else turn.content
        # Older templates know thoughts by another name.
        thoughts = {} if turn.thoughts is None else dict.fromkeys(_THOUGHT_FIELDS, turn.thoughts)
        return {"role": turn.role, "content": content, **thoughts}

    def _shows(self, *opening: Turn) -> bool:
        """Whether the template renders these turns in front of a question, and the question."""
        try:
            text = self.render([*opening, Turn("user", _PROBE)], prompt=True)
        except ConfigError:
            return False
        return all(turn.content in text for turn in (*opening, Turn("user", _PROBE)))

    def _wants_parts(self) -> bool:
        if self._shows():
            return False
        self._parts = True
        if self._shows():
            return True
        self._parts = False
        self.render([Turn("user", _PROBE)], prompt=True)
        raise ConfigError(f"{self.name} does not render the question; set chat.template=FILE.jinja")

    def _options(self, settings: ChatSettings) -> dict[str, Any]:
        import inspect

        options = dict(settings.template_options)
        reserved = set(inspect.signature(self.tokenizer.apply_chat_template).parameters) - {"tools", "documents"}
        for name in options:
            key = f"chat.template_options.{name}"
            if name in reserved | {"messages", "enable_thinking"}:
                mend = "set chat.enable_thinking" if name == "enable_thinking" else "remove it"
                raise ConfigError(f"{key}: is no variable of the template's own; {mend}")
            if not self.mentions(name):
                raise ConfigError(f"{key}: {self.name} knows no such variable; remove it")
        # What the day is called differs; a template that asks for it in none of these ways gets it in its text.
        day = date.fromisoformat(settings.date)
        for name, text in (("date_string", day.strftime("%d %b %Y")), ("current_date", day.isoformat())):
            if name not in options and self.mentions(name):
                options[name] = text
        if settings.enable_thinking is not None:
            if not self.mentions("enable_thinking"):
                value = str(settings.enable_thinking).lower()
                raise ConfigError(
                    f"chat.enable_thinking={value}: {self.name} knows no such variable; remove it, or set the "
                    "template's own switch in chat.template_options"
                )
            options["enable_thinking"] = settings.enable_thinking
        return options


def _source(tokenizer: PreTrainedTokenizerBase, settings: ChatSettings) -> str:
    if settings.template is not None:
        try:
            return Path(settings.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat.template={settings.template}: cannot be read ({error})") from error
    where = f"model.path={tokenizer.name_or_path}"
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{where}: the tokenizer has no chat template; add chat_template.jinja to the model, or set chat.template"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ConfigError(f"{where}: no chat template is the default one; set chat.template=FILE.jinja") from error


def _pin_date(text: str, day: str, name: str) -> str:
    """The template with the same day for ever: a run that passes midnight, or goes on tomorrow, sees one prompt."""
    found = date.fromisoformat(day)
    pinned = _TODAY.sub(lambda call: repr(found.strftime(call[2])), text)
    if re.search(r"strftime_now\s*\(", pinned):
        raise ConfigError(f"chat.date={day}: {name} asks for the day in a way that cannot be pinned; set chat.template")
    return pinned


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    # Many end-of-turn tokens are special to the vocabulary without being named in the tokenizer's settings.
    added = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
