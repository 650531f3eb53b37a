"""A live page on this machine's loopback address: a report that is made again while its files grow."""

from __future__ import annotations

import errno
import hashlib
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from score_rl.errors import ConfigError, ScoreError

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")
PORT = 8642
SECONDS = 3.0
SHARE = 5.0
"""A page that takes long to make is made less often, so that training keeps the processor."""

STYLE = """
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 0; height: 100vh; display: flex; flex-direction: column; }
header { display: flex; gap: 1.5em; padding: 0.3em 1em; border-bottom: 1px solid GrayText; }
iframe { flex: 1; border: 0; }
"""

SCRIPT = """
const frame = document.querySelector("iframe");
const status = document.getElementById("status");
const follow = document.getElementById("follow");
let shown = null;
async function look() {
  try {
    const answer = await fetch("version", { cache: "no-store" });
    const version = await answer.text();
    if (shown === null) {
      frame.src = "report.html";
      shown = version;
    } else if (version !== shown && follow.checked && document.activeElement !== frame) {
      frame.contentWindow.location.reload();  // keeps the place, but no filter or typed word
      shown = version;
    }
    const waits = follow.checked ? "news waits while you are in the page; click here to see it" : "there is news";
    status.textContent = version === shown ? "up to date at " + new Date().toLocaleTimeString() : waits;
  } catch (error) {
    status.textContent = "the server has been stopped";
  }
}
follow.addEventListener("change", look);
setInterval(look, 2000);
look();
"""

FRAME = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>SCoRe report, live</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<label><input type="checkbox" id="follow" checked> follow the run</label>
<span id="status">loading</span>
<noscript><a href="report.html">The page as it is now</a></noscript>
</header>
<iframe title="Report"></iframe>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {_digest(SCRIPT)}; style-src {_digest(STYLE)}; connect-src 'self'; "
    "frame-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LivePage:
    """A page of runs that is made again when their files have changed, but not too often.

    Args:
        render: makes the page.
        runs: directories whose files it shows.
        seconds: at least this long from one making to the next.
        share: at least this many times as long as the last one took.

    Raises:
        ScoreError: the first page cannot be made.
    """

    def __init__(
        self, render: Callable[[], str], runs: Sequence[Path], *, seconds: float = SECONDS, share: float = SHARE
    ) -> None:
        self._render, self._runs, self._seconds, self._share = render, runs, seconds, share
        self._lock = threading.Lock()
        self._make()

    def version(self) -> str:
        """Names the page that `read` would give; differs where that one would."""
        if time.monotonic() < self._due:
            return self._version
        return _fingerprint(self._files())

    def read(self) -> tuple[str, str]:
        """The page's version and text; made anew where that is due.

        While it cannot be made, e.g. because a file is being replaced, the last one stays.
        """
        with self._lock:
            if self.version() != self._version:
                try:
                    self._make()
                except ScoreError:
                    self._wait(0)
            return self._version, self._text

    def _make(self) -> None:
        version, begun = _fingerprint(self._files()), time.monotonic()
        self._text = self._render()
        self._version = version
        self._wait(time.monotonic() - begun)

    def _wait(self, took: float) -> None:
        self._due = time.monotonic() + max(self._seconds, self._share * took)

    def _files(self) -> Iterable[Path]:
        for run in self._runs:
            yield from (run / "config.yaml", run / "metrics.jsonl")
            found = [*(run / "eval").glob("*"), *(run / "results").glob("*/*.json")]  # the latter of a sweep
            yield from (file for file in sorted(found) if ".partial" not in file.name)


def _fingerprint(files: Iterable[Path]) -> str:
    """A word for names, sizes and times of files; one that is not there has none."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
        except OSError:
            continue
        digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


class _Handler(BaseHTTPRequestHandler):
    """Answers GET for three addresses; every other method is unknown to it."""

    server: LiveServer

    def do_GET(self) -> None:
        """The frame, the page in it, or the page's version."""
        # Another site's name may have been made to point here; its pages must not read ours.
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in HOSTS:
            self.send_error(403, "Ask for this page at its own address")
        elif self.path == "/":
            self._answer(FRAME, {"Content-Security-Policy": POLICY})
        elif self.path == "/version":
            self._answer(self.server.page.version(), kind="text/plain")
        elif self.path == "/report.html":
            version, text = self.server.page.read()
            if self.headers.get("If-None-Match") == f'"{version}"':
                self.send_response(304)
                self.end_headers()
            else:
                self._answer(text, {"ETag": f'"{version}"'})
        else:
            self.send_error(404)

    def _answer(self, text: str, headers: dict[str, str] | None = None, kind: str = "text/html") -> None:
        content = text.encode("utf-8", "replace")
        self.send_response(200)
        always = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        always |= {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        always |= {"Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin"}
        for name, value in (always | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing of requests: there is one every two seconds."""


class LiveServer(ThreadingHTTPServer):
    """Serves a live page to this machine alone, until it is shut down.

    Args:
        port: 0 for any that is free; see `url`.

    Raises:
        ConfigError: the port is taken or not allowed.
    """

    def __init__(self, page: LivePage, port: int) -> None:
        self.page = page
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ConfigError(f"--port {port}: {reason}; choose another, or --port 0 for one that is free") from error

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Passes over a browser that has gone away; says the rest."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def serve(server: LiveServer) -> None:
    """Says where the page is and serves it until Ctrl-C."""
    print(f"live report at {server.url} for this machine alone; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
