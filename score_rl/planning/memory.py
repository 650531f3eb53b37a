"""The memory of training, by part, from a model without weights.

What is held throughout is counted. What comes and goes is replayed: the real layers run forward and backward on the
meta device, and every tensor is added when it is made and taken off when the last reference to it goes. So the figures
follow the architecture, the adapter and the types, and know nothing of how an allocator rounds and splits (add about a
tenth), of the accelerator's own context (about half a GiB), or of a kernel's scratch space.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from score_rl.logprobs import head_of, logprobs_and_kl, token_logprobs
from score_rl.planning.shapes import causal_lm
from score_rl.schema import OptimSettings, StageSettings

LINEAR_4BIT = 0.5 + (1 + 4 / 256) / 64
"""Bytes a weight in NF4: half a byte, for each 64 a scale of one byte, and for each 256 of these one in float32."""

SAMPLED_LOGIT = 24
"""Bytes while a token is drawn, for each entry of the vocabulary: logits and log-probs in float32, probabilities and
their running sum in float64."""

GREEDY_LOGIT = 12


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it while they live.

    Attributes:
        live: bytes now.
        peak: most bytes at any time.

    Args:
        held: tensors that are counted elsewhere, e.g. weights, and everything that shares memory with them.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it returns."""
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or key in self._seen:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[key] = weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.live -= size
        del self._seen[key]


class _FusedAttention(torch.autograd.Function):
    """What the fused kernels keep for the backward pass: their inputs, the output and a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        total = query.new_empty(query.shape[:-1], dtype=torch.float32)
        bias = None if mask is None else torch.empty_like(mask, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, out, total, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    """Attention as `sdpa` does it with a mask: keys and values are repeated for the heads that share them."""
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return _FusedAttention.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _prepare(model: Any, *, checkpointing: bool) -> Any:
    """The causal language model, set up to be replayed: on the meta device `sdpa` would be counted as `eager`."""
    from transformers import AttentionInterface

    base = causal_lm(model)
    if base.config._attn_implementation != "eager":
        AttentionInterface.register("score_rl_counted", _attend)
        base.set_attn_implementation("score_rl_counted")
    new = hasattr(base, "activation_checkpointing_enable")
    enable = base.activation_checkpointing_enable if new else base.gradient_checkpointing_enable
    disable = base.activation_checkpointing_disable if new else base.gradient_checkpointing_disable
    if checkpointing:
        enable({"use_reentrant": False})
    else:
        disable()
    return base


def _mask(base: Any, rows: int, width: int, seen: int) -> Tensor:
    """The mask that transformers makes of a padded batch: `eager` adds it, the others read it."""
    eager = base.config._attn_implementation == "eager"
    return torch.zeros(rows, 1, width, seen, dtype=base.dtype if eager else torch.bool, device="meta")


class Replay(NamedTuple):
    """Bytes of a forward and a backward pass: kept from the one to the other, and most at any time."""

    kept: int
    peak: int


def replay_update(model: Any, rows: int, width: int, *, checkpointing: bool) -> Replay:
    """Activations of one micro-batch of `rows` x `width` tokens, without the head and the weights' gradients.

    Args:
        model: from `blank_model`.
        checkpointing: keep the layers' inputs only, and run each layer again in the backward pass.
    """
    base = _prepare(model, checkpointing=checkpointing)
    base.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.empty_like(parameter)
    held = [*model.parameters(), *(parameter.grad for parameter in trained)]
    with Peak(held) as memory:
        ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
        mask = _mask(base, rows, width, width)
        # As the policy does it; a checkpointed layer is run again only if its input asks for a gradient.
        embedded = base.get_input_embeddings()(ids)
        embedded = embedded if embedded.requires_grad else embedded.requires_grad_()
        states = base.get_decoder()(
            inputs_embeds=embedded, attention_mask=mask, position_ids=ids, use_cache=False
        ).last_hidden_state
        kept = memory.live
        states.sum().backward()
    for parameter in trained:
        parameter.grad = None
    return Replay(kept, memory.peak)


def replay_head(model: Any, stage: StageSettings, chunk: int, tokens: int) -> int:
    """Most bytes while the log-probs of a micro-batch are computed, and their gradient.

    Args:
        chunk: logits held at once.
        tokens: of the micro-batch.
    """
    base = causal_lm(model)
    head = head_of(base)
    tokens = min(tokens, 3 * max(1, chunk // head.vocabulary))  # what comes after the third piece is like it
    size = base.get_input_embeddings().weight.shape[1]
    held = list(model.parameters())
    with Peak(held) as memory:
        hidden = torch.zeros(tokens, size, dtype=base.dtype, device="meta", requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.long, device="meta")
        temperature = stage.sampling.temperature
        if stage.kl.estimator == "exact":
            states = torch.zeros_like(hidden, requires_grad=False)
            found: Tensor = sum(  # type: ignore[assignment]
                logprobs_and_kl(hidden, targets, head, temperature, chunk, reference_states=states, reference_head=head)
            )
        else:
            found = token_logprobs(hidden, targets, head, temperature, chunk)
        found.sum().backward()
    for parameter in held:
        parameter.grad = None
    return memory.peak


def replay_prefill(model: Any, rows: int, width: int, past: int = 0) -> int:
    """Most bytes while `rows` x `width` tokens are read, with the cache that they fill.

    Args:
        past: tokens of each row that are cached before.
    """
    from transformers import DynamicCache

    base = _prepare(model, checkpointing=False)
    base.eval()
    text = base.config.get_text_config()
    with torch.inference_mode(), Peak(model.parameters()) as memory:
        cached = (rows, _cached_heads(text), past, _head_size(text))
        cache = DynamicCache()
        for layer in range(text.num_hidden_layers if past else 0):
            cache.update(*(torch.empty(cached, dtype=base.dtype, device="meta") for _ in range(2)), layer)
        memory.peak = memory.live
        ids = torch.zeros(rows, width, dtype=torch.long, device="meta")
        base(
            input_ids=ids,
            attention_mask=_mask(base, rows, width, past + width),
            position_ids=ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return memory.peak


def cache_bytes(config: Any, dtype: torch.dtype) -> int:
    """Keys and values that sampling keeps for one token: layers x 2 x key-value heads x head size x bytes a number.

    Layers with a sliding window keep all tokens too.
    """
    text = config.get_text_config()
    return int(text.num_hidden_layers * 2 * _cached_heads(text) * _head_size(text) * dtype.itemsize)


def _cached_heads(text: Any) -> int:
    return getattr(text, "num_key_value_heads", None) or text.num_attention_heads


def _head_size(text: Any) -> int:
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


class Held(NamedTuple):
    """Bytes that are there all the time, and the numbers of parameters behind them."""

    parameters: int
    trained: int
    weights: int
    adapter: int
    gradients: int
    optimizer: int
    reference: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.reference


def held_bytes(model: Any, optim: OptimSettings, *, quantized: bool, moves_reference: bool) -> Held:
    """What is there from the first step to the last.

    Gradients stay from one step to the next, in the type of their weights. A whole model has a frozen copy of itself as
    its reference; an adapter is switched off instead, and copied where a stage's reference is what came before it.

    Args:
        model: from `blank_model`.
        quantized: the linear layers but the head are in 4 bits.
        moves_reference: a stage has `reference: stage_start`.
    """
    adapted = hasattr(model, "peft_config")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in trained} if adapted else set()
    base = [parameter for parameter in model.parameters() if id(parameter) not in own]
    packed = _packed(causal_lm(model)) if quantized else set()
    weights = sum(int(p.numel() * (LINEAR_4BIT if id(p) in packed else p.element_size())) for p in base)
    trained_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    return Held(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in trained),
        weights=weights,
        adapter=trained_bytes if adapted else 0,
        gradients=trained_bytes,
        optimizer=sum(_moments(parameter, optim) for parameter in trained),
        reference=trained_bytes * moves_reference if adapted else weights,
    )


def _packed(base: Any) -> set[int]:
    head = base.get_output_embeddings()
    layers = (getattr(module, "base_layer", module) for module in base.modules())
    return {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear) and layer is not head}


def _moments(parameter: Tensor, optim: OptimSettings) -> int:
    """AdamW's two moments of one tensor, in its type; in 8 bits with a scale in float32 for each 256 numbers."""
    number = parameter.numel()
    if optim.kind == "adamw":
        return 2 * number * parameter.element_size()
    return 2 * (4 * number if number < 4096 else number + 4 * (number // 256))


def step_bytes(model: Any, optim: OptimSettings) -> int:
    """Most bytes during the optimiser's step: torch takes the square roots of all second moments at once."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(p.numel() * p.element_size() for p in trained) if optim.kind == "adamw" else 0
