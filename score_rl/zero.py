"""DeepSpeed's ZeRO-2 and ZeRO-3: its engine around a policy, for `parallel.kind=zero2` and `zero3`.

The engine keeps gradients, moments and a float32 copy of the weights in flat parts of its own, a part in each process.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from score_rl.logprobs import head_of
from score_rl.optim import make_optimizer
from score_rl.policy import Policy
from score_rl.processes import Group
from score_rl.schema import OptimSettings
from score_rl.shards import gathered

if TYPE_CHECKING:
    from collections.abc import Iterator

MOMENTS = ("exp_avg", "exp_avg_sq")


def _load_deepspeed(device: str) -> Any:
    """The library, for a kind of device (`cpu`, `cuda`)."""
    os.environ.setdefault("DS_ACCELERATOR", device)  # or it takes a GPU where none is to be used
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # for CPUs: minutes of a compiler, and gloo does it
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # a line each time that it talks to the others
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    return deepspeed


def configuration(kind: str, optim: OptimSettings) -> dict[str, Any]:
    """What DeepSpeed is told: `recipes/launch/KIND.yaml`, and the norm to which gradients are scaled down."""
    import yaml

    text = (files("score_rl") / "recipes" / "launch" / f"{kind}.yaml").read_text(encoding="utf-8")
    return {**yaml.safe_load(text), "gradient_clipping": optim.max_grad_norm}


class Zero:
    """DeepSpeed's engine around a policy. All processes are to call each of its methods.

    Attributes:
        model: scores tokens as the policy does.
        base: torch's AdamW over this process's parts.
        trained: the parameters that train.
        is_three: the weights are sharded too, so that passes need the other processes.
    """

    def __init__(self, policy: Policy, group: Group, kind: str, optim: OptimSettings) -> None:
        deepspeed = _load_deepspeed(group.device.type)
        config = configuration(kind, optim)
        self.is_three = kind == "zero3"
        if self.is_three:  # from here a tensor at a time goes to the device
            deepspeed.zero.Init(module=policy, config_dict_or_path=config)
        self.base = make_optimizer(policy.parameters(), optim, lr=0.0)
        self.model, self._sharded, *_ = deepspeed.initialize(
            model=policy, optimizer=self.base, config=config, dist_init_required=False
        )
        self._policy, self._rank = policy, group.rank
        self._head: nn.Module = head_of(policy.causal_lm).module
        self.trained = [p for p in policy.parameters() if p.requires_grad]
        three, two = "fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"
        self._parts: list[Tensor] = getattr(self._sharded, three if self.is_three else two)
        if self.is_three:
            self._unhook()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds the mean of the processes' gradients; `is_last` before a step."""
        self.model.set_gradient_accumulation_boundary(is_last)
        self.model.backward(loss)

    def step(self) -> float:
        """Clips the gradient and takes a step with it -> its norm before, over all processes."""
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def begin_again(self) -> None:
        """Takes the policy's weights as they are now, and empty moments."""
        self._sharded.refresh_fp32_params()
        for part in self._parts:
            state = self.base.state[part]
            state.setdefault("step", torch.tensor(0.0)).zero_()
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(part)).zero_()
        if not self.is_three:
            self._sharded._lazy_init_hp_params_optimizer_state()

    def moments(self) -> dict[int, dict[str, Tensor]]:
        """AdamW's state of each trained parameter by its place, in whole tensors; empty before the first step."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self.base.state[self._parts[0]]["step"]
        if not step:
            return {}
        return {
            place: {"step": step.clone()}
            | {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS}
            for place, parameter in enumerate(self.trained)
        }

    def load_moments(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Puts back what `moments` gave, in this number of processes or another."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        for place, parameter in enumerate(self.trained if state else ()):
            for key in MOMENTS:
                if self.is_three:
                    safe_set_local_optimizer_state(parameter, self._own(parameter, state[place][key]), key)
                else:
                    safe_set_full_optimizer_state(parameter, state[place][key], key)
        for part in self._parts if state else ():
            self.base.state[part]["step"].copy_(state[0]["step"])

    def _own(self, parameter: Any, value: Tensor) -> Tensor:
        """This process's part of a whole tensor, filled up with zeros as DeepSpeed does."""
        size = parameter.ds_tensor.numel()
        own = value.flatten()[size * self._rank : size * (self._rank + 1)]
        return functional.pad(own, (0, size - own.numel()))

    @contextmanager
    def whole_head(self) -> Iterator[None]:
        """Within it the head's weights are whole: it is asked for chunks of tokens, by some processes more often."""
        parameters: list[Any] = list(self._head.parameters()) if self.is_three else []
        with gathered(parameters):
            for parameter in parameters:
                parameter.ds_active_sub_modules.add(self)  # or embeddings that are tied to it would give it back
            try:
                yield
            finally:
                for parameter in parameters:
                    parameter.ds_active_sub_modules.discard(self)

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """Within it all weights of the policy are in this process's memory, and it needs no other to use them."""
        if not self.is_three:
            yield
            return
        offload = self._sharded.parameter_offload
        self._adopt()
        with gathered(self._policy.parameters()):
            for hook in (*offload.forward_hooks, *offload.backward_hooks):
                hook.remove()
            offload.forward_hooks, offload.backward_hooks = [], []
            try:
                yield
            finally:
                offload._register_deepspeed_module(offload.module)
                self._unhook()

    def _adopt(self) -> None:
        """Shards what the policy has got since: the adapter of a reference. Its hooks come with the next ones."""
        from deepspeed.runtime.zero.parameter_offload import _init_external_params

        if all(hasattr(parameter, "ds_id") for parameter in self._policy.parameters()):
            return
        self._sharded.parameter_offload._convert_to_zero_parameters(None, self._policy, None)
        for module in self._policy.modules():
            _init_external_params(module)

    def _unhook(self) -> None:
        """Takes DeepSpeed's hooks from modules that the processes do not call, or go back through, equally often.

        Those are the head, and the policy itself, which has one output or two and no weights that are not its modules'.
        """
        modules = (self._policy, *self._head.modules())
        tables = [table for m in modules for table in (m._forward_pre_hooks, m._forward_hooks)]
        offload = self._sharded.parameter_offload
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            if any(hook.hooks_dict_ref() is table for table in tables):
                hook.remove()


class ZeroOptimizer(torch.optim.Optimizer):
    """A new AdamW in `Zero`'s engine, which takes its steps; what it saves is what torch's own AdamW would."""

    def __init__(self, zero: Zero) -> None:
        zero.begin_again()
        self._zero = zero
        self.param_groups = zero.base.param_groups
        self.state = {}  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """As torch's, in whole tensors; every process is to call this."""
        group = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        number = len(self._zero.trained)
        return {"state": self._zero.moments(), "param_groups": [{**group, "params": list(range(number))}]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave here, or an AdamW of torch's."""
        self._zero.load_moments(state_dict["state"])
