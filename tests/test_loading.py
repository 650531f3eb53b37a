"""Where models come from and how they are read: directories, runs, the hub's cache; and what is refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import FIRST, inputs, make_model, make_policy, make_tokenizer, stir
from transformers import GPT2Config, GPT2LMHeadModel

from score_rl.cli import main
from score_rl.decode import TransformersEngine
from score_rl.errors import ConfigError
from score_rl.loading import context_length, load_model, load_policy, load_tokenizer, model_directory
from score_rl.policy import Policy
from score_rl.schema import LoraSettings, ModelSettings, SamplingSettings

SMALL = "data.options={digits: 4, train: 20, validation: 4, test: 4}"


def settings(path: object, **options: object) -> ModelSettings:
    return ModelSettings(path=str(path), **options)  # type: ignore[arg-type]


def scores(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(*inputs([FIRST])).logprobs


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `score train` in this process; gives its one line of error, after which nothing may have been written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["score", "train", SMALL, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert (stop.value.code, said.out) == (2, "")
        assert "Traceback" not in said.err and said.err.rstrip().endswith(line)
        assert not Path("runs").exists()
        return line.removeprefix("error: ")

    return run


# ---- Directories and runs


def test_a_run_is_the_model_of_its_last_stage(tiny_run: Path) -> None:
    assert model_directory(settings(tiny_run)) == tiny_run / "stage2"
    loaded = load_policy(settings(tiny_run))
    stored = load_file(tiny_run / "stage2" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in loaded.model.named_parameters())


def test_a_run_without_a_finished_stage_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_run / "config.yaml", tmp_path)
    with pytest.raises(ConfigError, match="no stage has finished"):
        load_model(settings(tmp_path))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A saved adapter of rank 4 and alpha 8, trained on the tiny model."""
    policy = load_policy(settings(tiny_model, lora=LoraSettings(rank=4, alpha=8)))
    stir(policy).save(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("stated", [None, LoraSettings(rank=4, alpha=8)], ids=["lora not set", "lora as it was"])
def test_an_adapters_directory_is_the_adapter_on_its_base(stated: LoraSettings | None, adapter: Path) -> None:
    policy = load_policy(settings(adapter, lora=stated))
    assert policy.has_adapter and set(policy.trained_state()) and policy.cautions() == []
    by_peft = PeftModel.from_pretrained(make_model(), adapter)
    assert torch.equal(scores(policy), scores(Policy(by_peft, make_tokenizer())))
    policy.freeze_reference()
    with policy.reference():
        assert torch.equal(scores(policy), scores(make_policy()))


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(adapter: Path) -> None:
    for file in adapter.iterdir():
        if not file.name.startswith("adapter"):
            file.unlink()
    assert len(load_tokenizer(settings(adapter))) == 64


def test_a_vocabulary_larger_than_the_tokenizer_stays_so_with_an_adapter(tmp_path: Path) -> None:
    base = Policy(make_model(vocabulary=100), make_tokenizer())
    base.save(tmp_path / "base")
    trained = stir(load_policy(settings(tmp_path / "base", lora=LoraSettings(rank=4))))
    trained.save(tmp_path / "adapter")
    again = load_policy(settings(tmp_path / "adapter"))
    assert again.causal_lm.get_output_embeddings().out_features == 100 > len(again.tokenizer)
    assert torch.equal(scores(again), scores(trained))


# ---- The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub without a network, which holds someone/model in two revisions."""
    place = tmp_path / "hub" / "models--someone--model"
    for revision, commit, seed in (("main", "a" * 40, 0), ("old", "b" * 40, 7)):
        Policy(make_model(seed=seed), make_tokenizer()).save(place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place


@pytest.mark.parametrize(("revision", "seed"), [(None, 0), ("main", 0), ("old", 7), ("b" * 40, 7)])
def test_a_model_of_the_hub_is_the_one_of_its_revision(hub: Path, revision: str | None, seed: int) -> None:
    policy = load_policy(settings("someone/model", revision=revision))
    assert torch.equal(scores(policy), scores(make_policy(seed=seed)))


def test_an_adapter_names_the_hubs_model_and_its_revision_rather_than_this_cache(hub: Path, tmp_path: Path) -> None:
    policy = stir(load_policy(settings("someone/model", revision="old", lora=LoraSettings(rank=4))))
    policy.save(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == ("someone/model", "old")
    assert torch.equal(scores(load_policy(settings(tmp_path / "adapter"))), scores(policy))


@pytest.mark.parametrize("lora", ["null", "{rank: 4}"], ids=["whole model", "adapter"])
def test_a_run_on_a_model_of_the_hub_is_evaluated_where_it_lies(
    hub: Path, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def score(*arguments: str) -> dict[str, object]:
        monkeypatch.setattr(sys, "argv", ["score", *arguments, "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            main()
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    model = ["model.path=someone/model", "model.revision=old", f"model.lora={lora}"]
    stage = "{kind: stage2, steps: 1, problems: 2, branch: [2, 2], max_new_tokens: [4, 4]}"
    trained = score("train", SMALL, *model, "eval.max_new_tokens=4", f"stages=[{stage}]", "-o", "run")
    again = score("eval", "run")
    assert again["seed"] == 0 and again["acc/t2"] == trained["stage2"]["acc/t2"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "revision", "named"),
    [("someone/else", None, "someone/else"), ("someone/model", "new", "someone/model (revision new)")],
)
def test_what_neither_hub_nor_cache_has_is_one_line(hub: Path, path: str, revision: str | None, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(settings(path, revision=revision))
    text = str(caught.value)
    assert text.startswith(f"model.path={named}: no such directory here, and not to be had from the hub (")
    assert text.endswith("download it beforehand (`hf download`), or give a local directory") and "\n" not in text


def test_without_a_network_the_command_line_says_so_in_one_line(tmp_path: Path) -> None:
    # A real connection to a port where nobody listens.
    place = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "score_rl", "train", SMALL, "model.path=Qwen/Qwen3-0.6B"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True, check=False)
    start = "error: model.path=Qwen/Qwen3-0.6B: no such directory here, and not to be had from the hub (Got: ConnectE"
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(start)


def test_a_revision_of_a_directory_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.revision=main is for models of the hub, and .* is none; remove it"):
        load_tokenizer(settings(tiny_model, revision="main"))


# ---- How it is read


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32 stored", "bfloat16 stored"])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["whole", "adapter"])
@pytest.mark.parametrize("trains", [True, False], ids=["to train", "to evaluate"])
def test_what_trains_is_float32_unless_it_is_asked_for_otherwise(
    trains: bool, lora: LoraSettings | None, stored: torch.dtype, dtype: str, tmp_path: Path
) -> None:
    Policy(make_model().to(stored), make_tokenizer()).save(tmp_path)
    policy = load_policy(settings(tmp_path, dtype=dtype, lora=lora), trains=trains)
    asked = {"auto": stored, "float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if trains and lora is None and dtype == "auto":
        asked = torch.float32
    assert policy.causal_lm.get_input_embeddings().weight.dtype == asked
    trained = torch.float32 if lora else asked
    assert {value.dtype for value in policy.trained_state().values()} == {trained}
    assert bool(policy.cautions()) == (trained == torch.bfloat16)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_computed_as_asked_for(attention: str, tiny_model: Path) -> None:
    policy = load_policy(settings(tiny_model, attention=attention))
    assert policy.model.config._attn_implementation == attention
    torch.testing.assert_close(scores(policy), scores(make_policy()), rtol=0, atol=1e-5)


def test_context_length_needs_no_weights(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    assert context_length(settings(tmp_path / "model")) == 128
    assert context_length(settings(adapter)) == 128


def test_the_dropout_of_a_pretrained_model_is_off_and_the_adapters_is_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=1
    )
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.1
    Policy(GPT2LMHeadModel(config), make_tokenizer()).save(tmp_path / "gpt2")
    Policy(make_model(attention_dropout=0.5), make_tokenizer()).save(tmp_path / "llama")
    for name in ("gpt2", "llama"):
        policy = load_policy(settings(tmp_path / name))
        wanted = scores(policy)
        assert torch.equal(scores(policy.train()), wanted)
    lora = LoraSettings(rank=4, dropout=0.5)
    policy = stir(load_policy(settings(tmp_path / "llama", lora=lora)))
    drawn, again = scores(policy.train()), scores(policy)
    assert not torch.equal(drawn, again)
    # The sampler, in training mode as in any other, goes without.
    engine = TransformersEngine(policy.causal_lm, frozenset({1}), 0)
    (sample,) = engine.open().sample([(2, 9, 3)], None, [5], SamplingSettings(), 6, last=True)
    ids = torch.tensor([(2, 9, 3, *sample.token_ids)])
    predicts = torch.arange(ids.shape[1] - 1)[None] >= 2
    with torch.no_grad():
        found = policy.eval()(ids, torch.ones_like(ids), predicts).logprobs
    torch.testing.assert_close(found, torch.tensor(sample.logprobs), rtol=0, atol=1e-5)


# ---- Code that comes with a model

CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tiny_model: Path, tmp_path: Path) -> Path:
    place = tmp_path / "own"
    shutil.copytree(tiny_model, place)
    config = json.loads((place / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (place / "config.json").write_text(json.dumps(config))
    (place / "configuration_own.py").write_text(CONFIGURATION)
    (place / "modeling_own.py").write_text(MODEL)
    return place


def test_code_of_a_model_runs_on_request_alone(own_code: Path, refused: Callable[..., str]) -> None:
    policy = load_policy(settings(own_code, trust_remote_code=True))
    assert type(policy.model).__name__ == "OwnForCausalLM"
    assert torch.equal(scores(policy), scores(make_policy()))
    for read in (load_model, context_length):
        with pytest.raises(ConfigError, match=r"set model\.trust_remote_code=true to run it"):
            read(settings(own_code))
    line = refused(f"model.path={own_code}")
    assert line.endswith("read that code, then set model.trust_remote_code=true to run it")


# ---- Refusals


def test_an_adapter_of_another_size_than_the_settings_say_is_refused(
    adapter: Path, tiny_model: Path, refused: Callable[..., str]
) -> None:
    line = refused(f"model.path={adapter}", "model.lora={rank: 8, alpha: 8}")
    assert line == (
        f"model.lora.rank=8: the adapter in model.path={adapter} has 4; set model.lora.rank=4 or model.lora=null"
    )
    line = refused(f"model.path={adapter}", "model.lora={rank: 4, alpha: 16}")
    assert line.startswith("model.lora.alpha=16: the adapter in") and "has 8; set model.lora.alpha=8 or" in line
    start = f"--resume-adapter {adapter}: cannot be loaded (its "
    line = refused(f"model.path={tiny_model}", "model.lora={rank: 8, alpha: 8}", "--resume-adapter", adapter)
    assert line == start + "rank is 4 and model.lora.rank=8; set model.lora.rank=4)"
    line = refused(f"model.path={tiny_model}", "model.lora={rank: 4, alpha: 16}", "--resume-adapter", adapter)
    assert line == start + "alpha is 8 and model.lora.alpha=16; set model.lora.alpha=8)"


def test_an_adapter_that_does_not_fit_its_base_is_refused(adapter: Path, refused: Callable[..., str]) -> None:
    stated = adapter / "adapter_config.json"
    config = json.loads(stated.read_text())
    wide = make_model(intermediate_size=96)
    Policy(wide, make_tokenizer()).save(adapter.parent / "wide")
    stated.write_text(json.dumps(config | {"base_model_name_or_path": str(adapter.parent / "wide")}))
    line = refused(f"model.path={adapter}")
    assert line.startswith(f"model.path={adapter}: cannot be loaded (it is an adapter of another model: ")
    stated.write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    line = refused(f"model.path={adapter}")
    assert line.startswith(f"model.path={adapter}: an adapter whose base model is not there (model.path=gone: no such")
    assert line.endswith(f"correct base_model_name_or_path in {stated}")


def test_an_adapter_with_a_part_missing_is_refused(adapter: Path, refused: Callable[..., str]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    name = min(weights)
    save_file({k: v for k, v in weights.items() if k != name}, adapter / "adapter_model.safetensors")
    line = refused(f"model.path={adapter}")
    assert f"(1 weights are in one adapter only, e.g. {name}; check model.path and model.lora)" in line


def test_an_adapter_of_another_kind_is_refused(tiny_model: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    model = make_model()
    model.name_or_path = str(tiny_model)
    get_peft_model(model, IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "ia3")
    assert refused(f"model.path={tmp_path / 'ia3'}").endswith("ia3: an adapter of kind IA3; use one of LoRA")


def test_targets_that_match_no_layer_are_refused(tiny_model: Path, refused: Callable[..., str]) -> None:
    line = refused(f"model.path={tiny_model}", "model.lora={targets: [qkv_proj]}")
    assert line.startswith("model.lora.targets=['qkv_proj']: Target modules {'qkv_proj'} not found in the base model")


def test_what_bitsandbytes_is_needed_for_says_how_to_install_it(
    tiny_model: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    path = f"model.path={tiny_model}"
    line = refused(path, "model.quantize=4bit", "model.lora={}")
    assert line == "model.quantize=4bit needs bitsandbytes: pip install 'score-rl[quant]'"
    line = refused(path, "optim.kind=adamw_8bit")
    assert line == "optim.kind=adamw_8bit needs bitsandbytes: pip install 'score-rl[quant]'"


def test_a_whole_model_in_4_bits_is_refused(tiny_model: Path, refused: Callable[..., str]) -> None:
    line = refused(f"model.path={tiny_model}", "model.quantize=4bit")
    assert line == "model.quantize=4bit: a whole model cannot train in 4 bits; set model.lora={}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it may be installed")
def test_an_attention_that_is_not_installed_is_refused(tiny_model: Path, refused: Callable[..., str]) -> None:
    line = refused(f"model.path={tiny_model}", "model.attention=flash_attention_2")
    assert line.startswith(f"model.path={tiny_model}: cannot be loaded (") and "flash" in line.lower()


def test_an_adapter_saved_by_peft_alone_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    model = make_model()
    model.name_or_path = str(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(scores(load_policy(settings(tmp_path / "adapter"))), scores(make_policy()))
