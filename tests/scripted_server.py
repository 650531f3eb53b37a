"""A real HTTP server on the loopback address whose answers are scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, dict[str, Any]], tuple[int, Any]]
"""Status and body of the answer to a request for an attempt; requests are numbered from 0."""


class Server(ThreadingHTTPServer):
    """Listens on the loopback address, answers as scripted, and remembers requests, keys and how many came at once."""

    def __init__(self, script: Script, models: tuple[int, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.models = models
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.lock = threading.Lock()
        self.inside = self.most = self.listed = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.listed += 1
        self._send(*self.server.models)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append(request)
            self.server.keys.append(self.headers["Authorization"])
            self.server.inside += 1
            self.server.most = max(self.server.most, self.server.inside)
        status, body = self.server.script(number, request)
        with self.server.lock:
            self.server.inside -= 1
        self._send(status, body)

    def _send(self, status: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        # The client's pause, instead of one that doubles from half a second.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(script: Script, models: tuple[int, Any] = (404, {"detail": "Not Found"})) -> Iterator[Server]:
    with Server(script, models) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
