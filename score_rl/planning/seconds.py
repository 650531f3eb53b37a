"""How long a step may take on GPUs: an estimate from named assumptions, none of which has been measured here."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch

from score_rl.planning.costs import StageCost
from score_rl.planning.spread import Sizes


@dataclass(frozen=True)
class Assumptions:
    """Figures of the data sheet of an H100 SXM with 80 GB, and the shares of them that are taken to be reached.

    Attributes:
        memory: bytes of a GPU.
        flops: additions and multiplications a second in bfloat16 or float16, dense.
        flops_float32: the same in float32, in which a whole model trains.
        bandwidth: bytes a second out of the GPU's memory.
        link: bytes a second that a GPU sends to others of its machine (NVLink).
        network: bytes a second that a GPU sends to other machines (400 Gbit/s for each).
        machine: GPUs of a machine.
        flops_share: of `flops`, while contexts are read and in updates.
        bandwidth_share: of `bandwidth`, while tokens are sampled and in the optimiser's step.
        link_share: of `link` or `network`, in all that the processes do together.
        memory_share: of `memory` that a run may fill; the allocator, the driver and NCCL have the rest.
        layer_seconds: of a decoder layer with an adapter in a forward pass of the built-in engine, at least: Python
            starts each kernel. vLLM replays recorded ones, and is taken to lose nothing.
        weights_share: of a GPU's memory that weights may take under vLLM, which fills the rest with its cache.
    """

    memory: int = 80 * 2**30
    flops: float = 989e12
    flops_float32: float = 67e12
    bandwidth: float = 3.35e12
    link: float = 450e9
    network: float = 50e9
    machine: int = 8
    flops_share: float = 0.4
    bandwidth_share: float = 0.6
    link_share: float = 0.7
    memory_share: float = 0.9
    layer_seconds: float = 0.6e-3
    weights_share: float = 0.6

    def computing(self, dtype: torch.dtype) -> float:
        """Operations a second that are reached."""
        return (self.flops_float32 if dtype == torch.float32 else self.flops) * self.flops_share

    @property
    def reading(self) -> float:
        """Bytes a second out of memory that are reached."""
        return self.bandwidth * self.bandwidth_share

    def sending(self, processes: int) -> float:
        """Bytes a second that each of the processes sends in a ring; the slowest part of the ring decides."""
        return (self.link if processes <= self.machine else self.network) * self.link_share

    @property
    def usable(self) -> int:
        """Bytes of a GPU that a run may fill."""
        return round(self.memory * self.memory_share)


class Seconds(NamedTuple):
    """Seconds of a step by part; nothing overlaps.

    Attributes:
        reading: prompts and bridges.
        sampling: by the built-in engine.
        vllm: sampling by vLLM instead.
        update: forward and backward passes, and those of the reference.
        optimizer: its step.
        traffic: between the processes.
    """

    reading: float
    sampling: float
    vllm: float
    update: float
    optimizer: float
    traffic: float

    @property
    def total(self) -> float:
        """Of a step with the built-in engine."""
        return sum(self) - self.vllm

    @property
    def total_vllm(self) -> float:
        """Of a step with vLLM."""
        return sum(self) - self.sampling


def forward_flops(sizes: Sizes, tokens: int, length: float) -> float:
    """Operations of a forward pass: 2 a parameter and token, and 4 a number of a head, token and seen token.

    Attention that gets a mask leaves nothing out, so each token sees a row's whole `length`.
    """
    return tokens * (2 * sizes.multiplied + 4 * sizes.width * length)


def update_flops(sizes: Sizes, cost: StageCost) -> float:
    """Operations of a step's passes: backward is twice forward, less the gradients of weights that are frozen."""
    tokens = cost.update_tokens
    again = (cost.repeated_passes + cost.scoring_passes + cost.reference_passes) / cost.policy_passes
    frozen = 2 * tokens * (sizes.multiplied - sizes.trained)
    return forward_flops(sizes, tokens, tokens / cost.rows) * (3 + again) - frozen


def cache_read(nodes: list[int], seen: tuple[int, ...], limits: list[int], each: int) -> int:
    """Bytes of keys and values that sampling reads: token t of an attempt reads its context and t - 1 tokens more.

    Args:
        nodes: attempts that are drawn at each depth.
        seen: tokens in front of each of them.
        limits: tokens of each of them.
        each: bytes of a token's keys and values.
    """
    read = (
        n * (limit * context + limit * (limit - 1) // 2) for n, context, limit in zip(nodes, seen, limits, strict=True)
    )
    return sum(read) * each


def decode_seconds(
    assumed: Assumptions,
    *,
    passes: int,
    weights: int,
    cache: int,
    flops: float,
    rate: float,
    least: float,
    gpus: int = 1,
) -> float:
    """Of passes that add a token to each row: the longest of reading memory, arithmetic and starting kernels.

    Args:
        weights: bytes that each pass reads.
        cache: bytes of keys and values that all passes read.
        flops: of all passes.
        rate: operations a second of a GPU.
        least: seconds of a pass at least.
        gpus: that share each pass.
    """
    read = (passes * weights + cache) / assumed.reading
    return max(read / gpus, flops / rate / gpus, passes * least)


def vllm_gpus(assumed: Assumptions, weights: int) -> int:
    """GPUs that a vLLM engine is spread over (tensor parallel): a power of two, and no more than leave a cache room."""
    needed = weights / (assumed.memory * assumed.weights_share)
    return 1 << max(0, ceil(needed) - 1).bit_length()
