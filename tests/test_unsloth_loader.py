"""Unsloth's loader without Unsloth and without a GPU: the check of the cache. `test_refusals` has what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import add_lora, make_model
from transformers import LlamaForCausalLM

from score_rl.errors import ConfigError
from score_rl.unsloth_loader import check_cache


class Forgetful(LlamaForCausalLM):
    """Leaves the cache it is given empty, as a forward pass with a cache of its own does."""

    def forward(self, *args: Any, past_key_values: Any = None, use_cache: Any = None, **options: Any) -> Any:
        return super().forward(*args, use_cache=False, **options)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_model_that_fills_the_cache_it_is_given_passes(family: str) -> None:
    model = make_model(family).train()
    check_cache(model)
    check_cache(add_lora(model))
    assert model.training


def test_a_model_that_leaves_the_cache_empty_is_refused() -> None:
    model = Forgetful(make_model().config)
    model.load_state_dict(make_model().state_dict())
    with pytest.raises(ConfigError, match=r"Forgetful does not sample from the cache that it is given \(log-probs"):
        check_cache(model)
