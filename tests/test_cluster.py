"""Memory and traffic on several processes, against numbers on paper and what torch is asked for; what is printed."""

import json
import pickle
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from planned import ADAPTER, CONFIG, LAYER, PROMPTS, REST, SIZES, cost, plan_of
from transformers import LlamaConfig

from score_rl.cli import main
from score_rl.episodes import Grade
from score_rl.errors import ConfigError
from score_rl.planning.cluster import ClusterPlan, kinds_of, make_cluster_plan, share_of, to_text
from score_rl.planning.memory import Held
from score_rl.planning.seconds import Assumptions
from score_rl.planning.shapes import Shape, blank_model, known_config
from score_rl.planning.spread import episode_bytes, measure, memory_of, traffic_of
from score_rl.schema import LoraSettings, ModelSettings, Settings
from score_rl.settings import load

# -- sizes -----------------------------------------------------------------------------------------------------------


def test_a_whole_model_is_its_layers_and_the_rest():
    found = measure(blank_model(ModelSettings(dtype="float32"), CONFIG))
    assert found[:4] == (4 * LAYER, 4 * LAYER, 4 * REST, 4 * REST)
    assert found.multiplied == found.trained == 3 * LAYER + REST - 96 * 64  # embeddings are looked up
    assert (found.width, found.layers) == (3 * 4 * 16, 3)


def test_of_an_adapted_model_the_adapter_trains():
    settings = ModelSettings(dtype="bfloat16", lora=LoraSettings(rank=4))
    found = measure(blank_model(settings, CONFIG))
    assert found[:4] == (2 * LAYER + 4 * ADAPTER, 4 * ADAPTER, 2 * REST, 0)
    assert found.trained == 3 * ADAPTER


def test_tied_embeddings_are_multiplied_with_in_the_head():
    tied = LlamaConfig(**{**CONFIG.to_dict(), "tie_word_embeddings": True})
    assert measure(blank_model(ModelSettings(dtype="float32"), tied)).multiplied == 3 * LAYER + REST - 96 * 64


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512), ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496)],
)
def test_the_larger_models_have_the_parameters_that_their_makers_publish(name, parameters):
    model = blank_model(ModelSettings(), known_config(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, "{rank: 4}"], ids=["whole", "adapter"])
def test_each_way_to_spread_a_model_holds_its_parts_of_it(lora):
    found = plan_of(4, f"model.lora={lora or 'null'}")
    share, ddp = found.share, found.memory["ddp"]
    held, whole = share.held, share.held.weights + share.held.adapter
    assert ddp[:5] == (held.weights, held.adapter, held.gradients, held.optimizer, held.reference)
    assert ddp.most == max(share.peaks.values())
    fsdp, zero2 = found.memory["fsdp"], found.memory["zero2"]
    loose = 0 if lora else 4 * REST
    parts = (held.weights // 4, held.adapter // 4, held.gradients // 4, held.optimizer // 4)
    assert fsdp[:5] == (*parts, loose + (held.reference - loose) // 4)
    assert zero2[:5] == (held.weights, held.adapter, held.gradients // 4, held.optimizer // 4, held.reference)
    # Two layers of weights, one of gradients, and what is in no layer; all of the model to sample.
    adapter = 4 * ADAPTER if lora else 0
    trained = adapter if lora else 4 * (LAYER + REST)
    assert fsdp.update - ddp.update == 2 * (4 * LAYER + adapter) + 4 * REST + trained
    assert fsdp.sampling - ddp.sampling == whole
    assert (zero2.update, zero2.sampling) == (ddp.update, ddp.sampling)
    assert found.memory["zero3"] == fsdp


def test_most_at_once_leaves_the_rollout_out_where_other_gpus_sample():
    found = plan_of(2).memory["ddp"]._replace(update=7, sampling=90, step=5)
    assert (found.most - found.held, found.training - found.held) == (90, 7)


def test_each_process_is_planned_with_its_share_of_the_questions():
    own = share_of(load("arithmetic", ["stages.0.problems=9", "stages.1.problems=8", "eval.problems=7"]), 4)
    assert [stage.problems for stage in own.stages] == [3, 2]
    assert (own.eval.problems, own.train.validation_problems) == (2, 250)
    assert own.train.rollout_rows == load("arithmetic").train.rollout_rows


def test_more_processes_than_questions_are_refused():
    with pytest.raises(ConfigError, match=r"stages\.1\.problems=3: fewer questions a step than the 4 processes"):
        share_of(load("arithmetic", ["stages.1.problems=3"]), 4)


@pytest.mark.parametrize(
    ("changes", "processes", "wanted"),
    [
        ([], 2, ("ddp", "fsdp", "zero2", "zero3")),
        ([], 1, ("ddp",)),
        (["optim.kind=adamw_8bit"], 2, ("ddp",)),
        (["model.quantize=4bit", "model.lora={rank: 4}"], 2, ("ddp",)),
    ],
)
def test_only_what_can_be_sharded_is_planned_sharded(changes, processes, wanted):
    assert kinds_of(load("arithmetic", changes), processes) == wanted


# -- traffic ---------------------------------------------------------------------------------------------------------

HELD = Held(parameters=0, trained=0, weights=400, adapter=40, gradients=40, optimizer=80, reference=0)


@pytest.mark.parametrize(
    ("kind", "gradients", "weights"),
    [
        ("ddp", 2 * 40, 0),
        ("zero2", 3 * 40, 40),
        # Three passes forward and backward, one to score, two of the reference and its head, one to sample.
        ("fsdp", 3 * 40, 440 * (2 * 3 + 1 + 2 + 1) + 2 * 12),
        ("zero3", 3 * 40, 440 * (2 * 3 + 1 + 2 + 1) + 2 * 12),
    ],
)
def test_traffic_on_paper(kind, gradients, weights):
    found = traffic_of(kind, HELD, SIZES, cost(scoring_passes=1, reference_passes=2), 100, 4)
    assert found == (gradients * 3 // 4, weights * 3 // 4, 100 * 3)
    assert found.total == sum(found)


def test_one_process_sends_nothing():
    assert all(traffic_of(kind, HELD, SIZES, cost(), 100, 1).total == 0 for kind in ("ddp", "fsdp", "zero2"))


def test_planned_traffic_is_what_torch_is_asked_to_send(tmp_path):
    script = Path(__file__).parent / "e2e" / "counted_traffic.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 8
    for case in found:
        for part in ("gradients", "weights"):
            counted, planned = case[part]
            assert counted == planned, case
    assert all(case["passes"][0] == 2 for case in found)


def test_an_episode_is_no_larger_when_it_is_sent_than_planned():
    ids = [70_000 + n for n in range(600)]
    made = []
    for n in range(8):
        bare = tiny.episode(f"question {n}", [[i + n for i in ids[:200]], ids[:50]], [[*ids, n], ids], [0.0, 1.0])
        attempts = [
            replace(
                attempt,
                text="abcdef" * len(attempt.token_ids),
                engine_logprobs=tuple(torch.rand(len(attempt.token_ids)).tolist()),
                grade=Grade(False, 0.0, "42"),
            )
            for attempt in bare.attempts
        ]
        made.append(replace(bare, attempts=tuple(attempts)))
    # Contexts of 200 and 200 + 601 + 50, attempts of 601 and 600.
    planned = episode_bytes(8, (200, 851), (601, 600))
    assert planned == 8 * (2000 + 5 * 1051 + 20 * 1201)
    assert planned / 2 < len(pickle.dumps(made)) < planned


# -- what is printed -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan() -> ClusterPlan:
    return plan_of(4)


def test_the_text_has_the_figures_of_the_plan_and_its_assumptions(plan):
    text = to_text(plan, "arithmetic")
    assert text.startswith("arithmetic on 4 processes with a GPU each: an estimate, of which nothing was measured")
    assert "episodes a step and process: 128 of stage1, 128 of stage2" in text
    assert f"{plan.stages[0].traffic['fsdp'].weights / 2**20:,.1f}" in text
    assert "ddp fsdp zero2 zero3 fit" in text
    assert all(name in text for name in Assumptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("room", "adapter", "said"),
    [
        ("training", 1, "ddp fsdp zero2 zero3 would fit if a vLLM server sampled"),
        ("training", 0, "nothing fits"),  # a server takes adapters alone
        ("less", 1, "nothing fits"),
    ],
)
def test_the_text_says_what_fits_with_other_gpus_for_sampling_and_what_does_not(plan, room, adapter, said):
    memory = {kind: m._replace(sampling=10**9, update=10, adapter=adapter) for kind, m in plan.memory.items()}
    largest = max(m.training for m in memory.values())
    assumed = replace(plan.assumed, memory=largest if room == "training" else 10, memory_share=1.0)
    assert said in to_text(plan._replace(memory=memory, assumed=assumed), "arithmetic")


def test_the_command_prints_the_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["score", "train", "--plan", "--processes", "2", "--json", "eval.problems=8"])
    with pytest.raises(SystemExit, match="0"):
        main()
    found = json.loads(capsys.readouterr().out)
    assert found["processes"] == 2
    assert set(found["memory"]) == {"ddp", "fsdp", "zero2", "zero3"}
    assert found["stages"][0]["seconds"]["ddp"]["total"] > 0
    assert list(tmp_path.iterdir()) == []


def test_processes_are_started_by_a_launcher(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["score", "train", "--processes", "2"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--processes 2: only with --plan; to train: torchrun --nproc-per-node 2" in capsys.readouterr().err


def test_memory_of_a_plan_is_that_of_the_settings():
    settings: Settings = load("arithmetic")
    found = make_cluster_plan(settings, 1, shape=Shape(CONFIG, "table"), prompts=PROMPTS)
    sizes = measure(blank_model(settings.model, CONFIG))
    assert found.memory == {"ddp": memory_of("ddp", found.share, sizes, 1)}


def test_the_page_has_the_figures_that_its_command_prints():
    path = Path(__file__).parent.parent / "scripts" / "scaling_table.py"
    assert (
        runpy.run_path(str(path))["row"]("1.5B", "adapter", 8)
        in (path.parent.parent / "docs" / "scaling.md").read_text()
    )
