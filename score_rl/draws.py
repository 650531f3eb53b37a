"""Random numbers as functions of what they are for, so that they depend on nothing that ran before."""

import hashlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX1, _MIX2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def derive(*parts: object) -> int:
    """A signed 64-bit key from e.g. (seed, "rollout", stage, step, problem, path).

    >>> derive(0, "rollout", 1) == derive(0, "rollout", 1) != derive(1, "rollout", 1)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniform(keys: Tensor, position: int) -> Tensor:
    """Uniform numbers in [0, 1) -> [B] float64, one for each key at this position (SplitMix64 of key and position).

    Args:
        keys: [B] int64.
        position: from 0; the same key gives independent numbers at different positions.
    """
    z = keys + _signed((position + 1) * _GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(_MIX1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX2)
    return _shift(z ^ _shift(z, 31), 11).to(torch.float64).div(2**53)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch shifts int64 arithmetically."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
