"""Tensors of which each process holds a part: the whole of one, and a part put back.

torch's are DTensors; a parameter that DeepSpeed has sharded (ZeRO-3) is empty, and is known by its `ds_id`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part."""
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, on the CPU if it was sharded; then every process is to call this."""
    if hasattr(tensor, "ds_id"):
        with gathered([tensor]):
            return tensor.detach().to("cpu", copy=True)
    found: Any = tensor.detach()
    return found.full_tensor().cpu() if is_sharded(found) else found


@contextmanager
def gathered(parameters: Iterable[Tensor], *, write: bool = False) -> Iterator[None]:
    """Within it what DeepSpeed has sharded is whole, and others are as they were.

    Args:
        parameters: of which some may be sharded; then every process is to call this.
        write: keep what is written to them within, as the first process wrote it.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(sharded, modifier_rank=0 if write else None):
        yield


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copies a whole tensor into one that may be sharded; then every process is to call this."""
    with gathered([target], write=True):
        target.copy_(like(target, value))


def like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as `target` is held: its part where that is sharded."""
    if not hasattr(target, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    held: Any = target
    # Every process has the whole tensor, so none needs to be sent.
    return distribute_tensor(value.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors; every process is to call this."""
    found = optimizer.state_dict()
    state = {
        number: {key: whole(value) if isinstance(value, Tensor) else value for key, value in moments.items()}
        for number, moments in found["state"].items()
    }
    return {**found, "state": state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Puts back what `whole_optimizer` gave, in this process or in any other number of them."""
    optimizer.load_state_dict(stored)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                moments[key] = like(parameter, value)
