"""Models and tokenizers from the hub, a directory, a run or the package, on the way they are trained."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from score_rl.adapters import add_adapter, check_adapter, one_line
from score_rl.data.files import HUB_NAME
from score_rl.errors import ConfigError, MissingExtra
from score_rl.policy import CHUNK, Policy
from score_rl.results import fingerprint
from score_rl.run import final_model
from score_rl.schema import ModelSettings
from score_rl.unsloth_loader import add_unsloth_adapter, check_cache, check_unsloth, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# It misses a kernel for inference that is never asked for here, and says so wherever peft is imported.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

ABOUT = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
"""Files of the hub that say what a model is and how it reads."""

WEIGHTS = ["*.safetensors"]

UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers and peft raise for a directory that they cannot make a model of."""


EMBEDDED = {"embedded": "policy", "embedded:walk": "walk"}
"""The small policies that ship with the package, and their directories in `score_rl.embedded`."""


def embedded_path(name: str = "embedded") -> Path:
    """Directory of a small policy that ships with the package."""
    return Path(str(files("score_rl.embedded") / EMBEDDED[name]))


def model_directory(settings: ModelSettings, *, weights: bool = True) -> Path:
    """Where a model or adapter lies; one of the hub is downloaded into the hub's cache first.

    Args:
        weights: False to download no more than the files that describe it.

    Raises:
        ConfigError: no such directory, no model in it, or a model that the hub or its cache does not give.
    """
    path = settings.path
    directory = embedded_path(path) if path in EMBEDDED else Path(path).resolve()
    if not directory.exists() and HUB_NAME.fullmatch(path):
        return _from_hub(settings, weights)
    if settings.revision is not None:
        raise ConfigError(f"model.revision={settings.revision} is for models of the hub, and {path} is none; remove it")
    if not directory.is_dir():
        raise ConfigError(f"model.path={path}: no such directory; give a transformers model directory or `embedded`")
    if (directory / "config.yaml").is_file() and not (directory / "config.json").is_file():
        return final_model(directory)
    if not ((directory / "config.json").is_file() or is_adapter(directory)):
        raise ConfigError(f"model.path={path}: no config.json in it; give a transformers model directory")
    return directory


def _from_hub(settings: ModelSettings, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [*ABOUT, *(WEIGHTS if weights else []), *(["*.py"] if settings.trust_remote_code else [])]
    try:
        found = snapshot_download(settings.path, revision=settings.revision, allow_patterns=wanted)
    except Exception as error:  # the hub, the network and the cache each fail with classes of their own
        name = settings.path + (f" (revision {settings.revision})" if settings.revision else "")
        raise ConfigError(
            f"model.path={name}: no such directory here, and not to be had from the hub ({one_line(error)}); check the "
            "name, the revision and the network, download it beforehand (`hf download`), or give a local directory"
        ) from error
    return Path(found)


def is_adapter(directory: Path) -> bool:
    """Whether it holds an adapter and no whole model."""
    return (directory / "adapter_config.json").is_file()


def base_settings(settings: ModelSettings, directory: Path) -> ModelSettings:
    """Settings of the base model that the adapter in `directory` is for.

    Raises:
        ConfigError: an adapter of another kind than LoRA, or one whose base model is not there.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(directory))
    except UNLOADABLE as error:
        raise _unloadable(settings, error) from error
    if config.peft_type != "LORA":
        raise ConfigError(f"model.path={settings.path}: an adapter of kind {config.peft_type.value}; use one of LoRA")
    base = settings.model_copy(update={"path": config.base_model_name_or_path or "", "revision": config.revision})
    try:
        model_directory(base, weights=False)
    except ConfigError as error:
        raise ConfigError(
            f"model.path={settings.path}: an adapter whose base model is not there ({error}); correct "
            f"base_model_name_or_path in {directory / 'adapter_config.json'}"
        ) from error
    return base


def load_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; that of the base model for an adapter without one.

    Raises:
        ConfigError: no such model, or it has no tokenizer.
    """
    from transformers import AutoTokenizer

    path = model_directory(settings, weights=False)
    if is_adapter(path) and not (path / "tokenizer_config.json").is_file():
        path = model_directory(base_settings(settings, path), weights=False)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    except UNLOADABLE as error:
        raise _unloadable(settings, error) from error


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The configuration of a model, or of an adapter's base model; no weights are read.

    Raises:
        ConfigError: no such model, or an architecture that transformers does not know.
    """
    from transformers import AutoConfig

    path = model_directory(settings, weights=False)
    if is_adapter(path):
        path = model_directory(base_settings(settings, path), weights=False)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    except UNLOADABLE as error:
        raise _unloadable(settings, error) from error


def context_length(settings: ModelSettings) -> int | None:
    """Positions that a model was made for; None where its configuration does not say.

    Raises:
        ConfigError: as `load_config`.
    """
    found = getattr(load_config(settings).get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def load_model(settings: ModelSettings, *, trains: bool = False) -> PreTrainedModel:
    """The model, with the adapter of an adapter's directory around it, ready to train.

    Args:
        trains: the whole model is going to be trained unless it has an adapter or gets one; see `ModelSettings.dtype`.

    Raises:
        ConfigError: no such model, no causal language model, or an adapter that does not fit its base or the settings.
        MissingExtra: 4 bits without bitsandbytes, or Unsloth's loader without Unsloth.
    """
    whole = settings.lora is None and not is_adapter(model_directory(settings, weights=False))
    if trains and whole and settings.quantize is not None:
        raise ConfigError(
            f"model.quantize={settings.quantize}: a whole model cannot train in 4 bits; set model.lora={{}}"
        )
    if settings.loader == "unsloth":
        check_unsloth(settings, whole=trains and whole)
    if not whole:
        blank_model(settings)  # an adapter that does not fit is refused before anybody waits for weights
    path = model_directory(settings)
    if not is_adapter(path):
        if trains and whole and settings.dtype == "auto":
            settings = settings.model_copy(update={"dtype": "float32"})
        return _load_base(settings)
    from peft import PeftModel

    base = _load_base(base_settings(settings, path))
    try:
        return PeftModel.from_pretrained(base, str(path), is_trainable=True)  # type: ignore[no-any-return]
    except UNLOADABLE as error:
        raise _unloadable(settings, error) from error


def blank_model(settings: ModelSettings) -> Any:
    """The model with the adapter that it has or gets, without weights: on torch's meta device there are shapes alone.

    Raises:
        ConfigError: as `load_model`, or `model.lora.targets` that match no layer.
    """
    path = model_directory(settings, weights=False)
    saved = model_directory(settings) if is_adapter(path) else None
    base = settings if saved is None else base_settings(settings, saved)
    return build_blank(settings, load_config(base), saved, base)


def build_blank(
    settings: ModelSettings, config: PreTrainedConfig, saved: Path | None, base: ModelSettings, **options: Any
) -> Any:
    """As `blank_model`, of a configuration that is known.

    Args:
        saved: directory of the adapter that the model goes on with; it gets a new one, or none, where this is None.
        base: settings of the base model.
        options: of `from_config`.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=base.trust_remote_code, **options)
        except UNLOADABLE as error:
            raise _unloadable(base, error) from error
        silence_dropout(model)
        _name_after_hub(model, base)
        if saved is not None:
            return _blank_adapter(model, settings, saved, base.path)
        return model if settings.lora is None else add_adapter(model, settings, settings.lora, 0)


def _blank_adapter(model: Any, settings: ModelSettings, saved: Path, base: str) -> Any:
    from peft import PeftConfig, get_peft_model

    try:
        config = PeftConfig.from_pretrained(str(saved))
        config.inference_mode = False  # as peft writes it, nothing of it would train
        _check_size(settings, config)
        adapted = get_peft_model(model, config)
        check_adapter(saved, adapted)
    except ConfigError:
        raise
    except UNLOADABLE as error:
        named = f"; the base model that its adapter_config.json names is {base}"
        raise ConfigError(f"{_unloadable(settings, error)}{named}") from error
    return adapted


def _check_size(settings: ModelSettings, config: Any) -> None:
    """Refuses settings of an adapter that are not those of the saved one."""
    for key, here, there in (
        ("rank", settings.lora and settings.lora.rank, config.r),
        ("alpha", settings.lora and settings.lora.alpha, config.lora_alpha),
        ("dropout", settings.lora and settings.lora.dropout, config.lora_dropout),
    ):
        if here is not None and here != there:
            raise ConfigError(
                f"model.lora.{key}={here}: the adapter in model.path={settings.path} has {there}; set model.lora.{key}="
                f"{there} or model.lora=null"
            )


def _load_base(settings: ModelSettings) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    path = model_directory(settings)
    options: dict[str, Any] = {
        "dtype": settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
        "trust_remote_code": settings.trust_remote_code,
    }
    if settings.attention is not None:
        options["attn_implementation"] = settings.attention
    if settings.quantize is not None:
        options["quantization_config"] = _quantization(settings)
    try:
        if settings.loader == "unsloth":
            model: Any = load_base(path, settings, context_length(settings))
        else:
            model = AutoModelForCausalLM.from_pretrained(path, **options)
    except UNLOADABLE as error:
        raise _unloadable(settings, error) from error
    _name_after_hub(model, settings)
    silence_dropout(model)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such a CPU bitsandbytes packs the weights anew, and more roughly, when a layer is first used without
            # gradients; from then on no gradient passes through it.
            module.support_avx512bf16_for_cpu = False
    if settings.gradient_checkpointing and settings.loader == "transformers":
        # transformers renames it and warns of the old name; which one there is depends on the version.
        new = hasattr(model, "activation_checkpointing_enable")
        enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model  # type: ignore[no-any-return]


def _name_after_hub(model: Any, settings: ModelSettings) -> None:
    """What a saved adapter will name as its base, rather than a place in this cache."""
    if HUB_NAME.fullmatch(settings.path) and not Path(settings.path).exists():
        model.name_or_path = settings.path


def _quantization(settings: ModelSettings) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"model.quantize={settings.quantize} needs bitsandbytes: pip install 'score-rl[quant]'"
        ) from error
    from transformers import BitsAndBytesConfig

    compute = settings.dtype if settings.dtype != "auto" else load_config(settings).dtype or torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )


def silence_dropout(model: nn.Module) -> None:
    """Turns the dropout of a pretrained model off for good.

    Training mode would turn it on, and then neither the sampler's log-probs nor the reference's are those of the
    policy that is trained. An adapter's own dropout is put in later and stays.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if name.endswith(("dropout", "drop")) and isinstance(value, float):
                setattr(module, name, 0.0)


def load_policy(
    settings: ModelSettings,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    seed: int = 0,
    chunk: int = CHUNK,
    trains: bool = False,
) -> Policy:
    """A policy, with a fresh adapter if the settings ask for one and the directory has none.

    Args:
        seed: of the adapter's initial weights.
        chunk: as in `Policy`.
        trains: as `load_model`.

    Raises:
        ConfigError: as `load_tokenizer` and `load_model`, or a model whose logits cannot be scored in chunks.
    """
    tokenizer = tokenizer or load_tokenizer(settings)
    model: Any = load_model(settings, trains=trains)
    if settings.lora is not None and not hasattr(model, "peft_config"):
        add = add_unsloth_adapter if settings.loader == "unsloth" else add_adapter
        model = add(model, settings, settings.lora, seed)
    if settings.loader == "unsloth":
        check_cache(model)
    policy = Policy(model, tokenizer, chunk=chunk)
    check_scores(policy)
    return policy


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


def _unloadable(settings: ModelSettings, error: Exception) -> ConfigError:
    mend = ""
    if "trust_remote_code" in str(error) and not settings.trust_remote_code:
        mend = "; read that code, then set model.trust_remote_code=true to run it"
    return ConfigError(f"model.path={settings.path}: cannot be loaded ({one_line(error)}){mend}")


def weights_fingerprint(settings: ModelSettings) -> str:
    """What tells a model's weights from others: the fingerprint of its directory, of an adapter's with its base's."""
    directory = model_directory(settings)
    found = fingerprint(directory)
    if is_adapter(directory):
        found += "-on-" + fingerprint(model_directory(base_settings(settings, directory)))
    return found
