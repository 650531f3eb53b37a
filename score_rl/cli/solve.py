"""`score solve`: questions one at a time, and the attempts side by side while they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from score_rl.cli.subject import Json, Recipe, Seed, Stage, Subject, chat_of, player_of, settings_of
from score_rl.errors import DataError, ScoreError

if TYPE_CHECKING:
    from rich.console import Console

    from score_rl.chat import Chat
    from score_rl.cli.panels import Shown
    from score_rl.decode import Sample, Session
    from score_rl.episodes import Episode
    from score_rl.extract import Extractor
    from score_rl.rollout import Player
    from score_rl.schema import RewardSettings, Settings

PROMPT = "question: "
INTERRUPTED = 130
"""Exit code of a command that was ended with Ctrl-C: 128 and the signal's number."""

Tell = Callable[[Sequence[tuple[int, ...]]], None]
"""Called with the tokens of every attempt so far, the last of them still growing."""


def solve(
    subject: Subject,
    question: Annotated[str | None, typer.Argument(help="The question; without it you are asked for one.")] = None,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts.")] = 2,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens an attempt at most; eval.max_new_tokens by default.")
    ] = None,
    stage: Stage = None,
    recipe: Recipe = "arithmetic",
    seed: Seed = None,
    engine: Annotated[
        str, typer.Option(metavar="KIND", help="What samples: transformers, vllm or vllm_server (docs/vllm.md).")
    ] = "transformers",
    as_json: Json = False,
) -> None:
    """Ask questions and see the attempts side by side, with what changed between them.

    Without a question it asks for one after the other, until an empty line or Ctrl-D; from a pipe it reads one a line.
    The same question gets the same attempts each time; another --seed gives others if the temperature is not 0.

      score solve runs/arithmetic "7034512345 - 1234567890"
      score solve runs/arithmetic --attempts 5
      score solve runs/mine --json < questions.txt
    """
    try:
        changes = [f"eval.sampling.temperature={temperature}", f"eval.attempts={attempts}", f"engine.kind={engine}"]
        changes += [f"eval.max_new_tokens={max_new_tokens}"] if max_new_tokens is not None else []
        if question is not None:
            check_text(question, "question")
        settings, name = settings_of(subject, recipe, changes, stage=stage, seed=seed)
        asker = Asker(settings, as_json=as_json)
        if question is not None:
            asker.ask(question)
        elif sys.stdin.isatty():
            _converse(asker, f"{name} of {subject}" if name not in subject else subject)
        else:
            for place, line in _lines():
                check_text(line, place)
                asker.ask(line, place=place, repeat=True)
    except KeyboardInterrupt:
        print("\ninterrupted" if sys.stderr.isatty() else "interrupted", file=sys.stderr)  # behind the terminal's ^C
        raise typer.Exit(INTERRUPTED) from None


def check_text(question: str, place: str) -> None:
    """Refuses what is no question.

    Raises:
        DataError: it is empty, or no text.
    """
    if not question.strip():
        raise DataError(f"{place}: empty; say what is asked")
    try:
        question.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: not UTF-8; convert it, e.g. with iconv") from None


def _converse(asker: Asker, subject: str) -> None:
    """Asks until there is nothing more; a question that cannot be answered is one line, and the next one is due."""
    _ = asker.player  # loaded while nobody waits for an answer
    print(f"{subject}; an empty line ends", file=sys.stderr)
    while True:
        try:
            line = _typed()
        except EOFError:
            print(file=sys.stderr)
            return
        if not line.strip():
            return
        try:
            check_text(line, "question")
            asker.ask(line)
        except ScoreError as error:
            print("error:", error, file=sys.stderr)


def _typed() -> str:
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # arrow keys and history, where Python was built with them
            import readline  # noqa: F401
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def _lines() -> Iterator[tuple[str, str]]:
    """Lines of standard input as they come, with their places for messages."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        place = f"standard input, line {number}"
        try:
            yield place, line.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise DataError(f"{place}: not UTF-8; convert it, e.g. with iconv") from None


class Asker:
    """A model that is asked one question after the other.

    Args:
        settings: `eval` says how many attempts, how long, and how they are sampled.
        as_json: print one line of JSON a question.

    Raises:
        ScoreError: a model, template or extractor that cannot be used.
    """

    def __init__(self, settings: Settings, *, as_json: bool) -> None:
        from rich.console import Console

        self.settings, self.as_json = settings, as_json
        self.extract = extractor_of(settings.reward)
        self.chat: Chat = chat_of(settings)
        self.console: Console = Console(highlight=False)

    @functools.cached_property
    def player(self) -> Player:
        """The model, which is loaded when it is first needed."""
        from score_rl.schema import RewardSettings

        # Nobody knows the answers, so the run's reward, which may need them, is not asked.
        return player_of(self.settings.model_copy(update={"reward": RewardSettings()}), self.chat)

    def ask(self, question: str, *, place: str = "question", repeat: bool = False) -> None:
        """Prints the attempts, in a terminal while they are written.

        Args:
            place: of the question, for messages.
            repeat: print the question above the panels.

        Raises:
            DataError: the question leaves no room for the attempts.
        """
        self._check_room(question, place)
        if self.as_json:
            print(json.dumps(self._record(question, self._play(question, lambda attempts: None))), flush=True)
            return
        from rich.text import Text

        from score_rl.cli.panels import Shown, harmless, side_by_side, streaming

        if repeat:
            self.console.print(Text(harmless(question, self.console.encoding), "bold"))
        with streaming(self.console) as draw:

            def look(written: Sequence[tuple[int, ...]]) -> list[Shown]:
                texts = [self.chat.decode(token_ids) for token_ids in written]
                if self.settings.chat.feedback is not None:  # every other one is a critique of the one before it
                    pairs = zip(texts[::2], [*texts[1::2], None], strict=False)
                    shown = [Shown(text, critique=critique) for text, critique in pairs]
                else:
                    shown = [*map(Shown, texts)]
                return [*shown[:-1], dataclasses.replace(shown[-1], done=False)]

            episode = self._play(question, lambda written: draw(lambda: look(written)))
        self.console.print(side_by_side(self._shown(episode), self.console))

    def _check_room(self, question: str, place: str) -> None:
        from score_rl.loading import context_length

        positions = context_length(self.settings.model)
        attempts, limit = self.settings.eval.attempts, self.settings.eval.max_new_tokens
        length, behind = len(self.chat.open(question)), self.chat.episode_tokens([limit] * attempts)
        if positions is not None and length + behind > positions:
            raise DataError(
                f"{place}: a prompt of {length} tokens, and {attempts} attempts of {limit} and what stands between "
                f"them take {behind} of the model's {positions}; shorten it, or lower --max-new-tokens or --attempts"
            )

    def _play(self, question: str, tell: Tell) -> Episode:
        from score_rl.decode import TransformersEngine
        from score_rl.episodes import Problem
        from score_rl.rollout import Plan, Player

        chosen = self.settings.eval
        plan = Plan((1,) * chosen.attempts, (chosen.max_new_tokens,) * chosen.attempts, chosen.sampling)
        player = self.player
        if isinstance(player.engine, TransformersEngine):  # the others do not tell of each token
            player = Player(WatchedEngine(player.engine, tell), self.chat, player.grader)
        (episode,) = player.play([Problem("question", question, "")], plan, (self.settings.seed, "solve"))
        return episode

    def _shown(self, episode: Episode) -> list[Shown]:
        from score_rl.cli.panels import Shown

        shown: list[Shown] = []
        texts = episode.texts
        for k, attempt in enumerate(episode.attempts):
            note = "" if attempt.finished else f"cut off at {attempt.length} tokens"
            if k and texts[k] == texts[k - 1]:
                note = "; ".join(filter(None, ["kept" if attempt.keeps else "unchanged", note]))
            answer = self.extract(texts[k]) if self.extract else None
            if answer is not None and (answer == attempt.text.strip() or "\n" in answer):
                answer = None  # it would say the same again, or is a program
            behind = episode.attempts[k + 1].critique if k + 1 < len(texts) else None
            shown.append(Shown(attempt.text, note, answer, critique=behind.text if behind else None))
        return shown

    def _record(self, question: str, episode: Episode) -> dict[str, Any]:
        rows = []
        for attempt, text in zip(episode.attempts, episode.texts, strict=True):
            row: dict[str, Any] = {"text": attempt.text, "finished": attempt.finished, "tokens": attempt.length}
            row |= {"kept": attempt.keeps} if self.settings.chat.keep is not None else {}
            row |= {"critique": attempt.critique.text} if attempt.critique else {}
            rows.append(row | ({"answer": self.extract(text)} if self.extract else {}))
        return {"question": question, "attempts": rows}


def extractor_of(reward: RewardSettings) -> Extractor | None:
    """How a reward finds the answer in an attempt; None if it does not say.

    Raises:
        ConfigError: an unknown reward or extractor.
    """
    from score_rl.extract import find_answer
    from score_rl.grading import bind
    from score_rl.rewards.base import is_batched
    from score_rl.schema import RewardPart

    function = bind(RewardPart(**{name: getattr(reward, name) for name in RewardPart.model_fields}))
    if is_batched(function.func):
        return None
    chosen = {name: p.default for name, p in inspect.signature(function.func).parameters.items()} | function.keywords
    extract, order = chosen.get("extract"), chosen.get("order")
    if callable(extract) and extract is not inspect.Parameter.empty:
        return extract  # type: ignore[no-any-return]
    return functools.partial(find_answer, order=order) if isinstance(order, list | tuple) else None


@dataclasses.dataclass
class WatchedEngine:
    """An engine for one row at a time that tells of each token as soon as it is known."""

    engine: Any
    tell: Tell

    def open(self) -> Session:
        """A session that tells."""
        return _WatchedSession(self.engine.open(), self.engine.model, self.tell)


class _WatchedSession:
    def __init__(self, session: Session, model: Any, tell: Tell) -> None:
        self._session, self._model, self._tell = session, model, tell
        self._written: list[tuple[int, ...]] = []

    def sample(self, *arguments: Any, **options: Any) -> list[Sample]:
        """As `Session.sample`, for one row."""
        fed: list[int] | None = None
        self._tell([*self._written, ()])

        def watch(module: Any, arguments: Any, inputs: dict[str, Any]) -> None:
            # The first pass reads the context, and each later one the token that was drawn last.
            nonlocal fed
            if fed is None:
                fed = []
                return
            fed += inputs["input_ids"][0].tolist()
            self._tell([*self._written, tuple(fed)])

        handle = self._model.register_forward_pre_hook(watch, with_kwargs=True)
        try:
            (sample,) = self._session.sample(*arguments, **options)
        finally:
            handle.remove()
        self._written.append(sample.token_ids)
        return [sample]
