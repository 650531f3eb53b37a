"""What the pages show must exist: the recipe of the README, and every test and function that docs/paper.md names."""

import importlib
import re
from pathlib import Path

import pytest

from score_rl.settings import parse, parse_yaml

ROOT = Path(__file__).parent.parent


def test_the_recipe_of_the_readme_parses() -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    settings = parse(parse_yaml(recipe, "README.md"), "README.md")
    assert [stage.label for stage in settings.stages] == ["stage1", "stage2"]


def paper_names() -> list[str]:
    return re.findall(r"`([\w./]+)(?:\([^`]*\))?`", (ROOT / "docs" / "paper.md").read_text())


def test_every_test_that_the_paper_page_names_exists() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
    named = [name for name in paper_names() if name.startswith("test_")]
    assert len(named) > 10
    for name in named:
        assert name in sources or any(f"def {name}(" in text for text in sources.values()), name


MODULES = ("metrics", "objectives", "offline", "schedule", "evaluation")


@pytest.mark.parametrize("name", sorted({n for n in paper_names() if n.split(".")[0] in MODULES}))
def test_every_function_that_the_paper_page_names_exists(name: str) -> None:
    module, function = name.split(".")
    assert callable(getattr(importlib.import_module(f"score_rl.{module}"), function))
