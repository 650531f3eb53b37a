"""Engines with weights of their own: what is sent, how a tensor that stays behind shows, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny import make_policy, stir
from torch import Tensor

from score_rl.decode import Session, TransformersEngine
from score_rl.embedded.wide import widen
from score_rl.engine_schema import EngineSettings
from score_rl.engines import check_engine
from score_rl.errors import ConfigError, EndpointError, MissingExtra, SyncError
from score_rl.loading import load_policy
from score_rl.policy import Policy
from score_rl.schema import ModelSettings, SamplingSettings
from score_rl.settings import load
from score_rl.synced import WARM, SyncedEngine, check_version, policy_logprobs, sampling_parameters, shaken
from score_rl.vllm_engine import merged_weights
from score_rl.vllm_server import VllmServer


class Twin(SyncedEngine):
    """An engine that samples from a model of its own, which gets what `merged_weights` gives, but not `missing`."""

    def __init__(self, policy: Policy, *, probe_every: int = 1) -> None:
        super().__init__(EngineSettings(kind="vllm", probe_every=probe_every), policy, "twin", "float32")
        self.own = make_policy()
        self.missing = ""
        self.measured = 0

    def open(self) -> Session:
        return TransformersEngine(self.own.causal_lm, frozenset([1]), 0).open()

    def push(self) -> None:
        sent = {name: value for name, value in merged_weights(self.policy) if name != self.missing}
        self.own.causal_lm.load_state_dict(sent, strict=False)

    def measure(self) -> float:
        self.measured += 1
        return super().measure()


@pytest.mark.parametrize("tied", [False, True], ids=["head of its own", "tied"])
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_what_is_sent_is_the_merged_model_under_its_own_names(lora: bool, tied: bool):
    policy = stir(make_policy(lora=lora, tied=tied))
    names = make_policy(tied=tied).causal_lm.state_dict().keys()
    sent = dict(merged_weights(policy))
    assert sent.keys() == names and "lm_head.weight" in names
    other = make_policy(tied=tied, seed=5)
    other.causal_lm.load_state_dict(sent)
    rows = [tuple(range(4, 20)), tuple(range(20, 30))]
    for one, two in zip(policy_logprobs(policy, rows), policy_logprobs(other, rows), strict=True):
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_shaking_moves_every_trained_tensor_and_leaves_no_trace(lora: bool):
    policy = make_policy(lora=lora)  # of a fresh adapter one half is zero
    before = {name: value.clone() for name, value in policy.trained_state().items()}
    with shaken(policy):
        assert not any(torch.equal(value, before[name]) for name, value in policy.trained_state().items())
    assert all(torch.equal(value, before[name]) for name, value in policy.trained_state().items())


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_each_trained_tensor_that_is_not_sent_is_noticed(lora: bool):
    twin = Twin(make_policy(lora=lora))
    twin.prove()
    trained = {name.replace("base_model.model.", "") for name in twin.policy.trained_state()}
    layers = {name.partition(".lora_")[0] + ".weight" if ".lora_" in name else name for name in trained}
    assert layers <= dict(merged_weights(twin.policy)).keys() and len(layers) >= 14
    for twin.missing in layers:
        with pytest.raises(SyncError, match="weights did not reach it"):
            twin.prove()
    twin.missing = ""
    twin.push()
    twin.compare()
    assert twin.gap == pytest.approx(0, abs=1e-5)


def test_stale_weights_are_noticed_before_anything_is_sampled():
    twin = Twin(make_policy())
    with twin.ready():
        pass
    stir(twin.policy)
    twin.push = lambda: None  # type: ignore[method-assign]
    entered = False
    with pytest.raises(SyncError, match="nothing was trained on"), twin.ready():
        entered = True
    assert not entered


def test_log_probs_are_compared_every_so_often_and_at_once_after_a_proof():
    twin = Twin(make_policy(), probe_every=3)
    for _ in range(7):
        with twin.ready():
            pass
    assert twin.measured == 3  # before the 1st, 4th and 7th
    twin.prove()
    with twin.ready():
        pass
    assert twin.measured == 5


def test_a_gap_that_is_no_number_is_none_that_is_small():
    twin = Twin(make_policy())
    with torch.no_grad():
        next(twin.policy.parameters()).fill_(float("nan"))
    with pytest.raises(SyncError):
        twin.compare()


def test_seeds_are_never_what_vllm_reads_as_none():
    keys = [-1, 5, -(2**63)]
    assert [sampling_parameters(WARM, key, 8, [1])["seed"] for key in keys] == [2**63 - 1, 5, 0]


def test_settings_and_the_policys_own_ends_decide_how_tokens_are_drawn():
    told = sampling_parameters(SamplingSettings(temperature=0.5, top_p=0.9, top_k=40, min_p=0.1), 5, 8, [1, 2])
    assert told | {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1} == told
    assert told | {"max_tokens": 8, "stop_token_ids": [1, 2], "ignore_eos": True} == told
    assert sampling_parameters(WARM, 5, 8, [1])["top_k"] == 0  # all tokens


def test_wider_heads_are_the_same_function_and_stay_so_in_training(tmp_path: Path):
    widen(tmp_path / "wide")
    narrow = load_policy(ModelSettings(path="embedded"), trains=True)
    wide = load_policy(ModelSettings(path=str(tmp_path / "wide")), trains=True)
    ids = torch.arange(3, 67).view(4, 16)
    mask = torch.ones_like(ids)

    def logprobs(policy: Policy) -> Tensor:
        return policy(ids, mask, mask[:, 1:].bool()).logprobs

    torch.testing.assert_close(logprobs(wide), logprobs(narrow), atol=1e-4, rtol=0)
    logprobs(wide).sum().backward()
    layer = wide.causal_lm.get_submodule("model.layers.0.self_attn.q_proj")
    filled = layer.weight == 0  # type: ignore[union-attr]
    assert float(filled.float().mean()) == pytest.approx(8 / 32)
    assert float(layer.weight.grad[filled].abs().max()) == 0  # type: ignore[union-attr, index]


LORA = "model.lora.rank=4"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["engine.kind=vllm_server"], r"a server gets adapters alone; set model\.lora=\{\}"),
        (["engine.kind=vllm", LORA, "model.quantize=4bit"], r"not sample from 4-bit weights; set model\.quantize=null"),
        (["engine.kind=vllm", "engine.tensor_parallel_size=2"], r"is for score eval and score solve; set it to 1"),
        (["engine.kind=vllm", LORA, "model.loader=unsloth"], r"set model\.loader=transformers"),
    ],
    ids=["whole model and a server", "4 bits", "tensor parallel", "unsloth"],
)
def test_what_an_engine_cannot_do_is_refused_before_weights_are_read(told: list[str], said: str):
    with pytest.raises(ConfigError, match=said):
        check_engine(load("arithmetic", told))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An import path on which packages can be made to look installed."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("version", "fits"), [("0.32.1", True), ("0.31.9", False), ("0.33.0", False), ("1.0", False)])
def test_a_vllm_that_was_not_tried_is_refused(installed: Path, version: str, fits: bool):
    made = installed / f"vllm-{version}.dist-info"
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    settings = load("arithmetic", ["engine.kind=vllm"])
    if fits:
        check_engine(settings)
    else:
        with pytest.raises(ConfigError, match=rf"vLLM {version} was not tried; install one from 0\.32 to before 0\.33"):
            check_engine(settings)


def test_versions_of_builds_are_read():
    check_version("0.32.0+cpu", "engine.kind=vllm")
    check_version("0.32.1.dev3+g1234", "engine.kind=vllm")
    with pytest.raises(ConfigError, match="dev was not tried"):
        check_version("dev", "engine.url=http://host")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_one_line_says_what_to_install():
    with pytest.raises(MissingExtra, match=r"engine\.kind=vllm needs vLLM: pip install 'score-rl\[vllm\]'"):
        check_engine(load("arithmetic", ["engine.kind=vllm"]))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
def test_no_server_is_one_line(url: str):
    settings = EngineSettings(kind="vllm_server", url=url)
    with pytest.raises(EndpointError, match=rf"engine\.url={url}: no server there .*; start it"):
        VllmServer(settings, make_policy(lora=True), frozenset([1]), "float32")


def test_importance_weights_are_for_engines_that_round_in_another_way():
    assert EngineSettings().cap is None
    assert EngineSettings(kind="vllm").cap == 2.0
    assert EngineSettings(kind="vllm_server", importance_cap=None).cap is None
