"""Run by torchrun: as processes_gradients.py, for DeepSpeed, whose gradients only its engine finds.

Then it trains what it is told, as processes_runs.py does.
"""

import sys

import processes_runs
from processes_gradients import CASES, gradient, load, make_parallel, policy_of, tell

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
                theirs = gradient(alone, case, None, max_tokens=99)
                from deepspeed.utils import safe_get_full_grad  # imported for the right kind of device by now

                ours = {n: safe_get_full_grad(p).clone() for n, p in policy.named_parameters() if p.requires_grad}
                name = f"{kind}, {'LoRA' if lora else 'whole'}, {case.name}"
                tell(name, group, (ours, our_metrics), theirs)
    if len(sys.argv) > 1:
        processes_runs.main()
    else:
        leave()


if __name__ == "__main__":
    main()
