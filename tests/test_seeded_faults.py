"""The places of the seeded faults (`make mutants`), which stand in the source as text and so go stale unnoticed."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_each_seeded_fault_finds_its_place_once_and_names_tests_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from mutants import MUTANTS

    source = {mutant.file: (ROOT / "score_rl" / mutant.file).read_text(encoding="utf-8") for mutant in MUTANTS}
    places = {mutant.name: source[mutant.file].count(mutant.old) for mutant in MUTANTS}
    assert len(places) == len(MUTANTS), "two faults have one name"
    assert [name for name, number in places.items() if number != 1] == []
    assert [name for mutant in MUTANTS for name in mutant.tests if not (ROOT / name).is_file()] == []
