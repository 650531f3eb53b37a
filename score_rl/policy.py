"""The policy: a transformers causal language model, its reference, and how its tokens are scored and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from score_rl.adapters import adapter_state, check_adapter, one_line
from score_rl.errors import ConfigError
from score_rl.logprobs import Head, head_of, logprobs_and_kl, token_logprobs
from score_rl.shards import gathered, is_sharded, put, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE_ADAPTER = "reference"

ADAPTED = ("base_layer", "original_module")
"""Where peft keeps the layer that it adapted (LoRA) or trains a copy of (`modules_to_save`)."""


CHUNK = 16_000_000
"""Logits held at once while scoring, all their copies counted: 64 MB in float32."""

UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)
"""What torch, transformers and peft raise for weights that are not those of a model."""


class TokenScores(NamedTuple):
    """What the loss needs of the N trained tokens of a batch, in nats.

    Attributes:
        logprobs: [N].
        exact_kl: [M], the KL of M of them; None where it was not asked for.
    """

    logprobs: Tensor
    exact_kl: Tensor | None


class Policy(nn.Module):
    """A causal language model that scores sampled tokens.

    Args:
        model: the causal language model, or a peft model around one.
        tokenizer: its tokenizer.
        chunk: logits held at once while scoring, all their copies counted.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, chunk: int = CHUNK) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.chunk = chunk
        self._frozen: list[PreTrainedModel] = []  # a list, so that the copy is no submodule and is not saved

    @property
    def has_adapter(self) -> bool:
        """Whether a LoRA adapter trains, rather than the whole model."""
        return hasattr(self.model, "peft_config")

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, inside peft's wrapper if there is one."""
        return self.model.get_base_model() if self.has_adapter else self.model  # type: ignore[operator]

    @property
    def pad_id(self) -> int:
        """A token that fills rows; it is never attended to nor trained, so any will do."""
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in candidates if token is not None)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens at which the model's own generation settings stop; chat models often have several."""
        found = getattr(getattr(self.causal_lm, "generation_config", None), "eos_token_id", None)
        return frozenset([found] if isinstance(found, int) else found or ())

    def cautions(self) -> list[str]:
        """What works but may not do what was meant, a sentence each."""
        types = {value.dtype for value in self.trained_state().values()}
        return [
            f"{str(dtype).removeprefix('torch.')} is also what the trained weights are held in, where most steps of a "
            "usual learning rate round away; use model.dtype=float32 or model.lora"
            for dtype in (torch.bfloat16, torch.float16)
            if dtype in types
        ]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        predicts: Tensor,
        *,
        temperature: float = 1.0,
        reference_states: Tensor | None = None,
        among: Tensor | None = None,
    ) -> TokenScores:
        """Scores the tokens that follow the marked positions.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            predicts: [B, T-1], True where the next token is scored; N of them.
            temperature: logits are divided by it, as when the tokens were sampled.
            reference_states: [M, H] from `reference_hidden`; asks for the exact KL(policy || reference) too.
            among: [N], True for the M of the N tokens that `reference_states` belong to; all of them when None.
        """
        hidden = self._hidden(self.causal_lm, input_ids, attention_mask, predicts)
        targets = input_ids[:, 1:][predicts]
        head = head_of(self.causal_lm)
        if reference_states is None:
            return TokenScores(token_logprobs(hidden, targets, head, temperature, self.chunk), None)
        held = torch.ones_like(targets, dtype=torch.bool) if among is None else among
        logprobs = hidden.new_zeros(len(targets), dtype=torch.float32)
        logprobs[held], kl = logprobs_and_kl(
            hidden[held],
            targets[held],
            head,
            temperature,
            self.chunk,
            reference_states=reference_states,
            reference_head=self._reference_head(),
        )
        if not held.all():
            logprobs[~held] = token_logprobs(hidden[~held], targets[~held], head, temperature, self.chunk)
        return TokenScores(logprobs, kl)

    @torch.no_grad()
    def reference_hidden(self, input_ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
        """Last hidden states of the reference at the marked positions -> [N, H]; no gradient."""
        with self.reference() as model:
            return self._hidden(model, input_ids, attention_mask, predicts)

    @torch.no_grad()
    def reference_logprobs(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Log-probs of `targets` [N] under the reference -> [N], from `reference_hidden`'s states [N, H]."""
        with self.reference() as model:
            return token_logprobs(states, targets, head_of(model), temperature, self.chunk)

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The frozen reference: the adapter off, the adapter as it was at `freeze_reference`, or a frozen copy."""
        was_training = self.model.training
        self.model.eval()
        try:
            if not self.has_adapter:
                if not self._frozen:
                    raise RuntimeError("freeze_reference() has not been called")
                yield self._frozen[0]
            elif REFERENCE_ADAPTER in self.model.peft_config:
                self.model.set_adapter(REFERENCE_ADAPTER)  # type: ignore[operator]
                try:
                    yield self.causal_lm
                finally:
                    self.model.set_adapter("default")  # type: ignore[operator]
            else:
                with self.model.disable_adapter():  # type: ignore[operator]
                    yield self.causal_lm
        finally:
            self.model.train(was_training)

    def frozen_models(self) -> list[PreTrainedModel]:
        """The frozen copy of a whole model, if there is one; it is no submodule."""
        return list(self._frozen)

    def freeze_reference(self, source: PreTrainedModel | None = None, *, at_adapter: bool = False) -> None:
        """Makes the reference.

        Args:
            source: without LoRA, the model to keep as the reference; a copy of the policy as it is now when None.
            at_adapter: with LoRA, the policy as it is now (for sub-stages); otherwise the base model, adapter off.
        """
        if not self.has_adapter and self._frozen:  # in place, since its weights may be sharded
            model = self.model if source is None else source
            with gathered(model.parameters()):
                state = dict(model.state_dict())
                for name, target in self._frozen[0].state_dict().items():
                    put(target, whole(state[name]))
        elif not self.has_adapter:
            frozen = copy.deepcopy(self.model) if source is None else source
            self._frozen = [frozen.to(self.model.device).requires_grad_(False).eval()]
        elif at_adapter:
            from peft import set_peft_model_state_dict

            if REFERENCE_ADAPTER not in self.model.peft_config:
                config = copy.deepcopy(self.model.peft_config["default"])
                self.model.add_adapter(REFERENCE_ADAPTER, config)
            with gathered(self._adapters(), write=True):
                state = {name: whole(value) for name, value in adapter_state(self.model, "default").items()}
                set_peft_model_state_dict(self.model, state, adapter_name=REFERENCE_ADAPTER)
            self.model.set_adapter("default")  # type: ignore[operator]
        elif REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)  # type: ignore[operator]

    def reference_state(self) -> dict[str, Tensor] | None:
        """Weights of the reference; None where there is none, or where it is the base model with the adapter off."""
        if self._frozen:
            return {name: whole(value) for name, value in self._frozen[0].state_dict().items()}
        if self.has_adapter and REFERENCE_ADAPTER in self.model.peft_config:
            with gathered(self._adapters()):
                return {name: value.clone() for name, value in adapter_state(self.model, REFERENCE_ADAPTER).items()}
        return None

    def load_reference_state(self, state: dict[str, Tensor] | None) -> None:
        """Restores what `reference_state` gave."""
        if not self.has_adapter:
            if state is not None:
                if not self._frozen:
                    self.freeze_reference()
                for name, target in self._frozen[0].state_dict().items():
                    put(target, state[name])
        elif state is None:
            self.freeze_reference()
        else:
            from peft import set_peft_model_state_dict

            self.freeze_reference(at_adapter=True)
            with gathered(self._adapters(), write=True):
                set_peft_model_state_dict(self.model, state, adapter_name=REFERENCE_ADAPTER)

    def _adapters(self) -> list[nn.Parameter]:
        """The weights that train, and those of a reference beside them."""
        parameters = self.model.named_parameters()
        return [p for name, p in parameters if p.requires_grad or f".{REFERENCE_ADAPTER}." in name]

    def trained_state(self) -> dict[str, Tensor]:
        """The trained weights by name: the adapter, or the whole model.

        Where they are sharded every process is to call this, and gets copies of all of them.
        """
        return {name: whole(p) for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copies `trained_state` back in place, so that an optimiser keeps its hold of the parameters."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if parameters.keys() != state.keys():
            raise ConfigError("the stored weights are of another model or adapter; check model.path and model.lora")
        for name, parameter in parameters.items():
            put(parameter, state[name])

    def saved_state(self) -> dict[str, Tensor] | None:
        """What `save` needs of a model that is sharded, for which every process is to call this; None for others."""
        if not any(is_sharded(p) for p in self.model.parameters()):
            return None
        buffers = {} if self.has_adapter else dict(self.model.state_dict())
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        return self.trained_state() | {name: buffers[name] for name in buffers.keys() - parameters.keys()}

    def save(self, directory: Path, state: dict[str, Tensor] | None = None) -> None:
        """Writes a directory that `AutoModelForCausalLM` or peft loads, tokenizer included.

        Args:
            state: from `saved_state`.
        """
        options: dict[str, Any] = {"selected_adapters": ["default"], "save_embedding_layers": False}
        options = options if self.has_adapter else {}
        self.model.save_pretrained(directory, **options, **({} if state is None else {"state_dict": state}))
        self.tokenizer.save_pretrained(directory)

    def check_saved(self, directory: Path) -> None:
        """Refuses a model or adapter to start from that is not there, or an adapter that has another shape than ours.

        Raises:
            ConfigError: one line that says what differs.
        """
        # Without its file peft would look for the adapter on the network.
        name = "adapter_model.safetensors" if self.has_adapter else "config.json"
        if not (directory / name).is_file():
            wanted = "a saved adapter, as model.lora is" if self.has_adapter else "a saved model, as model.lora is not"
            raise ConfigError(f"--resume-adapter {directory}: no {name} in it; give the directory of {wanted} set")
        try:
            if self.has_adapter:
                check_adapter(directory, self.model)
        except UNREADABLE as error:
            raise _no_start(directory, error) from error

    def load_saved(self, directory: Path) -> None:
        """Takes over the weights of a model or adapter that `save` wrote; the reference stays as it is.

        Raises:
            ConfigError: no such weights, or those of another model or adapter.
        """
        self.check_saved(directory)
        try:
            if self.has_adapter:
                from peft import load_peft_weights, set_peft_model_state_dict

                set_peft_model_state_dict(self.model, load_peft_weights(str(directory)))
            else:
                self.model.load_state_dict(type(self.model).from_pretrained(directory).state_dict())
        except UNREADABLE as error:
            raise _no_start(directory, error) from error

    def _hidden(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
        positions = attention_mask.long().cumsum(1).sub(1).clamp(min=0)
        body = model.get_decoder()
        states = body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return states[:, :-1][predicts]

    def _reference_head(self) -> Head:
        """The head as the reference has it, for the exact KL.

        Raises:
            ConfigError: an adapted head whose adapter the reference has too.
        """
        if self._frozen:
            return head_of(self._frozen[0])
        head = head_of(self.causal_lm)
        inner = next((m for m in map(vars(head.module)["_modules"].get, ADAPTED) if m is not None), None)
        if inner is None:
            return head
        if REFERENCE_ADAPTER in self.model.peft_config:
            raise ConfigError(
                "kl.estimator=exact cannot be had with an adapted output head and reference=stage_start; use k2, or "
                "other lora.targets"
            )
        return head._replace(module=inner)


def _no_start(directory: Path, error: Exception) -> ConfigError:
    return ConfigError(f"--resume-adapter {directory}: cannot be loaded ({one_line(error)})")
