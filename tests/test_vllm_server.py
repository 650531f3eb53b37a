"""The client of a vLLM server, with servers that fail in every way that one can; tests/on_vllm has a real one."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Script, serving
from tiny import make_policy, stir

from score_rl import vllm_server
from score_rl.decode import TransformersEngine
from score_rl.engine_schema import EngineSettings
from score_rl.errors import ConfigError, EndpointError, SyncError
from score_rl.policy import Policy
from score_rl.schema import SamplingSettings
from score_rl.vllm_server import VllmServer

MODELS = (200, {"version": "0.32.0", "data": [{"id": "m", "root": "/models/m", "parent": None}]})
PLAIN = SamplingSettings()
LIMIT = 6


class Fake:
    """Answers as a vLLM server that has the policy's weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.loaded: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        if "lora_path" in asked:
            assert (Path(asked["lora_path"]) / "adapter_model.safetensors").is_file()
            self.loaded.append(asked["lora_name"])
            return 200, "Success"
        if "lora_name" in asked:
            self.loaded.remove(asked["lora_name"])
            return 200, "Success"
        if "max_tokens" not in asked:
            return 200, {"tokens": self.policy.tokenizer(asked["prompt"], add_special_tokens=False)["input_ids"]}
        if asked["model"] not in ("m", *self.loaded):
            return 404, {"error": {"message": f"The model `{asked['model']}` does not exist."}}
        with self._lock:
            session = TransformersEngine(self.policy.causal_lm, frozenset(asked["stop_token_ids"]), 0).open()
            told = SamplingSettings(temperature=asked["temperature"])
            (drawn,) = session.sample([tuple(asked["prompt"])], None, [asked["seed"]], told, asked["max_tokens"])
        choice = {"token_ids": drawn.token_ids, "logprobs": {"token_logprobs": drawn.logprobs}}
        return 200, {"choices": [choice | {"finish_reason": "stop" if drawn.finished else "length"}]}


def engine_of(url: str, policy: Policy, adapters: Path, **told: Any) -> VllmServer:
    settings = EngineSettings(kind="vllm_server", url=url, adapters=str(adapters), retries=3, **told)
    return VllmServer(settings, policy, frozenset([1]), "float32")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "PAUSE", 0.001)


def draw(engine: VllmServer) -> list[tuple[int, ...]]:
    contexts = [(2, 5, 6, 7), (2, 8, 9), (2, 5, 6, 7)]
    with engine.ready():
        drawn = engine.open().sample(contexts, None, [11, -1, 13], PLAIN, LIMIT)
    assert all(len(sample.token_ids) == len(sample.logprobs) > 0 for sample in drawn)
    return [sample.token_ids for sample in drawn]


def test_each_push_is_a_new_adapter_and_the_one_before_is_gone(tmp_path: Path):
    policy = stir(make_policy(lora=True))
    fake = Fake(policy)
    with serving(fake, MODELS) as server:
        engine = engine_of(server.url, policy, tmp_path)
        engine.prove()
        first = draw(engine)
        names = list(fake.loaded)
        assert draw(engine) == first  # keys decide
        assert len(fake.loaded) == 1 and fake.loaded != names
        asked = [request for request in server.asked if request.get("max_tokens") == LIMIT]
    assert [path.name for path in tmp_path.glob("*/*")] == fake.loaded
    assert {request["seed"] for request in asked} == {11, 2**63 - 1, 13}
    assert all(request["return_token_ids"] and request["stop_token_ids"] == [1] for request in asked)


def test_it_can_be_asked_in_a_notebook_where_a_loop_runs_already(tmp_path: Path):
    policy = stir(make_policy(lora=True))

    async def cell() -> list[tuple[int, ...]]:
        return draw(engine_of(server.url, policy, tmp_path))

    with serving(Fake(policy), MODELS) as server:
        assert asyncio.run(cell()) == draw(engine_of(server.url, policy, tmp_path))


BY_HALVES = [
    (500, {"error": {"message": "engine died"}}),
    (200, {"choices": []}),
    (200, {"choices": [{"token_ids": [5, 6], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "stop"}]}),
    (200, {"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "abort"}]}),
    (200, "half an ans"),
]


def test_half_an_answer_is_asked_for_again_and_never_taken(tmp_path: Path):
    policy = stir(make_policy(lora=True))
    fake = Fake(policy)
    left: dict[int, tuple[int, Any]] = {}

    def script(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        if asked.get("max_tokens") == LIMIT and asked["seed"] == 11 and left:
            return left.pop(max(left))
        return fake(number, asked)

    with serving(script, MODELS) as server:
        engine = engine_of(server.url, policy, tmp_path)
        expected = draw(engine)
        for answers in (BY_HALVES[:3], BY_HALVES[2:]):  # as often as it is retried
            left.update(enumerate(answers))
            assert draw(engine) == expected and not left
        left.update(enumerate(BY_HALVES))
        with pytest.raises(EndpointError, match=r"no answer after 3 retries \(.*start it again, then repeat"):
            draw(engine)


def test_a_server_that_came_back_gets_its_adapter_and_is_compared_before_its_samples_count(tmp_path: Path):
    policy = stir(make_policy(lora=True))
    fake, other = Fake(policy), Fake(stir(make_policy(lora=True), seed=9))
    for successor, right in ((fake, True), (other, False)):
        state: dict[str, Script] = {"now": fake}

        def script(number: int, asked: dict[str, Any], state: Any = state, after: Any = successor) -> tuple[int, Any]:
            if asked.get("max_tokens") == LIMIT and state["now"] is fake and "back" not in state:
                state["back"] = state["now"] = after
                after.loaded.clear()
            return state["now"](number, asked)

        with serving(script, MODELS) as server:
            engine = engine_of(server.url, policy, tmp_path)
            if right:
                draw(engine)
            else:
                with pytest.raises(SyncError):
                    draw(engine)


def test_a_server_that_hangs_is_waited_for_twice(tmp_path: Path):
    policy = make_policy(lora=True)
    fake, leave = Fake(policy), threading.Event()

    def script(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        if asked.get("max_tokens") == LIMIT:
            leave.wait()
        return fake(number, asked)

    with serving(script, MODELS) as server:
        engine = engine_of(server.url, policy, tmp_path, timeout=5.0)
        engine.settings = engine.settings.model_copy(update={"timeout": 0.3})
        try:
            with pytest.raises(EndpointError, match=r"no answer after 1 retries \(ReadTimeout"):
                engine.open().sample([(2, 5)], None, [1], PLAIN, LIMIT)
        finally:
            leave.set()


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ((200, "<html>hello</html>"), "what listens there is no vLLM server"),
        ((404, {"detail": "Not Found"}), "what listens there is no vLLM server"),
        ((200, {"version": "0.20.0", "data": MODELS[1]["data"]}), "vLLM 0.20.0 was not tried"),
    ],
    ids=["a web page", "another server", "another version"],
)
def test_what_is_no_such_server_is_refused_in_one_line(tmp_path: Path, models: tuple[int, Any], said: str):
    policy = make_policy(lora=True)
    with serving(Fake(policy), models) as server, pytest.raises((ConfigError, EndpointError), match=said):
        engine_of(server.url, policy, tmp_path)


def test_another_base_model_another_tokenizer_and_log_probs_of_another_kind_are_refused(tmp_path: Path):
    policy = make_policy(lora=True)
    fake = Fake(policy)

    def raw(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        return fake(number, asked | ({"temperature": 1.0} if "temperature" in asked else {}))

    def words(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        return (200, {"tokens": [4, 5]}) if "add_special_tokens" in asked else fake(number, asked)

    with serving(Fake(make_policy(lora=True, seed=3)), MODELS) as server, pytest.raises(ConfigError, match="/models/m"):
        engine_of(server.url, policy, tmp_path)
    with serving(raw, MODELS) as server, pytest.raises(ConfigError, match="--logprobs-mode processed_logprobs"):
        engine_of(server.url, policy, tmp_path)
    with serving(words, MODELS) as server, pytest.raises(ConfigError, match=r"another tokenizer than model\.path"):
        engine_of(server.url, policy, tmp_path)


def test_a_server_that_takes_no_adapters_is_told_how_to_be_started(tmp_path: Path):
    policy = make_policy(lora=True)
    fake = Fake(policy)

    def script(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        return (404, {"detail": "Not Found"}) if "lora_path" in asked else fake(number, asked)

    with serving(script, MODELS) as server:
        engine = engine_of(server.url, policy, tmp_path)
        with pytest.raises(EndpointError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=true, --enable-lora"):
            engine.push()
