"""A `vllm serve` of the user's: adapters by file, token ids in, token ids and log-probs out."""

from __future__ import annotations

import asyncio
import atexit
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from score_rl.decode import Sample
from score_rl.engine_schema import EngineSettings
from score_rl.errors import ConfigError, EndpointError
from score_rl.policy import Policy
from score_rl.records import write_directory
from score_rl.schema import SamplingSettings
from score_rl.synced import PROBE, TOLERANCE, SyncedEngine, check_version, sampling_parameters
from score_rl.waiting import wait_for

AT_ONCE, POOL = 256, 8
"""Requests that are under way, which vLLM batches, and how many of them share a pool of connections; httpx looks
through a whole pool for every request."""
PAUSE, LONGEST = 0.5, 8.0
"""Seconds before a request is repeated, which double, and the most they get to."""
TIMEOUTS = 2
"""How often one request may take `engine.timeout`, which is too long to be waited for as often as for a refusal."""
DONE = ("already been loaded", "cannot be found")
"""What a server says of an adapter that is where it is wanted, or gone as was wanted."""
MALFORMED = (KeyError, IndexError, TypeError, ValueError)
"""What reading an answer raises in which something is missing."""


class _Question(NamedTuple):
    """One request, and what is made of its answer."""

    path: str
    payload: dict[str, Any]
    read: Callable[[Any], Any]


class Base(NamedTuple):
    """A server's base model: the name by which it is asked for, and where the server has it from."""

    name: str
    root: str


def find_base(settings: EngineSettings) -> Base:
    """What the server of `engine.url` serves.

    Raises:
        EndpointError: no vLLM server there.
        ConfigError: one of a version that was not tried.
    """
    url = _address(settings)
    name = f"engine.url={url}"
    try:
        version = httpx.get(f"{url}/version", timeout=10.0).json()["version"]
        models = httpx.get(f"{url}/v1/models", timeout=10.0).json()["data"]
        base = next(Base(str(m["id"]), str(m.get("root"))) for m in models if m.get("parent") is None)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        start = "start it (docs/vllm.md), or correct engine.url"
        raise EndpointError(f"{name}: no server there ({type(error).__name__} {error}); {start}") from error
    except (*MALFORMED, StopIteration) as error:
        raise EndpointError(f"{name}: what listens there is no vLLM server; correct engine.url") from error
    check_version(str(version), name)
    return base


def _address(settings: EngineSettings) -> str:
    return settings.url.rstrip("/").removesuffix("/v1")


class VllmServer(SyncedEngine):
    """Samples with a vLLM server.

    Args:
        end_ids: tokens that end an attempt.
        dtype: of the server's weights.

    Raises:
        EndpointError: no vLLM server there.
        ConfigError: a server with another version, base model or tokenizer, or with log-probs of another kind.
    """

    def __init__(self, settings: EngineSettings, policy: Policy, end_ids: frozenset[int], dtype: str) -> None:
        self.url = _address(settings)
        super().__init__(settings, policy, f"engine.url={self.url}", dtype)
        self.end_ids = sorted(end_ids)
        # Adapters of another run, or of this one before, are never taken for ours.
        self._directory = Path(settings.adapters).resolve() / f"score-{secrets.token_hex(4)}"
        atexit.register(shutil.rmtree, self._directory, ignore_errors=True)
        self._tls = httpx.create_ssl_context()  # reading the certificates takes longer than a request
        self._version = 0
        self._adapter: Path | None = None
        self._came_back = False
        self._base, self._root = find_base(settings)
        self._check_base()

    def open(self) -> ServerSession:
        """A session; what its attempts share is in the server's prefix cache."""
        return ServerSession(self)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """As `SyncedEngine.ready`; what a server drew that came back meanwhile counts if it has the right weights."""
        with super().ready():
            yield
            if self._came_back:
                self.compare()
                self._came_back = False

    def push(self) -> None:
        """Has the server load the adapter as it is now, under a new name and path, and forget the one before."""
        if not self.policy.has_adapter:
            return  # the server has read a whole model from its files, and the probe shows whether it is this one
        old, self._version = self._adapter, self._version + 1
        new = self._directory / f"{self._directory.name}-{self._version}"
        model: Any = self.policy.model
        write_directory(
            new, lambda path: model.save_pretrained(path, selected_adapters=["default"], save_embedding_layers=False)
        )
        self._adapter = new
        self._ask([self._loading()])
        if old is not None:
            self._ask([_Question("/v1/unload_lora_adapter", {"lora_name": old.name}, lambda told: None)])
            shutil.rmtree(old, ignore_errors=True)

    def complete(self, requests: Sequence[tuple[dict[str, Any], Callable[[Any], Any]]]) -> list[Any]:
        """What is made of the completion of each request.

        Raises:
            EndpointError: the server refuses one, or gives no whole answer after all retries.
        """
        model = self._base if self._adapter is None else self._adapter.name
        asked = {"model": model, "return_token_ids": True, "skip_special_tokens": False}
        return self._ask([_Question("/v1/completions", payload | asked, read) for payload, read in requests])

    def _ask(self, questions: Sequence[_Question]) -> list[Any]:
        async def ask() -> list[Any]:
            pools = min(AT_ONCE // POOL, -(-len(questions) // POOL))
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(self._ask_some(questions[start::pools])) for start in range(pools)]
            answers: list[Any] = [None] * len(questions)
            for start, part in enumerate(parts):
                answers[start::pools] = part.result()
            return answers

        return wait_for(ask())

    async def _ask_some(self, questions: Sequence[_Question]) -> list[Any]:
        """The answers to questions that share a pool."""
        slots, limits = asyncio.Semaphore(POOL), httpx.Limits(max_connections=POOL)
        timeout = httpx.Timeout(self.settings.timeout, connect=10.0)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=timeout, verify=self._tls) as client:

            async def one(question: _Question) -> Any:
                async with slots:
                    return await self._answer(client, question)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(question)) for question in questions]
            return [task.result() for task in tasks]

    async def _answer(self, client: httpx.AsyncClient, question: _Question) -> Any:
        """The answer to one question, asked again where the server fails or answers by halves."""
        reason, timeouts = "", 0
        for attempt in range(self.settings.retries + 1):
            if attempt:
                await asyncio.sleep(min(LONGEST, PAUSE * 2 ** (attempt - 1)))
            try:
                reply = await client.post(question.path, json=question.payload)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__} {error}".strip()
                timeouts += isinstance(error, httpx.TimeoutException)
                if timeouts == TIMEOUTS:
                    break
                continue
            reason = f"{reply.status_code} {_said(reply)}"
            if reply.status_code < 400:
                try:
                    return question.read(reply.json() if question.path.endswith("completions") else reply)
                except MALFORMED as error:
                    reason = f"an answer without a part: {type(error).__name__} {error}"
            elif reply.status_code == 404 and self._adapter and question.payload.get("model") == self._adapter.name:
                self._came_back = True  # another server now, which was never given the adapter
                await self._answer(client, self._loading())
            elif reply.status_code < 500 and reply.status_code not in (408, 429):
                if "lora_adapter" in question.path and any(done in reason for done in DONE):
                    return None
                raise self._refused(question, reply, reason)
        again = "start it again, then repeat the command, which goes on from the last checkpoint"
        raise EndpointError(f"{self.name}: no answer after {attempt} retries ({reason}); {again}")

    def _refused(self, question: _Question, reply: httpx.Response, reason: str) -> EndpointError:
        mend = "correct what it names"
        if "lora_adapter" in question.path:
            mend = (
                f"start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=true, --enable-lora and --max-lora-rank as model.lora."
                f"rank, and where engine.adapters={self.settings.adapters} is the same directory"
            )
        return EndpointError(f"{self.name}: refuses {question.path} ({reason}); {mend}")

    def _loading(self) -> _Question:
        assert self._adapter is not None
        payload = {"lora_name": self._adapter.name, "lora_path": str(self._adapter)}
        return _Question("/v1/load_lora_adapter", payload, lambda told: None)

    def _check_base(self) -> None:
        """Refuses a server with another tokenizer or base model, or whose log-probs are not of what was drawn."""

        def ids(reply: Any) -> tuple[int, ...]:
            return tuple(int(token) for token in reply.json()["tokens"])

        asked = [{"model": self._base, "prompt": text, "add_special_tokens": False} for text in PROBE]
        theirs = self._ask([_Question("/tokenize", payload, ids) for payload in asked])
        if theirs != self.texts:
            raise ConfigError(f"{self.name}: {self._root} has another tokenizer than model.path; serve that model")
        model: Any = self.policy.model
        with model.disable_adapter() if self.policy.has_adapter else nullcontext():
            gap = self.measure()
        if not gap <= TOLERANCE[self.dtype]:
            raise ConfigError(
                f"{self.name}: {self._root} gives log-probs {gap:.2g} nats a token from model.path's; serve that model "
                f"with --dtype {self.dtype} --logprobs-mode processed_logprobs, or set engine.dtype"
            )


class ServerSession:
    """Attempts as the server draws them, each with a seed of its own."""

    def __init__(self, engine: VllmServer) -> None:
        self.engine = engine

    def sample(
        self,
        contexts: Sequence[tuple[int, ...]],
        parents: Sequence[int] | None,
        keys: Sequence[int],
        sampling: SamplingSettings,
        max_new_tokens: int,
        *,
        last: bool = False,
    ) -> list[Sample]:
        """As `Session.sample`."""
        asked = [sampling_parameters(sampling, key, max_new_tokens, self.engine.end_ids) for key in keys]
        return self.engine.complete(
            [({"prompt": list(context)} | told, _read) for context, told in zip(contexts, asked, strict=True)]
        )


def _read(told: Any) -> Sample:
    (choice,) = told["choices"]
    ids = tuple(int(token) for token in choice["token_ids"])
    logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
    if not ids or len(ids) != len(logprobs) or choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"{len(ids)} tokens, {len(logprobs)} log-probs, finish_reason {choice['finish_reason']}")
    return Sample(ids, logprobs, choice["finish_reason"] == "stop")


def _said(reply: httpx.Response) -> str:
    """The server's own words, in a line."""
    try:
        told = reply.json()
        said = str(told.get("error", told).get("message", told))
    except (ValueError, AttributeError):
        said = reply.text
    return " ".join(said.split())[:300]
