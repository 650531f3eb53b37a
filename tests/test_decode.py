"""Cached, batched decoding against plain forward passes of real models."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest
import torch
from tiny_chat import FAMILIES, VOCABULARY, make_model
from transformers import PreTrainedModel

from score_rl.decode import COMPACT_BELOW, Sample, TransformersEngine, draw, truncate
from score_rl.draws import derive, uniform
from score_rl.errors import ConfigError
from score_rl.schema import SamplingSettings

Ids = tuple[int, ...]

GREEDY = SamplingSettings(temperature=0.0)
PLAIN = SamplingSettings()
# Every seventh token ends an attempt, so rows end at all lengths and some reach the limit.
END_IDS = frozenset(range(0, VOCABULARY, 7))
LIMITS = (12, 7, 10)
PROMPT_LENGTHS = (3, 17, 9, 5, 11, 26)


def prompts(lengths: Sequence[int] = PROMPT_LENGTHS) -> list[Ids]:
    rng = random.Random(0)
    return [tuple(rng.randrange(VOCABULARY) for _ in range(length)) for length in lengths]


def bridge(sample: Sample) -> Ids:
    """As from a chat: a truncated attempt gets one token more, which closes it."""
    return (41, 42, 43) if sample.finished else (40, 41, 42, 43)


def keys_of(number: int, depth: int) -> list[int]:
    return [derive("test", depth, row) for row in range(number)]


def play(model: PreTrainedModel, branch: Sequence[int], sampling: SamplingSettings, *, pad_id: int = 1):
    """Contexts and samples of every attempt of a tree over `prompts()`."""
    session = TransformersEngine(model, END_IDS, pad_id).open()
    contexts, parents, played = prompts(), None, []
    for depth, children in enumerate(branch):
        spread = [n for n in range(len(contexts)) for _ in range(children)]
        contexts = [contexts[n] for n in spread]
        parents = None if depth == 0 else spread
        keys = keys_of(len(contexts), depth)
        last = depth == len(branch) - 1
        samples = session.sample(contexts, parents, keys, sampling, LIMITS[depth], last=last)
        played.append((contexts, samples))
        contexts = [c + s.token_ids + bridge(s) for c, s in zip(contexts, samples, strict=True)]
    return played


@torch.no_grad()
def logits_behind(model: PreTrainedModel, ids: Ids) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def from_scratch(model: PreTrainedModel, context: Ids, key: int, sampling: SamplingSettings, limit: int) -> Ids:
    """One row alone, every token by a forward pass over all that came before it."""
    ids: Ids = ()
    while len(ids) < limit and not (ids and ids[-1] in END_IDS):
        logits = logits_behind(model, context + ids)
        if sampling.temperature == 0:
            ids += (int(logits.argmax()),)
        else:
            cumulative = (logits / sampling.temperature).double().softmax(0).cumsum(0)
            draw_at = uniform(torch.tensor([key]), len(ids))
            ids += (int((cumulative <= draw_at).sum()),)
    return ids


@pytest.mark.parametrize(
    ("temperature", "p", "counts"),
    [
        pytest.param(1.0, (0.125, 0.5, 0.25, 0.125), (100, 400, 200, 100), id="as probable as the model says"),
        # Square roots 0.8, 0.4, 0.4, 0.2, which sum to 1.8.
        pytest.param(2.0, (0.64, 0.16, 0.16, 0.04), (400, 200, 200, 100), id="flatter when hot"),
        # Squares 0.16, 0.04, 0.04, 0.04, which sum to 0.28: shares of 4, 1, 1 and 1 in 7.
        pytest.param(0.5, (0.4, 0.2, 0.2, 0.2), (400, 100, 100, 100), id="sharper when cold"),
        pytest.param(1.0, (0.0, 0.75, 0.0, 0.25), (0, 600, 0, 200), id="never where there is no probability"),
        pytest.param(0.0, (0.3, 0.1, 0.35, 0.25), (0, 0, 800, 0), id="always the best when greedy"),
    ],
)
def test_draw_picks_each_token_as_often_as_it_is_probable(temperature, p, counts):
    uniforms = (torch.arange(sum(counts), dtype=torch.float64) + 0.5) / sum(counts)
    logits = torch.tensor(p).log().expand(sum(counts), -1) + 3  # a constant changes no distribution
    token, logprob = draw(logits, SamplingSettings(temperature=temperature), uniforms)
    assert tuple(token.bincount(minlength=4).tolist()) == counts
    if temperature:
        shares = torch.tensor(counts) / sum(counts)
        assert torch.allclose(logprob.exp(), shares[token])


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53], ids=["the least", "a middle", "the greatest"])
def test_no_uniform_number_draws_an_impossible_token(u):
    # 30000 improbable tokens, with impossible ones before, behind and between them.
    torch.manual_seed(0)
    logits = torch.randn(64, 30000)
    logits[:, :5] = logits[:, 29000:] = logits[:, 100:20000:3] = -torch.inf
    token, logprob = draw(logits, PLAIN, torch.full((64,), u, dtype=torch.float64))
    assert logprob.isfinite().all()
    assert u == 0.5 or (token == (5 if u == 0 else 28999)).all()


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        # Probabilities of tokens 0 to 4: 0.2, 0.4, 0.06, 0.3, 0.04; in order 0.4, 0.7, 0.9, 0.96, 1.
        ({"top_p": 0.35}, {1}),
        ({"top_p": 0.45}, {1, 3}),
        ({"top_p": 0.75}, {0, 1, 3}),
        ({"top_p": 0.95}, {0, 1, 2, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {0, 1, 3}),
        ({"top_k": 9}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.8}, {1}),
        ({"min_p": 0.7}, {1, 3}),
        ({"min_p": 0.14}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_p": 0.95, "top_k": 3, "min_p": 0.6}, {1, 3}),
        ({"top_p": 0.45, "top_k": 3, "min_p": 0.1}, {1, 3}),
        ({"top_p": 0.95, "top_k": 2, "min_p": 0.1}, {1, 3}),
    ],
    ids=str,
)
def test_truncation_keeps_the_sets_worked_out_by_hand(sampling, kept):
    p = torch.tensor([[0.2, 0.4, 0.06, 0.3, 0.04], [0.04, 0.06, 0.2, 0.3, 0.4]])
    log_p = truncate(p.log(), SamplingSettings(**sampling))
    assert set(log_p[0].isfinite().nonzero()[:, 0].tolist()) == kept
    # The second row is the first in another order: 0, 1, 2, 3, 4 became 2, 4, 1, 3, 0.
    assert set(log_p[1].isfinite().nonzero()[:, 0].tolist()) == {[2, 4, 1, 3, 0][t] for t in kept}
    assert torch.equal(log_p[log_p.isfinite()], p.log()[log_p.isfinite()])


def test_top_p_is_the_smallest_set_that_reaches_the_mass():
    log_p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert log_p.exp()[0, 0] == 0.5, "the case needs an exact half"
    assert truncate(log_p, SamplingSettings(top_p=0.5)).isfinite().tolist() == [[True, False, False]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("branch", "sampling"),
    [
        pytest.param((1, 1, 1), GREEDY, id="greedy, three attempts in a row"),
        pytest.param((2, 2), GREEDY, id="greedy, a tree of equal siblings"),
        pytest.param((2, 3, 1), PLAIN, id="sampled, a tree whose siblings differ"),
        pytest.param((1, 1, 2), SamplingSettings(temperature=0.6), id="sampled cold, a tree at the third attempt"),
    ],
)
def test_cached_attempts_equal_decoding_from_scratch(family, branch, sampling):
    model = make_model(family)
    played = play(model, branch, sampling)
    for depth, (contexts, samples) in enumerate(played):
        for context, key, sample in zip(contexts, keys_of(len(contexts), depth), samples, strict=True):
            assert sample.token_ids == from_scratch(model, context, key, sampling, LIMITS[depth])
            assert sample.finished == (sample.token_ids[-1] in END_IDS)
    samples = [sample for _, part in played for sample in part]
    # The test would prove little if all rows ended together.
    assert len({len(sample.token_ids) for sample in samples}) > 3 and len({s.finished for s in samples}) == 2


def truncated_by_hand(log_p: list[float], sampling: SamplingSettings) -> list[float]:
    """Log-probs renormalised over the tokens that top-p, top-k and min-p all keep."""
    p = torch.tensor(log_p, dtype=torch.float64).exp().tolist()
    kept, mass = [], 0.0
    for rank, token in enumerate(sorted(range(len(p)), key=lambda t: -p[t])):
        in_top_k = sampling.top_k is None or rank < sampling.top_k
        if mass < sampling.top_p and in_top_k and p[token] >= sampling.min_p * max(p):
            kept.append(token)
        mass += p[token]
    total = sum(p[token] for token in kept)
    return [p[token] / total if token in kept else 0.0 for token in range(len(p))]


@pytest.mark.parametrize("family", ["qwen3", "gemma2, one sliding layer"])
@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(PLAIN, id="temperature 1"),
        pytest.param(SamplingSettings(temperature=0.5), id="temperature 0.5"),
        pytest.param(SamplingSettings(temperature=1.7), id="temperature 1.7"),
        pytest.param(SamplingSettings(top_p=0.7), id="top-p"),
        pytest.param(SamplingSettings(top_k=5), id="top-k"),
        pytest.param(SamplingSettings(min_p=0.2), id="min-p"),
        pytest.param(SamplingSettings(temperature=1.3, top_p=0.9, top_k=12, min_p=0.05), id="all of them"),
    ],
)
def test_recorded_logprobs_are_those_of_the_distribution_drawn_from(family, sampling):
    model = make_model(family)
    for contexts, samples in play(model, (1, 2), sampling):
        for context, sample in zip(contexts, samples, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + sample.token_ids]), use_cache=False).logits[0]
            log_p = (logits[len(context) - 1 : -1] / sampling.temperature).log_softmax(-1)
            if sampling.truncated:
                log_p = torch.tensor([truncated_by_hand(step, sampling) for step in log_p.tolist()]).log()
            expected = [float(step[token]) for step, token in zip(log_p, sample.token_ids, strict=True)]
            assert sample.logprobs == pytest.approx(expected, abs=2e-5)


def test_greedy_records_logprobs_at_temperature_one():
    model = make_model()
    (contexts, samples), *_ = play(model, (1,), GREEDY)
    first = logits_behind(model, contexts[0]).log_softmax(0).max()
    assert samples[0].logprobs[0] == pytest.approx(float(first), abs=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "mistral, sliding window"])
def test_what_a_row_draws_depends_neither_on_its_batch_nor_on_its_place_in_it(family):
    engine = TransformersEngine(make_model(family), END_IDS, pad_id=1)
    contexts = prompts()
    contexts += contexts  # the same context twice, with another key, must give other draws
    keys = keys_of(len(contexts), 0)
    together = engine.open().sample(contexts, None, keys, PLAIN, 12)
    order = [7, 2, 11, 0, 4, 9, 5]
    some = engine.open().sample([contexts[i] for i in order], None, [keys[i] for i in order], PLAIN, 12)
    alone = [engine.open().sample([contexts[i]], None, [keys[i]], PLAIN, 12)[0] for i in order]
    assert [s.token_ids for s in some] == [together[i].token_ids for i in order] == [s.token_ids for s in alone]
    assert [s.token_ids for s in together[:6]] != [s.token_ids for s in together[6:]]


def test_the_pad_id_changes_nothing():
    model = make_model()
    one, other = (play(model, (2, 2), PLAIN, pad_id=pad) for pad in (1, 200))
    assert [s.token_ids for _, part in one for s in part] == [s.token_ids for _, part in other for s in part]


def fed(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Rows and tokens a row of each forward pass from now on."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_each_distinct_context_is_prefilled_once_and_only_its_new_tokens():
    model = make_model()
    shapes = fed(model)
    nothing_ends = frozenset({VOCABULARY + 1})
    session = TransformersEngine(model, nothing_ends, pad_id=1).open()
    contexts = [prompt for prompt in prompts((10, 4)) for _ in range(3)]
    first = session.sample(contexts, None, keys_of(6, 0), PLAIN, 5)
    # Two distinct contexts of at most 10 tokens; the first token comes from there, the other four from six rows.
    assert shapes == [(2, 10), *[(6, 1)] * 4]
    del shapes[:]
    followed = [c + s.token_ids + (40, 41) for c, s in zip(contexts, first, strict=True)]
    parents = [row for row in range(6) for _ in range(2)]
    session.sample([followed[p] for p in parents], parents, keys_of(12, 1), PLAIN, 3, last=True)
    # Of the second context only the attempt's last token, which was drawn but never fed, and the bridge of 2 are new.
    assert shapes == [(6, 3), *[(12, 1)] * 2]


def test_finished_rows_leave_the_batch():
    model = make_model()
    shapes = fed(model)
    contexts = [prompt for prompt in prompts() for _ in range(4)]
    session = TransformersEngine(model, END_IDS, pad_id=1).open()
    samples = session.sample(contexts, None, keys_of(24, 0), PLAIN, 12)
    expected, rows = [6], 24
    for step in range(1, 12):
        alive = sum(len(s.token_ids) > step for s in samples)
        # Fewer than three rows in four still run: the others are dropped before the next pass.
        rows = alive if alive < 0.75 * rows else rows
        expected += [rows] if alive else []
    assert COMPACT_BELOW == 0.75
    assert [rows for rows, _ in shapes] == expected
    assert expected[-1] < 12, "too few rows ended for the test to show anything"


def test_an_attempt_whose_first_token_ends_it_costs_one_pass():
    model = make_model()
    shapes = fed(model)
    everything_ends = frozenset(range(VOCABULARY))
    samples = TransformersEngine(model, everything_ends, pad_id=1).open().sample(prompts(), None, [0] * 6, GREEDY, 12)
    assert [(len(s.token_ids), s.finished) for s in samples] == [(1, True)] * 6
    assert shapes == [(6, 26)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "rewritten",
    [
        pytest.param(range(6), id="every history is rewritten"),
        pytest.param([3], id="one history is rewritten, the others go on"),
    ],
)
def test_contexts_that_do_not_extend_the_cache_are_decoded_anew(family, rewritten):
    model = make_model(family)
    session = TransformersEngine(model, END_IDS, pad_id=1).open()
    contexts = prompts()
    first = session.sample(contexts, None, [0] * 6, GREEDY, 12)
    contexts = [
        # As a template that drops all of the attempt but its last token.
        c + (s.token_ids[-1:] if row in rewritten else s.token_ids) + (50, 51)
        for row, (c, s) in enumerate(zip(contexts, first, strict=True))
    ]
    second = session.sample(contexts, range(6), [0] * 6, GREEDY, 7)
    assert [s.token_ids for s in second] == [from_scratch(model, c, 0, GREEDY, 7) for c in contexts]
    # The new cache holds the rewritten contexts, so a third attempt can go on from them.
    contexts = [c + s.token_ids + bridge(s) for c, s in zip(contexts, second, strict=True)]
    third = session.sample(contexts, range(6), [0] * 6, GREEDY, 7, last=True)
    assert [s.token_ids for s in third] == [from_scratch(model, c, 0, GREEDY, 7) for c in contexts]


@pytest.mark.parametrize("family", ["qwen3", "mistral, sliding window"])
def test_rows_with_much_and_with_little_to_feed_share_a_pass(family):
    # Bridges of 1 to 30 tokens: rows with less to feed must see neither holes nor tokens of their neighbours.
    model = make_model(family)
    session = TransformersEngine(model, END_IDS, pad_id=1).open()
    contexts = prompts()
    first = session.sample(contexts, None, keys_of(6, 0), PLAIN, 12)
    bridges = [tuple(range(100, 100 + length)) for length in (1, 30, 4, 9, 2, 17)]
    contexts = [c + s.token_ids + b for c, s, b in zip(contexts, first, bridges, strict=True)]
    second = session.sample(contexts, range(6), [0] * 6, GREEDY, 7, last=True)
    assert [s.token_ids for s in second] == [from_scratch(model, c, 0, GREEDY, 7) for c in contexts]


def test_children_may_be_drawn_from_some_parents_only_and_in_any_order():
    model = make_model()
    session = TransformersEngine(model, END_IDS, pad_id=1).open()
    contexts = prompts()
    first = session.sample(contexts, None, keys_of(6, 0), PLAIN, 12)
    parents = [4, 1, 4, 0]
    contexts = [contexts[p] + first[p].token_ids + (60, 61 + row) for row, p in enumerate(parents)]
    second = session.sample(contexts, parents, [0] * 4, GREEDY, 7, last=True)
    assert [s.token_ids for s in second] == [from_scratch(model, c, 0, GREEDY, 7) for c in contexts]


def test_dropout_is_off_while_sampling_and_on_again_afterwards():
    model = make_model("llama")
    expected = play(model, (1, 1), GREEDY)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert play(model, (1, 1), GREEDY) == expected
    assert model.training and model.model.layers[0].self_attn.training


def test_a_model_whose_state_cannot_be_cut_is_refused():
    model = copy.deepcopy(make_model())
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM has linear_attention layers"):
        TransformersEngine(model, frozenset({0}), pad_id=1)
