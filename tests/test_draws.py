"""Random numbers as functions: published values, uniformity, and keys that do not collide."""

import pytest
import torch

from score_rl.draws import derive, uniform

# The first outputs of SplitMix64 seeded with 1234567, as its reference implementation prints them.
REFERENCE = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)


@pytest.mark.parametrize(("position", "output"), list(enumerate(REFERENCE)))
def test_uniform_is_the_top_53_bits_of_splitmix64(position, output):
    assert uniform(torch.tensor([1234567]), position).tolist() == [(output >> 11) / 2**53]


def test_a_key_gives_its_own_numbers_whatever_stands_beside_it():
    keys = torch.tensor([2**63 - 1, -(2**63), -1, 0, 1234567])
    together = uniform(keys, 3)
    assert together.tolist() == [float(uniform(key[None], 3)) for key in keys]
    assert together.dtype == torch.float64


def test_numbers_fill_the_unit_interval_evenly():
    draws = torch.stack([uniform(torch.tensor([derive("row", i) for i in range(2000)]), t) for t in range(20)])
    assert draws.min() >= 0 and draws.max() < 1
    # 40000 draws in 16 bins: chi-square with 15 degrees of freedom exceeds 37.7 once in a thousand.
    observed = torch.histc(draws.flatten(), bins=16, min=0, max=1)
    assert ((observed - 2500) ** 2 / 2500).sum() < 37.7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(lambda t: (derive(t), 0), lambda t: (derive(t), 1), id="neighbouring positions"),
        pytest.param(lambda t: (derive(t), 0), lambda t: (derive(t + 1), 0), id="neighbouring derived keys"),
        pytest.param(lambda t: (t, 0), lambda t: (t + 1, 0), id="neighbouring plain keys"),
    ],
)
def test_neighbours_are_independent(one, other):
    pairs = [[uniform(torch.tensor([key]), position) for key, position in (one(t), other(t))] for t in range(2000)]
    correlation = torch.corrcoef(torch.tensor(pairs).T)[0, 1]
    assert abs(correlation) < 3.3 / 2000**0.5  # one in a thousand


def test_derived_keys_differ_in_every_part_its_type_and_its_nesting():
    keys = [
        derive(0, "rollout", 1),
        derive(1, "rollout", 1),
        derive(0, "evaluate", 1),
        derive(0, "rollout", 2),
        derive(0, "rollout", "1"),
        derive(0, "rollout", (1,)),
        derive(0, "rollout", 1, ()),
        derive("rollout", 0, 1),
    ]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_derived_keys_are_the_same_in_every_process_and_version():
    # Another value here means that a resumed run draws other tokens than the run it goes on with.
    assert derive(0, "rollout", 1, 2, (0, 1)) == 3064810234128893251
