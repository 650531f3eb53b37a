"""`score solve`: the panels, the words that changed, hostile text, questions from a pipe."""

import io
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from test_cli import refused, score  # noqa: F401  (the command line in this process, as a fixture)
from tiny import add_lora, make_model, make_tokenizer

from score_rl.cli import panels
from score_rl.cli.panels import Shown, harmless, side_by_side, streaming
from score_rl.cli.solve import Asker, WatchedEngine, extractor_of
from score_rl.cli.subject import settings_of
from score_rl.episodes import Problem
from score_rl.extract import boxed, gsm8k_hash
from score_rl.rewards import register_reward
from score_rl.rollout import Plan, Player
from score_rl.schema import RewardSettings

EASY = "7034512345 - 1234567890"
HARD = "7833105781 - 0916475328"

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def drawn(attempts: list[Shown], *, width: int = 80, encoding: str = "utf-8", **options) -> str:
    """What is printed; with escape sequences for a terminal, without for a file."""
    buffer = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=buffer, width=width, highlight=False, **options)
    console.print(side_by_side(attempts, console))
    buffer.seek(0)
    return buffer.read()


def texts(*attempts: str) -> list[Shown]:
    return [Shown(text) for text in attempts]


@pytest.mark.parametrize(
    ("width", "rows"),
    [pytest.param(120, 1, id="side by side"), pytest.param(75, 2, id="two and one"), pytest.param(50, 3, id="stacked")],
)
def test_long_attempts_stand_side_by_side_where_there_is_room(width, rows):
    shown = drawn(texts(*["so many words " * 20] * 3), width=width)
    lines = shown.splitlines()
    assert sum("attempt" in line for line in lines) == rows
    assert all(len(line) <= width for line in lines)
    assert shown.count("words") == 60


def test_short_attempts_stand_side_by_side_even_in_a_narrow_terminal():
    lines = drawn(texts("6916620453", "6916630453"), width=40).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "╭─ attempt 1 ─╮ ╭─ attempt 2 ─╮",
        "│ 6916620453 │ │ 6916630453 │",
        "╰─────────────╯ ╰─────────────╯",
    ]


@pytest.fixture
def colours(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_removed_words_are_struck_red_in_attempt_1_and_added_ones_bold_green_in_attempt_2(colours):
    shown = drawn(texts("It is 6 now.", "It is 5 now."), force_terminal=True, color_system="standard")
    assert "It is \x1b[9;31m6\x1b[0m now." in shown
    assert "It is \x1b[1;32m5\x1b[0m now." in shown


def test_without_colours_a_line_through_and_bold_type_remain(colours, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = drawn(texts("It is 6 now.", "It is 5 now."), force_terminal=True, color_system="standard")
    assert "It is \x1b[9m6\x1b[0m now." in shown
    assert "It is \x1b[1m5\x1b[0m now." in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", shown)


def test_a_file_gets_no_escape_sequences():
    assert "\x1b" not in drawn(texts("It is 6 now.", "It is 5 now."))


def test_a_word_of_attempt_2_can_be_new_and_gone_again(colours):
    shown = drawn(texts("a 1 b", "a 2 b", "a 3 b"), force_terminal=True, color_system="standard")
    assert "\x1b[1;9;31m2\x1b[0m" in shown


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        pytest.param("a\x1b[2J\x1b]0;title\x07b", r"a\x1b[2J\x1b]0;title\x07b", id="escape sequences"),
        pytest.param("one\rtwo\x08\x08", r"one\rtwo\x08\x08", id="overwriting"),
        pytest.param("\x9b31mred\x7f", r"\x9b31mred\x7f", id="C1 controls"),
        pytest.param("safe\u202egnihton\u2066", r"safe\u202egnihton\u2066", id="bidirectional controls"),
        pytest.param("a\u200bb\ufeff\U000e0041", r"a\u200bb\ufeff\U000e0041", id="signs without width"),
        pytest.param("half \ud83d", r"half \ud83d", id="half a character"),
        pytest.param("[bold red]no[/] [link=x]", "[bold red]no[/] [link=x]", id="markup of rich"),
        pytest.param("می‌خواهم 👨‍👩‍👧", "می‌خواهم 👨‍👩‍👧", id="joiners stay"),
    ],
)
def test_hostile_text_is_shown_and_does_nothing(hostile, shown):
    assert harmless(hostile) == shown
    printed = drawn([Shown(hostile, answer=hostile)], width=200)
    assert printed.count(shown) == 2
    assert not set(printed) & {"\x1b", "\x9b", "\x07", "\x08", "\x7f", "\r", "\u202e"}


def test_every_character_that_a_terminal_may_obey_is_escaped():
    controls = "".join(map(chr, [*range(32), *range(127, 160)]))
    assert {c for c in harmless(controls) if ord(c) < 32 or 127 <= ord(c) < 160} == {"\n", "\t"}


def test_text_that_the_terminal_has_no_letters_for_is_escaped():
    assert "caf\\xe9 \\u4eac" in drawn([Shown("café 京", answer=None)], encoding="ascii")


def test_notes_and_answers_stand_in_their_panels():
    shown = drawn([Shown("so #### 5 apples", "cut off at 9 tokens", "5"), Shown("")])
    assert [line.split("│")[1].strip() for line in shown.splitlines()[1:3]] == ["so #### 5 apples", "answer: 5"]
    assert "╰─ cut off at 9 tokens ─" in shown


def frames(output: str) -> list[str]:
    """Drawings in the order in which they replaced each other."""
    plain = [ESCAPES.sub("", frame) for frame in output.split("\x1b[1A")]
    return [frame for frame in plain if "attempt" in frame]


def test_a_long_drawing_shows_its_end_while_it_grows(colours):
    console = Console(file=io.StringIO(), width=40, height=10, force_terminal=True, highlight=False)
    lines = "\n".join(f"line {n}" for n in range(100))
    with streaming(console) as draw:
        draw(lambda: [Shown(lines, done=False)])
    shown = ESCAPES.sub("", console.file.getvalue())
    assert [f"line {n}" in shown for n in (0, 91, 92, 99)] == [False, False, True, True]


@pytest.mark.parametrize("terminal", [False, True], ids=["a file", "a terminal that cannot move its cursor"])
def test_where_nothing_can_be_drawn_over_nothing_is_drawn_while_tokens_come(colours, monkeypatch, terminal):
    monkeypatch.setenv("TERM", "dumb")
    console = Console(file=io.StringIO(), width=40, force_terminal=terminal)
    with streaming(console) as draw:
        draw(lambda: pytest.fail("asked for a drawing that nobody sees"))
    assert console.file.getvalue() == ""


@pytest.fixture(scope="module")
def asker() -> Asker:
    settings, _ = settings_of("embedded", "arithmetic", ["eval.sampling.temperature=0", "eval.attempts=3"])
    return Asker(settings, as_json=False)


@pytest.mark.parametrize("history", ["kept", "forgotten"])
def test_each_token_is_told_when_it_is_fed_and_the_attempts_are_those_of_a_player(asker, history):
    player = asker.player
    if history == "kept":
        player = Player(player.engine, player.chat, player.grader)
        player.chat.settings = player.chat.settings.model_copy(update={"keep_attempts": None})
    told: list[list[tuple[int, ...]]] = []
    plan = Plan((1, 1, 1), (12, 12, 12), asker.settings.eval.sampling)
    problem = [Problem("question", HARD, "")]
    (expected,) = player.play(problem, plan, (0, "solve"))
    watched = Player(
        WatchedEngine(player.engine, lambda written: told.append(list(written))), player.chat, player.grader
    )
    (episode,) = watched.play(problem, plan, (0, "solve"))
    player.chat.settings = asker.settings.chat
    assert episode == expected
    whole = [attempt.token_ids for attempt in episode.attempts]
    # The last token of an attempt ends it and is fed to nobody.
    assert told == [[*whole[:k], whole[k][:n]] for k in range(3) for n in range(len(whole[k]))]


def test_attempts_grow_on_the_screen_token_by_token(asker, colours, monkeypatch):
    monkeypatch.setattr(panels, "REDRAW_SECONDS", 0)
    monkeypatch.setattr(panels, "REDRAW_SHARE", 0)
    console = Console(file=io.StringIO(), width=80, height=30, force_terminal=True, highlight=False)
    monkeypatch.setattr(asker, "console", console)
    asker.ask(EASY)
    seen = [
        re.findall(r"\d+", frame.partition("\n")[2].partition("\n")[0]) for frame in frames(console.file.getvalue())
    ]
    last = seen[-1]
    assert len(last) == 3 and all(len(text) == 10 for text in last)
    growing = [[*last[:k], *([last[k][:n]] if n else [])] for k in range(3) for n in range(11)]
    assert [row for row, _ in itertools.groupby(seen)] == [row for row, _ in itertools.groupby([*growing, last])]


def test_a_question_is_answered_as_the_player_of_an_evaluation_answers_it(score):  # noqa: F811
    solved = json.loads(score("solve", "embedded", HARD, "--json", "--attempts", 3).out)
    assert solved["question"] == HARD
    # Ten digits and the end, of which `identity` extracts all.
    assert [a | {"text": "x", "answer": "x"} for a in solved["attempts"]] == [
        {"text": "x", "finished": True, "tokens": 11, "answer": "x"}
    ] * 3
    assert all(a["answer"] == a["text"] and re.fullmatch(r"\d{10}", a["text"]) for a in solved["attempts"])


def test_cut_off_and_unchanged_attempts_say_so(score):  # noqa: F811
    shown = score("solve", "embedded", EASY, "--max-new-tokens", 4).out
    assert shown.count("cut off at 4 tokens") == 2
    assert "╰─ unchanged ─╯" in score("solve", "embedded", HARD).out


def test_a_run_and_each_of_its_stages_can_be_asked(score, tiny_run):  # noqa: F811
    answers = [score("solve", tiny_run, "12 - 3", "--json", *more) for more in ([], ["--stage", "base"])]
    assert [answer.code for answer in answers] == [0, 0]
    assert all(len(json.loads(answer.out)["attempts"]) == 2 for answer in answers)


def test_an_adapter_is_asked_on_its_base_model(score, tmp_path):  # noqa: F811
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = add_lora(type(make_model()).from_pretrained(tmp_path / "base"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    model.save_pretrained(tmp_path / "adapter")
    base, adapted = (json.loads(score("solve", tmp_path / name, "12", "--json").out) for name in ("base", "adapter"))
    assert base["attempts"] != adapted["attempts"]


@pytest.fixture
def piped(score, monkeypatch):  # noqa: F811
    """Runs `score solve embedded` with these bytes on standard input."""

    def run(text: bytes, *options: str):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        return score("solve", "embedded", *options)

    return run


def test_a_pipe_is_read_one_question_a_line_and_the_answers_do_not_depend_on_their_order(piped):
    done = piped(f"{EASY}\n{HARD}\r\n{EASY}".encode(), "--json", "--temperature", "1")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert (done.code, done.err) == (0, "")
    assert [row["question"] for row in rows] == [EASY, HARD, EASY]
    assert rows[0] == rows[2] != rows[1]


def test_panels_in_a_pipe_stand_below_their_question(piped):
    shown = piped(f"{EASY}\n".encode()).out
    assert shown.splitlines()[0] == EASY
    assert "attempt 2" in shown and "\x1b" not in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        pytest.param(b"", "empty; say what is asked", id="empty"),
        pytest.param(b"caf\xe9", "not UTF-8; convert it, e.g. with iconv", id="another encoding"),
        pytest.param(b"9" * 1100, "shorten it, or lower --max-new-tokens or --attempts", id="too long"),
    ],
)
def test_a_line_that_is_no_question_is_named_after_those_before_it_were_answered(piped, line, message):
    done = piped(EASY.encode() + b"\n" + line + b"\n" + EASY.encode() + b"\n", "--json")
    assert len(done.out.splitlines()) == 1
    (error,) = done.errors
    assert error.startswith("error: standard input, line 2: ") and error.endswith(message)
    assert done.code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["gone", " "], "question: empty; say what is asked", id="before the model is looked for"),
        pytest.param(["embedded", "1\udce9"], "question: not UTF-8", id="no text"),
        pytest.param(
            ["embedded", "1 - 1", "--attempts", "3", "--max-new-tokens", "900"],
            # keep_attempts=1: attempt 1, the bridge, and attempt 2, and so on; two attempts are in the context.
            "question: a prompt of 8 tokens, and 3 attempts of 900 and what stands between them take 1816 of the "
            "model's 1024; shorten it, or lower --max-new-tokens or --attempts",
            id="no room",
        ),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(score, arguments, message):  # noqa: F811
    refused(score, message, "solve", *arguments)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        pytest.param({"fn": "exact_match", "extractor": "boxed"}, boxed, id="the extractor of the settings"),
        pytest.param({"fn": "format_and_match"}, gsm8k_hash, id="the reward's own"),
        pytest.param({"fn": "f1"}, None, id="a reward that reads all of it"),
    ],
)
def test_answers_are_found_as_the_reward_finds_them(settings, found):
    assert extractor_of(RewardSettings(**settings)) is found


def test_mathematics_is_extracted_in_the_rewards_order():
    find = extractor_of(RewardSettings(fn="math"))
    assert find is not None and find(r"7, no: \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    find = extractor_of(RewardSettings(fn="math", options={"order": ["last_number"]}))
    assert find is not None and find(r"7, no: \boxed{x}") == "7"


def test_a_reward_that_wants_columns_of_the_data_is_no_obstacle(score):  # noqa: F811
    @register_reward("wants_tests")
    def wants_tests(completions, tests, **columns):
        return [0.0 for _ in tests]

    Path("mine.yaml").write_text(
        "name: mine\nreward: {fn: wants_tests}\nstages: [{kind: stage1, steps: 1, max_new_tokens: [12, 12]}]\n"
        "eval: {max_new_tokens: 12}\n"
    )
    solved = json.loads(score("solve", "mine.yaml", EASY, "--json").out)
    assert [set(attempt) for attempt in solved["attempts"]] == [{"text", "finished", "tokens"}] * 2
