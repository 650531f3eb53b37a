"""One process of four, with torch's process group that sends nothing: what one step would send, beside what is planned.

Prints a line of JSON for each case: its name, and bytes of gradients and of gathered weights, counted and planned.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import GradBucket
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import episode, make_policy, stage

from score_rl.parallel import make_parallel
from score_rl.planning.costs import Prompts, stage_cost
from score_rl.planning.memory import held_bytes
from score_rl.planning.spread import measure, traffic_of
from score_rl.processes import Group
from score_rl.schedule import make_objective
from score_rl.schema import KLSettings, OptimSettings
from score_rl.settings import load
from score_rl.update import accumulate

PROCESSES = 4
PART = (PROCESSES - 1) / PROCESSES


class Collectives(TorchDispatchMode):
    """Bytes that a process sends, over rings."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients = self.weights = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name.startswith("_allgather_base_"):
            self.weights += PART * size(args[0])
        elif name.startswith("_reduce_scatter_base_"):
            self.gradients += PART * size(args[1])
        return func(*args, **(kwargs or {}))

    def all_reduce(self, _: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Stands in for what DistributedDataParallel does with a bucket of gradients."""
        self.gradients += 2 * PART * size(bucket.buffer())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


def size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(size, value))


def main() -> None:
    torch.distributed.init_process_group("fake", rank=0, world_size=PROCESSES, store=FakeStore())
    group = Group(0, PROCESSES, torch.device("cpu"))
    episodes = [
        episode(f"p{n}", [[2, 9, 3], [2, 8, 3]], [[10, 11, 1], [12, 13, 1]], [0.0, float(child)], path=(child, 0))
        for n in range(4)
        for child in (0, 1)
    ]
    for kind in ("ddp", "fsdp"):
        for lora in (False, True):
            for placement in ("loss", "reward"):
                kl = KLSettings(estimator="k1", placement=placement)
                chosen = stage("stage2", branch=[2, 1], max_new_tokens=[3, 3], kl=kl, beta1=0.1)
                settings = load("arithmetic", [f"parallel.kind={kind}", "train.micro_batch_tokens=1"])
                policy = make_policy("llama", lora=lora)
                held = held_bytes(policy.model, OptimSettings(), quantized=False, moves_reference=False)
                sizes = measure(policy.model)
                parallel = make_parallel(settings, policy, group)
                sent = Collectives()
                if kind == "ddp":
                    parallel.model.register_comm_hook(None, sent.all_reduce)
                with sent:
                    accumulate(policy, episodes, chosen, make_objective(chosen), max_tokens=1, parallel=parallel)
                    with parallel.sampling(policy.causal_lm):
                        pass
                # One question with two episodes falls to each process, a row a pass.
                cost = stage_cost("share", chosen, settings, Prompts(3.0, 3, 3, "given"))
                planned = traffic_of(kind, held, sizes, cost, 0, PROCESSES)
                print(
                    json.dumps(
                        {
                            "case": f"{kind}, {'adapter' if lora else 'whole'}, KL in {placement}",
                            "passes": (cost.policy_passes, cost.scoring_passes, cost.reference_passes),
                            "gradients": (sent.gradients, planned.gradients),
                            "weights": (sent.weights, planned.weights),
                        }
                    )
                )


if __name__ == "__main__":
    main()
