"""Tests with a real vLLM, in an environment of its own: `make test-vllm`."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded policy with heads that vLLM takes on a CPU."""
    from score_rl.embedded.wide import widen

    path = tmp_path_factory.mktemp("wide") / "model"
    widen(path)
    return path


@pytest.fixture(scope="session")
def server(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of it."""
    made = Server(wide, tmp_path_factory.mktemp("server") / "log.txt")
    try:
        made.wait()
        yield made
    finally:
        made.kill()
