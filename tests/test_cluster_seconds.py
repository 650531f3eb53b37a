"""Seconds of a step on several processes, against numbers on paper and torch's counter of operations."""

from dataclasses import replace

import pytest
import tiny
import torch
from planned import CONFIG, LAYER, REST, SIZES, cost, plan_of
from pytest import approx
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from score_rl.adapters import add_adapter
from score_rl.planning.seconds import (
    Assumptions,
    Seconds,
    cache_read,
    decode_seconds,
    forward_flops,
    update_flops,
    vllm_gpus,
)
from score_rl.planning.shapes import blank_model
from score_rl.planning.spread import measure
from score_rl.schema import LoraSettings, ModelSettings

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
