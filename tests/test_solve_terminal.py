"""`score solve` in a real pseudo-terminal: what it draws while tokens come, its prompt, Ctrl-C and Ctrl-D."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pytest
from test_solve import EASY, ESCAPES, HARD, frames

SCORE = [sys.executable, "-m", "score_rl"]
SECONDS = 300
"""Nothing here is quick on purpose or waits for this; a test that hangs ends."""


class Terminal(NamedTuple):
    """A command in a pseudo-terminal of its own, which it is the foreground of."""

    process: subprocess.Popen[bytes]
    master: int
    seen: bytearray

    @classmethod
    def start(cls, *arguments: str, columns: int = 80, output: Path | None = None) -> "Terminal":
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, columns))
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
        # In a session of its own, the first terminal that is opened anew becomes the one whose Ctrl-C is heard.
        to = f'"{output}"' if output else "&0"
        shell = ["sh", "-c", f'exec <> "$0" >{to} 2>&0 "$@"', os.ttyname(slave), *SCORE, *arguments]
        streams = {"stdin": slave, "stdout": slave, "stderr": slave}
        process = subprocess.Popen(shell, start_new_session=True, env=inherited | {"TERM": "xterm"}, **streams)
        os.close(slave)
        return cls(process, master, bytearray())

    def read_until(self, pattern: str) -> str:
        """All output since the last call, up to a match of the pattern."""
        while not (found := re.search(pattern.encode(), self.seen)):
            assert self._more(), f"ended without {pattern!r}: {self.seen.decode(errors='replace')}"
        text = self.seen[: found.end()].decode()
        del self.seen[: found.end()]
        return text

    def _more(self) -> bool:
        ready, _, _ = select.select([self.master], [], [], SECONDS)
        assert ready, f"nothing for {SECONDS} s behind {self.seen.decode(errors='replace')}"
        try:
            more = os.read(self.master, 65536)
        except OSError:  # what Linux says when the other side is closed
            return False
        self.seen.extend(more)
        return bool(more)

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C until it has ended."""
        # One in the instant before Python waits for a line is heard behind that line only, so there are more.
        while self.process.poll() is None:
            self.write("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)

    def end(self) -> tuple[int, str]:
        """Exit code and the rest of the output."""
        while self._more():
            pass
        code = self.process.wait(SECONDS)
        os.close(self.master)
        return code, self.seen.decode()


@pytest.fixture
def terminal():
    """Starts commands in pseudo-terminals; ends those that a failed test leaves."""
    started: list[Terminal] = []

    def start(*arguments: str, **options) -> Terminal:
        started.append(Terminal.start(*arguments, **options))
        return started[-1]

    yield start
    for terminal in started:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()


def test_a_conversation_loads_once_goes_on_behind_errors_and_ends_with_an_empty_line(terminal):
    session = terminal("solve", "embedded")
    assert session.read_until("question: ").count("embedded; an empty line ends") == 1
    for question in (EASY, HARD):
        session.write(question + "\n")
        answer = ESCAPES.sub("", session.read_until("question: "))
        assert len(re.findall(r"│ \d{10} +│ +│ \d{10} +│", answer.rpartition("attempt 2")[2])) == 1
        assert "an empty line ends" not in answer
    session.write("9" * 1100 + "\n")
    session.read_until(r"\nerror: question: a prompt of 1\d{3} tokens.*--attempts\r\n")
    session.read_until("question: ")
    session.write("\n")
    code, rest = session.end()
    assert (code, ESCAPES.sub("", rest).strip()) == (0, "")


def test_ctrl_c_at_the_prompt_ends_without_a_traceback(terminal):
    session = terminal("solve", "embedded")
    session.read_until("question: ")
    session.interrupt()
    code, rest = session.end()
    assert code == 130
    assert rest.rstrip().endswith("interrupted") and "Traceback" not in rest


def test_tokens_are_shown_while_they_come_and_the_drawing_gives_way_to_the_result(terminal):
    # 300 attempts of eleven tokens: far longer than the time between two drawings.
    session = terminal("solve", "embedded", EASY, "--attempts", "300", columns=100)
    growing = frames(session.read_until(r"\x1b\[\?25h"))  # the cursor is hidden as long as there is more to come
    code, rest = session.end()
    assert code == 0
    assert len(growing) > 2
    assert len(re.findall(r"\d{10}", ESCAPES.sub("", rest))) == 300


def test_ctrl_c_in_the_middle_ends_without_a_traceback_and_gives_the_cursor_back(terminal):
    session = terminal("solve", "embedded", EASY, "--attempts", "5000", columns=100)
    session.read_until(r"\d{10}")
    session.interrupt()
    code, rest = session.end()
    assert code == 130
    assert rest.rstrip().endswith("interrupted")
    assert "Traceback" not in rest
    assert "\x1b[?25h" in rest


def test_in_json_the_prompt_keeps_out_of_standard_output_and_ctrl_d_ends(terminal, tmp_path):
    out = tmp_path / "out.jsonl"
    session = terminal("solve", "embedded", "--json", output=out)
    session.read_until("question: ")
    session.write(EASY + "\n")
    session.read_until("question: ")
    session.write("\x04")
    assert session.end()[0] == 0
    assert json.loads(out.read_text())["question"] == EASY
