"""Parameters, what is held, and what comes and goes: a model without weights against a real one."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import tiny_chat
import torch
from pytest import approx
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from score_rl.adapters import add_adapter
from score_rl.decode import TransformersEngine
from score_rl.errors import ConfigError
from score_rl.loading import EMBEDDED, load_config, load_policy
from score_rl.planning import memory
from score_rl.planning.shapes import KNOWN, blank_model, causal_lm, find_shape, known_config, weight_dtype
from score_rl.schedule import make_objective
from score_rl.schema import LoraSettings, ModelSettings, OptimSettings, SamplingSettings
from score_rl.settings import load, recipe_names
from score_rl.update import accumulate

SIZE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZE, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZE, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**SIZE, tie_word_embeddings=True),
}
LORA = LoraSettings(rank=4)


def real_model(config: PreTrainedConfig, settings: ModelSettings) -> Any:
    model = AutoModelForCausalLM.from_config(config, dtype=weight_dtype(settings, config))
    return model if settings.lora is None else add_adapter(model, settings, settings.lora, 0)


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_has_the_parameters_of_a_real_one(family, lora):
    settings = ModelSettings(lora=lora)
    blank, real = (make(settings, FAMILIES[family]()) for make in (blank_model, lambda s, c: real_model(c, s)))
    counted = memory.held_bytes(blank, OptimSettings(), quantized=False, moves_reference=False)
    assert counted.parameters == sum(p.numel() for p in real.parameters())
    assert counted.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert counted.weights + counted.adapter == sum(p.numel() * p.element_size() for p in real.parameters())
    assert [p.dtype for p in blank.parameters()] == [p.dtype for p in real.parameters()]
    assert all(p.is_meta for p in blank.parameters())


def by_hand(hidden: int, layers: int, queries: int, keys: int, middle: int, words: int, more: int) -> int:
    """Tied embeddings; projections of queries, keys, values, outputs and three of the middle layer; norms, biases."""
    return words * hidden + layers * (2 * hidden * queries + 2 * hidden * keys + 3 * hidden * middle + more) + hidden


QWEN2_5 = by_hand(1536, 28, 1536, 256, 8960, 151_936, more=2 * 1536 + 1536 + 2 * 256)  # two norms; biases of q, k, v
QWEN3 = by_hand(1024, 28, 2048, 1024, 3072, 151_936, more=2 * 1024 + 2 * 128)  # two norms; norms of queries and keys
GEMMA2 = by_hand(2304, 26, 2048, 1024, 9216, 256_000, more=4 * 2304)  # four norms


@pytest.mark.parametrize(
    ("name", "wanted", "billions"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", QWEN2_5, 1.54),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", QWEN2_5, 1.54),
        ("Qwen/Qwen3-0.6B", QWEN3, 0.60),
        ("google/gemma-2-2b-it", GEMMA2, 2.61),
    ],
)
def test_the_models_of_the_table_have_the_parameters_that_their_makers_name(name, wanted, billions):
    model = blank_model(ModelSettings(path=name), known_config(name))
    assert sum(p.numel() for p in model.parameters()) == wanted
    assert round(wanted / 1e9, 2) == billions


def test_an_adapter_has_rank_times_inputs_and_outputs_of_every_linear_layer_but_the_head():
    model = blank_model(ModelSettings(lora=LORA), FAMILIES["qwen2"]())
    layer = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 160)  # q and o, k and v, the three of the middle
    held = memory.held_bytes(model, OptimSettings(), quantized=False, moves_reference=False)
    assert held.trained == 3 * 4 * layer


def test_a_saved_adapter_is_counted_as_it_trains_on(tmp_path, tiny_model):
    fresh = ModelSettings(path=str(tiny_model), lora=LORA, dtype="bfloat16")
    load_policy(fresh, trains=True).save(tmp_path)
    saved = ModelSettings(path=str(tmp_path), dtype="bfloat16")
    counted = [
        memory.held_bytes(blank_model(s, load_config(s)), OptimSettings(), quantized=False, moves_reference=False)
        for s in (fresh, saved)
    ]
    assert counted[0] == counted[1]
    assert 0 < counted[0].trained < counted[0].parameters


def test_every_model_that_a_recipe_names_is_in_the_table():

    larger = {"Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"}
    assert {load(name).model.path for name in recipe_names()} - set(EMBEDDED) == set(KNOWN) - larger


def test_a_model_that_is_neither_here_nor_in_the_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model\.path=.*none: no such directory"):
        find_shape(ModelSettings(path=str(tmp_path / "none")))


# -- memory that is held ---------------------------------------------------------------------------------------------


def test_a_whole_model_trains_in_float32_beside_gradients_two_moments_and_a_copy():
    config = FAMILIES["llama"]()
    held = memory.held_bytes(
        blank_model(ModelSettings(), config), OptimSettings(), quantized=False, moves_reference=False
    )
    size = 4 * held.parameters
    assert held[2:] == (size, 0, size, 2 * size, size)
    assert held.total == 5 * size


def test_an_adapter_has_gradients_and_moments_of_its_own_and_a_copy_only_where_the_reference_moves():
    config = FAMILIES["qwen2"]()
    config.dtype = torch.bfloat16
    model = blank_model(ModelSettings(lora=LORA), config)
    fixed, moving = (
        memory.held_bytes(model, OptimSettings(), quantized=False, moves_reference=moves) for moves in (False, True)
    )
    size = 4 * fixed.trained  # an adapter is in float32
    assert fixed[2:] == (2 * (fixed.parameters - fixed.trained), size, size, 2 * size, 0)
    assert moving.reference == size


def test_moments_in_8_bits_have_a_byte_each_and_a_scale_for_256_but_small_tensors_stay_in_32():
    model = nn.ModuleList([nn.Linear(64, 64, bias=False), nn.Linear(64, 8, bias=False)])
    bits8 = OptimSettings(kind="adamw_8bit")
    assert [memory._moments(layer.weight, bits8) for layer in model] == [2 * (4096 + 4 * 16), 2 * 4 * 512]
    assert (memory.step_bytes(model, bits8), memory.step_bytes(model, OptimSettings())) == (0, 4 * (4096 + 512))


def test_in_4_bits_a_linear_weight_takes_half_a_byte_and_two_levels_of_scales():
    config = FAMILIES["llama"]()
    config.dtype = torch.bfloat16
    model = blank_model(ModelSettings(lora=LORA, quantize="4bit"), config)
    plain, packed = (
        memory.held_bytes(model, OptimSettings(), quantized=quantized, moves_reference=False)
        for quantized in (False, True)
    )
    linear = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    # NF4 with double quantisation has 4.127 bits a weight (Dettmers et al. 2023); embeddings, head and norms have 16.
    assert (plain.weights - packed.weights) / linear == approx(2 - 4.127 / 8, abs=1e-3)


# -- memory that comes and goes ----------------------------------------------------------------------------------------


def test_the_peak_counts_what_lives_and_counts_shared_memory_once():
    held = torch.ones(1000)
    with memory.Peak([held]) as counted:
        first = held + 1  # 4,000 bytes
        view = first[:10].view(2, 5)
        second = first * 2
        assert counted.live == 8000
        del second
        third = view + 1  # 40 bytes
        del first
        assert counted.live == 4040  # the view keeps the whole alive
        del view, third
    assert (counted.live, counted.peak) == (0, 8000)


def saved_bytes(model: Any, base: Any, rows: int, width: int) -> int:
    """Bytes that autograd keeps of a real forward pass of a padded batch, weights aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    mask = torch.ones(rows, width, dtype=torch.long)
    mask[0, -3:] = 0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embedded = base.get_input_embeddings()(torch.zeros(rows, width, dtype=torch.long))
        embedded = embedded if embedded.requires_grad else embedded.requires_grad_()
        base.get_decoder()(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_activations_are_what_autograd_keeps_of_a_real_forward_pass(family, lora):
    settings = ModelSettings(lora=lora, dtype="bfloat16" if lora else "float32")
    real = real_model(FAMILIES[family](), settings)
    replayed = memory.replay_update(blank_model(settings, FAMILIES[family]()), 4, 48, checkpointing=False)
    assert replayed.kept == approx(saved_bytes(real, causal_lm(real), 4, 48), rel=0.1)
    assert replayed.peak > replayed.kept


def test_checkpointing_keeps_the_layers_inputs_and_one_layer_at_a_time():
    model = blank_model(ModelSettings(), FAMILIES["qwen2"]())
    whole, checkpointed = (memory.replay_update(model, 8, 128, checkpointing=kind) for kind in (False, True))
    layer = whole.kept // 3
    inputs = 3 * 8 * 128 * 64 * 4
    assert inputs < checkpointed.kept < inputs + layer / 2
    assert checkpointed.kept + 0.8 * layer < checkpointed.peak < checkpointed.kept + 1.8 * layer


@pytest.mark.parametrize("family", tiny_chat.FAMILIES)
def test_the_cache_has_the_bytes_of_the_tensors_that_sampling_leaves(family):
    model = tiny_chat.make_model(family)
    session = TransformersEngine(model, frozenset(), 0).open()
    session.sample([(5, 6, 7), (5, 6, 8)], None, [1, 2], SamplingSettings(), 9)
    assert session.rows is not None
    stored = sum(states.nbytes for states in session.rows.states)
    tokens = 2 * (3 + 9 - 1)  # the last token was drawn and not yet read
    assert stored == tokens * memory.cache_bytes(model.config, torch.float32)
    assert memory.cache_bytes(model.config, torch.float32) == 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, ...
    assert memory.cache_bytes(model.config, torch.bfloat16) == 2 * 2 * 2 * 8 * 2


@pytest.mark.parametrize("window", [None, 8], ids=["full attention", "sliding window"])
@pytest.mark.parametrize(
    ("end_ids", "bridges"),
    [
        pytest.param(frozenset({96}), (5,), id="all rows run to the limit"),
        pytest.param(frozenset(range(0, 96, 8)), (5,), id="rows leave at different times"),
        pytest.param(frozenset(range(0, 96, 8)), (1, 24, 3), id="rows with less to read give tokens back"),
    ],
)
def test_a_cache_is_handed_to_the_next_attempt_a_layer_at_a_time(end_ids, bridges, window):
    layers, rows = 16, 12
    size = SIZE | {"num_hidden_layers": layers, "sliding_window": window}
    model = AutoModelForCausalLM.from_config(MistralConfig(**size)).eval()
    session = TransformersEngine(model, end_ids, 0).open()
    contexts = [tuple(n % 96 for n in range(row, row + 90 - 3 * row)) for row in range(rows)]
    before: list[int] = []  # the most since the last forward pass
    after: list[int] = []

    with memory.Peak([*model.parameters(), *model.buffers()]) as counted:

        def forget(*_: Any) -> None:
            after.append(counted.live)
            counted.peak = counted.live

        model.register_forward_pre_hook(lambda *_: before.append(counted.peak))
        model.register_forward_hook(forget)
        first = session.sample(contexts, None, list(range(rows)), SamplingSettings(), 40)
        ended, passes = counted.peak, len(before)
        longest = max(len(ids) for ids in session.rows.ids)
        follow = [
            context + sample.token_ids + (7,) * bridges[row % len(bridges)]
            for row, (context, sample) in enumerate(zip(contexts, first, strict=True))
        ]
        session.sample(follow, range(rows), list(range(rows)), SamplingSettings(), 2, last=True)
    token = rows * memory.cache_bytes(model.config, torch.float32)
    small = 24 * rows * 96 + 2**16  # next-token distributions; ids, masks and places
    assert max(*before[:passes], ended) < token * longest * (1 + 1 / layers) + small
    assert before[passes] < token * longest * (1 + 1 / layers) + small
    assert after[passes] < token * max(map(len, follow)) + small


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_real_update_takes_what_the_replay_says(lora):
    stage = tiny.stage("stage2", branch=[2, 1], advantage="rloo")
    contexts = [[2, *range(9, 29), 3], [2, 8, 3]]
    episodes = [
        tiny.episode(f"p{n}", contexts, [range(10, 50), range(10, 60)], [n % 2, 1.0], path=path)
        for n in range(4)
        for path in ((0, 0), (1, 0))
    ]
    policy = tiny.make_policy("qwen3", lora=lora)
    settings = ModelSettings(dtype="float32", lora=LORA if lora else None)
    width = 22 + 40 + 3 + 50
    replayed = memory.replay_update(blank_model(settings, policy.causal_lm.config), 8, width, checkpointing=False)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    held = [*policy.parameters(), *(p.grad for p in policy.parameters() if p.grad is not None)]
    held += list(policy._frozen[0].parameters()) if not lora else []
    with memory.Peak(held) as counted:
        accumulate(policy.train(), episodes, stage, make_objective(stage), max_tokens=8 * width)
    head = memory.replay_head(blank_model(settings, policy.causal_lm.config), stage, policy.chunk, 8 * width)
    assert counted.peak == approx(max(replayed.peak, replayed.kept + head), rel=0.25)
