"""The processes of a run: how many there are, what they tell each other, and how all of them leave when one must."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from score_rl.errors import ProcessError, ProcessLost, ScoreError
from score_rl.launcher import launched

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, which may be sampling or writing; the launcher ends them all much sooner
when one of them dies."""

BROKEN = ("connection closed", "connection reset", "timed out", "broken pipe", "connection refused", "gloo", "nccl")
"""What gloo and NCCL say when a process at the other end is gone; they have no class for it."""


class Group:
    """All processes of a run, this one included; a process alone talks to nobody.

    Every method but `share` is to be called by all of them, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        device: where this process computes.
        neighbours: ids of the processes of the run that the same launcher has started on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size = rank, size
        self.device = device or torch.device("cpu")
        self.neighbours: list[int] = []
        self._is_over = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, number: int) -> range:
        """Places of this process's part of `number` things: parts are contiguous and differ by one at most."""
        return range(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives in each process, by rank.

        Raises:
            Exception: what `make` raised here.
            ProcessError: it raised something elsewhere.
            ProcessLost: another process is gone.
        """
        if self.size == 1:
            return [make()]
        value, error = None, None
        try:
            value = make()
        except Exception as found:
            if self._is_over or isinstance(found, ProcessLost):
                raise  # all know of an error already, or there are none left to tell
            error = found
        answers: list[Any] = [None] * self.size
        with noticing_losses():
            torch.distributed.all_gather_object(answers, (value, None if error is None else self._tell(error)))
        trouble = next((text for _, text in answers if text is not None), None)
        if error is None and trouble is not None:
            error = ProcessError(trouble)
        if error is not None:
            self._is_over = True
            if isinstance(error, ScoreError):
                error.told = True
            raise error
        return [answer for answer, _ in answers]

    def first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, which alone calls it; raises as `gather`."""
        return self.gather(lambda: make() if self.is_first else None)[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails within in one process fails in all of them, when all of them are through; raises as `gather`."""
        error: Exception | None = None
        try:
            yield
        except Exception as found:
            error = found

        def outcome() -> None:
            if error is not None:
                raise error

        self.gather(outcome)

    def largest(self, number: int) -> int:
        """The largest of the processes' numbers; raises `ProcessLost`."""
        if self.size == 1:
            return number
        found = torch.tensor(number, device=self.device)
        with noticing_losses():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Adds up each tensor over the processes, in place; raises `ProcessLost`."""
        if self.size > 1:
            with noticing_losses():
                for tensor in tensors:
                    torch.distributed.all_reduce(tensor)

    def has_lost_one(self) -> bool:
        """Whether a neighbour has ended; asks nobody."""
        return not all(map(_is_there, self.neighbours))

    def _tell(self, error: Exception) -> str:
        """What the others say of an error here."""
        where = f"process {self.rank} of {self.size}: "
        return f"{where}{error}" if isinstance(error, ScoreError) else f"{where}{type(error).__name__}: {error}"


def start() -> Group:
    """The group that this process was launched into, joined if it was not yet; a group of one without a launcher.

    Raises:
        ProcessError: a launcher started several copies that cannot find each other.
    """
    size = launched()
    device = _device()
    if size > 1 and not torch.distributed.is_initialized():
        if device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        backends = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl", "xpu": "cpu:gloo,xpu:xccl"}
        try:
            torch.distributed.init_process_group(backends.get(device.type), timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ProcessError(f"launched as one of {size} processes that do not meet ({reason})") from error
    if not torch.distributed.is_initialized():
        return Group(device=device)
    found = torch.distributed.get_world_size()
    if found != size:
        raise ProcessError(
            f"the launcher says WORLD_SIZE={size} and the process group has {found} processes; start all of them with "
            "one torchrun or accelerate launch"
        )
    group = Group(torch.distributed.get_rank(), found, device)
    here = os.environ.get("GROUP_RANK")  # torchrun's number of the machine
    pids = group.gather(lambda: (here, os.getpid()))
    group.neighbours = [pid for machine, pid in pids if here is not None and machine == here]
    return group


def leave() -> None:
    """Waits for the others, which are about to leave too: a launcher ends whoever stays behind one that has failed."""
    if torch.distributed.is_initialized():
        with suppress(RuntimeError):  # one that was through already
            torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _device() -> torch.device:
    """The accelerator of this process, or the CPU where there is none or accelerate was told so."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.accelerator.is_available():
        return torch.device("cpu")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found if found.type == "mps" else torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def noticing_losses() -> Iterator[None]:
    """Turns what torch raises when another process is gone into `ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ProcessLost) or not any(sign in str(error).lower() for sign in BROKEN):
            raise
        if not torch.distributed.is_initialized():
            raise
        raise ProcessLost("another process of the run is gone") from error
