"""The embedded policy behind a real server: the answers of a local evaluation, also when the server gets killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import score_rl.embedded
from score_rl.cli import main
from score_rl.records import read_jsonl

for package in ("openai", "uvicorn", "fastapi"):
    pytest.importorskip(package, reason="transformers serve needs pip install 'transformers[serving]'")

MODEL = Path(score_rl.embedded.__file__).parent / "policy"
PROBLEMS, ATTEMPTS, CONCURRENCY = 40, 2, 2
PART = 4 * CONCURRENCY


class Server:
    """`transformers serve` with the embedded policy, on one port for all its lives."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None
        self.lives = 0
        self.after: tuple[int, Callable[[], None]] | None = None
        """How many attempts are answered before something happens, and what."""
        self._answered = 0
        self._marked = threading.Event()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts it, and comes back when it listens."""
        command = [str(Path(sys.executable).with_name("transformers")), "serve", str(MODEL)]
        options = ["--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = process = subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lives += 1
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "Uvicorn running" in line:
                threading.Thread(target=self._watch, args=(process,)).start()
                return
        raise AssertionError("the server did not start:\n" + "".join(said))

    def _watch(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._answered += "POST /v1/chat/completions" in line and " 200 " in line
                if "GET /health" in line:
                    self._marked.set()
                if self.after is not None and self._answered == self.after[0]:
                    (_, happens), self.after = self.after, None
                    happens()

    def answered(self) -> int:
        """Attempts that were answered since the last call."""
        # The log's line of this request stands behind those of all before it.
        self._marked.clear()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health") as reply:
            reply.read()
        assert self._marked.wait(timeout=60)
        number, self._answered = self._answered, 0
        return number

    def kill(self) -> None:
        """SIGKILL, and comes back when it is gone."""
        # Forgotten first: a client that sees it gone may start the next one before this thread has waited.
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        with self._lock:
            if not self._closed:
                self.kill()
                self.start()

    def close(self) -> None:
        """Kills it for good, also where it is just being started again."""
        with self._lock:
            self._closed = True
            self.kill()


class Result(NamedTuple):
    code: int
    err: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs `score eval` of the policy in this process."""

    def run(output: Path, *options: object) -> Result:
        size = ["--problems", PROBLEMS, "--attempts", ATTEMPTS, "-o", output]
        monkeypatch.setattr(sys, "argv", ["score", "eval", str(MODEL), *map(str, [*size, *options])])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, capsys.readouterr().err)

    return run


def rows(path: Path) -> list[dict]:
    """Episodes without their tokens, which a server does not tell."""
    found = []
    for _, row in read_jsonl(path.with_suffix(".jsonl")):
        attempts = [
            {"text": a["text"], "finished": a["finished"], "grade": a["grade"]}
            | {"length": len(a["token_ids"]) if a["num_tokens"] is None else a["num_tokens"]}
            for a in row["attempts"]
        ]
        found.append({"id": row["problem"]["id"], "path": row["path"], "attempts": attempts})
    return found


def test_a_served_policy_answers_as_a_local_one_and_a_killed_server_loses_and_repeats_nothing(
    server: Server, evaluate: Callable[..., Result], tmp_path: Path
):
    local, whole, broken, patient = (tmp_path / f"{name}.json" for name in ("local", "whole", "broken", "patient"))
    remote = ["--endpoint", server.url, "--concurrency", CONCURRENCY]
    assert evaluate(local).code == 0
    assert evaluate(whole, *remote).code == 0
    assert server.answered() == PROBLEMS * ATTEMPTS
    assert rows(whole) == rows(local)
    assert len(rows(whole)) == PROBLEMS
    assert json.loads(whole.read_text()) == json.loads(local.read_text())

    # Killed in the third part and not there again, until the same command is given again.
    server.after = (2 * PART * ATTEMPTS + 2, server.kill)
    failed = evaluate(broken, *remote, "--retries", 0)
    errors = [line for line in failed.err.splitlines() if line.startswith("error:")]
    assert failed.code == 2 and len(errors) == 1, failed.err
    assert errors[0].startswith(f"error: --endpoint {server.url}, model {MODEL}: no answer after 0 retries (")
    assert errors[0].endswith("then repeat the command, which goes on where -o FILE keeps what is finished")
    assert not broken.exists()
    partial = broken.with_suffix(".partial.jsonl")
    assert len(partial.read_text().splitlines()) == 1 + 2 * PART
    server.start()
    server.answered()
    assert evaluate(broken, *remote, "--retries", 0).code == 0
    assert server.answered() == (PROBLEMS - 2 * PART) * ATTEMPTS
    assert broken.with_suffix(".jsonl").read_bytes() == whole.with_suffix(".jsonl").read_bytes()
    assert broken.read_bytes() == whole.read_bytes()
    assert not partial.exists()

    # Killed and there again before the retries are used up.
    server.after = (2 * PART * ATTEMPTS + 2, server.restart)
    assert evaluate(patient, *remote, "--retries", 30).code == 0
    assert server.lives == 3
    assert patient.with_suffix(".jsonl").read_bytes() == whole.with_suffix(".jsonl").read_bytes()
    assert patient.read_bytes() == whole.read_bytes()
