"""Run by torchrun: as processes_gradients.py, for DeepSpeed, whose gradients only its engine finds.

Then it trains what it is told, as processes_runs.py does.
"""

import json
import sys

import processes_runs
from processes_gradients import CASES, gradient, largest_gap, load, make_parallel, policy_of

from score_rl.processes import leave, start


def main() -> None:
    group = start()
    for kind in ("zero2", "zero3"):
        for lora in (True, False):
            for case in (CASES[0], CASES[4]):  # the exact KL in one stage, and passes without gradient in the other
                settings = load("arithmetic", [f"parallel.kind={kind}"])
                policy, alone = policy_of(lora), policy_of(lora)
                parallel = make_parallel(settings, policy, group)
                _, our_metrics = gradient(policy, case, parallel, max_tokens=1)
                theirs, their_metrics = gradient(alone, case, None, max_tokens=99)
                from deepspeed.utils import safe_get_full_grad  # imported for the right kind of device by now

                ours = {n: safe_get_full_grad(p).clone() for n, p in policy.named_parameters() if p.requires_grad}
                assert our_metrics.keys() == their_metrics.keys()
                gap = max(abs(our_metrics[k] - their_metrics[k]) / (1 + abs(their_metrics[k])) for k in our_metrics)
                row = {
                    "case": f"{kind}, {'LoRA' if lora else 'whole'}, {case.name}",
                    "processes": group.size,
                    "gradient": largest_gap(theirs, ours),
                    "metrics": gap,
                }
                if group.is_first:
                    print(json.dumps(row), flush=True)
    if len(sys.argv) > 1:
        processes_runs.main()
    else:
        leave()


if __name__ == "__main__":
    main()
