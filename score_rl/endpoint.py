"""Plays episodes with a model behind an OpenAI-compatible endpoint: messages out, texts in."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from score_rl.chat import read_shots
from score_rl.chat_schema import ChatSettings
from score_rl.draws import derive
from score_rl.episodes import Attempt, Critique, Episode, Grade, Problem
from score_rl.errors import ConfigError, EndpointError, MissingExtra
from score_rl.grading import Grader
from score_rl.rollout import Plan
from score_rl.schema import SamplingSettings
from score_rl.waiting import wait_for

if TYPE_CHECKING:
    from openai import APIError, AsyncOpenAI

KEYS = ("SCORE_API_KEY", "OPENAI_API_KEY")
"""Environment variables with the key, the first that is set. One of ours, since a key of OpenAI's is for no other."""
SECONDS = 600.0
"""Longest wait for one attempt."""
_LONGEST_QUOTE = 300


class _Turn(NamedTuple):
    """A problem that is played, what for, and the slots that its chains of attempts wait for."""

    client: AsyncOpenAI
    slots: asyncio.Semaphore
    problem: Problem
    plan: Plan
    purpose: tuple[object, ...]


class EndpointPlayer:
    """Plays problems as `rollout.Player` does, with a server that renders the chat template and samples.

    An attempt goes back into the conversation as text. Lengths are what the server counts, token ids stay unknown, and
    thoughts that a server hands out apart from the answer are counted and neither graded nor sent back.

    Attributes:
        url: where `/chat/completions` is, most often ending in `/v1`.
        model: the name by which the server knows it.
        grader: what gives the grades, here and not there.

    Args:
        url: of the endpoint; without a path, `/v1` is meant.
        chat: the words around the question; its template's options go to the server, which knows the template.
        concurrency: chains of attempts that are played at once.
        retries: how often one request is repeated, after pauses that double from half a second to eight, when the
            server cannot be reached, is overloaded or fails.

    Raises:
        ConfigError: a URL that cannot be, or has a key in it; a chat template of one's own.
        MissingExtra: the client is not installed.
    """

    def __init__(
        self, url: str, model: str, chat: ChatSettings, grader: Grader, *, concurrency: int = 16, retries: int = 10
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise MissingExtra("--endpoint needs the openai package: pip install 'score-rl[endpoint]'") from error
        if chat.template is not None:
            raise ConfigError(f"chat.template={chat.template}: an endpoint uses its server's; give it to the server")
        self._openai = openai
        self.url = read_url(url)
        self.model = model
        self.grader = grader
        self._chat = chat
        self._opening = opening(chat)
        self._concurrency = concurrency
        self._retries = retries

    def check(self) -> None:
        """Nothing, if the server answers and does not refuse the key.

        Raises:
            EndpointError: it does not.
        """
        wait_for(self._check())

    def problems_at_once(self, plan: Plan) -> int:
        """Problems after which it is worth storing what is finished: a few for each chain that is played at once."""
        return max(1, 4 * self._concurrency // plan.branch[0])

    def play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        *,
        first_attempts: Sequence[Sequence[Attempt] | None] | None = None,
        progress: Callable[[int], None] | None = None,
        first: int = 0,
    ) -> list[Episode]:
        """Episodes of all problems, problem by problem, `branch`'s product each.

        Args:
            purpose: what the random draws are for; with the problem's place and the attempt's path it determines the
                seed that is sent, so that a server that honours seeds repeats itself.
            first_attempts: for each problem, stored first attempts to start from (as many as `branch[0]`), or None.
            progress: called with 1 for each problem that has been played and graded.
            first: place of the first problem, where these are a part of more.

        Raises:
            EndpointError: the server refuses a request, or gives no answer after all retries.
        """
        stored = first_attempts or [None] * len(problems)
        return wait_for(self._play(problems, plan, purpose, stored, progress, first))

    async def _play(
        self,
        problems: Sequence[Problem],
        plan: Plan,
        purpose: tuple[object, ...],
        stored: Sequence[Sequence[Attempt] | None],
        progress: Callable[[int], None] | None,
        first: int,
    ) -> list[Episode]:
        slots = asyncio.Semaphore(self._concurrency)

        async def finish(i: int) -> list[Episode]:
            turn = _Turn(client, slots, problems[i], plan, (*purpose, first + i))
            given: Sequence[Attempt | None] = stored[i] or [None] * plan.branch[0]
            assert len(given) >= plan.branch[0], "too few stored first attempts"
            async with asyncio.TaskGroup() as group:
                chains = [group.create_task(self._chain(turn, j, given[j])) for j in range(plan.branch[0])]
            episodes = await self._graded([episode for chain in chains for episode in chain.result()])
            if progress:
                progress(1)
            return episodes

        async with self._client(self._retries) as client, asyncio.TaskGroup() as group:
            played = [group.create_task(finish(i)) for i in range(len(problems))]
        return [episode for task in played for episode in task.result()]

    async def _chain(self, turn: _Turn, number: int, given: Attempt | None) -> list[Episode]:
        """The episodes that start with one first attempt, played or given."""
        # It keeps its slot until its last attempt, so that problems finish one by one and not all at the end.
        async with turn.slots:
            if given is None:
                return await self._branch(turn, Episode(turn.problem, (), ()), number)
            attempt = dataclasses.replace(given, sampled=False)
            return await self._grow(turn, Episode(turn.problem, (attempt,), (number,)))

    async def _grow(self, turn: _Turn, episode: Episode) -> list[Episode]:
        depth = len(episode.attempts)
        if depth == len(turn.plan.branch):
            return [episode]
        return [e for j in range(turn.plan.branch[depth]) for e in await self._branch(turn, episode, j)]

    async def _branch(self, turn: _Turn, episode: Episode, child: int) -> list[Episode]:
        path = (*episode.path, child)
        attempt = await self._attempt(turn, episode, path)
        return await self._grow(turn, Episode(turn.problem, (*episode.attempts, attempt), path))

    async def _attempt(self, turn: _Turn, episode: Episode, path: tuple[int, ...]) -> Attempt:
        before, critique = episode.attempts, None
        where, seed = f"problem {turn.problem.id}, attempt {len(before) + 1}", (*turn.purpose, path)
        if before and self._chat.feedback is not None:
            asked = dialogue(self._chat, turn.problem.question, before)
            told = await self._ask(turn, asked, len(before), (*seed, "critique"), f"{where}, critique")
            critique = Critique((), told.text, told.finished, told.num_tokens)
        asked = dialogue(self._chat, turn.problem.question, before, critique)
        attempt = await self._ask(turn, asked, len(before), seed, where)
        return dataclasses.replace(attempt, critique=critique)

    async def _ask(
        self, turn: _Turn, asked: list[dict[str, str]], depth: int, seed: tuple[object, ...], where: str
    ) -> Attempt:
        """What the server says to the conversation, within the limit of the attempt behind `depth` others."""
        request = {
            "model": self.model,
            "messages": [*self._opening, *asked],
            "max_tokens": turn.plan.max_new_tokens[depth],
            **self._sampling(turn.plan.sampling, derive(*seed)),
        }
        with self._mended(where):
            try:
                reply = await turn.client.chat.completions.create(**request)
            except self._openai.NotFoundError as error:
                raise await self._unknown(turn.client, error) from error
        if not isinstance(reply, self._openai.types.chat.ChatCompletion) or not reply.choices:
            raise EndpointError(f"{self._name}: {where}: no completion in the answer; correct the URL")
        if reply.usage is None:
            raise EndpointError(f"{self._name}: {where}: the answer says no token counts; serve it with another server")
        return Attempt(
            context_ids=(),
            token_ids=(),
            text=reply.choices[0].message.content or "",
            finished=reply.choices[0].finish_reason == "stop",
            num_tokens=reply.usage.completion_tokens,
        )

    def _sampling(self, sampling: SamplingSettings, key: int) -> dict[str, Any]:
        """How tokens are drawn, as a request says it; what the protocol does not know goes beside it if it is set."""
        told: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.temperature > 0:
            # Some servers take 32 bits.
            told["seed"] = key % 2**31
        options = dict(self._chat.template_options)
        if self._chat.enable_thinking is not None:
            options["enable_thinking"] = self._chat.enable_thinking
        beside = {"top_k": sampling.top_k, "min_p": sampling.min_p, "chat_template_kwargs": options}
        beside = {name: value for name, value in beside.items() if value}
        return told | ({"extra_body": beside} if beside else {})

    async def _graded(self, episodes: list[Episode]) -> list[Episode]:
        """The episodes of a problem with grades, waited for while others are played."""
        new = {e.path[: k + 1]: a for e in episodes for k, a in enumerate(e.attempts) if a.sampled}
        own = {path: a.text for path, a in new.items() if not self._chat.keeps(len(path), a.text)}
        grading = self.grader.submit(list(own.values()), [episodes[0].problem] * len(own))
        grades = dict(zip(own, await asyncio.to_thread(grading.result), strict=True))
        given = {e.path[:1]: e.attempts[0].grade for e in episodes if not e.attempts[0].sampled}
        for path in sorted(new.keys() - own.keys(), key=len):  # they keep the attempt before them
            before: Grade | None = grades.get(path[:-1], given.get(path[:-1]))
            assert before is not None, "the attempt before has not been graded"
            grades[path] = before.of_keeping()
        done = {path: dataclasses.replace(attempt, grade=grades[path]) for path, attempt in new.items()}
        return [
            dataclasses.replace(e, attempts=tuple(done.get(e.path[: k + 1], a) for k, a in enumerate(e.attempts)))
            for e in episodes
        ]

    async def _check(self) -> None:
        async with self._client(retries=0) as client:
            try:
                await client.models.list()
            except (self._openai.AuthenticationError, self._openai.PermissionDeniedError) as error:
                raise self._mend(error, "") from error
            except self._openai.APIConnectionError as error:
                reason = _quote(error.__cause__ or error)
                raise EndpointError(
                    f"{self._name}: no server there ({reason}); start it, or correct the URL"
                ) from error
            except self._openai.APIError:
                # Not every server has a list of models, and some fail at it.
                return

    async def _unknown(self, client: AsyncOpenAI, error: APIError) -> EndpointError:
        has = ""
        try:
            page = await client.with_options(max_retries=0).models.list()
            has = f"; it has {', '.join(model.id for model in page.data[:5])}" if page.data else ""
        except self._openai.APIError:
            pass
        said = f"no model {self.model!r} there ({_said(error)})"
        return EndpointError(f"{self._name}: {said}{has}; correct the model's name or the URL")

    @contextmanager
    def _mended(self, where: str) -> Iterator[None]:
        try:
            yield
        except self._openai.APIError as error:
            raise self._mend(error, where) from error

    def _mend(self, error: APIError, where: str) -> EndpointError:
        """What the client says, in a line that names the mend."""
        kinds, again = self._openai, "then repeat the command, which goes on where -o FILE keeps what is finished"
        model = f"{self._name}, model {self.model}"
        if isinstance(error, kinds.AuthenticationError | kinds.PermissionDeniedError):
            name = next((name for name in KEYS if os.environ.get(name)), None)
            found = f"refuses the key in {name}" if name else "wants a key"
            mend = "correct it" if name else f"set {KEYS[0]}"
            # What the server says may repeat a part of the key.
            return EndpointError(f"{model}: {found} ({error.status_code}); {mend} in the environment")
        if isinstance(error, kinds.RateLimitError):
            found = f"still too many requests after {self._retries} retries ({_said(error)})"
            return EndpointError(f"{model}: {found}; wait or lower --concurrency, {again}")
        if isinstance(error, kinds.APIConnectionError | kinds.InternalServerError):
            found = f"no answer after {self._retries} retries ({_said(error)})"
            return EndpointError(f"{model}: {found}; start it again, {again}")
        said = _said(error)
        mend = "correct what it names"
        if "context" in said or "token" in said:
            mend = "lower eval.max_new_tokens, set chat.keep_attempts, or serve it with a longer context"
        return EndpointError(f"{model}: refuses {where} ({said}); {mend}")

    @property
    def _name(self) -> str:
        return f"--endpoint {self.url}"

    def _client(self, retries: int) -> AsyncOpenAI:
        # A server of one's own wants no key, and the client none that is empty.
        key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "none")
        client: AsyncOpenAI = self._openai.AsyncOpenAI(
            base_url=self.url, api_key=key, max_retries=retries, timeout=SECONDS
        )
        return client


def read_url(url: str) -> str:
    """The endpoint's address, with `/v1` where no path is given.

    Raises:
        ConfigError: it is no such address, or has a key in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--endpoint: not a URL ({error}); use e.g. http://127.0.0.1:8000/v1") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The rest is not repeated: it may be a secret.
        mend = f"set {KEYS[0]} in the environment and leave it out"
        raise ConfigError(f"--endpoint {parts.scheme}://{host}: has a key or options in the URL; {mend}")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--endpoint {url}: not an http(s) URL; use e.g. http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def opening(chat: ChatSettings) -> list[dict[str, str]]:
    """The messages in front of the question: system prompt and solved problems.

    Raises:
        DataError: a row of the few-shot file that cannot be used.
    """
    system = [("system", chat.system)] if chat.system else []
    shots = [turn for shot in read_shots(chat.few_shot) for turn in chat.shot_turns(shot)]
    return _messages([*system, *shots])


def dialogue(
    chat: ChatSettings, question: str, attempts: Sequence[Attempt], critique: Critique | None = None
) -> list[dict[str, str]]:
    """The messages from the question on: what `chat.said` carries of the attempts, a request behind each."""
    turns = [("user", question)]
    for one, place in chat.said(question, attempts, critique):
        turns += [("assistant", one.text), ("user", chat.requests[place])]
    return _messages(turns)


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _said(error: APIError) -> str:
    """What the server says, or the client of it."""
    status = getattr(error, "status_code", None)
    body: Any = error.body
    while isinstance(body, dict):
        body = next((body[name] for name in ("error", "message", "detail") if name in body), str(body))
    said = _quote(body or error)
    return f"{status}: {said}" if status else said


def _quote(found: object) -> str:
    line = " ".join(str(found).split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]}..."
