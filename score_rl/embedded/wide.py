"""The embedded policy with heads of another size: `python -m score_rl.embedded.wide -o DIR`.

vLLM's attention on CPUs takes heads of 32, 64 and more, and the embedded policy's have 24. Zeros fill them up: the
model is the same function, and its gradient is zero where the zeros are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor

from score_rl.loading import load_model, load_tokenizer
from score_rl.records import write_directory
from score_rl.schema import ModelSettings

HEAD_DIM = 32


def widen(directory: Path, head_dim: int = HEAD_DIM) -> None:
    """Writes the embedded policy with heads of `head_dim`, and its tokenizer.

    Raises:
        CheckpointError: it cannot be written.
    """
    settings = ModelSettings(path="embedded", dtype="float32")
    model = load_model(settings)
    config, old = model.config, model.config.head_dim
    # Frequencies are theta^(-2i/head_dim); the real pairs keep theirs.
    theta = config.rope_parameters["rope_theta"] ** (head_dim / old)
    wide = {"head_dim": head_dim, "rope_parameters": {**config.rope_parameters, "rope_theta": theta}}
    told = type(config).from_dict(config.to_dict() | wide)
    made = type(model)(told)
    state = {name: _widened(name, value, old, head_dim) for name, value in model.state_dict().items()}
    made.load_state_dict(state)
    made.generation_config = model.generation_config

    def fill(path: Path) -> None:
        made.save_pretrained(path)
        load_tokenizer(settings).save_pretrained(path)

    write_directory(directory, fill)


def _widened(name: str, value: Tensor, old: int, new: int) -> Tensor:
    layer = name.split(".")[-2]
    if layer in ("q_proj", "k_proj", "v_proj"):
        heads = value.view(-1, old, value.shape[1])
        return _spread(heads, 1, new).reshape(-1, value.shape[1])
    if layer == "o_proj":
        heads = value.view(value.shape[0], -1, old)
        return _spread(heads, 2, new).reshape(value.shape[0], -1)
    if layer in ("q_norm", "k_norm"):
        # The mean square is taken over the zeros too, and attention divides by the root of the head's size.
        scale = math.sqrt(old / new) * (math.sqrt(math.sqrt(new / old)))
        return _spread(value, 0, new) * scale
    return value


def _spread(value: Tensor, dim: int, new: int) -> Tensor:
    """Zeros behind each half of a dimension, since position i turns with position i + head_dim / 2."""
    halves = []
    for half in value.chunk(2, dim=dim):
        shape = list(half.shape)
        shape[dim] = new // 2 - shape[dim]
        halves.append(torch.cat([half, half.new_zeros(shape)], dim=dim))
    return torch.cat(halves, dim=dim)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The embedded policy with wider heads, for vLLM on a CPU.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    output: Path = parser.parse_args().output
    widen(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
