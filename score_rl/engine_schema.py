"""The schema of what samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from score_rl.strict import Positive, Schema


class EngineSettings(Schema):
    """What samples attempts; a run may go on with another than it was begun with (docs/vllm.md)."""

    kind: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """`vllm` runs in this process; `vllm_server` is a `vllm serve` of yours, which gets LoRA adapters by file."""
    importance_cap: Annotated[float, Field(ge=1)] | None = 2.0
    """Bound of the weights exp(logprob - engine's logprob) of sampled tokens in the policy gradient, since vLLM's
    kernels round in another way than the trainer's; null for no weights. `transformers` has and needs none."""
    probe_every: Positive = 1
    """Rollouts and evaluations from one comparison of vLLM's log-probs with the trainer's to the next."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of vLLM's weights; the policy's own with `auto`. Of a server it says what it was started with."""
    max_model_len: Positive | None = None
    """Longest context with its attempt, in tokens; the model's own limit when null."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the GPU's memory that vLLM may take, weights and cache together."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Size of vLLM's cache, in place of that share; 1 on a CPU when null."""
    sleep: bool = True
    """Hand vLLM's memory back while the trainer works, where the platform can (CUDA)."""
    tensor_parallel_size: Positive = 1
    """GPUs that share one model in `score eval` and `score solve`; training takes 1."""
    url: str = "http://127.0.0.1:8000"
    """Where `vllm serve` listens."""
    adapters: str = "adapters"
    """Directory for adapters on their way to the server, which must see it under the same path."""
    retries: Annotated[int, Field(ge=0)] = 10
    """How often a request is repeated, after pauses that double from half a second to eight."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds after which a request that was not answered counts as failed."""

    @property
    def cap(self) -> float | None:
        """The bound of the importance weights; None where tokens need none."""
        return None if self.kind == "transformers" else self.importance_cap
