"""Tokens and forward passes of a run, counted from its settings: at most, since every attempt may run to its limit."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from statistics import fmean
from typing import NamedTuple

from score_rl.chat import Chat
from score_rl.data.load import load_splits
from score_rl.errors import ConfigError, DataError
from score_rl.loading import load_tokenizer
from score_rl.run import stage_plan
from score_rl.schedule import make_objective
from score_rl.schema import ChatSettings, Settings, StageSettings

ASSUMED_PROMPT = 512
"""Tokens of a prompt, where neither the data nor `chat.max_prompt_tokens` says."""
MEASURED = 1000
"""Problems whose prompts are measured for the mean, at most; a tenth of it for the longest."""
LETTERS = 3
"""Of a token at least, in English with formulas or code; where no tokenizer is at hand."""
MARKS = 16
"""Tokens that a chat template puts around an instruction, at most."""


class Prompts(NamedTuple):
    """Tokens of the prompts, mean and most, of the longest bridge between two attempts, and how they are known."""

    mean: float
    longest: int
    bridge: int
    source: str

    def __str__(self) -> str:
        """The lengths and where they are from, as a sentence has it."""
        if self.mean == self.longest:
            return f"{self.longest:,} tokens each, {self.source}"
        return f"{self.mean:,.0f} tokens on average and {self.longest:,} at most, {self.source}"


def measure_prompts(settings: Settings) -> tuple[Prompts, int | None]:
    """Lengths of the training prompts, and the number of held-out problems.

    Where tokenizer or data cannot be had, every prompt is assumed to have `chat.max_prompt_tokens` tokens.

    Raises:
        ConfigError, DataError: the data is here, and cannot be used.
    """
    try:
        chat = Chat(load_tokenizer(settings.model), settings.chat)
        train, _, held_out = load_splits(settings.data, settings.eval.split)
    except (ConfigError, DataError) as error:
        if "not to be had from the hub" not in str(error):
            raise
        return assume_prompts(settings.chat), None
    limit = settings.chat.max_prompt_tokens
    spread = train[:: ceil(len(train) / MEASURED)]
    wordiest = sorted(train, key=lambda problem: -len(problem.question))[: MEASURED // 10]
    lengths = [[len(chat.open(problem.question)) for problem in part] for part in (spread, wordiest)]
    kept = [[length for length in part if limit is None or length <= limit] for part in lengths]
    if not kept[0]:
        raise DataError(f"chat.max_prompt_tokens={limit}: the training prompts are longer")
    longest = max(kept[0] + kept[1]) if kept == lengths or limit is None else limit
    source = f"measured on {len(spread):,} of {len(train):,} training problems and on those with most letters"
    return Prompts(fmean(kept[0]), longest, max(map(len, chat.bridges)), source), len(held_out)


def assume_prompts(chat: ChatSettings) -> Prompts:
    """Prompts as long as `chat.max_prompt_tokens` lets them be; a bridge has a token for each 3 letters and 16 more."""
    longest = chat.max_prompt_tokens or ASSUMED_PROMPT
    key = "chat.max_prompt_tokens" if chat.max_prompt_tokens else "no limit is set"
    bridge = ceil(max(map(len, chat.instructions)) / LETTERS) + MARKS
    return Prompts(float(longest), longest, bridge, f"assumed ({key}); tokenizer or data are not at hand")


def contexts(limits: Sequence[int], chat: ChatSettings, prompt: float, bridge: int) -> tuple[int, ...]:
    """Tokens in front of each attempt at most: the prompt, and earlier attempts that are kept, with their bridges."""
    kept = chat.keep_attempts or len(limits)
    return tuple(
        ceil(prompt) + sum(limit + bridge for limit in limits[max(0, k - kept) : k]) for k in range(len(limits))
    )


def continues(chat: ChatSettings, k: int) -> bool:
    """Whether the context behind `k` attempts starts with the one before and its attempt: nothing was left out.

    With `history: template` it may do so too; nobody knows before it is rendered.
    """
    return chat.history == "verbatim" and (chat.keep_attempts is None or k <= chat.keep_attempts)


class StageCost(NamedTuple):
    """What one step of a stage takes, at most: every attempt runs to its limit.

    Stored first attempts are sampled once, before the stage, and that is not in here.

    Attributes:
        episodes: leaves of all trees.
        prompt_tokens: read while sampling; of a context that continues the one before, the bridge alone.
        sampled_tokens: of all attempts that are drawn.
        rollout_passes: forward passes while sampling; one reads a part's contexts, each further one adds a token.
        rows: of the update; one an episode, and one more wherever a context does not continue the one before.
        update_tokens: of these rows.
        policy_passes: forward passes with a gradient, one a micro-batch, and as many backward passes.
        repeated_passes: forward passes of checkpointed layers within the backward passes.
        scoring_passes: forward passes of the policy without a gradient, for a KL that is part of the reward.
        reference_passes: forward passes of the reference.
    """

    label: str
    steps: int
    episodes: int
    prompt_tokens: int
    sampled_tokens: int
    rollout_passes: int
    rows: int
    update_tokens: int
    policy_passes: int
    repeated_passes: int
    scoring_passes: int
    reference_passes: int

    @property
    def tokens(self) -> int:
        """All tokens that go through a model in the stage: read, sampled, scored by policy and by reference."""
        passes = self.policy_passes + self.repeated_passes + self.scoring_passes + self.reference_passes
        return self.steps * (
            self.prompt_tokens + self.sampled_tokens + self.update_tokens * passes // max(1, self.policy_passes)
        )


def stage_cost(label: str, stage: StageSettings, settings: Settings, prompts: Prompts) -> StageCost:
    """What one step of a stage takes, with prompts of mean length and attempts at their limits.

    A rollout of `problems` goes in parts of `rollout_rows // leaves` problems, and attempt k takes one forward pass for
    each token of its limit. A micro-batch holds `micro_batch_tokens // length` rows.
    """
    limits, chat, offline = stage.max_new_tokens, settings.chat, stage.offline_problems
    seen = contexts(limits, chat, prompts.mean, prompts.bridge)
    size = max(1, settings.train.rollout_rows // prod(stage.branch))
    prompt_tokens = sampled = 0
    for k, limit in enumerate(limits):
        drawn = stage.problems if k else stage.problems - offline
        parents = prod(stage.branch[:k])
        fresh = prompts.bridge if k and continues(chat, k) else seen[k]
        prompt_tokens += drawn * parents * fresh
        if k == 1:
            prompt_tokens += offline * parents * (seen[1] - fresh)  # a stored attempt has no cache to go on from
        sampled += drawn * parents * stage.branch[k] * limit
    passes = _rollout_passes(stage, size)
    ends = [k for k in range(len(limits)) if k == len(limits) - 1 or not continues(chat, k + 1)]
    lengths = [seen[k] + limits[k] for k in ends]
    update_tokens = sum(stage.episodes * length for length in lengths)
    micro = sum(ceil(stage.episodes / max(1, settings.train.micro_batch_tokens // length)) for length in lengths)
    pinned = any(make_objective(stage).beta)
    again = pinned and stage.kl.placement == "reward"
    return StageCost(
        label=label,
        steps=stage.steps,
        episodes=stage.episodes,
        prompt_tokens=prompt_tokens,
        sampled_tokens=sampled,
        rollout_passes=passes,
        rows=stage.episodes * len(lengths),
        update_tokens=update_tokens,
        policy_passes=micro,
        repeated_passes=micro * settings.model.gradient_checkpointing,
        scoring_passes=micro * again,
        reference_passes=micro * pinned * (2 if again else 1),
    )


def _rollout_passes(stage: StageSettings, size: int) -> int:
    """Each part of the rollout plays drawn and stored first attempts one after the other."""
    passes = 0
    for start in range(0, stage.problems, size):
        stop = min(start + size, stage.problems)
        if stop > stage.offline_problems:
            passes += sum(stage.max_new_tokens)
        if start < stage.offline_problems:
            passes += sum(stage.max_new_tokens[1:])
    return passes


class EvaluationCost(NamedTuple):
    """Tokens that all evaluations of one kind sample, at most."""

    times: int
    problems: int
    sampled_tokens: int


def evaluation_costs(settings: Settings, held_out: int | None) -> dict[str, EvaluationCost]:
    """Validations (before training, every `validate_every` steps, at a stage's end) and evaluations (between stages).

    Args:
        held_out: problems of the split that there are; `eval.problems` when nobody knows.
    """
    stages = [settings.stages[index] for _, index in stage_plan(settings)]
    every = settings.train.validate_every
    times = {"validation": 1 + sum(ceil(stage.steps / every) for stage in stages), "evaluation": 1 + len(stages)}
    limit = settings.eval.problems if held_out is None else min(held_out, settings.eval.problems)
    problems = {"validation": settings.train.validation_problems, "evaluation": limit}
    each = settings.eval.attempts * settings.eval.max_new_tokens
    drawn = {"validation": each, "evaluation": each * settings.eval.samples}
    return {kind: EvaluationCost(times[kind], n, times[kind] * n * drawn[kind]) for kind, n in problems.items()}
