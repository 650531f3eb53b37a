"""Text to token ids and back: the opening of an episode, and the bridge from one attempt to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from score_rl.episodes import Attempt
from score_rl.errors import ConfigError
from score_rl.schema import ChatSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two texts that no template rewrites and that differ in length; a bridge must be the same behind either.
_PROBES = ("attempt7531", "another attempt, 90210")


class Chat:
    """The conversation around the attempts, in tokens (ALGORITHM: tokens in, tokens out).

    The bridge closes the assistant turn, carries the instruction as a user turn and opens the next assistant turn. It
    is what the tokenizer's own template puts between two attempts, found by rendering a conversation around a probe.

    Args:
        tokenizer: of a chat model.
        settings: instruction, system prompt, and the history mode: `verbatim` appends ids to ids, so that each context
            starts with the last one and its attempt token for token; `template` renders the whole conversation anew.

    Raises:
        ConfigError: no chat template, no end-of-turn token, or a template that rewrites the turns before an attempt in
            `verbatim` mode.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        if not tokenizer.chat_template:
            where = f"model.path={tokenizer.name_or_path}"
            raise ConfigError(f"{where}: the tokenizer has no chat template; add chat_template.jinja to the model")
        self._opening = [{"role": "system", "content": settings.system}] if settings.system else []
        self._check_system()
        tails = [self._tail(probe) for probe in _PROBES]
        if settings.history == "verbatim" and tails[0] != tails[1]:
            self._refuse("renders the turn after an attempt differently for different attempts")
        self.bridge_ids = tuple(self._encode(tails[0]))
        self._end = self._find_end()
        self.end_ids = self._find_end_ids()

    def open(self, question: str) -> tuple[int, ...]:
        """Context of attempt 1: everything up to the start of the assistant turn."""
        return tuple(self._encode(self._render(self._messages(question), prompt=True)))

    def follow_up(
        self, question: str, context_ids: tuple[int, ...], token_ids: tuple[int, ...], texts: list[str]
    ) -> tuple[int, ...]:
        """Context of the next attempt.

        Args:
            context_ids: context of the last attempt.
            token_ids: the last attempt as sampled, with its end token if there was one.
            texts: all attempts so far, decoded; used in `template` mode only.
        """
        if self.settings.history == "template":
            messages = self._messages(question)
            for text in texts:
                messages += [self._turn("assistant", text), self._turn("user", self.settings.instruction)]
            return tuple(self._encode(self._render(messages, prompt=True)))
        # The bridge starts with the end of the turn; an attempt that sampled that very token has it already.
        if self._end is not None and token_ids[-1:] == (self.bridge_ids[self._end],):
            return context_ids + token_ids + self.bridge_ids[self._end + 1 :]
        return context_ids + token_ids + self.bridge_ids

    def context(self, question: str, attempts: Sequence[Attempt]) -> tuple[int, ...]:
        """Context of the attempt after `attempts`, of which the latest `chat.keep_attempts` are in it."""
        if not attempts:
            return self.open(question)
        kept = attempts[-(self.settings.keep_attempts or len(attempts)) :]
        context = kept[0].context_ids if len(kept) == len(attempts) else self.open(question)
        for number, attempt in enumerate(kept, start=1):
            texts = [earlier.text for earlier in kept[:number]]
            context = self.follow_up(question, context, attempt.token_ids, texts)
        return context

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of an attempt, for graders and people, without the end-of-turn token."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def _messages(self, question: str) -> list[dict[str, str]]:
        return [*self._opening, self._turn("user", question)]  # type: ignore[list-item]

    @staticmethod
    def _turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    def _render(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def _encode(self, text: str) -> list[int]:
        # The template writes every special token itself; adding a second beginning-of-text would be wrong.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _tail(self, probe: str) -> str:
        before = self._messages("question2468")
        opening = self._render(before, prompt=False)
        turns = [*before, self._turn("assistant", probe), self._turn("user", self.settings.instruction)]
        text = self._render(turns, prompt=True)
        head, found, tail = text.partition(probe)
        if not found or probe in tail:
            self._refuse("does not render an assistant turn once and unchanged")
        if self.settings.history == "verbatim" and not (
            head.startswith(opening) and self._starts_alike(before, opening)
        ):
            self._refuse("rewrites earlier turns once the conversation goes on, so contexts do not nest")
        return tail

    def _starts_alike(self, messages: list[dict[str, str]], opening: str) -> bool:
        return self._render(messages, prompt=True).startswith(opening)

    def _find_end(self) -> int | None:
        """Place in the bridge of the token that ends the assistant turn; some templates write a space before it."""
        special = set(self.tokenizer.all_special_ids)
        # Many end-of-turn tokens are special to the vocabulary without being named in the tokenizer's settings.
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return next((i for i, token in enumerate(self.bridge_ids) if token in special), None)

    def _find_end_ids(self) -> frozenset[int]:
        ends = {self.tokenizer.eos_token_id} - {None}
        if self._end is not None:
            ends.add(self.bridge_ids[self._end])
        if not ends:
            raise ConfigError("model.path: the tokenizer names no end token; set eos_token in tokenizer_config.json")
        return frozenset(ends)

    def _check_system(self) -> None:
        from jinja2 import TemplateError

        try:
            self._render(self._messages("question"), prompt=True)
        except TemplateError as error:
            where = "chat.system" if self.settings.system else f"model.path={self.tokenizer.name_or_path}"
            raise ConfigError(f"{where}: the model's chat template refuses the conversation ({error})") from error

    def _refuse(self, reason: str) -> None:
        mend = "; set chat.history=template" if self.settings.history == "verbatim" else "; use another template"
        raise ConfigError(f"chat.history={self.settings.history}: the model's chat template {reason}{mend}")
