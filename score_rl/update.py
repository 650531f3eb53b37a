"""One optimiser step's gradient: graded episodes in, `.grad` and metrics out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from score_rl.batch import Batch, batch_sizes, collate, micro_batches, rows
from score_rl.episodes import Episode
from score_rl.errors import ConfigError
from score_rl.objectives import (
    Estimator,
    Objective,
    advantages,
    importance,
    kl_estimate,
    length_scale,
    loss,
    per_attempt,
    shape_rewards,
    token_weights,
)
from score_rl.parallel import Parallel
from score_rl.policy import Policy, TokenScores
from score_rl.processes import Group
from score_rl.schema import StageSettings


class Table(NamedTuple):
    """Per-attempt numbers of E episodes with A attempts, [E, A] each, and [E] problem labels."""

    rewards: Tensor
    correct: Tensor
    sampled: Tensor
    lengths: Tensor
    nodes: Tensor
    problem: Tensor


def tabulate(episodes: Sequence[Episode], device: torch.device) -> Table:
    """The episodes' grades, trained lengths and places in their problems' trees."""
    grades = [[a.grade for a in e.attempts] for e in episodes]
    labels = _label_problems(episodes)
    node: dict[tuple[int, tuple[int, ...]], int] = {}
    nodes = [
        [node.setdefault((label, e.path[:k]), len(node)) for k in range(1, len(e.path) + 1)]
        for label, e in zip(labels, episodes, strict=True)
    ]

    def tensor(values: object, dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return Table(
        rewards=tensor([[g.reward for g in row] for row in grades], torch.float32),  # type: ignore[union-attr]
        correct=tensor([[g.correct for g in row] for row in grades], torch.float32),  # type: ignore[union-attr]
        sampled=tensor([[a.sampled for a in e.attempts] for e in episodes], torch.bool),
        lengths=tensor([[len(a.token_ids) * a.sampled for a in e.attempts] for e in episodes], torch.float32),
        nodes=tensor(nodes, torch.int64),
        problem=tensor(labels, torch.int64),
    )


def _label_problems(episodes: Sequence[Episode]) -> list[int]:
    """A number for each tree of episodes; a problem that was drawn twice in a step has two trees."""
    current: dict[str, int] = {}
    seen: set[tuple[int, tuple[int, ...]]] = set()
    labels: list[int] = []
    for episode in episodes:
        label = current.setdefault(episode.problem.id, len(seen))
        if (label, episode.path) in seen:
            label = current[episode.problem.id] = len(seen)
        seen.add((label, episode.path))
        labels.append(label)
    return labels


def uses_reference(stage: StageSettings, objective: Objective) -> bool:
    """Whether a stage asks the reference for anything: to pin an attempt, or for stored first attempts."""
    return any(objective.beta) or stage.offline_fraction > 0


def accumulate_within_memory(
    policy: Policy,
    episodes: Sequence[Episode],
    stage: StageSettings,
    objective: Objective,
    *,
    max_tokens: int,
    seed: int = 0,
    backward: Callable[[Tensor], None] | None = None,
    complete: bool = True,
    parallel: Parallel | None = None,
) -> tuple[dict[str, float], int]:
    """`accumulate` into empty `.grad`, from the start again with half the micro-batch whenever the memory runs out.

    What a failed pass had added to `.grad` is dropped, since nobody knows how far it came.

    Args:
        seed: of an adapter's dropout, the only randomness of an update; without any, the micro-batches do not matter.
        parallel: as in `accumulate`; memory that runs out in one process halves the micro-batch of all.

    Returns:
        Its metrics, and the `max_tokens` that the memory is enough for.

    Raises:
        ConfigError: a single row is too much.
    """
    parallel = parallel or Parallel(policy, Group(device=next(policy.parameters()).device))
    own = parallel.own(rows(episodes))
    while True:
        policy.zero_grad()
        torch.manual_seed(seed)
        try:
            metrics = accumulate(
                policy,
                episodes,
                stage,
                objective,
                max_tokens=max_tokens,
                backward=backward,
                complete=complete,
                parallel=parallel,
            )
            return metrics, max_tokens
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            parallel.fail(error)
            failed = error.with_traceback(None)  # which would keep the pass's tensors alive
        # Counted from the largest micro-batch that can be split, as a budget above it changes nothing.
        split = max((size for number, size in batch_sizes(own, max_tokens) if number > 1), default=0)
        split = parallel.group.largest(split)
        if not split:
            longest = max(len(row.ids) for row in rows(episodes))
            raise ConfigError(
                f"out of memory for one row of {longest} tokens; set model.gradient_checkpointing=true, model.lora or "
                "model.quantize=4bit, or shorten stages.N.max_new_tokens"
            ) from failed
        max_tokens = split // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the memory of an accelerator or the CPU ran out; torch has a class for some of the ways alone."""
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def accumulate(
    policy: Policy,
    episodes: Sequence[Episode],
    stage: StageSettings,
    objective: Objective,
    *,
    max_tokens: int,
    backward: Callable[[Tensor], None] | None = None,
    complete: bool = True,
    parallel: Parallel | None = None,
) -> dict[str, float]:
    """Adds the gradient of the stage's loss over all episodes to `.grad` and returns metrics.

    Normalisation and baselines are computed over the whole batch first, so that micro-batches of `max_tokens`, and
    processes that share the rows, change only how the sum is split.

    Args:
        episodes: all of them, in every process.
        backward: called with each micro-batch's loss; that of `parallel` when None.
        complete: False if episodes of these problems were left out because nobody could grade them.
        parallel: how rows and passes are spread over processes; None for one alone.
    """
    parallel = parallel or Parallel(policy, Group(device=next(policy.parameters()).device))
    device = parallel.group.device
    table = tabulate(episodes, device)
    all_rows = rows(episodes)
    batches = micro_batches(parallel.own(all_rows), policy.pad_id, max_tokens, device)
    filler = collate([min(all_rows, key=lambda row: len(row.ids))], policy.pad_id, device)
    beta = table.rewards.new_tensor(objective.beta)
    in_reward = stage.kl.placement == "reward" and any(objective.beta)
    shape = (table.rewards.shape[0], table.rewards.shape[1])
    credit = shape_rewards(objective, table.rewards, table.correct if stage.bonus_on == "correct" else None)
    if in_reward:
        credit = credit - beta * _kl_in_reward(policy, batches, filler, stage, beta != 0, shape, parallel)
    advantage = advantages(stage.advantage, credit, table.problem, table.nodes, table.sampled, complete=complete)
    scale = length_scale(stage.length_norm, table.lengths, tuple(stage.max_new_tokens))
    weights = token_weights(objective, advantage, scale, stage.kl.placement)
    totals: list[float] = []
    kl_sums, logprob_sums = torch.zeros_like(credit), torch.zeros_like(credit)

    def one_pass(batch: Batch, weight: float) -> None:
        scores, held = _score(parallel.model, policy, batch, stage, beta != 0, parallel)
        kl = None if in_reward or held is None else _spread(_kl(stage, scores, held), held)
        ratio = importance(objective.importance_cap, scores.logprobs, batch.engine_logprobs)
        value = loss(weights, batch.token_episode, batch.token_turn, scores.logprobs, kl, ratio)
        (backward or parallel.backward)(value * weight)
        if not weight:
            return
        totals.append(float(value.detach()))
        logprob_sums.add_(per_attempt(scores.logprobs.detach(), batch.token_episode, batch.token_turn, shape))
        if held is not None:
            # k3 is never negative and has little variance, so it is what is logged for a sampled estimate.
            seen = _spread(_kl(stage, scores, held, estimator="k3").detach(), held)
            kl_sums.add_(per_attempt(seen, batch.token_episode, batch.token_turn, shape))

    parallel.train(batches, filler, one_pass)
    total = sum(parallel.group.gather(lambda: sum(totals)))
    parallel.group.add([kl_sums, logprob_sums])
    return _metrics(episodes, table, total, kl_sums, objective.beta, logprob_sums, advantage)


class Held(NamedTuple):
    """Which of a batch's N tokens are held to the reference, [N] with M of them True, and its log-probs of them [M]."""

    among: Tensor
    ref_logprobs: Tensor


def _score(
    model: nn.Module, policy: Policy, batch: Batch, stage: StageSettings, pinned: Tensor, parallel: Parallel
) -> tuple[TokenScores, Held | None]:
    """Scores of all tokens, and of the reference where an attempt is pinned; nobody else's tokens are shown to it.

    Args:
        model: scores as the policy does.
        pinned: [A], True for attempts whose beta is not 0.
    """
    temperature = stage.sampling.temperature
    inputs = (batch.input_ids, batch.attention_mask, batch.predicts)
    part = batch.only(pinned)
    if part is None:
        if parallel.in_lockstep and pinned.any():  # the other processes' batches may have such tokens
            policy.reference_logprobs(policy.reference_hidden(*inputs), batch.targets, temperature)
        return model(*inputs, temperature=temperature), None
    states = policy.reference_hidden(part.input_ids, part.attention_mask, part.predicts)
    held = Held(pinned[batch.token_turn - 1], policy.reference_logprobs(states, part.targets, temperature))
    if stage.kl.estimator != "exact":
        return model(*inputs, temperature=temperature), held
    return model(*inputs, temperature=temperature, reference_states=states, among=held.among), held


def _kl(stage: StageSettings, scores: TokenScores, held: Held, estimator: Estimator | None = None) -> Tensor:
    """KL of each pinned token -> [M], by `estimator` where the stage's is none for the whole vocabulary."""
    chosen = estimator if estimator and stage.kl.estimator != "exact" else stage.kl.estimator
    return kl_estimate(chosen, scores.logprobs[held.among], held.ref_logprobs, scores.exact_kl)


def _spread(values: Tensor, held: Held) -> Tensor:
    """Values of the pinned tokens [M] in their places among all -> [N], 0 elsewhere."""
    spread = values.new_zeros(len(held.among))
    spread[held.among] = values
    return spread


@torch.no_grad()
def _kl_in_reward(
    policy: Policy,
    batches: Sequence[Batch],
    filler: Batch,
    stage: StageSettings,
    pinned: Tensor,
    shape: tuple[int, int],
    parallel: Parallel,
) -> Tensor:
    """Estimated KL of each pinned attempt, detached -> [E, A] (Ahmadian et al. 2024)."""
    sums = torch.zeros(shape, device=pinned.device)

    def one_pass(batch: Batch, weight: float) -> None:
        scores, held = _score(policy, policy, batch, stage, pinned, parallel)
        if held is not None and weight:
            kl = _spread(_kl(stage, scores, held), held)
            sums.add_(per_attempt(kl, batch.token_episode, batch.token_turn, shape))

    parallel.look(batches, filler, one_pass)
    parallel.add([sums])
    return sums


def _metrics(
    episodes: Sequence[Episode],
    table: Table,
    total: float,
    kl_sums: Tensor,
    beta: Sequence[float],
    logprob_sums: Tensor,
    advantage: Tensor,
) -> dict[str, float]:
    metrics = {"loss": total}
    engine_sums = torch.tensor(
        [[sum(a.engine_logprobs) for a in e.attempts] for e in episodes],
        dtype=torch.float32,
        device=logprob_sums.device,
    )
    for k in range(table.rewards.shape[1]):
        own = table.sampled[:, k]
        if not own.any():
            continue
        if beta[k]:
            metrics[f"kl/t{k + 1}"] = float(kl_sums[own, k].mean())
        metrics[f"advantage_std/t{k + 1}"] = float(advantage[own, k].std(unbiased=False))
        tokens = table.lengths[own, k].clamp(min=1)
        metrics[f"entropy/t{k + 1}"] = float(-(logprob_sums[own, k] / tokens).mean())
        gap = ((logprob_sums - engine_sums)[own, k] / tokens).abs().mean()
        metrics[f"engine_gap/t{k + 1}"] = float(gap)
    return metrics
