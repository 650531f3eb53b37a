"""Memory, traffic and seconds on several processes, against numbers on paper, torch's counters and real objects."""

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
from pytest import approx
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from score_rl.adapters import add_adapter
from score_rl.cli import main
from score_rl.episodes import Grade
from score_rl.errors import ConfigError
from score_rl.planning.cluster import ClusterPlan, kinds_of, make_cluster_plan, share_of, to_text
from score_rl.planning.costs import Prompts, StageCost
from score_rl.planning.memory import Held
from score_rl.planning.seconds import (
    Assumptions,
    Seconds,
    cache_read,
    decode_seconds,
    forward_flops,
    update_flops,
    vllm_gpus,
)
from score_rl.planning.shapes import Shape, blank_model, known_config
from score_rl.planning.spread import Sizes, episode_bytes, measure, memory_of, traffic_of
from score_rl.schema import LoraSettings, ModelSettings, Settings
from score_rl.settings import load

PROMPTS = Prompts(20.0, 24, 5, "given")
CONFIG = LlamaConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64
REST = 2 * 96 * 64 + 64
ADAPTER = 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160))
"""Of a layer with rank 4."""
ONES = Assumptions(
    memory=1000,
    flops=100.0,
    flops_float32=10.0,
    bandwidth=200.0,
    link=50.0,
    network=20.0,
    machine=2,
    flops_share=0.5,
    bandwidth_share=0.5,
    link_share=0.1,
    memory_share=0.5,
    layer_seconds=1.0,
    weights_share=0.25,
)


def cost(**changed: int) -> StageCost:
    """A step of 6 rows of 10 tokens in 3 passes."""
    fields = {
        "label": "s",
        "steps": 1,
        "episodes": 6,
        "prompt_tokens": 0,
        "sampled_tokens": 0,
        "rollout_passes": 0,
        "rows": 6,
        "update_tokens": 60,
        "policy_passes": 3,
        "repeated_passes": 0,
        "scoring_passes": 0,
        "reference_passes": 0,
    }
    return StageCost(**(fields | changed))


def plan_of(processes: int, *changes: str, assumed: Assumptions | None = None) -> ClusterPlan:
    settings = load("arithmetic", list(changes))
    return make_cluster_plan(settings, processes, shape=Shape(CONFIG, "table"), prompts=PROMPTS, assumed=assumed)


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
SIZES = Sizes(layer=0, layer_trained=0, rest=12, rest_trained=0, multiplied=0, trained=0, width=0, layers=1)


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


# -- seconds ---------------------------------------------------------------------------------------------------------


def eager_model(lora: bool):
    config = LlamaConfig(**CONFIG.to_dict())
    model = tiny.LlamaForCausalLM._from_config(config, attn_implementation="eager")
    return add_adapter(model, ModelSettings(), LoraSettings(rank=4), 0) if lora else model


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_operations_are_those_that_torch_counts(lora):
    model = eager_model(lora)
    sizes = measure(model)
    ids = torch.zeros(6, 10, dtype=torch.long)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)  # multiplied one by one
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(ids)
    assert forward.get_total_flops() == forward_flops(sizes, 60, 10) - 2 * 60 * norms
    states = model.get_input_embeddings()(ids).detach().requires_grad_()
    with FlopCounterMode(display=False) as both:
        model(inputs_embeds=states).logits.sum().backward()
    planned = update_flops(sizes, cost())
    frozen_norms = lora  # their gradient is no product of matrices
    assert both.get_total_flops() == planned - 2 * 60 * norms * (2 if frozen_norms else 3)


def test_checkpointing_scoring_and_the_reference_each_add_a_forward_pass():
    sizes = SIZES._replace(multiplied=50, trained=50, width=3)
    forward = 60 * (2 * 50 + 4 * 3 * 10)
    assert update_flops(sizes, cost()) == 3 * forward
    assert update_flops(sizes, cost(repeated_passes=3, reference_passes=6, scoring_passes=3)) == 7 * forward
    assert update_flops(sizes._replace(trained=10), cost()) == 3 * forward - 2 * 60 * 40


def test_sampling_reads_each_token_of_the_cache_again_for_each_new_one():
    # Attempt 1: contexts of 4, tokens see 4, 5, 6; attempt 2: contexts of 8, tokens see 8, 9.
    assert cache_read([2, 6], (4, 8), [3, 2], 10) == 10 * (2 * (4 + 5 + 6) + 6 * (8 + 9))


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, (5 * 30 + 50) / 100),  # 5 passes over weights of 30 bytes and 50 of cache, at 100 bytes a second
        ({"flops": 200.0}, 200 / 50),
        ({"least": 1.0}, 5.0),
        ({"gpus": 2}, 1.0),
        ({"gpus": 2, "least": 1.0}, 5.0),
    ],
)
def test_a_pass_takes_as_long_as_the_slowest_of_memory_arithmetic_and_python(changed, wanted):
    given = {"passes": 5, "weights": 30, "cache": 50, "flops": 50.0, "rate": 50.0, "least": 0.1}
    assert decode_seconds(ONES, **(given | changed)) == approx(wanted)


def test_speeds_are_the_data_sheets_times_the_share_that_is_reached():
    assert ONES.computing(torch.bfloat16) == ONES.computing(torch.float16) == 50
    assert ONES.computing(torch.float32) == 5
    assert (ONES.reading, ONES.usable) == (100, 500)
    assert (ONES.sending(2), ONES.sending(3)) == (approx(5), approx(2))  # the third is in another machine


@pytest.mark.parametrize(("weights", "gpus"), [(1, 1), (250, 1), (251, 2), (501, 4), (1001, 8)])
def test_vllm_takes_the_smallest_power_of_two_whose_quarter_holds_the_weights(weights, gpus):
    assert vllm_gpus(ONES, weights) == gpus


def test_a_step_is_the_sum_of_its_parts_with_one_engine_or_the_other():
    found = Seconds(reading=1, sampling=10, vllm=100, update=1000, optimizer=10_000, traffic=100_000)
    assert (found.total, found.total_vllm) == (111_011, 111_101)


def test_the_seconds_of_a_plan_follow_from_its_counts():
    assumed = replace(ONES, memory=2**40, machine=8)
    found = plan_of(4, "stages.0.problems=8", "model.dtype=float32", assumed=assumed)
    stage, held = found.stages[0], found.share.held
    seconds = stage.seconds["fsdp"]
    sizes = measure(blank_model(ModelSettings(dtype="float32"), CONFIG))
    # Two questions of 2 x 4 episodes; attempts of 12 tokens behind 20, and behind 20 + 12 + 5.
    assert (stage.cost.episodes, stage.cost.rollout_passes) == (16, 24)
    assert seconds.reading == approx(forward_flops(sizes, stage.cost.prompt_tokens, 37) / 5)
    keys = 3 * 2 * 2 * 16 * 4
    read = keys * (4 * (12 * 20 + 66) + 16 * (12 * 37 + 66))
    sampled = (4 + 16) * 12 * 2 * sizes.multiplied / 5
    assert seconds.sampling == approx(max((24 * held.weights + read) / 100, sampled, 24 * 3))
    assert seconds.vllm == approx(max((24 * held.weights + read) / 100, sampled))
    assert seconds.update == approx(update_flops(sizes, stage.cost) / 5)
    assert seconds.optimizer == approx((3 * held.gradients + 2 * held.optimizer) / 4 / 100)
    assert seconds.traffic == approx(stage.traffic["fsdp"].total / 5)
    assert stage.seconds["ddp"].optimizer == approx(4 * seconds.optimizer)


def test_what_the_cache_of_vllm_cannot_hold_is_sampled_in_parts():
    # Of 64 questions 512 rows of 49 tokens, each with 3 x 2 x 2 x 16 x 4 bytes, are 19 MB beside weights of half a MB.
    weights = 4 * (3 * LAYER + REST)
    full = 512 * 49 * 3 * 2 * 2 * 16 * 4
    room = [weights + full, weights + full // 2 + 1000]
    once, twice = (
        plan_of(1, assumed=replace(ONES, memory=2 * size, flops_float32=1e30, bandwidth=1e9)) for size in room
    )
    both = [plan.stages[0].seconds["ddp"].vllm for plan in (once, twice)]
    assert both[1] - both[0] == approx(24 * weights / 0.5e9)


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
