"""Memory and traffic of each of several processes, from the model's shapes and one process's share of the work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from score_rl.planning import RunPlan
from score_rl.planning.costs import StageCost
from score_rl.planning.memory import Held
from score_rl.planning.shapes import causal_lm

KINDS = ("ddp", "fsdp", "zero2", "zero3")

CONTEXT_BYTES = 5
"""Of a token of a context in an episode that is sent, at most (pickle)."""
SAMPLED_BYTES = 5 + 9 + 6
"""Of a sampled token that is sent, at most: its id, its log-prob and its text."""
EPISODE_BYTES = 2000
"""Of an episode's problem and grades."""


class Sizes(NamedTuple):
    """Bytes of a model by what is gathered together, and parameters by what they take part in.

    Attributes:
        layer: of the largest decoder layer, with its adapter.
        layer_trained: of what trains in it.
        rest: of what is in no layer: embeddings, head, last norm.
        rest_trained: of what trains in it.
        multiplied: parameters that each token is multiplied with; embeddings are looked up.
        trained: how many of these train.
        width: layers x heads x head size, of attention.
        layers: number of decoder layers.
    """

    layer: int
    layer_trained: int
    rest: int
    rest_trained: int
    multiplied: int
    trained: int
    width: int
    layers: int


def measure(model: Any) -> Sizes:
    """Sizes of a model from `blank_model`."""
    base = causal_lm(model)
    text = base.config.get_text_config()
    named = set(base._no_split_modules or ())
    layers = [module for module in base.modules() if type(module).__name__ in named]

    def count(module: Any, *, trained: bool = False) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not trained)

    looked_up, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    multiplied = [p for p in model.parameters() if p is not looked_up or p is head]
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Sizes(
        layer=max(map(count, layers)),
        layer_trained=max(count(layer, trained=True) for layer in layers),
        rest=count(model) - sum(map(count, layers)),
        rest_trained=count(model, trained=True) - sum(count(layer, trained=True) for layer in layers),
        multiplied=sum(p.numel() for p in multiplied),
        trained=sum(p.numel() for p in multiplied if p.requires_grad),
        width=text.num_hidden_layers * text.num_attention_heads * size,
        layers=text.num_hidden_layers,
    )


class Memory(NamedTuple):
    """Bytes of one process: what is always there by part, and what comes on top of it at each time of a step.

    Attributes:
        update: activations, logits, and whole layers with their gradients where these are sharded.
        sampling: cache and distributions, and the whole model where it is sharded.
        step: scratch of the optimiser.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    reference: int
    update: int
    sampling: int
    step: int

    @property
    def held(self) -> int:
        """What is always there."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.reference

    @property
    def training(self) -> int:
        """Most at once where another program samples."""
        return self.held + max(self.update, self.step)

    @property
    def most(self) -> int:
        """Most at once where the process samples too."""
        return self.held + max(self.update, self.step, self.sampling)


def memory_of(kind: str, plan: RunPlan, sizes: Sizes, processes: int) -> Memory:
    """Memory of one of N processes.

    `ddp` holds everything whole. `fsdp` and `zero3` hold 1/N of everything. In an update they also have two whole
    layers (one in use, the next on its way), what is in no layer, and the gradients of these until they are sent; while
    sampling they have all weights whole. `zero2` holds weights whole, and 1/N of gradients and optimiser state.

    Args:
        plan: of one process's share of the work.
    """
    held = plan.held
    cache = max(plan.prefill, *(rollout.peak for rollout in plan.rollouts))
    states = 1 if kind == "ddp" else processes
    weights = processes if kind in ("fsdp", "zero3") else 1
    gathered = 2 * sizes.layer + sizes.rest + sizes.layer_trained + sizes.rest_trained if weights > 1 else 0
    whole = held.weights + held.adapter if weights > 1 else 0
    loose = 0 if held.adapter else min(held.reference, sizes.rest)  # of a reference only the layers are sharded
    return Memory(
        weights=held.weights // weights,
        adapter=held.adapter // weights,
        gradients=held.gradients // states,
        optimizer=held.optimizer // states,
        reference=loose + (held.reference - loose) // weights,
        update=plan.update.peak + gathered,
        sampling=cache + whole,
        step=plan.step // states,
    )


class Traffic(NamedTuple):
    """Bytes that one process sends in a step: gradients, weights that are gathered, and its episodes."""

    gradients: int
    weights: int
    episodes: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def traffic_of(kind: str, held: Held, sizes: Sizes, cost: StageCost, episodes: int, processes: int) -> Traffic:
    """What one of N processes sends in a step, over rings: (N-1)/N of all that is gathered or scattered.

    `ddp` adds up gradients once, which is to scatter and to gather them. `fsdp` and `zero3` gather all weights twice
    for each pass with a gradient, once for each without, and once to sample, and scatter gradients after each pass.
    `zero2` scatters gradients after each pass, and gathers what trains once.

    Args:
        cost: of a step of a stage, one process's share of it.
        episodes: bytes of this process's episodes, from `episode_bytes`; each other process gets them.
    """
    part = (processes - 1) / processes
    passes, looks = cost.policy_passes, cost.scoring_passes + cost.reference_passes
    gradients, weights = 2 * held.gradients, 0
    if kind == "zero2":
        gradients, weights = held.gradients * passes, held.gradients
    elif kind != "ddp":
        gradients = held.gradients * passes
        # The reference is asked for its states and for its head, and what is in no layer comes along each time.
        weights = (held.weights + held.adapter) * (2 * passes + looks + 1) + sizes.rest * cost.reference_passes
    return Traffic(round(gradients * part), round(weights * part), episodes * (processes - 1))


def episode_bytes(number: int, seen: Sequence[int], limits: Sequence[int]) -> int:
    """Bytes of `number` episodes that are sent, at most: each attempt brings its context along.

    Args:
        seen: tokens in front of each attempt.
        limits: tokens of each attempt.
    """
    return number * (EPISODE_BYTES + CONTEXT_BYTES * sum(seen) + SAMPLED_BYTES * sum(limits))
