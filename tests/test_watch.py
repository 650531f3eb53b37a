"""The live page, served by a real server and asked for over a real connection."""

import base64
import hashlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest

from score_rl.errors import ConfigError
from score_rl.report import render
from score_rl.run import RunDirectory
from score_rl.settings import load
from score_rl.watch import LivePage, LiveServer


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


def ask(port: int, path: str, *, method: str = "GET", **headers: str) -> Answer:
    """What a server on the loopback address says; `Host` is that of the address unless given."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    found = Answer(response.status, dict(response.headers), response.read().decode())
    connection.close()
    return found


@contextmanager
def served(page: LivePage) -> Iterator[int]:
    server = LiveServer(page, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has begun to train: settings and the line of the model before training, no evaluation."""
    run = RunDirectory(tmp_path / "run")
    run.begin(load("arithmetic"), fresh=False)
    run.append(run.metrics, [{"step": 0, "stage": "base", "stage_step": 0, "validation/acc/t1": 0.5}])
    return run


def step(number: int) -> dict[str, object]:
    shares = {"acc/t1": 0.25, "acc/t2": 0.5, "delta/t1_t2": 0.25, "kl/t1": 0.01, "length/t1": 11.0}
    return {"step": number, "stage": "stage1", "stage_step": number, **shares}


def live(run: RunDirectory) -> LivePage:
    """A page that is made again as soon as a file has changed."""
    return LivePage(lambda: render([run.path]), [run.path], seconds=0, share=0)


def test_the_page_of_a_run_that_trains_is_there_before_any_evaluation(run: RunDirectory) -> None:
    with served(live(run)) as port:
        page = ask(port, "/report.html")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.text == render([run.path])


def test_the_page_changes_when_a_step_is_written_and_only_then(run: RunDirectory) -> None:
    with served(live(run)) as port:
        first, version = ask(port, "/report.html"), ask(port, "/version").text
        assert first.headers["ETag"] == f'"{version}"'
        assert ask(port, "/version").text == version
        unchanged = ask(port, "/report.html", If_None_Match=first.headers["ETag"])
        assert (unchanged.status, unchanged.text) == (304, "")
        run.append(run.metrics, [step(1), step(2), step(3)])
        assert ask(port, "/version").text != version
        second = ask(port, "/report.html", If_None_Match=first.headers["ETag"])
        assert second.status == 200
        assert second.text == render([run.path]) != first.text
        assert second.headers["ETag"] == f'"{ask(port, "/version").text}"'


@pytest.mark.parametrize("wait", [{"seconds": 3600}, {"seconds": 0, "share": 1e9}], ids=["seconds", "share"])
def test_the_page_is_not_made_again_before_its_time(run: RunDirectory, wait: dict[str, float]) -> None:
    page = LivePage(lambda: render([run.path]), [run.path], **wait)
    version, text = page.read()
    run.append(run.metrics, [step(1), step(2)])
    assert page.version() == version
    assert page.read() == (version, text)


def test_an_evaluation_that_is_still_played_does_not_make_the_page_anew(run: RunDirectory) -> None:
    page = live(run)
    version = page.version()
    run.append(run.eval / "base.partial.jsonl", [{"evaluation": {}}])
    assert page.version() == version
    (run.eval / "notes.txt").write_text("a file more")
    assert page.version() != version


def test_while_a_file_is_broken_the_last_page_stays(run: RunDirectory) -> None:
    page = live(run)
    version, text = page.read()
    run.eval.mkdir()
    (run.eval / "base.json").write_text('{"acc/t1": ')
    assert page.read() == (version, text)
    (run.eval / "base.json").unlink()
    run.append(run.metrics, [step(1)])
    assert page.read()[1] != text


def test_the_frame_runs_its_own_script_and_nothing_else(run: RunDirectory) -> None:
    with served(live(run)) as port:
        frame = ask(port, "/")
    policy = frame.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", frame.text, flags=re.S)
    assert script_hash(script) in policy
    assert "http" not in frame.text  # asks nobody else for anything


def script_hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@pytest.mark.parametrize(
    "path", ["/metrics.jsonl", "/config.yaml", "/../run/config.yaml", "//etc/passwd", "/index.html"]
)
def test_no_other_path_is_served(run: RunDirectory, path: str) -> None:
    with served(live(run)) as port:
        assert ask(port, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_no_other_method_is_known(run: RunDirectory, method: str) -> None:
    with served(live(run)) as port:
        assert ask(port, "/", method=method).status == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("localhost:9000", 200),  # a port that ssh forwards
        ("localhost", 200),
        ("evil.example:{port}", 403),
        ("localhost.evil.example:{port}", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/", "/version", "/report.html"])
def test_a_name_of_another_site_that_points_here_is_refused(
    run: RunDirectory, host: str, status: int, path: str
) -> None:
    with served(live(run)) as port:
        assert ask(port, path, Host=host.format(port=port)).status == status


def test_the_server_listens_on_the_loopback_address_alone(run: RunDirectory) -> None:
    server = LiveServer(live(run), 0)
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"
    server.server_close()


def test_a_port_that_is_in_use_is_refused_with_the_mend(run: RunDirectory) -> None:
    with served(live(run)) as port, pytest.raises(ConfigError, match=f"--port {port}: is in use; choose another"):
        LiveServer(live(run), port)


def score(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "score_rl", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_serves_until_it_is_interrupted_and_leaves_cleanly(run: RunDirectory, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "score_rl", "report", str(run.path), "--watch", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    said = process.stdout.readline()
    (port,) = re.findall(r"^live report at http://127\.0\.0\.1:(\d+)/ for this machine alone; Ctrl-C ends it$", said)
    before = ask(int(port), "/report.html").text
    again = score(run.path, "--watch", "--port", port)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"error: --port {port}: is in use; choose another, or --port 0 for one that is free\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (process.returncode, output, errors) == (0, "", "")
    assert "<html" in before
    assert list(tmp_path.iterdir()) == [run.path]  # no page was written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--watch", "-o", "page.html"], "-o page.html: --watch serves the page and writes none"),
        (["--port", "1"], "--port 1: only for --watch"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run: RunDirectory, arguments: list[str], said: str) -> None:
    done = score(run.path, *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_directory_that_is_no_run_is_refused_before_anything_is_served(tmp_path: Path) -> None:
    done = score(tmp_path, "--watch", "--port", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_finished_evaluation_is_on_the_page(run: RunDirectory, tiny_run: Path) -> None:
    page = live(run)
    for name in ("base.json", "base.jsonl"):
        run.eval.mkdir(exist_ok=True)
        (run.eval / name).write_bytes((tiny_run / "eval" / name).read_bytes())
    _, text = page.read()
    assert text == render([run.path])
    accuracy = json.loads((run.eval / "base.json").read_text())["acc/t1"]
    assert f"{100 * accuracy:.1f}" in text


def test_a_report_that_cannot_be_written_is_a_warning_and_costs_nothing_else(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from score_rl.tracking import Screen
    from score_rl.train import Trainer

    stage = "{kind: stage1, steps: 1, problems: 2, branch: [2, 2], max_new_tokens: [6, 6]}"
    small = [f"model.path={tiny_model}", "data.options={digits: 4, train: 8, validation: 4, test: 4}"]
    settings = load("arithmetic", [*small, "eval.max_new_tokens=6", f"stages=[{stage}]"])
    RunDirectory(tmp_path).begin(settings, fresh=False)
    (tmp_path / "report.html").mkdir()
    assert set(Trainer(settings, tmp_path, screen=Screen()).train()) == {"base", "stage1"}
    warnings = [line for line in capsys.readouterr().err.splitlines() if "report.html" in line]
    assert len(warnings) == 2  # before the stage and at the end
    assert warnings[0].startswith(f"warning: {tmp_path / 'report.html'}: not written: ")
