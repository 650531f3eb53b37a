"""What a launcher such as torchrun has put into the environment of each process that it started."""

from __future__ import annotations

import os
import sys

from score_rl.errors import ProcessError, ProcessLost, ScoreError

COUNTERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Numbers of copies, by launchers that leave them without an address to meet at."""

IGNORED = {
    "ACCELERATE_USE_FSDP": "parallel.kind=fsdp",
    "ACCELERATE_USE_DEEPSPEED": "parallel.kind=zero2 or zero3",
    "ACCELERATE_MIXED_PRECISION": "model.dtype",
}
"""What accelerate asks for in ways of its own, and the setting that decides it here."""

MEND = "start it with: torchrun --nproc-per-node N -m score_rl train RECIPE"


def launched() -> int:
    """How many processes there are; 1 without a launcher.

    Raises:
        ProcessError: a launcher whose copies would each train for themselves, or that has forgotten something.
    """
    for name, setting in IGNORED.items():
        if os.environ.get(name, "no").lower() not in ("no", "false", "0", ""):
            raise ProcessError(
                f"{name}={os.environ[name]}: accelerate only starts processes here; take that out of its configuration "
                f"(recipes/launch has some), and set {setting}"
            )
    if "WORLD_SIZE" in os.environ:
        size = int(os.environ["WORLD_SIZE"])
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if size > 1 and missing:
            raise ProcessError(f"WORLD_SIZE={size} is set and {', '.join(missing)} is not; {MEND}")
        return size
    for name in COUNTERS:
        if int(os.environ.get(name, "1")) > 1:
            raise ProcessError(f"{name}={os.environ[name]}: that many copies would each train for themselves; {MEND}")
    # What it does with --cpu and several processes: it names the place to meet, and starts one.
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        raise ProcessError(f"accelerate launch was asked for several processes and has started one; {MEND}")
    return 1


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    return _number("RANK") == 0


def speaks(error: ScoreError) -> bool:
    """Whether this process is the one to say what it fails with.

    Before they have met, one of each machine; then the first where all of them know, and otherwise whoever does. Of a
    lost process the first and the second speak, as it may be the first that is lost.
    """
    torch_distributed = sys.modules.get("torch.distributed")
    if torch_distributed is None or not torch_distributed.is_initialized():
        return _number("LOCAL_RANK") == 0
    if isinstance(error, ProcessLost):
        return _number("RANK") < 2
    return is_first() or not error.told


def _number(name: str) -> int:
    return int(os.environ.get(name, "0")) if "WORLD_SIZE" in os.environ else 0
