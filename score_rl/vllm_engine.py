"""vLLM in this process: token ids in, token ids and log-probs out, weights pushed from the policy."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from score_rl.adapters import one_line
from score_rl.decode import Sample
from score_rl.engine_schema import EngineSettings
from score_rl.errors import ConfigError
from score_rl.policy import Policy
from score_rl.schema import SamplingSettings
from score_rl.synced import SyncedEngine, sampling_parameters

ENVIRONMENT = {
    # Weights are pushed as tensors, which cannot be handed to a process of its own.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer computes on the same cores
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM reads when it is imported; what is set already stays."""


class VllmEngine(SyncedEngine):
    """Samples with `vllm.LLM`.

    Args:
        directory: of the model whose weights vLLM loads first, and the shape of which it has.
        end_ids: tokens that end an attempt.
        dtype: of vLLM's weights.

    Raises:
        ConfigError: vLLM cannot load the model.
    """

    def __init__(
        self, settings: EngineSettings, policy: Policy, directory: Path, end_ids: frozenset[int], dtype: str
    ) -> None:
        super().__init__(settings, policy, "engine.kind=vllm", dtype)
        self.end_ids = sorted(end_ids)
        self.llm = _load(settings, directory, dtype)
        self._sleeps = bool(self.llm.llm_engine.model_config.enable_sleep_mode)
        self.rest()

    def open(self) -> VllmSession:
        """A session; what its attempts share is in vLLM's prefix cache."""
        return VllmSession(self)

    def push(self) -> None:
        """Copies the policy's weights, with the adapter merged in, and drops what was cached under the old ones.

        Several GPUs' processes cannot be handed tensors; they have read the files, and the probe compares.
        """
        if self.settings.tensor_parallel_size > 1:
            return
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(self.policy)})
        self.llm.reset_prefix_cache()

    def wake(self) -> None:
        """As `SyncedEngine.wake`."""
        if self._sleeps:
            self.llm.wake_up()

    def rest(self) -> None:
        """As `SyncedEngine.rest`."""
        if self._sleeps:
            self.llm.sleep(level=1)


class VllmSession:
    """Attempts as vLLM draws them, each with a seed of its own."""

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine

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
        from vllm import SamplingParams

        asked = [
            SamplingParams(**sampling_parameters(sampling, key, max_new_tokens, self.engine.end_ids), detokenize=False)
            for key in keys
        ]
        prompts = [{"prompt_token_ids": list(context)} for context in contexts]
        outputs = self.engine.llm.generate(prompts, asked, use_tqdm=False)
        return [_sample(output.outputs[0]) for output in outputs]


def _sample(drawn: Any) -> Sample:
    ids = tuple(int(token) for token in drawn.token_ids)
    logprobs = tuple(float(entry[token].logprob) for entry, token in zip(drawn.logprobs, ids, strict=True))
    return Sample(ids, logprobs, drawn.finish_reason == "stop")


def merged_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under the names of its model's files, each adapter merged into its layer on the way.

    Tied weights come under both their names: vLLM keeps an output layer of its own, and says nothing when its weight
    stays behind.
    """
    model = policy.causal_lm
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in model.state_dict().items():
        layer, found, _ = name.partition(".base_layer.")
        if found:
            if name.endswith(".weight") and "default" in adapted[layer].active_adapters:
                value = value + adapted[layer].get_delta_weight("default").to(value.dtype)
            yield name.replace(".base_layer.", "."), value
        elif ".lora_" not in name:
            yield name, value


def _load(settings: EngineSettings, directory: Path, dtype: str) -> Any:
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import torch
    from vllm import LLM
    from vllm.platforms import current_platform

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        _check_heads(directory)
    memory = settings.kv_cache_gib or (1.0 if on_cpu else None)
    try:
        return LLM(
            model=str(directory),
            dtype=dtype,
            max_model_len=settings.max_model_len,
            tensor_parallel_size=settings.tensor_parallel_size,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=None if memory is None else int(memory * 2**30),
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # the model's own would change how tokens are drawn
            enable_prefix_caching=True,
            enable_sleep_mode=settings.sleep and current_platform.is_sleep_mode_available(),
            enforce_eager=on_cpu,
            # A prompt that is read in parts needs a random generator that can be set back, which CPUs have not.
            enable_chunked_prefill=False if on_cpu else None,
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(f"engine.kind=vllm: vLLM cannot serve {directory} ({one_line(error)})") from error


def _check_heads(directory: Path) -> None:
    """Refuses heads of a size that vLLM's attention on CPUs does not have; it would fail at the first token."""
    from transformers import AutoConfig
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = AutoConfig.from_pretrained(directory).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    known = CPUAttentionBackend.get_supported_head_sizes()
    if size not in known:
        mend = "python -m score_rl.embedded.wide writes the embedded policy with heads of 32"
        raise ConfigError(
            f"engine.kind=vllm: on a CPU vLLM takes heads of {', '.join(map(str, known))}, and {directory} has {size}; "
            f"use engine.kind=transformers, or another model ({mend})"
        )
