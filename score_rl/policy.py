"""The policy: a transformers causal language model, its reference, and token log-probs without a [B, T, V] tensor."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from score_rl.errors import ConfigError
from score_rl.schema import LoraSettings, ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE_ADAPTER = "reference"


class TokenScores(NamedTuple):
    """What the loss needs of the N trained tokens of a batch: log-probs [N] and, on request, exact KL [N], in nats."""

    logprobs: Tensor
    exact_kl: Tensor | None


class Policy(nn.Module):
    """A causal language model that scores sampled tokens.

    Args:
        model: the causal language model, or a peft model around one.
        tokenizer: its tokenizer.
        chunk: logits held at once while scoring.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, chunk: int = 32_000_000) -> None:
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
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        predicts: Tensor,
        *,
        temperature: float = 1.0,
        reference_states: Tensor | None = None,
    ) -> TokenScores:
        """Scores the tokens that follow the marked positions.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], 1 for tokens and 0 for padding.
            predicts: [B, T-1], True where the next token is scored; N of them.
            temperature: logits are divided by it, as when the tokens were sampled.
            reference_states: [N, H] from `reference_hidden`; asks for the exact KL(policy || reference) too.
        """
        hidden = self._hidden(self.causal_lm, input_ids, attention_mask, predicts)
        return self._score(hidden, input_ids[:, 1:][predicts], temperature, reference_states)

    @torch.no_grad()
    def reference_hidden(self, input_ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
        """Last hidden states of the reference at the marked positions -> [N, H]; no gradient."""
        with self.reference() as model:
            return self._hidden(model, input_ids, attention_mask, predicts)

    @torch.no_grad()
    def reference_logprobs(self, states: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Log-probs of `targets` [N] under the reference -> [N], from `reference_hidden`'s states [N, H]."""
        with self.reference() as model:
            parts = [
                _token_logprobs(h, t, temperature, model)
                for h, t in zip(self._chunks(states), self._chunks(targets), strict=True)
            ]
        return torch.cat(parts)

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

    def freeze_reference(self, source: PreTrainedModel | None = None, *, at_adapter: bool = False) -> None:
        """Makes the reference.

        Args:
            source: without LoRA, the model to keep as the reference; a copy of the policy as it is now when None.
            at_adapter: with LoRA, the policy as it is now (for sub-stages); otherwise the base model, adapter off.
        """
        if not self.has_adapter:
            frozen = copy.deepcopy(self.model) if source is None else source
            self._frozen = [frozen.to(self.model.device).requires_grad_(False).eval()]
        elif at_adapter:
            from peft import get_peft_model_state_dict, set_peft_model_state_dict

            if REFERENCE_ADAPTER not in self.model.peft_config:
                config = copy.deepcopy(self.model.peft_config["default"])
                self.model.add_adapter(REFERENCE_ADAPTER, config)
            state = get_peft_model_state_dict(self.model, adapter_name="default")
            set_peft_model_state_dict(self.model, state, adapter_name=REFERENCE_ADAPTER)
            self.model.set_adapter("default")  # type: ignore[operator]
        elif REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)  # type: ignore[operator]

    def reference_state(self) -> dict[str, Tensor] | None:
        """Weights of the reference; None where it is the base model with the adapter off."""
        if self._frozen:
            return dict(self._frozen[0].state_dict())
        if self.has_adapter and REFERENCE_ADAPTER in self.model.peft_config:
            from peft import get_peft_model_state_dict

            return dict(get_peft_model_state_dict(self.model, adapter_name=REFERENCE_ADAPTER))
        return None

    def load_reference_state(self, state: dict[str, Tensor] | None) -> None:
        """Restores what `reference_state` gave."""
        if not self.has_adapter:
            self.freeze_reference()
            self._frozen[0].load_state_dict(state or {})
        elif state is None:
            self.freeze_reference()
        else:
            from peft import set_peft_model_state_dict

            self.freeze_reference(at_adapter=True)
            set_peft_model_state_dict(self.model, state, adapter_name=REFERENCE_ADAPTER)

    def trained_state(self) -> dict[str, Tensor]:
        """The trained weights by name: the adapter, or the whole model."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copies `trained_state` back in place, so that an optimiser keeps its hold of the parameters."""
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if parameters.keys() != state.keys():
            raise ConfigError("the stored weights are of another model or adapter; check model.path and model.lora")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])

    def save(self, directory: Path) -> None:
        """Writes a directory that `AutoModelForCausalLM` or peft loads, tokenizer included."""
        adapters = {"selected_adapters": ["default"]} if self.has_adapter else {}
        self.model.save_pretrained(directory, **adapters)
        self.tokenizer.save_pretrained(directory)

    def load_saved(self, directory: Path) -> None:
        """Takes over the weights of a model or adapter that `save` wrote; the reference stays as it is.

        Raises:
            ConfigError: no such weights, or those of another model or adapter.
        """
        # Without its file peft would look for the adapter on the network.
        name = "adapter_model.safetensors" if self.has_adapter else "config.json"
        if not (directory / name).is_file():
            wanted = "a saved adapter, as model.lora is" if self.has_adapter else "a saved model, as model.lora is not"
            raise ConfigError(f"--resume-adapter {directory}: no {name} in it; give the directory of {wanted} set")
        try:
            if self.has_adapter:
                from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

                stored = load_peft_weights(str(directory))
                odd = stored.keys() ^ get_peft_model_state_dict(self.model, adapter_name="default").keys()
                if odd:
                    raise ValueError(f"{len(odd)} weights are in one adapter only, e.g. {min(odd)}; check model.lora")
                set_peft_model_state_dict(self.model, stored)
            else:
                self.model.load_state_dict(type(self.model).from_pretrained(directory).state_dict())
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"--resume-adapter {directory}: cannot be loaded ({reason})") from error

    def _hidden(self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, predicts: Tensor) -> Tensor:
        positions = attention_mask.long().cumsum(1).sub(1).clamp(min=0)
        body = model.get_decoder()
        states = body(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return states[:, :-1][predicts]

    def _score(
        self, hidden: Tensor, targets: Tensor, temperature: float, reference_states: Tensor | None
    ) -> TokenScores:
        model = self.causal_lm
        if reference_states is None:
            parts = [
                checkpoint(_token_logprobs, h, t, temperature, model, use_reentrant=False)
                for h, t in zip(self._chunks(hidden), self._chunks(targets), strict=True)
            ]
            return TokenScores(torch.cat(parts), None)
        frozen = self._frozen[0].get_output_embeddings() if self._frozen else model.get_output_embeddings()
        if hasattr(frozen, "base_layer"):
            raise ConfigError(
                "kl.estimator=exact cannot be had with an adapted output head; use k2, or other lora.targets"
            )
        pieces = zip(self._chunks(hidden), self._chunks(targets), self._chunks(reference_states), strict=True)
        both = [
            checkpoint(_logprobs_and_kl, h, t, temperature, model, r, frozen, use_reentrant=False) for h, t, r in pieces
        ]
        return TokenScores(torch.cat([b[0] for b in both]), torch.cat([b[1] for b in both]))

    def _chunks(self, values: Tensor) -> tuple[Tensor, ...]:
        vocabulary = self.causal_lm.get_output_embeddings().weight.shape[0]
        return values.split(max(1, self.chunk // vocabulary))


def _log_softmax(logits: Tensor, temperature: float, model: Any) -> Tensor:
    """Log-probs [N, V] in float32 of raw head outputs, soft-capped if the model does that (Gemma 2)."""
    logits = logits.float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap:
        logits = torch.tanh(logits / cap) * cap
    return (logits / temperature).log_softmax(dim=-1)


def _token_logprobs(hidden: Tensor, targets: Tensor, temperature: float, model: Any) -> Tensor:
    log_p = _log_softmax(model.get_output_embeddings()(hidden), temperature, model)
    return log_p.gather(1, targets[:, None])[:, 0]


def _logprobs_and_kl(
    hidden: Tensor, targets: Tensor, temperature: float, model: Any, reference_states: Tensor, frozen_head: Any
) -> tuple[Tensor, Tensor]:
    log_p = _log_softmax(model.get_output_embeddings()(hidden), temperature, model)
    with torch.no_grad():
        log_q = _log_softmax(frozen_head(reference_states), temperature, model)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return log_p.gather(1, targets[:, None])[:, 0], kl


def embedded_path() -> Path:
    """Directory of the small policy that ships with the package."""
    return Path(str(files("score_rl.embedded") / "policy"))


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory (or `embedded`).

    Raises:
        ConfigError: no such directory, or it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    path = model_directory(settings.path)
    try:
        return AutoTokenizer.from_pretrained(path)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(settings, error) from error


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """The model of a directory (or `embedded`), with the adapter that is saved there, if any, ready to train.

    Raises:
        ConfigError: no such directory, or it holds no causal language model.
    """
    from transformers import AutoModelForCausalLM

    path = model_directory(settings.path)
    dtype: Any = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        if (path / "adapter_config.json").is_file():
            from peft import AutoPeftModelForCausalLM

            return AutoPeftModelForCausalLM.from_pretrained(path, is_trainable=True, dtype=dtype)  # type: ignore[no-any-return]
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)  # type: ignore[no-any-return]
    except (OSError, ValueError, SafetensorError) as error:
        raise _unloadable(settings, error) from error


def _unloadable(settings: ModelSettings, error: Exception) -> ConfigError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ConfigError(f"model.path={settings.path}: cannot be loaded ({reason})")


def load_policy(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 0,
    chunk: int = 32_000_000,
) -> Policy:
    """A policy ready to train, with a fresh adapter if the settings ask for one and the directory has none.

    Args:
        seed: of the adapter's initial weights.
        chunk: logits held at once while scoring.

    Raises:
        ConfigError: as `load_tokenizer` and `load_model`, or a model whose logits cannot be scored in chunks.
    """
    tokenizer = tokenizer or load_tokenizer(settings)
    model: Any = load_model(settings)
    if settings.gradient_checkpointing:
        # transformers renames it and warns of the old name; which one there is depends on the version.
        new = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if settings.lora is not None and not hasattr(model, "peft_config"):
        model = _add_adapter(model, settings.lora, seed)
    policy = Policy(model, tokenizer, chunk=chunk)
    check_scores(policy)
    return policy


def model_directory(path: str) -> Path:
    """Where a model lies.

    Raises:
        ConfigError: no such directory, or no model in it.
    """
    directory = embedded_path() if path == "embedded" else Path(path)
    if not directory.is_dir():
        raise ConfigError(f"model.path={path}: no such directory; give a transformers model directory or `embedded`")
    if not ((directory / "config.json").is_file() or (directory / "adapter_config.json").is_file()):
        raise ConfigError(f"model.path={path}: no config.json in it; give a transformers model directory")
    return directory


def _add_adapter(model: Any, lora: LoraSettings, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"model.lora.targets={lora.targets}: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def check_scores(policy: Policy) -> None:
    """Refuses a model whose own logits are not its head on its hidden states, as scaled or biased variants are.

    Raises:
        ConfigError: the log-probs differ.
    """
    model = policy.causal_lm
    was_training = model.training
    model.eval()
    ids = torch.arange(1, 6, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    mask = torch.ones_like(ids)
    ours = policy(ids, mask, mask[:, 1:].bool()).logprobs
    logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1].float()
    theirs = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    model.train(was_training)
    if not torch.allclose(ours, theirs, atol=0.05, rtol=0.01):
        raise ConfigError(
            f"model.path: {type(model).__name__} computes its logits in a way that is not supported "
            f"(log-probs differ by {float((ours - theirs).abs().max()):.2g})"
        )
