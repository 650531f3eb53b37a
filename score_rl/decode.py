"""The transformers engine: batched decoding that carries its cache from one attempt into the next."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from score_rl.draws import uniform
from score_rl.errors import ConfigError
from score_rl.schema import SamplingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

# Below this share of rows still running, the finished ones leave the batch: copying the cache costs about a step.
COMPACT_BELOW = 0.75

ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layers whose cache is keys and values by position."""


class Sample(NamedTuple):
    """One sampled attempt: its tokens, their log-probs (nats) under the sampling distribution, and how it ended."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Session(Protocol):
    """Rows of one batch of episodes, attempt after attempt."""

    def sample(
        self,
        contexts: Sequence[tuple[int, ...]],
        parents: Sequence[int] | None,
        keys: Sequence[int],
        sampling: SamplingSettings,
        max_new_tokens: int,
        *,
        last: bool = False,
    ) -> list[Sample]:
        """One attempt for each context.

        Args:
            contexts: token ids in front of the attempt.
            parents: the row of the previous call that each context continues; None in the first call.
            keys: a 64-bit key for each row, from which its random draws follow.
            last: nothing will continue these rows.
        """


class Engine(Protocol):
    """Samples tokens from the policy."""

    def open(self) -> Session:
        """A session for one batch of episodes."""


class TransformersEngine:
    """Decodes with a transformers model in this process.

    Args:
        model: a causal language model of attention layers, full or with a sliding window.
        end_ids: tokens that end an attempt.
        pad_id: fills rows; never attended to.

    Raises:
        ConfigError: the model has layers of another kind (recurrent, linear attention), whose state cannot be cut.
    """

    def __init__(self, model: PreTrainedModel, end_ids: frozenset[int], pad_id: int) -> None:
        others = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - ATTENTION
        if others:
            found = ", ".join(sorted(others))
            raise ConfigError(f"model.path: {type(model).__name__} has {found} layers; use a model of attention layers")
        self.model = model
        self.end_ids = torch.tensor(sorted(end_ids))
        self.pad_id = pad_id

    def open(self) -> TransformersSession:
        """A session whose cache lives as long as it does."""
        return TransformersSession(self)


class _Rows(NamedTuple):
    """Cached rows: keys, then values [B, heads, T, dim] of each layer, which positions are real [B, T], and their ids.

    Whoever builds another cache from these states takes them out of the list one by one, so that no more than one
    layer is there twice.
    """

    states: list[Tensor]
    mask: Tensor
    ids: list[tuple[int, ...]]


class TransformersSession:
    """One prefill for each distinct context, expanded over the rows that share it, continued without re-prefill."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.rows: _Rows | None = None

    @torch.inference_mode()
    def sample(
        self,
        contexts: Sequence[tuple[int, ...]],
        parents: Sequence[int] | None,
        keys: Sequence[int],
        sampling: SamplingSettings,
        max_new_tokens: int,
        *,
        last: bool = False,
    ) -> list[Sample]:
        """As `Session.sample`."""
        jobs: dict[tuple[int, tuple[int, ...]], int] = {}
        sources = parents if parents is not None else [0] * len(contexts)
        row_job = [jobs.setdefault(job, len(jobs)) for job in zip(sources, contexts, strict=True)]
        with _evaluating(self.engine.model):
            cache, mask, logits = self._prefill(list(jobs))
            if len(jobs) < len(contexts):
                index = torch.tensor(row_job, device=logits.device)
                cache.batch_select_indices(index)
                mask, logits = mask[index], logits[index]
            return self._decode(cache, mask, logits, contexts, keys, sampling, max_new_tokens, last)

    def _prefill(self, jobs: list[tuple[int, tuple[int, ...]]]) -> tuple[Any, Tensor, Tensor]:
        """Cache, mask [B, T] and next-token logits [B, V] behind each context."""
        cache, old_mask, suffixes = self._resume(jobs)
        device = self.engine.model.device
        width = max(len(suffix) for suffix in suffixes)
        ids = [(self.engine.pad_id,) * (width - len(s)) + s for s in suffixes]
        new_mask = torch.tensor([[t >= width - len(s) for t in range(width)] for s in suffixes], device=device)
        mask = torch.cat([old_mask, new_mask], dim=1)
        logits = self._forward(torch.tensor(ids, device=device), mask, cache)
        return cache, mask, logits

    def _resume(self, jobs: list[tuple[int, tuple[int, ...]]]) -> tuple[Any, Tensor, list[tuple[int, ...]]]:
        """What is cached of each context, its mask [B, T], and the tokens that are to be read behind it."""
        from transformers import DynamicCache

        rows, self.rows = self.rows, None
        if rows is None or any(context[: len(rows.ids[p])] != rows.ids[p] for p, context in jobs):
            mask = torch.zeros(len(jobs), 0, dtype=torch.bool, device=self.engine.model.device)
            return DynamicCache(), mask, [context for _, context in jobs]
        # Rows with less to feed feed some cached tokens again: a hole between cache and suffix would shorten what
        # a sliding window, which counts places, lets them see.
        most = max(len(context) - len(rows.ids[parent]) for parent, context in jobs)
        kept = [max(0, len(context) - most) for _, context in jobs]
        cache, mask = _cut(rows, [parent for parent, _ in jobs], kept)
        return cache, mask, [context[n:] for n, (_, context) in zip(kept, jobs, strict=True)]

    def _forward(self, input_ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Next-token logits [B, V] behind `input_ids` [B, t], whose keys and values join the cache."""
        positions = mask.long().cumsum(1).sub(1).clamp(min=0)[:, -input_ids.shape[1] :]
        out = self.engine.model(
            input_ids=input_ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def _decode(
        self,
        cache: Any,
        mask: Tensor,
        logits: Tensor,
        contexts: Sequence[tuple[int, ...]],
        keys: Sequence[int],
        sampling: SamplingSettings,
        max_new_tokens: int,
        last: bool,
    ) -> list[Sample]:
        device = logits.device
        end_ids = self.engine.end_ids.to(device)
        key = torch.tensor(keys, dtype=torch.int64, device=device)
        row = torch.arange(len(contexts), device=device)
        tokens = torch.full((len(contexts), max_new_tokens), self.engine.pad_id, dtype=torch.int64, device=device)
        logprobs = torch.zeros(len(contexts), max_new_tokens, device=device)
        length = torch.full((len(contexts),), max_new_tokens, device=device)
        finished = torch.zeros(len(contexts), dtype=torch.bool, device=device)
        running = torch.ones(len(row), dtype=torch.bool, device=device)
        left: list[tuple[Tensor, _Rows]] = []
        for position in range(max_new_tokens):
            token, logprob = draw(logits, sampling, uniform(key, position))
            here = row[running]
            tokens[here, position], logprobs[here, position] = token[running], logprob[running]
            ended = running & torch.isin(token, end_ids)
            length[row[ended]] = position + 1
            finished[row[ended]] = True
            running &= ~ended
            alive = int(running.sum())
            if not alive or position == max_new_tokens - 1:
                break
            if alive < COMPACT_BELOW * len(row):
                keep = running.nonzero()[:, 0]
                if last:
                    cache.batch_select_indices(keep)
                else:
                    left.append((row[~running], _leave(cache, mask, running)))
                mask, token, row, key = mask[keep], token[keep], row[keep], key[keep]
                running = torch.ones(len(row), dtype=torch.bool, device=device)
            mask = torch.cat([mask, running[:, None]], dim=1)
            logits = self._forward(token[:, None], mask, cache)
        steps, lengths = tokens.tolist(), length.tolist()
        samples = [
            Sample(tuple(steps[i][:n]), tuple(values[:n]), end)
            for i, (n, values, end) in enumerate(zip(lengths, logprobs.tolist(), finished.tolist(), strict=True))
        ]
        if not last:
            left.append((row, _take(cache, mask)))
            # The cache holds an attempt up to the token before its last, which was drawn but never fed.
            ids = [context + sample.token_ids[:-1] for context, sample in zip(contexts, samples, strict=True)]
            self.rows = _realign(left, ids)
        return samples


def draw(logits: Tensor, sampling: SamplingSettings, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probs [B] (nats) under the distribution drawn from.

    Greedy decoding takes the most probable token and gives its log-prob at temperature 1.

    Args:
        logits: [B, V].
        uniforms: [B] in [0, 1), from which the inverse of the distribution function picks a token.
    """
    if sampling.temperature == 0:
        token = logits.argmax(dim=-1)
        return token, _pick(logits.log_softmax(dim=-1), token)
    log_p = (logits / sampling.temperature).log_softmax(dim=-1)
    if sampling.truncated:
        log_p = truncate(log_p, sampling).log_softmax(dim=-1)
    cumulative = log_p.double().exp().cumsum(dim=-1)
    # Scaled by the total, which rounding keeps from being 1, so that the last token with probability is the last drawn.
    target = uniforms[:, None] * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return token, _pick(log_p, token)


def truncate(log_p: Tensor, sampling: SamplingSettings) -> Tensor:
    """Log-probs [B, V] with minus infinity outside the top-k, top-p and min-p sets; the best token always stays."""
    ordered, order = log_p.sort(dim=-1, descending=True)
    probability = ordered.exp()
    drop = probability.cumsum(dim=-1) - probability >= sampling.top_p
    drop |= probability < sampling.min_p * probability[:, :1]
    if sampling.top_k is not None:
        drop[:, sampling.top_k :] = True
    drop[:, 0] = False
    return log_p.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)


def _pick(values: Tensor, token: Tensor) -> Tensor:
    return values.gather(1, token[:, None])[:, 0]


def _leave(cache: Any, mask: Tensor, running: Tensor) -> _Rows:
    """Takes the rows that no longer run out of the cache."""
    gone, keep = (~running).nonzero()[:, 0], running.nonzero()[:, 0]
    states = []
    for layer in cache.layers:
        states += [layer.keys[gone], layer.values[gone]]
        layer.batch_select_indices(keep)
    return _Rows(states, mask[gone], [])


def _take(cache: Any, mask: Tensor) -> _Rows:
    """Takes all rows out of the cache, which is empty then."""
    states = [states for layer in cache.layers for states in (layer.keys, layer.values)]
    cache.layers.clear()
    return _Rows(states, mask, [])


def _cut(rows: _Rows, parents: list[int], kept: list[int]) -> tuple[Any, Tensor]:
    """A cache of the first `kept` tokens of each parent's row, and its mask, padded on the left; `rows` is used up."""
    from transformers import DynamicCache

    device = rows.mask.device
    index = None if parents == list(range(len(rows.ids))) else torch.tensor(parents, device=device)
    mask, source = rows.mask if index is None else rows.mask[index], None
    dropped = torch.tensor([len(rows.ids[p]) - n for p, n in zip(parents, kept, strict=True)], device=device)
    if dropped.any():
        place = torch.arange(-max(kept), 0, device=device)
        mask = place >= -torch.tensor(kept, device=device)[:, None]
        source = (place + rows.mask.shape[1] - dropped[:, None]).clamp(min=0)

    def pick(states: Tensor) -> Tensor:
        states = states if index is None else states[index]
        return states if source is None else _gather(states, source)

    cache = DynamicCache()
    while rows.states:
        keys, values = pick(rows.states.pop(0)), pick(rows.states.pop(0))
        # Given the states themselves, `update` would copy them.
        cache.update(keys[:, :, :0], values[:, :, :0], len(cache.layers))
        cache.layers[-1].keys, cache.layers[-1].values = keys, values
    return cache, mask


def _gather(values: Tensor, source: Tensor) -> Tensor:
    """Positions `source` [B, t] of each row of `values` [B, heads, T, dim]."""
    return values.gather(2, source[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[3]))


def _realign(parts: list[tuple[Tensor, _Rows]], ids: list[tuple[int, ...]]) -> _Rows:
    """Rows that left at different times as one batch in the first order, padding on the left and no holes.

    The states of `parts` are used up.
    """
    width = max(len(row_ids) for row_ids in ids)
    # A stable sort by "is real" moves the padding and the holes to the left and keeps the tokens in order.
    sources = [part.mask.int().argsort(dim=1, stable=True)[:, -width:] for _, part in parts]
    mask = parts[0][1].mask.new_zeros(len(ids), width)
    for (row, part), source in zip(parts, sources, strict=True):
        mask[:, -source.shape[1] :].index_copy_(0, row, part.mask.gather(1, source))
    states = []
    while parts[0][1].states:
        first = parts[0][1].states[0]
        whole = first.new_zeros(len(ids), first.shape[1], width, first.shape[3])
        del first
        for (row, part), source in zip(parts, sources, strict=True):
            whole[:, :, -source.shape[1] :].index_copy_(0, row, _gather(part.states.pop(0), source))
        states.append(whole)
    return _Rows(states, mask, ids)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off while sampling, so that sampler and reference agree."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
