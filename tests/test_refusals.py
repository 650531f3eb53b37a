"""What a user may well get wrong with a model of theirs: each is one line and exit code 2, and leaves nothing behind.

Where it says "weightless", the model's weights are missing: the refusal comes before anything reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from scripted_server import serving
from tiny import make_model, make_tokenizer, stir

from score_rl.cli import main
from score_rl.loading import load_policy
from score_rl.policy import Policy
from score_rl.schema import LoraSettings, ModelSettings

SMALL = "data.options={digits: 4, train: 8, validation: 4, test: 4}"

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs `score` in this process, in an empty directory; gives the line behind `error:`."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert (stop.value.code, said.out) == (2, "")
        *before, line = said.err.splitlines()
        # `score train` says first what it is going to load; nobody says anything else.
        assert line.startswith("error: ") and all(text.endswith(": loading") for text in before), said.err
        assert list(place.iterdir()) == []
        return line.removeprefix("error: ")

    return run


@pytest.fixture
def weightless(tiny_model: Path, tmp_path: Path) -> Path:
    """The small model without its weights."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    return tmp_path / "model"


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter of rank 4 and alpha 8 for the small model."""
    stir(load_policy(ModelSettings(path=str(tiny_model), lora=LoraSettings(rank=4, alpha=8)))).save(
        tmp_path / "adapter"
    )
    return tmp_path / "adapter"


def commands(model: Path | str) -> list[list[str]]:
    """Every command that rolls a model out."""
    return [
        ["train", SMALL, f"model.path={model}"],
        ["eval", str(model), SMALL],
        ["solve", str(model), "7 - 4"],
        ["data", "profile", str(model), SMALL],
        ["data", "hard", str(model), SMALL, "-o", "hard"],
    ]


EACH = pytest.mark.parametrize("place", range(5), ids=["train", "eval", "solve", "data profile", "data hard"])

# ---- The hub


@EACH
def test_a_name_of_the_hub_that_is_not_in_the_cache_offline(
    place: int, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = refused(*commands("owner/model")[place])
    assert line.startswith("model.path=owner/model: no such directory here, and not to be had from the hub (")
    assert line.endswith(
        "; check the name, the revision and the network, download it beforehand (`hf download`), or give a local "
        "directory"
    )


@pytest.mark.parametrize("offline", ["0", "1"], ids=["refused connection", "HF_HUB_OFFLINE"])
def test_a_name_of_the_hub_without_a_network_in_a_process_of_its_own(offline: str, tmp_path: Path) -> None:
    # A real connection to a port where nobody listens.
    (tmp_path / "here").mkdir()
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-m", "score_rl", "eval", "owner/model"],
        cwd=tmp_path / "here",
        env=os.environ | where,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model.path=owner/model: no such directory here, and not to be had from the hub (")
    assert list((tmp_path / "here").iterdir()) == []


# ---- Adapters


def onto(adapter: Path, base: Path) -> None:
    """Has the adapter say that it is for this base."""
    stated = adapter / "adapter_config.json"
    stated.write_text(json.dumps(json.loads(stated.read_text()) | {"base_model_name_or_path": str(base)}))


@EACH
def test_an_adapter_of_another_base_weightless(place: int, adapter: Path, tmp_path: Path, refused: Refused) -> None:
    Policy(make_model(intermediate_size=96), make_tokenizer()).save(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").unlink()
    onto(adapter, tmp_path / "wide")
    line = refused(*commands(adapter)[place])
    assert line == (
        f"model.path={adapter}: cannot be loaded (it is an adapter of another model: base_model.model.model.layers."
        "0.mlp.gate_proj.lora_B.weight is (48, 4) there and (96, 4) here; check model.path); the base model that its "
        f"adapter_config.json names is {tmp_path / 'wide'}"
    )


@EACH
def test_an_adapter_whose_base_is_gone(place: int, adapter: Path, refused: Refused) -> None:
    onto(adapter, Path("gone"))
    line = refused(*commands(adapter)[place])
    assert line.startswith(f"model.path={adapter}: an adapter whose base model is not there (model.path=gone: no such")
    assert line.endswith(f"correct base_model_name_or_path in {adapter / 'adapter_config.json'}")


def test_an_adapter_of_another_base_to_start_from_weightless(
    adapter: Path, tiny_model: Path, tmp_path: Path, refused: Refused
) -> None:
    Policy(make_model(intermediate_size=96), make_tokenizer()).save(tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").unlink()
    start = ["train", SMALL, f"model.path={tmp_path / 'wide'}", "model.lora={rank: 4, alpha: 8}"]
    of = f"--resume-adapter {adapter}: cannot be loaded (it is an adapter of "
    line = refused(*start, "--resume-adapter", adapter)
    assert line == of + f"{tiny_model}, and the model is {tmp_path / 'wide'}; check model.path)"
    onto(adapter, Path("gone"))  # which may well have been moved
    line = refused(*start, "--resume-adapter", adapter)
    assert line.startswith(of + "another model: ") and line.endswith("(96, 4) here; check model.path)")


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ("{rank: 8, alpha: 8}", "its rank is 4 and model.lora.rank=8; set model.lora.rank=4"),
        ("{rank: 4, alpha: 16}", "its alpha is 8 and model.lora.alpha=16; set model.lora.alpha=8"),
    ],
    ids=["rank", "alpha"],
)
def test_an_adapter_of_another_size_to_start_from_weightless(
    lora: str, reason: str, adapter: Path, weightless: Path, refused: Refused
) -> None:
    start = ["train", SMALL, f"model.path={weightless}", f"model.lora={lora}", "--resume-adapter", adapter]
    assert refused(*start) == f"--resume-adapter {adapter}: cannot be loaded ({reason})"


def test_an_adapter_of_another_size_than_the_settings_say_weightless(
    adapter: Path, weightless: Path, refused: Refused
) -> None:
    onto(adapter, weightless)
    line = refused("train", SMALL, f"model.path={adapter}", "model.lora={rank: 8, alpha: 8}")
    assert line == (
        f"model.lora.rank=8: the adapter in model.path={adapter} has 4; set model.lora.rank=4 or model.lora=null"
    )


@pytest.mark.parametrize("targets", ["[qkv_proj]", "'.*nothing'"], ids=["names", "a regular expression"])
def test_targets_that_match_no_layer_weightless(targets: str, weightless: Path, refused: Refused) -> None:
    line = refused("train", SMALL, f"model.path={weightless}", f"model.lora={{targets: {targets}}}")
    assert line.startswith("model.lora.targets=") and " not found in the base model" in line
    assert line.endswith("; its linear layers: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj")


# ---- Tokenizers, contexts, 4 bits


@EACH
def test_a_tokenizer_without_a_chat_template_weightless(place: int, weightless: Path, refused: Refused) -> None:
    (weightless / "chat_template.jinja").unlink()
    line = refused(*commands(weightless)[place])
    assert line == (
        f"model.path={weightless}: the tokenizer has no chat template; add chat_template.jinja to the model, or set "
        "chat.template"
    )


@EACH
def test_a_context_longer_than_the_models_weightless(place: int, weightless: Path, refused: Refused) -> None:
    config = json.loads((weightless / "config.json").read_text())
    (weightless / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10}))
    limits = ": max_new_tokens=["
    starts = ["stages.0" + limits, "eval" + limits, "question: a prompt of", "the limits of arithmetic" + limits]
    line = refused(*commands(weightless)[place])
    assert line.startswith([*starts, "eval" + limits][place]) and "of the model's 10" in line
    assert re.search(r"; .*lower (--)?max.new.tokens", line)


@pytest.mark.parametrize("place", [0, 1, 3], ids=["train", "eval", "data profile"])
def test_4_bits_without_bitsandbytes_weightless(
    place: int, weightless: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    line = refused(*commands(weightless)[place], "model.quantize=4bit", "model.lora={}")
    assert line == "model.quantize=4bit needs bitsandbytes: pip install 'score-rl[quant]'"


# ---- vLLM

SERVED = "engine.kind=vllm_server"
MODELS = [{"id": "m", "root": "/models/m", "parent": None}]


def forbidden(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
    raise AssertionError(f"asked for {asked}")


def installed(place: Path, version: str) -> Path:
    """A directory of packages in which this version of vLLM looks installed."""
    made = place / f"vllm-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return place


@pytest.mark.parametrize("place", [0, 1], ids=["train", "eval"])
@pytest.mark.parametrize("version", [None, "0.31.0"], ids=["not installed", "another version"])
def test_vllm_that_is_missing_or_was_not_tried_weightless(
    place: int, version: str | None, weightless: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version is None and find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    if version is not None:
        monkeypatch.syspath_prepend(installed(tmp_path / "site", version))
    line = refused(*commands(weightless)[place], "engine.kind=vllm")
    needs = "needs vLLM: pip install 'score-rl[vllm]' (docs/vllm.md), or set engine.kind=transformers"
    tried = ": vLLM 0.31.0 was not tried; install one from 0.32 to before 0.33"
    assert line == "engine.kind=vllm" + (tried if version else f" {needs}")


@pytest.mark.parametrize("place", [0, 1, 3], ids=["train", "eval", "data profile"])
@pytest.mark.parametrize(
    ("listens", "said"),
    [
        (None, "no server there (ConnectError "),
        ((200, "<html>a web page</html>"), "what listens there is no vLLM server; correct engine.url"),
        (
            (200, {"version": "0.33.0", "data": MODELS}),
            "vLLM 0.33.0 was not tried; install one from 0.32 to before 0.33",
        ),
    ],
    ids=["nobody listens", "a port that another program has", "another version"],
)
def test_what_is_no_vllm_server_of_ours_weightless(
    place: int, listens: tuple[int, Any] | None, said: str, weightless: Path, refused: Refused
) -> None:
    with serving(forbidden, listens or (404, {})) as server:
        url = server.url if listens else "http://127.0.0.1:9"
        line = refused(*commands(weightless)[place], "model.lora={rank: 4}", SERVED, f"engine.url={url}")
    assert line.startswith(f"engine.url={url}: {said}")


@pytest.mark.parametrize("tokens", [[4, 5], None], ids=["another tokenizer", "another base model"])
def test_a_server_with_another_model(tokens: list[int] | None, tiny_model: Path, refused: Refused) -> None:
    theirs = make_tokenizer()

    def script(number: int, asked: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" not in asked:
            return 200, {"tokens": tokens or theirs(asked["prompt"], add_special_tokens=False)["input_ids"]}
        logprobs = {"token_logprobs": [-9.0]}  # of a token that our model gives about one in its 30
        return 200, {"choices": [{"token_ids": [5], "logprobs": logprobs, "finish_reason": "stop"}]}

    with serving(script, (200, {"version": "0.32.0", "data": MODELS})) as server:
        train = [*commands(tiny_model)[0], "model.lora={rank: 4}", SERVED, f"engine.url={server.url}"]
        line = refused(*train)
    assert line.startswith(f"engine.url={server.url}: /models/m ") and "; serve that model" in line
    assert ("another tokenizer than model.path" if tokens else "nats a token from model.path's") in line


# ---- Unsloth

UNSLOTH = "model.loader=unsloth"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["model.lora={}"], f"{UNSLOTH} needs unsloth: pip install unsloth, or set model.loader=transformers"),
        ([], f"{UNSLOTH}: trains adapters only; set model.lora={{}} or model.loader=transformers"),
        (["model.lora={}", "model.attention=sdpa"], "model.attention=sdpa: model.loader=unsloth chooses it itself"),
    ],
    ids=["unsloth is not installed", "a whole model", "an attention is chosen"],
)
def test_what_it_cannot_do_is_refused_weightless(
    changes: list[str], line: str, weightless: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", None)  # as where it is not installed
    assert refused("train", SMALL, f"model.path={weightless}", UNSLOTH, *changes).startswith(line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_weightless(
    weightless: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "unsloth").mkdir(parents=True)  # a package of that name, which is not imported
    (tmp_path / "site" / "unsloth" / "__init__.py").write_text("raise AssertionError")
    monkeypatch.syspath_prepend(tmp_path / "site")
    line = refused("eval", weightless, SMALL, UNSLOTH)
    assert line == f"{UNSLOTH}: needs a GPU, and torch sees none; set model.loader=transformers"
