"""How a step's forward and backward passes are spread over the processes (`parallel.kind`)."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from score_rl.batch import Batch, Row
from score_rl.errors import ConfigError, MissingExtra
from score_rl.optim import make_optimizer
from score_rl.policy import Policy
from score_rl.processes import Group
from score_rl.schema import OptimSettings, Settings
from score_rl.zero import Zero, ZeroOptimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

Pass = Callable[[Batch, float], None]
"""Does one pass over a batch, whose loss is multiplied by the number; 0 for a batch that only keeps others company."""


class OutOfMemoryElsewhere(torch.OutOfMemoryError):
    """Another process ran out of memory."""


class Parallel:
    """One process alone, and what the kinds have in common.

    Attributes:
        model: scores tokens as the policy does, so that gradients meet where they have to.
        in_lockstep: every pass of this process waits for one of each other process.
    """

    in_lockstep = False

    def __init__(self, policy: Policy, group: Group) -> None:
        self.policy, self.group = policy, group
        policy.to(group.device)
        self.model: nn.Module = policy

    def own(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that this process takes; each goes to one, and all get about as many tokens."""
        if self.group.size == 1:
            return list(rows)
        mine, loads = [], [0] * self.group.size
        for row in sorted(rows, key=lambda row: -len(row.ids)):
            least = loads.index(min(loads))
            loads[least] += len(row.ids)
            if least == self.group.rank:
                mine.append(row)
        return mine

    def train(self, batches: Sequence[Batch], filler: Batch, run: Pass) -> None:
        """Runs passes with gradients, and leaves the sum over all processes in `.grad` of each."""
        for batch in batches:
            run(batch, 1.0)

    def look(self, batches: Sequence[Batch], filler: Batch, run: Pass) -> None:
        """Runs passes without gradients."""
        for batch in batches:
            run(batch, 1.0)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Adds up each tensor over the processes, in place."""
        self.meet()
        self.group.add(tensors)

    def meet(self) -> None:
        """Returns when every process has got here.

        Raises:
            OutOfMemoryElsewhere: one has run out of memory instead.
        """
        if self.group.largest(0):
            raise OutOfMemoryElsewhere("another process is out of memory")

    def fail(self, error: RuntimeError) -> None:
        """Tells the others, who are going to `meet`, that the memory ran out here, unless they said so."""
        if not isinstance(error, OutOfMemoryElsewhere):
            self.group.largest(1)

    def backward(self, loss: Tensor) -> None:
        """Adds a pass's gradient to `.grad`."""
        loss.backward()

    def optimizer(self, settings: OptimSettings, lr: float) -> torch.optim.Optimizer:
        """A new optimiser over the weights as they are now, for `step`."""
        return make_optimizer(self.policy.parameters(), settings, lr)

    def step(self, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """Scales the gradient down to `limit` and takes a step with it -> its norm before, over all processes."""
        norm: Any = nn.utils.clip_grad_norm_(self.policy.parameters(), limit)
        optimizer.step()
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    @contextmanager
    def sampling(self, model: nn.Module | None) -> Iterator[None]:
        """Within it this process can use the policy's model, or its reference's, without the others."""
        yield


class Replicated(Parallel):
    """torch's DistributedDataParallel: each process has the whole model and its share of the rows.

    The passes of a step run without communication. A last one over next to nothing brings the gradients together, so
    that memory which runs out in one process is known to all before they wait for each other.
    """

    def __init__(self, policy: Policy, group: Group) -> None:
        super().__init__(policy, group)
        wrapper = nn.parallel.DistributedDataParallel
        # Buffers never change; sending them would make processes wait for each other in the middle of a step.
        renamed = "forward_sync_buffers" in inspect.signature(wrapper).parameters
        options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        self.model = wrapper(
            policy, gradient_as_bucket_view=True, find_unused_parameters=_leaves_some_out(policy), **options
        )

    def train(self, batches: Sequence[Batch], filler: Batch, run: Pass) -> None:
        """As `Parallel.train`."""
        with self.model.no_sync():  # type: ignore[operator]
            for batch in batches:
                run(batch, float(self.group.size))  # since the gradients are averaged
        self.meet()
        run(filler, 0.0)


class Lockstep(Parallel):
    """Passes that every process takes part in: one with fewer batches than another runs fillers."""

    kind = ""

    def train(self, batches: Sequence[Batch], filler: Batch, run: Pass) -> None:
        """As `Parallel.train`."""
        self._run(batches, filler, run, float(self.group.size))  # since the gradients are averaged

    def look(self, batches: Sequence[Batch], filler: Batch, run: Pass) -> None:
        """As `Parallel.look`."""
        self._run(batches, filler, run, 1.0)

    def _run(self, batches: Sequence[Batch], filler: Batch, run: Pass, weight: float) -> None:
        for number in range(self.group.largest(len(batches))):
            if number < len(batches):
                run(batches[number], weight)
            else:
                run(filler, 0.0)

    def fail(self, error: RuntimeError) -> None:
        """Ends the run: the others are in the middle of a pass that this process cannot finish."""
        raise ConfigError(
            f"out of memory; with parallel.kind={self.kind} it cannot be tried again: lower train.micro_batch_tokens, "
            "or set model.gradient_checkpointing=true"
        ) from error


class Sharded(Lockstep):
    """torch's FSDP2: each process holds a part of each layer's weights, and gets the others when it needs them.

    The reference of a whole model is sharded in its layers alone.
    """

    in_lockstep = True
    kind = "fsdp"

    def __init__(self, policy: Policy, group: Group) -> None:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        # From here a layer at a time goes to the device, and no process ever holds more than one of them whole there.
        mesh = _mesh(group)
        for layer in [*_layers(policy.causal_lm), policy]:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        _shard_frozen(policy, mesh, group)
        register_fsdp_forward_method(policy, "reference_hidden")
        register_fsdp_forward_method(policy, "reference_logprobs")
        super().__init__(policy, group)
        with torch.no_grad():  # the policy must be known as the root before one of its layers runs by itself
            policy(*_shortest(policy))

    @contextmanager
    def sampling(self, model: nn.Module | None) -> Iterator[None]:
        """As `Parallel.sampling`; all of the model is in this process's memory meanwhile."""
        with _unsharded(self.policy if model is self.policy.causal_lm else model):
            yield


class ZeroSharded(Lockstep):
    """DeepSpeed's ZeRO: each process holds a part of gradients and moments (2), and of the weights too (3).

    With ZeRO-3 the reference of a whole model is sharded as by `Sharded`.
    """

    def __init__(self, policy: Policy, group: Group, settings: Settings) -> None:
        self.kind = settings.parallel.kind
        if self.kind == "zero3":
            _shard_frozen(policy, _mesh(group), group)
        self._zero = Zero(policy, group, self.kind, settings.optim)
        super().__init__(policy, group)
        self.model, self.in_lockstep, self._left = self._zero.model, self._zero.is_three, 0

    def _run(self, batches: Sequence[Batch], filler: Batch, run: Pass, weight: float) -> None:
        self._left = self.group.largest(len(batches))
        with self._zero.whole_head():
            super()._run(batches, filler, run, weight)

    def backward(self, loss: Tensor) -> None:
        """Adds a pass's gradient to the processes' parts of it; there is no `.grad`."""
        self._left -= 1
        self._zero.backward(loss, is_last=not self._left)

    def optimizer(self, settings: OptimSettings, lr: float) -> torch.optim.Optimizer:
        """As `Parallel.optimizer`; the one before it is of no use any more."""
        return ZeroOptimizer(self._zero)

    def step(self, optimizer: torch.optim.Optimizer, limit: float) -> float:
        """As `Parallel.step`; `limit` is that of the settings."""
        return self._zero.step()

    @contextmanager
    def sampling(self, model: nn.Module | None) -> Iterator[None]:
        """As `Sharded.sampling`."""
        with self._zero.whole_model() if model is self.policy.causal_lm else _unsharded(model):
            yield


def _mesh(group: Group) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(group.device.type, (group.size,))


def _shard_frozen(policy: Policy, mesh: Any, group: Group) -> None:
    """Shards the layers of a whole model's reference, and moves it to the device."""
    from torch.distributed.fsdp import fully_shard

    for model in policy.frozen_models():
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        model.to(group.device)


@contextmanager
def _unsharded(root: nn.Module | None) -> Iterator[None]:
    """Within it all weights that FSDP2 has sharded in a model are in this process's memory."""
    from torch.distributed.fsdp import FSDPModule

    shards: list[Any] = [] if root is None else [m for m in root.modules() if isinstance(m, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def _leaves_some_out(policy: Policy) -> bool:
    """Whether a short pass misses some of what trains, as a mixture of experts does, or a part for images."""
    policy(*_shortest(policy)).logprobs.sum().backward()
    missed = any(p.requires_grad and p.grad is None for p in policy.parameters())
    policy.zero_grad()
    return missed


def _shortest(policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the policy for two tokens."""
    ids = torch.zeros(1, 2, dtype=torch.int64, device=policy.model.device)
    return ids, torch.ones_like(ids), torch.ones_like(ids[:, 1:], dtype=torch.bool)


def _layers(model: Any) -> list[nn.Module]:
    """What transformers keeps together on one device: the decoder layers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def make_parallel(settings: Settings, policy: Policy, group: Group) -> Parallel:
    """The policy on its device, spread as `parallel.kind` says.

    Raises:
        ConfigError: as `check_parallel`.
    """
    check_parallel(settings, group)
    if group.size == 1:
        return Parallel(policy, group)
    if settings.parallel.kind in ("zero2", "zero3"):
        return ZeroSharded(policy, group, settings)
    return {"ddp": Replicated, "fsdp": Sharded}[settings.parallel.kind](policy, group)


def check_parallel(settings: Settings, group: Group) -> None:
    """Refuses what several processes cannot do.

    Raises:
        ConfigError: fewer questions than processes, another engine, or weights that cannot be sharded.
        MissingExtra: DeepSpeed is asked for and not installed.
    """
    for number, stage in enumerate(settings.stages):
        if stage.problems < group.size:
            raise ConfigError(
                f"stages.{number}.problems={stage.problems}: fewer questions a step than the {group.size} processes; "
                f"raise it, or start {stage.problems} or fewer"
            )
    if group.size == 1:
        return
    kind = settings.engine.kind
    if kind == "vllm" or (kind == "vllm_server" and settings.parallel.kind != "ddp"):
        mend = "engine.kind=transformers, or for an adapter vllm_server with parallel.kind=ddp"
        raise ConfigError(f"engine.kind={kind}: not tried with {group.size} processes; set {mend}")
    if settings.parallel.kind == "ddp":
        return
    if settings.parallel.kind in ("zero2", "zero3"):
        _check_zero(settings)
    for key, value, good in (
        ("model.quantize", settings.model.quantize, None),
        ("model.loader", settings.model.loader, "transformers"),
        ("optim.kind", settings.optim.kind, "adamw"),
    ):
        if value != good:
            mend = "null" if good is None else good
            raise ConfigError(f"{key}={value} cannot be sharded; set parallel.kind=ddp, or {key}={mend}")


def _check_zero(settings: Settings) -> None:
    kind, dtype = settings.parallel.kind, settings.model.dtype
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtra(
            f"parallel.kind={kind} needs DeepSpeed: pip install 'score-rl[deepspeed]', or set parallel.kind=fsdp"
        )
    if settings.model.lora is None and dtype in ("bfloat16", "float16"):
        raise ConfigError(
            f"model.dtype={dtype}: with parallel.kind={kind} DeepSpeed trains a float32 copy, which no checkpoint has; "
            "set model.dtype=float32 or model.lora"
        )
