"""One setting for the whole suite, and a small random model with a short run of it for the tests that need one."""

import signal
from pathlib import Path

import pytest
from hypothesis import settings

# Property tests draw the same examples every time and are not timed.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# A shell that puts the suite into the background has it ignore Ctrl-C, and with it every program that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model with random weights that reads and writes single characters."""
    from tiny import make_model, make_tokenizer

    directory = tmp_path_factory.mktemp("tiny") / "model"
    make_model().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_run(tiny_model: Path) -> Path:
    """A run of both stages that leaves every file a run can leave: 12 steps, stored first attempts, 3 attempts at last.

    Tests read it and never write into it.
    """
    from score_rl.settings import load
    from score_rl.train import Trainer

    content = [
        f"model.path={tiny_model}",
        "data.options={digits: 4, train: 40, validation: 6, test: 8}",
        "train.validate_every=6",
        "eval.attempts=3",
        "eval.max_new_tokens=6",
    ]
    stage = "problems: 4, branch: [2, 2], max_new_tokens: [6, 6], lr: 1.0e-4"
    content.append(
        f"stages=[{{kind: stage1, steps: 12, offline_fraction: 0.5, advantage: sibling, {stage}}}, "
        f"{{kind: stage2, steps: 2, {stage}}}]"
    )
    path = tiny_model.parent / "run"
    Trainer(load("arithmetic", content), path).train()
    return path
