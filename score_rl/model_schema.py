"""The schema of what is trained and how its weights are moved: the model, its adapter and the optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from score_rl.strict import Fraction, NonNegative, Positive, Schema


class LoraSettings(Schema):
    """Low-rank adapters (peft), in float32; without them the whole model trains."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0
    """Of the adapter's inputs while gradients are taken. Sampling, evaluation and the reference go without, so the
    tokens are then scored by a slightly different policy from the one that drew them, and `engine_gap` shows it."""
    targets: str | list[str] = "all-linear"
    """Layers by the end of their names, a regular expression, or all linear layers but the head."""


class ModelSettings(Schema):
    """The policy that is trained."""

    path: str = "embedded"
    """`embedded` or `embedded:walk` for a policy inside the package, a directory of a transformers model or of an
    adapter, a run (its last stage's model), or a model of the hub (`owner/name`)."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub; the newest when null."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the type the weights are stored in, but float32 where the whole model trains: in 8 bits of precision
    most steps of a usual learning rate round away."""
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = None
    """How transformers computes attention; its own choice when null."""
    loader: Literal["transformers", "unsloth"] = "transformers"
    """`unsloth` loads and adapts the model through that library, for adapters on a GPU; never run, see
    docs/models.md."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; needed by architectures that transformers does not have."""
    quantize: Literal["4bit"] | None = None
    """Hold the base model in 4 bits (QLoRA: NF4, double quantisation) and train an adapter on it."""
    lora: LoraSettings | None = None
    gradient_checkpointing: bool = False
    """Keep the activations of layer boundaries only; the rest is computed again, which takes about a third longer."""


class OptimSettings(Schema):
    """AdamW."""

    kind: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """In 8 bits its two moments take a quarter of the memory; paged, they move to the CPU when the GPU is full."""
    betas: list[float] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    eps: float = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
