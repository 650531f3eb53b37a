"""Text to token ids and back: the opening of an episode, and the bridge from one attempt to the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from score_rl.chat_schema import ChatSettings, ShotSettings, read_shot
from score_rl.episodes import Attempt, Critique, Problem
from score_rl.errors import ConfigError, DataError
from score_rl.records import read_jsonl
from score_rl.template import Template, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Two texts that no template rewrites and that differ in length; a bridge must be the same behind either.
_PROBES = ("attempt7531", "another attempt, 90210")
_QUESTION = "question2468"
_THOUGHTS_END = re.compile(r"\s*(?:<think>\s*)?</think>\s*")


class Chat:
    """The conversation around the attempts, in tokens (ALGORITHM: tokens in, tokens out).

    The bridge closes the assistant turn, carries the instruction as a user turn and opens the next assistant turn. It
    is what the tokenizer's own template puts between two attempts, found by rendering a conversation around a probe.

    Attributes:
        bridges: the bridge of each instruction, in the order of the settings.
        feedback_bridge: the bridge of the request for a critique; None where there is none.
        end_id: the token with which the template has an attempt end.
        end_ids: tokens that end an attempt: that one, and the tokenizer's eos.
        header: what the model itself writes between prompt and answer: a space, or the name of a channel.
        prefix: thoughts that the prompt opens, and maybe closes, for the model.

    Args:
        tokenizer: of a chat model.
        settings: the words around the question, and the history mode: `verbatim` appends ids to ids, so that each
            context starts with the last one and its attempt token for token; `template` renders the whole
            conversation anew.

    Raises:
        ConfigError: no chat template, no end-of-turn token, a template that hides the attempt or the instruction, or
            one that rewrites the turns before an attempt in `verbatim` mode.
        DataError: a row of the few-shot file that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.template = Template(tokenizer, settings)
        self.instructions = settings.instructions
        if not all(instruction.strip() for instruction in self.instructions):
            raise ConfigError("chat.instruction: empty; say what is asked between two attempts")
        system = [Turn("system", settings.system)] if settings.system else []
        self._opening = [*system, *(turn for shot in read_shots(settings.few_shot) for turn in self._shot(shot))]
        self._before = self.turns(_QUESTION)
        self._prompt = self.template.render(self._before, prompt=True)
        self._check_opening()
        seams = [self._seam(request) for request in settings.requests]
        self._bridges = [seam.bridge_ids for seam in seams]
        self.bridges = tuple(self._bridges[: len(self.instructions)])
        self.feedback_bridge = None if settings.feedback is None else self._bridges[-1]
        self.end_id, self._closed = self._find_ends(seams)
        self.end_ids = frozenset({self.end_id, tokenizer.eos_token_id} - {None})
        self.header, self.prefix = self._find_header(seams[0].head)

    def open(self, question: str) -> tuple[int, ...]:
        """Context of attempt 1: everything up to the start of the assistant turn."""
        return tuple(self.template.encode(self.template.render(self._asked(question), prompt=True)))

    def turns(self, question: str) -> list[Turn]:
        """The conversation up to attempt 1: system prompt, solved problems and the question, as it is written."""
        return [*self._opening, Turn("user", question)]

    def instruction(self, question: str, number: int) -> int:
        """Which of the instructions follows attempt `number` (from 1): drawn, and always the same for this question."""
        return self.settings.draw(question, number)

    def follow_up(
        self,
        question: str,
        context_ids: tuple[int, ...],
        token_ids: tuple[int, ...],
        texts: list[str],
        number: int | None = None,
    ) -> tuple[int, ...]:
        """Context of the next attempt.

        Args:
            context_ids: context of the last attempt.
            token_ids: the last attempt as sampled, with its end token if there was one.
            texts: the attempts that the context carries, as `content` gives them; used in `template` mode only.
            number: of the last attempt, from 1; as many as `texts` when None.
        """
        number = len(texts) if number is None else number
        if self.settings.history == "template":
            numbers = range(number - len(texts) + 1, number + 1)
            return self._render_anew(question, texts, [self.instruction(question, k) for k in numbers])
        return self._join(context_ids, token_ids, self.instruction(question, number))

    def context(self, question: str, attempts: Sequence[Attempt], critique: Critique | None = None) -> tuple[int, ...]:
        """Context of the attempt after `attempts`, of which the latest `chat.keep_attempts` are in it.

        Args:
            critique: of the last of them, where the settings ask for one.
        """
        if not attempts:
            return self.open(question)
        assert critique is not None or self.settings.feedback is None, "no critique of the last attempt"
        return self._go_on(question, attempts, critique)

    def feedback_context(self, question: str, attempts: Sequence[Attempt]) -> tuple[int, ...]:
        """Context of the critique of the last of `attempts`, which carries what the next attempt's will."""
        return self._go_on(question, attempts, None)

    def _go_on(self, question: str, attempts: Sequence[Attempt], critique: Critique | None) -> tuple[int, ...]:
        said = self.settings.said(question, attempts, critique)
        if self.settings.history == "template":
            texts = [self.content(one.token_ids) for one, _ in said]
            return self._render_anew(question, texts, [place for _, place in said])
        context = attempts[0].context_ids or self.open(question)
        for one, place in said:
            context = self._join(context, one.token_ids, place)
        return context

    def _join(self, context_ids: tuple[int, ...], token_ids: tuple[int, ...], place: int) -> tuple[int, ...]:
        """What was said, and the request at this place of `settings.requests` behind it."""
        # The bridge starts with the end of the turn; what an attempt sampled of it stands there already.
        skipped = self._closed[place].get(token_ids[-1], 0) if token_ids else 0
        return context_ids + token_ids + self._bridges[place][skipped:]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """Text of an attempt, for graders and people, without the end-of-turn token."""
        text = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    @property
    def closing_ids(self) -> tuple[int, ...]:
        """All that a model writes behind what it says: most often `end_id` alone."""
        place = self._closed[0].get(self.end_id, 1)
        return (*self.bridges[0][: place - 1], self.end_id)

    def content(self, token_ids: tuple[int, ...]) -> str:
        """What the template is given as an assistant turn for an attempt, in `template` mode.

        That is the attempt without its end, behind the thoughts that the prompt opened for it and without the header
        that the template writes itself. Special tokens stay special tokens; letters that look like one stay letters.
        """
        while token_ids and self._ends_turn(token_ids[-1]):
            token_ids = token_ids[:-1]
        text = self.template.content(token_ids)
        if self.template.holds_control(self.header):
            # Where the model names the channel of what it says, as in gpt-oss, the last message is the answer.
            return text.rpartition(self.header.strip())[2] if self.header.strip() in text else ""
        return self.prefix + text.removeprefix(self.header)

    def episode_tokens(self, max_new_tokens: Sequence[int]) -> int:
        """Most tokens that an episode can put behind its first prompt, attempts and bridges together.

        Args:
            max_new_tokens: token limit of each attempt.
        """
        bridge = max(map(len, self.bridges))
        kept = self.settings.keep_attempts or len(max_new_tokens)

        def critique(k: int) -> int:  # of attempt k, as long as the attempt behind it may be
            return 0 if self.feedback_bridge is None else len(self.feedback_bridge) + max_new_tokens[k + 1]

        return max(
            sum(max_new_tokens[j] + critique(j) + bridge for j in range(max(0, k - kept), k)) + max_new_tokens[k]
            for k in range(len(max_new_tokens))
        )

    def _ends_turn(self, token: int) -> bool:
        # The engine may know more end tokens than the template does.
        unknown = token in self.template.controls and self.template.controls[token] not in self.template.text
        return token in self.end_ids or token in self._closed[0] or unknown

    def _render_anew(self, question: str, texts: list[str], places: list[int]) -> tuple[int, ...]:
        asked = [self.settings.requests[place] for place in places]
        said = [self.template.say(text) for text in texts]

        def render() -> str:
            turns = [turn for pair in zip(said, asked, strict=True) for turn in (pair[0], Turn("user", pair[1]))]
            return self.template.render([*self._asked(question), *turns], prompt=True)

        try:
            text = render()
        except ConfigError:
            # Some templates refuse what a model may well sample, such as a channel behind its answer: it stays text.
            said = [Turn("assistant", self.template.literal(text)) for text in texts]
            text = render()
        return tuple(self.template.encode(text))

    def _asked(self, question: str) -> list[Turn]:
        return self.turns(self.template.literal(question))

    def _shot(self, shot: ShotSettings) -> list[Turn]:
        turns = self.settings.shot_turns(shot)
        return [self.template.say(text) if role == "assistant" else Turn(role, text) for role, text in turns]

    def _check_opening(self) -> None:
        for turn in self._opening:
            if turn.role == "user" and turn.content.strip() not in self._prompt:
                key = "chat.system" if turn.role == "system" else "chat.few_shot"
                raise ConfigError(
                    f"{key}: {self.template.name} does not render it; remove it, or set chat.template=FILE.jinja"
                )

    def _seam(self, instruction: str) -> _Seam:
        """What stands around an attempt that is followed by this instruction."""
        template, verbatim = self.template, self.settings.history == "verbatim"
        asked = Turn("user", instruction)
        texts = [template.render([*self._before, Turn("assistant", p), asked], prompt=True) for p in _PROBES]
        if texts[0] == texts[1] or instruction.strip() not in texts[0]:
            lost = "the attempt" if texts[0] == texts[1] else "the instruction"
            raise ConfigError(f"{template.name} leaves {lost} out of the conversation; set chat.template=FILE.jinja")
        pieces = [text.partition(probe) for text, probe in zip(texts, _PROBES, strict=True)]
        if any(not found or probe in tail for (_, found, tail), probe in zip(pieces, _PROBES, strict=True)):
            if verbatim:
                self._refuse("does not render an assistant turn once and unchanged")
            return _Seam(self._prompt, "", ())
        head, tail = pieces[0][0], pieces[0][2]
        if verbatim:
            if tail != pieces[1][2]:
                self._refuse("renders the turn after an attempt differently for different attempts")
            shared = self._shared()
            if _QUESTION not in shared or not head.startswith(shared):
                self._refuse("rewrites earlier turns once the conversation goes on, so contexts do not nest")
            turns = [*self._before, Turn("assistant", _PROBES[1]), asked, Turn("assistant", _PROBES[0]), asked]
            if template.render(turns, prompt=True).partition(_PROBES[0])[2] != tail:
                self._refuse("renders the turn after a later attempt differently")
        return _Seam(head, tail.partition(instruction.strip())[0], self._bridge(head, tail))

    def _shared(self) -> str:
        """What a prompt and a rendering without one have in common: some templates end the latter with eos."""
        bare = self.template.render(self._before, prompt=False)
        pairs = enumerate(zip(bare, self._prompt, strict=False))
        return bare[: next((n for n, (a, b) in pairs if a != b), min(len(bare), len(self._prompt)))]

    def _bridge(self, head: str, tail: str) -> tuple[int, ...]:
        # As part of the whole: some tokenizers put a space in front of whatever they are given first.
        front, whole = self.template.encode(head + _PROBES[0]), self.template.encode(head + _PROBES[0] + tail)
        return tuple(whole[len(front) :] if whole[: len(front)] == front else self.template.encode(tail))

    def _find_ends(self, seams: list[_Seam]) -> tuple[int, list[dict[int, int]]]:
        """The token that ends an attempt, and for each bridge how much of it an attempt's last token stands for."""
        eos = self.tokenizer.eos_token_id
        ends = self._controls_in(seams[0].closing)
        final = self._controls_in(self._final_tail())
        ended = eos if eos in ends else next(iter(ends), None)
        closing = ends[: ends.index(ended) + 1] if ended is not None else []
        last = final[0] if final and ends and final[0] != ends[0] else None
        # gpt-oss ends what is said last with another token than what is said before; that one is sampled.
        end_id = next((i for i in (last, ended, eos) if i is not None), None)
        if end_id is None:
            raise ConfigError("model.path: the tokenizer names no end token; set eos_token in tokenizer_config.json")
        closed = []
        for seam in seams:
            places = {token: seam.bridge_ids.index(token) + 1 for token in closing if token in seam.bridge_ids}
            closed.append(places | ({last: places[ended]} if last is not None and ended in places else {}))
        return end_id, closed

    def _final_tail(self) -> str:
        """What the template puts behind an attempt that nothing follows."""
        try:
            text = self.template.render([*self._before, Turn("assistant", _PROBES[0])], prompt=False)
        except ConfigError:
            return ""
        return text.partition(_PROBES[0])[2]

    def _controls_in(self, text: str) -> list[int]:
        # A beginning-of-text in front of the next turn ends nothing.
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return [i for i in self.template.encode(text) if i in self.template.controls and (i != bos or bos == eos)]

    def _find_header(self, head: str) -> tuple[str, str]:
        """What the template puts between prompt and attempt in a history, and the thoughts that the prompt opens."""
        header = head.removeprefix(self._prompt) if head.startswith(self._prompt) else ""
        _, tag, thoughts = self._prompt[len(self._shared()) :].partition("<think>")
        return _THOUGHTS_END.sub("", header), tag + thoughts

    def _refuse(self, reason: str) -> None:
        mend = "set chat.history=template"
        try:
            Chat(self.tokenizer, self.settings.model_copy(update={"history": "template"}))
        except ConfigError:
            mend = "set chat.template=FILE.jinja"
        raise ConfigError(f"chat.history={self.settings.history}: {self.template.name} {reason}; {mend}")


class _Seam(NamedTuple):
    """Around an attempt: the text before it, the text from its end to the instruction, and the ids after it."""

    head: str
    closing: str
    bridge_ids: tuple[int, ...]


class Fitting(NamedTuple):
    """Problems whose first prompt is short enough, and how many were left out."""

    kept: list[Problem]
    dropped: int


def fitting(problems: Iterable[Problem], chat: Chat) -> Fitting:
    """The problems whose first prompt has at most `chat.max_prompt_tokens` tokens; all of them when that is null."""
    found, limit = list(problems), chat.settings.max_prompt_tokens
    long = {} if limit is None else prompts_beyond(found, chat, limit)
    return Fitting([problem for place, problem in enumerate(found) if place not in long], len(long))


def prompts_beyond(problems: Sequence[Problem], chat: Chat, limit: int) -> dict[int, int]:
    """Places of the problems whose first prompt has more than `limit` tokens, and how many it has."""
    overhead = len(chat.open("x"))
    long = {}
    for place, problem in enumerate(problems):
        # A token holds a byte at least, so most are known to be short without being tokenised.
        if overhead + len(problem.question.encode()) > limit:
            length = len(chat.open(problem.question))
            if length > limit:
                long[place] = length
    return long


def read_shots(few_shot: str | list[ShotSettings]) -> list[ShotSettings]:
    """The solved problems in front of the question, from the settings or a JSON Lines file.

    Raises:
        DataError: a row that is none; the message names file, line and field.
    """
    if not isinstance(few_shot, str):
        return few_shot
    shots = []
    for number, row in read_jsonl(Path(few_shot)):
        try:
            shots.append(read_shot(row))
        except ValueError as error:
            raise DataError(f"{few_shot}:{number}: {error}") from error
    if not shots:
        raise DataError(f"chat.few_shot={few_shot}: no rows")
    return shots
