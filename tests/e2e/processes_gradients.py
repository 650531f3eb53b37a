"""Run by torchrun: one step's gradient and metrics by all processes together against those of one process alone.

Prints a line of JSON for each case: its name, the largest difference of the gradients in parts of their largest entry,
and the largest of the metrics.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import gradients, largest_gap, make_policy, mixed_batch, stage, stir

from score_rl.objectives import stage1, stage2
from score_rl.parallel import make_parallel
from score_rl.policy import Policy
from score_rl.processes import Group, leave, start
from score_rl.schema import KLSettings
from score_rl.settings import load
from score_rl.shards import whole
from score_rl.update import accumulate_within_memory

Found = tuple[dict[str, Tensor], dict[str, float]]
"""A gradient by name, and the metrics of its step."""


class Case(NamedTuple):
    """In Stage I with stored first attempts some rows have no token that is held to the reference."""

    name: str
    kind: str
    estimator: str
    placement: str
    beta: tuple[float, ...] = (0.5, 0.2)


CASES = [
    Case("stage1", "stage1", "exact", "loss"),
    Case("stage1, sampled KL", "stage1", "k2", "loss"),
    Case("stage1, attempt 1 alone pinned", "stage1", "exact", "loss", (0.5, 0.0)),
    Case("stage2", "stage2", "exact", "loss"),
    Case("stage2, KL in the reward", "stage2", "k1", "reward"),
    Case("stage2, sampled KL", "stage2", "k2", "loss"),
]


def policy_of(lora: bool) -> Policy:
    """Moved away from its reference, so that the KL has a gradient."""
    return stir(make_policy("qwen3", lora=lora, tied=True))


def gradient(policy: Policy, case: Case, parallel: object, max_tokens: int) -> tuple[dict, dict]:
    settings = stage(
        case.kind,
        branch=[2, 1],
        advantage="none",
        kl=KLSettings(estimator=case.estimator, placement=case.placement),
    )
    first, last = case.beta
    objective = stage1(beta1=last, beta2=first) if case.kind == "stage1" else stage2(alpha=3, beta1=last)
    metrics, _ = accumulate_within_memory(
        policy, mixed_batch(), settings, objective, max_tokens=max_tokens, parallel=parallel
    )
    # torch writes sharded gradients as DTensors, which every process puts together.
    found = {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}
    return {name: value.clone() for name, value in found.items()}, metrics


def out_of_memory_in_the_second(group: Group) -> None:
    """The second process has no memory for two rows at once; both must go on with fewer, and nothing may be lost."""
    policy, alone = policy_of(False), policy_of(False)
    parallel = make_parallel(load("arithmetic", ["parallel.kind=ddp"]), policy, group)
    failed = []

    def backward(value: Tensor) -> None:
        if not group.is_first and not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("no more memory")
        value.backward()

    settings = stage("stage2", branch=[2, 1], advantage="none", kl=KLSettings(estimator="exact"))
    options = {"episodes": mixed_batch(), "stage": settings, "objective": stage2(alpha=3, beta1=0.2)}
    accumulate_within_memory(alone, **options, max_tokens=99)
    _, enough = accumulate_within_memory(policy, **options, max_tokens=99, backward=backward, parallel=parallel)
    found = group.gather(lambda: enough)
    if group.is_first:
        print(json.dumps({"enough": found, "gradient": largest_gap(gradients(alone), gradients(policy))}), flush=True)


def tell(name: str, group: Group, ours: Found, theirs: Found) -> None:
    """Prints the line of a case."""
    (our_gradient, our_metrics), (their_gradient, their_metrics) = ours, theirs
    assert our_metrics.keys() == their_metrics.keys()
    gap = max(abs(our_metrics[k] - their_metrics[k]) / (1 + abs(their_metrics[k])) for k in our_metrics)
    row = {
        "case": name,
        "processes": group.size,
        "gradient": largest_gap(their_gradient, our_gradient),
        "metrics": gap,
    }
    if group.is_first:
        print(json.dumps(row), flush=True)


def main() -> None:
    group = start()
    out_of_memory_in_the_second(group)
    for kind in ("ddp", "fsdp"):
        for lora in (True, False):
            settings = load("arithmetic", [f"parallel.kind={kind}"])
            policy, alone = policy_of(lora), policy_of(lora)
            parallel = make_parallel(settings, policy, group)
            for case in CASES:
                # A token at a time makes as many passes as there are rows, which two processes share unevenly.
                ours = gradient(policy, case, parallel, max_tokens=1)
                theirs = gradient(alone, case, None, max_tokens=99)
                tell(f"{kind}, {'LoRA' if lora else 'whole'}, {case.name}", group, ours, theirs)
    leave()


if __name__ == "__main__":
    main()
