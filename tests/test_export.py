"""Exported models and adapters give the log-probs that the run has, and their card a program that runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from score_rl.chat import Chat
from score_rl.cli.convert import export as command
from score_rl.errors import ConfigError, DataError
from score_rl.export import export
from score_rl.loading import load_tokenizer
from score_rl.model_card import figures
from score_rl.results import read_episodes
from score_rl.run import RunDirectory
from score_rl.settings import load
from score_rl.token_kl import with_contexts
from score_rl.train import Trainer

IDS = torch.tensor([[2, 9, 11, 8, 3, 10, 14, 1, 2, 12, 3, 5]])
SMALL = ["data.options={digits: 4, train: 20, validation: 4, test: 8}", "train.validate_every=2", "eval.problems=8"]
SMALL += ["eval.max_new_tokens=6", "chat.instruction=again"]
STAGE = "problems: 4, branch: [2, 2], max_new_tokens: [6, 6], lr: 0.02, steps: 2"
STAGES = f"stages=[{{kind: stage1, {STAGE}}}, {{kind: stage2, {STAGE}}}]"
REWARD = "reward.fn=even_answers"


@pytest.fixture(scope="module", autouse=True)
def rewarded():
    """A reward that a random model earns now and then, so that there is a gradient."""
    from score_rl.episodes import Grade
    from score_rl.rewards import register_reward, rewards

    @register_reward("even_answers")
    def even_answers(prediction, problem, *, extract=None):
        correct = len(prediction) % 2 == 0
        return Grade(correct, float(correct), prediction)

    yield
    del rewards["even_answers"]


@pytest.fixture(scope="module")
def lora_run(tiny_model, tmp_path_factory) -> Path:
    """A run with an adapter, two stages."""
    path = tmp_path_factory.mktemp("lora") / "run"
    lora = ["model.lora={rank: 4, alpha: 8}", f"model.path={tiny_model}", REWARD, STAGES, "name=tiny"]
    Trainer(load("arithmetic", [*SMALL, *lora]), path).train()
    return path


def plain(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def adapted(base: Path, adapter: Path) -> torch.nn.Module:
    return PeftModel.from_pretrained(plain(base), str(adapter)).eval()


@torch.no_grad()
def logprobs(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits.log_softmax(dim=-1)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def delta(adapter: Path, name: str) -> torch.Tensor:
    """B A alpha / rank of one layer, from the adapter's file."""
    stored = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    a, b = (stored[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    return b @ a * config["lora_alpha"] / config["r"]


def test_a_merged_export_gives_the_log_probs_of_the_runs_adapter(lora_run, tiny_model, tmp_path):
    done = export(lora_run, tmp_path / "merged", merge=True)
    assert (done.kind, done.stage) == ("model", "stage2")
    assert done.gap is not None and done.gap < 1e-5
    expected = logprobs(adapted(tiny_model, lora_run / "stage2"))
    torch.testing.assert_close(logprobs(plain(tmp_path / "merged")), expected, atol=1e-5, rtol=0)
    assert (logprobs(plain(tiny_model)) - expected).abs().max() > 0.01  # there is something to merge
    assert not list((tmp_path / "merged").glob("adapter_*"))


def test_exporting_again_gives_equal_bytes_and_leaves_run_and_base_alone(lora_run, tiny_model, tmp_path):
    before = contents(lora_run / "stage2"), contents(tiny_model)
    for merge in (True, False):
        for name in ("first", "second"):
            export(lora_run, tmp_path / f"{name}-{merge}", merge=merge)
        assert contents(tmp_path / f"first-{merge}") == contents(tmp_path / f"second-{merge}")
    assert (contents(lora_run / "stage2"), contents(tiny_model)) == before


def test_stages_exported_in_a_row_have_each_its_own_delta_alone(lora_run, tiny_model, tmp_path):
    for stage in ("stage1", "stage2"):
        export(lora_run, tmp_path / stage, stage=stage, merge=True)
        expected = logprobs(adapted(tiny_model, lora_run / stage))
        torch.testing.assert_close(logprobs(plain(tmp_path / stage)), expected, atol=1e-5, rtol=0)


def test_an_exported_model_trained_and_merged_again_is_the_sum_of_both_deltas(lora_run, tiny_model, tmp_path):
    export(lora_run, tmp_path / "once", merge=True)
    again = ["model.lora={rank: 2, alpha: 8}", f"model.path={tmp_path / 'once'}", REWARD, STAGES, "seed=1"]
    Trainer(load("arithmetic", [*SMALL, *again]), tmp_path / "run").train()
    export(tmp_path / "run", tmp_path / "twice", merge=True)
    base, twice = weights(tiny_model), weights(tmp_path / "twice")
    moved = 0
    for name, value in base.items():
        layer = name.removesuffix(".weight")
        if not layer.endswith("_proj"):
            torch.testing.assert_close(twice[name], value, atol=0, rtol=0)
            continue
        first, second = delta(lora_run / "stage2", layer), delta(tmp_path / "run" / "stage2", layer)
        torch.testing.assert_close(twice[name], value + first + second, atol=1e-6, rtol=0)
        moved += bool(first.abs().max() > 1e-3 and second.abs().max() > 1e-3)
    assert moved == 14  # 7 layers of 2 blocks each, all moved by both runs


def test_stage_2_after_an_earlier_runs_stage_1_exports_the_whole_delta(lora_run, tiny_model, tmp_path):
    lora = ["model.lora={rank: 4, alpha: 8}", f"model.path={tiny_model}", REWARD, STAGES]
    run = tmp_path / "run"
    Trainer(load("arithmetic", [*SMALL, *lora]), run, adapter=lora_run / "stage1", start_stage=2).train()
    export(run, tmp_path / "adapter")
    stored, merged = logprobs(adapted(tiny_model, tmp_path / "adapter")), tmp_path / "merged"
    export(run, merged, merge=True)
    torch.testing.assert_close(logprobs(plain(merged)), stored, atol=1e-5, rtol=0)
    name = "model.layers.0.mlp.up_proj"
    first, both = delta(lora_run / "stage1", name), delta(run / "stage2", name)
    # Two steps of Adam at 0.02 move an entry of A or B by 0.04: the delta is Stage I's and a little more.
    assert (both - first).abs().max() > 1e-3
    assert torch.cosine_similarity(both.flatten(), first.flatten(), dim=0) > 0.5
    torch.testing.assert_close(
        weights(merged)[f"{name}.weight"], weights(tiny_model)[f"{name}.weight"] + both, atol=1e-6, rtol=0
    )


def test_an_adapter_of_a_base_in_4_bits_is_merged_into_the_full_one(tmp_path):
    pytest.importorskip("bitsandbytes")
    from tiny import make_tokenizer

    # The kernel for 4 bits wants layers of 64.
    size = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    ids = {"num_attention_heads": 4, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    base = tmp_path / "base"
    LlamaForCausalLM(LlamaConfig(**size, **ids, initializer_range=0.3)).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    four = [f"model.path={base}", "model.quantize=4bit", "model.lora={rank: 4}", REWARD, STAGES]
    Trainer(load("arithmetic", [*SMALL, *four]), tmp_path / "run").train()
    export(tmp_path / "run", tmp_path / "out", merge=True)
    name = "model.layers.0.self_attn.q_proj"
    moved = delta(tmp_path / "run" / "stage2", name)
    assert moved.abs().max() > 1e-3
    expected = weights(base)[f"{name}.weight"] + moved
    torch.testing.assert_close(weights(tmp_path / "out")[f"{name}.weight"], expected, atol=1e-6, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Measured with the base model in 4bit; the weights here are at full width." in card


def test_a_whole_model_is_exported_as_it_is(tiny_run, tmp_path):
    for merge in (True, False):
        assert export(tiny_run, tmp_path / str(merge), merge=merge) == (tmp_path / str(merge), "stage2", "model", None)
        exported = contents(tmp_path / str(merge))
        assert {**contents(tiny_run / "stage2"), "README.md": exported["README.md"]} == exported


@pytest.mark.parametrize("kind", ["merged", "adapter", "whole"])
def test_the_cards_program_makes_the_attempts_that_the_run_has_stored(lora_run, tiny_run, run_card, tmp_path, kind):
    run = tiny_run if kind == "whole" else lora_run
    export(run, tmp_path / "out", merge=kind == "merged")
    printed, variables = run_card(tmp_path / "out")
    stored = with_contexts(read_episodes(run / "eval" / "stage2.jsonl")[0], chat_of(run))
    assert printed == [attempt.text for attempt in stored.attempts[:2]]
    assert variables["second_context"] == list(stored.attempts[1].context_ids)


def test_the_cards_program_closes_no_turn_twice(run_card, tmp_path):
    short = ["model.lora={rank: 2}", "eval.problems=4", "train.validation_problems=4"]
    short += [f"stages.{i}.{key}" for i in (0, 1) for key in ("steps=1", "problems=2")]
    Trainer(load("arithmetic", short), tmp_path / "run").train()
    export(tmp_path / "run", tmp_path / "out")
    stored = read_episodes(tmp_path / "run" / "eval" / "stage2.jsonl")[0]
    first, second = with_contexts(stored, chat_of(tmp_path / "run")).attempts
    assert first.finished  # so the bridge's first token is there already
    printed, variables = run_card(tmp_path / "out")
    assert printed == [first.text, second.text]
    assert variables["second_context"] == list(second.context_ids)


def chat_of(run: Path) -> Chat:
    """The conversation that a run's episodes were sampled in."""
    settings = RunDirectory(run).load_settings()
    return Chat(load_tokenizer(settings.model), settings.chat)


@pytest.fixture
def run_card(monkeypatch, capsys):
    """What the program in the card of a directory prints, run from there, and its variables."""

    def run(directory: Path) -> tuple[list[str], dict[str, object]]:
        (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), flags=re.DOTALL)
        assert "import score_rl" not in code and "from score_rl" not in code
        monkeypatch.chdir(directory)
        capsys.readouterr()
        variables: dict[str, object] = {}
        exec(compile(code, "README.md", "exec"), variables)
        return capsys.readouterr().out.splitlines(), variables

    return run


def test_the_cards_program_renders_anew_where_training_did(tiny_model, run_card, tmp_path):
    changed = [f"model.path={tiny_model}", REWARD, STAGES, "chat.history=template", "chat.system=be brief"]
    Trainer(load("arithmetic", [*SMALL, *changed]), tmp_path / "run").train()
    export(tmp_path / "run", tmp_path / "out")
    stored = json.loads((tmp_path / "run" / "eval" / "stage2.jsonl").read_text().splitlines()[0])
    assert run_card(tmp_path / "out")[0] == [attempt["text"] for attempt in stored["attempts"]]


def test_the_card_says_what_was_trained_and_measured(lora_run, tiny_model, tmp_path):
    export(lora_run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for word in (
        "library_name: peft",
        "# license: yours to choose",
        "# tiny: stage2",
        "`again`",
        "LoRA, rank 4, alpha 8",
    ):
        assert word in card
    assert "stage1, 2 steps of 4 questions (2 x 2 attempts each), beta1 0.01, beta2 0.1, KL k2 in the loss" in card
    assert "base_model" not in card  # a directory is no name of the hub
    base, after = (json.loads((lora_run / "eval" / f"{name}.json").read_text()) for name in ("base", "stage2"))
    for title, metrics in (("before", base), ("after", after)):
        accuracy = [100 * metrics[f"acc/t1{end}"] for end in ("", ".low", ".high")]
        assert "| {} | {:.1f} [{:.1f}, {:.1f}] |".format(title, *accuracy) in card
    assert "8 problems of the test split, greedy, 2 attempts" in card


def test_the_card_of_stage_1_leaves_stage_2_out(lora_run, tmp_path):
    export(lora_run, tmp_path / "out", stage="stage1")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- stage1: " in card
    assert "- stage2: " not in card


def test_evaluations_of_another_kind_have_a_table_of_their_own(lora_run, tmp_path):
    shutil.copytree(lora_run / "eval", tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "stage2.json").read_text())
    more = {key.replace("t2", "t3"): value for key, value in metrics.items() if "t2" in key}
    warm = metrics | more | {"temperature": 0.7, "acc/t3": 1.0, "acc/t3.low": 0.5, "acc/t3.high": 1.0}
    (tmp_path / "eval" / "stage2-test-3-attempts-temperature-0.7.json").write_text(json.dumps(warm))
    shown = figures(RunDirectory(tmp_path), "stage2")
    assert "8 problems of the test split, greedy, 2 attempts" in shown
    assert "8 problems of the test split, temperature 0.7, 3 attempts" in shown
    assert "100.0 [50.0, 100.0]" in shown
    (tmp_path / "eval" / "base.json").write_text("{}")
    with pytest.raises(DataError, match=r"base\.json: no evaluation that can be read"):
        figures(RunDirectory(tmp_path), "stage2")


@pytest.mark.filterwarnings("ignore::UserWarning")  # peft says of the adapted head what is about to be refused
def test_weights_that_cannot_be_merged_are_refused(tiny_run, tmp_path):
    from tiny import make_model, make_tokenizer

    make_model(tied=True).save_pretrained(tmp_path / "tied")
    make_tokenizer().save_pretrained(tmp_path / "tied")
    head = ["model.lora={rank: 4, alpha: 64, targets: [lm_head]}", f"model.path={tmp_path / 'tied'}", REWARD, STAGES]
    Trainer(load("arithmetic", [*SMALL, *head]), tmp_path / "run").train()
    with pytest.raises(ConfigError, match=r"merged weights give other log-probs than the adapter \(.* nats per token"):
        export(tmp_path / "run", tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run": "gone"}, "cannot be read"),
        ({"stage": "base"}, "--stage base: that is model.path="),
        ({"stage": "stage9"}, "--stage stage9: .* has no such finished stage"),
        ({"output": "full"}, "full: is there and not empty; choose another directory with -o"),
        ({"output": "full/file"}, "full/file: is there and not empty"),
    ],
)
def test_what_cannot_be_exported_is_refused(tiny_run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/file").write_text("mine")
    given = {"run": tiny_run, "output": "out", **arguments}
    with pytest.raises(ConfigError, match=message):
        export(Path(given["run"]), Path(given["output"]), stage=given.get("stage"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_the_command_says_what_it_wrote(lora_run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    command(lora_run, tmp_path / "empty", merge=True)
    out, err = capsys.readouterr()
    assert out.startswith(f"model of stage2 in {tmp_path / 'empty'}, with README.md")
    assert "nats per token apart" in err
    command(lora_run, tmp_path / "adapter", stage="stage1", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"path": str(tmp_path / "adapter"), "stage": "stage1", "kind": "adapter", "gap": None}
