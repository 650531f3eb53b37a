"""The shape of the package: who may import whom, what stays light, and how long a file or a function may grow."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import score_rl

PACKAGE = Path(score_rl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports only modules to the left of it on its own floor, or on a floor above.
FLOORS = {
    "words": (
        "errors waiting launcher registry episodes records strict chat_schema model_schema engine_schema stage_schema "
        "schema settings sweep_schema"
    ),
    "meaning": (
        "stats resampling votes power diff "
        "pool sandbox.wire sandbox.candidate sandbox.judge sandbox.script sandbox.seccomp sandbox.bubblewrap "
        "sandbox.process sandbox.names sandbox.monty sandbox extract rewards.base rewards.text rewards.qa "
        "rewards.latex rewards.parts rewards.symbolic rewards.math rewards.code rewards grading metrics scaling "
        "results template chat limits layout data data.files data.splits data.load data.arithmetic data.tasks "
        "data.walk monitor run sweep sweep_result compare table_source report.text report.svg report.charts table "
        "report.source "
        "report.transcripts report.summary report.differences report.parts report.verdict report.page figures "
        "table_text report.sweep report"
    ),
    "tensors": "batch draws objectives schedule",
    "models": (
        "processes shards logprobs adapters policy unsloth_loader loading optim zero parallel update decode rollout "
        "sharing synced vllm_engine vllm_server engines endpoint embedded"
    ),
    "procedures": (
        "evaluation token_kl checkpoint interrupts tracking trackers offline supply traces material train "
        "sweep_worker sweeping "
        "planning.shapes planning.memory planning.costs planning planning.spread planning.seconds planning.cluster"
    ),
    "edge": (
        "embedded.walks embedded.build embedded.wide recipes prior.conversion prior.by571 prior.vityavitalich prior "
        "model_card export hard watch profile cli.subject cli.tables cli.train cli.remote cli.evaluate cli.panels "
        "cli.solve cli.convert "
        "cli.data cli.data_tools cli.grade cli.report cli.compare cli.table cli.sweep cli "
        "__main__"
    ),
}
ORDER = ["", *" ".join(FLOORS.values()).split()]  # "" is the package itself, which imports nothing when it is imported
LIGHT = ["", *FLOORS["words"].split(), *FLOORS["meaning"].split()]
HEAVY = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "scipy", "numpy")
HEAVY += ("datasets", "pyarrow")

# A source files itself in the registry of `data.load`, which therefore must import it once somebody asks for problems.
FILED = {("data.load", "data.arithmetic"), ("data.load", "data.tasks"), ("data.load", "data.walk")}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere, also within functions and for type checkers."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    inside = {name.removeprefix("score_rl.") for name in names if name.startswith("score_rl.")}
    return inside & set(ORDER)


def loaded_heavy(code: str) -> str:
    """Names of heavy libraries that are loaded after `code` ran in a process of its own."""
    script = f"import sys\n{code}\nprint(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.strip()


def test_the_list_names_every_module_and_no_other():
    assert sorted(ORDER) == sorted(module_name(path) for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "score_rl")
def test_a_module_imports_only_what_stands_before_it(path):
    name = module_name(path)
    before = ORDER[: ORDER.index(name)]
    assert {other for other in imported(path) if other not in before and (name, other) not in FILED} <= {name}


def test_the_floors_of_words_and_meaning_load_no_heavy_library():
    assert loaded_heavy("\n".join(f"import score_rl.{name}".rstrip(".") for name in LIGHT)) == ""


def test_importing_the_package_loads_no_heavy_library():
    assert loaded_heavy("import score_rl; assert 'Trainer' in score_rl.__all__") == ""


def test_asking_for_help_loads_no_heavy_library():
    assert loaded_heavy("from score_rl.cli import app\ntry:\n    app(['--help'])\nexcept SystemExit:\n    pass") == ""


@pytest.mark.parametrize("name", score_rl.__all__)
def test_a_public_name_is_no_module_even_after_all_modules_were_imported(name):
    # Importing a module sets it as an attribute of the package, in front of a function of the same name.
    for module in ORDER[:-1]:
        importlib.import_module(f"score_rl.{module}".rstrip("."))
    assert callable(getattr(score_rl, name))


def test_a_name_that_the_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        _ = score_rl.Trainr


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "score_rl")
def test_files_and_functions_stay_short_enough_to_be_read(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= 80}
    assert long == {}
