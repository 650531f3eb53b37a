"""What is sent to an endpoint, what comes back, and what a refusal says; the answers are scripted."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Script, Server, serving
from tiny_chat import encode, make_chat

from score_rl.chat_schema import ChatSettings
from score_rl.cli import main
from score_rl.endpoint import EndpointPlayer, dialogue, opening, read_url
from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.errors import ConfigError, EndpointError, MissingExtra
from score_rl.grading import make_grader
from score_rl.rollout import Plan
from score_rl.schema import RewardSettings, SamplingSettings

PROBLEMS = [Problem(f"p{i}", f"{i} + 1", str(i + 1)) for i in range(6)]
GREEDY = Plan((1, 1), (8, 4), SamplingSettings(temperature=0.0))
GRADER = make_grader(RewardSettings())
CHAT = ChatSettings(instruction="Redo it.")
REDO = {"role": "user", "content": "Redo it."}
SECRET = "sk-0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SCORE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def says(content: str | None, *, tokens: int = 3, reason: str = "stop", usage: bool = True) -> tuple[int, Any]:
    counts = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": reason, "message": message}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return 200, body | ({"usage": counts} if usage else {})


def refuses(status: int, message: str) -> Script:
    return lambda number, request: (status, {"error": {"message": message}})


def echo(number: int, request: dict[str, Any]) -> tuple[int, Any]:
    """The right answer at the second attempt, the wrong one at the first."""
    last = [turn["content"] for turn in request["messages"] if turn["role"] == "user"]
    first = int(last[-len(last)].split()[0])
    return says(str(first + 1 if len(last) > 1 else first))


def player(server: Server, chat: ChatSettings = CHAT, **options: int) -> EndpointPlayer:
    return EndpointPlayer(server.url, "m", chat, GRADER, **options)


def test_attempts_go_back_as_text_and_grades_are_given_here():
    with serving(echo) as server:
        episodes = player(server).play(PROBLEMS, GREEDY, (0, "evaluate"))
    assert [e.problem for e in episodes] == PROBLEMS
    assert [e.path for e in episodes] == [(0, 0)] * 6
    assert [[a.text for a in e.attempts] for e in episodes] == [[str(i), str(i + 1)] for i in range(6)]
    assert [[a.correct for a in e.attempts] for e in episodes] == [[False, True]] * 6
    assert episodes[0].attempts[0] == Attempt((), (), "0", True, grade=Grade(False, 0.0, "0"), num_tokens=3)
    second = [r for r in server.asked if len(r["messages"]) == 3 and r["messages"][0]["content"] == "4 + 1"]
    question, said = {"role": "user", "content": "4 + 1"}, {"role": "assistant", "content": "4"}
    assert second == [
        {"model": "m", "messages": [question, said, REDO], "max_tokens": 4, "temperature": 0.0, "top_p": 1.0}
    ]
    assert len(server.asked) == 12


def test_it_can_be_asked_in_a_notebook_where_a_loop_runs_already():
    async def cell() -> list[Episode]:
        player(server).check()
        return player(server).play(PROBLEMS[:2], GREEDY, (0, "evaluate"))

    with serving(echo) as server:
        assert [[a.text for a in e.attempts] for e in asyncio.run(cell())] == [["0", "1"], ["1", "2"]]


def test_an_attempt_that_is_cut_off_or_empty_is_one():
    with serving(lambda number, request: says(None, tokens=8, reason="length")) as server:
        (episode,) = player(server).play(PROBLEMS[:1], GREEDY, (0, "evaluate"))
    assert [(a.text, a.finished, a.length, a.correct) for a in episode.attempts] == [("", False, 8, False)] * 2


def test_samples_differ_in_their_seeds_and_a_second_play_sends_the_same_ones():
    plan = Plan((3, 1), (8, 8), SamplingSettings(temperature=0.7, top_p=0.9))

    def play(first: int, chosen: list[Problem]) -> tuple[list[Episode], dict[str, set[int]]]:
        with serving(lambda number, request: says(str(request["seed"]))) as server:
            episodes = player(server).play(chosen, plan, (0, "evaluate"), first=first)
        assert {(r["temperature"], r["top_p"]) for r in server.asked} == {(0.7, 0.9)}
        seeds: dict[str, set[int]] = {}
        for request in server.asked:
            seeds.setdefault(request["messages"][0]["content"], set()).add(request["seed"])
        return episodes, seeds

    episodes, seeds = play(0, PROBLEMS)
    assert [e.path for e in episodes] == [(0, 0), (1, 0), (2, 0)] * 6
    assert len(set.union(*seeds.values())) == 6 * 3 * 2
    assert all(0 <= seed < 2**31 for values in seeds.values() for seed in values)
    # A part that starts at problem 4 draws what the whole draws there.
    part, part_seeds = play(4, PROBLEMS[4:])
    assert part == episodes[12:]
    assert part_seeds == {question: seeds[question] for question in ("4 + 1", "5 + 1")}


def test_a_tree_shares_the_attempts_of_its_trunk():
    plan = Plan((1, 2), (8, 8), SamplingSettings())
    with serving(lambda number, request: says(str(request["seed"]))) as server:
        episodes = player(server).play(PROBLEMS[:2], plan, (0, "rollout"))
    assert [e.path for e in episodes] == [(0, 0), (0, 1)] * 2
    assert episodes[0].attempts[0] is episodes[1].attempts[0]
    assert episodes[0].attempts[1] != episodes[1].attempts[1]
    assert len(server.asked) == 2 * (1 + 2)


def test_stored_first_attempts_are_corrected_and_not_asked_for():
    grade = Grade(True, 1.0, "1", "given")
    stored = [Attempt((), (5,), "1", True, grade=grade)]
    with serving(echo) as server:
        episodes = player(server).play(PROBLEMS[:2], GREEDY, (0, "evaluate"), first_attempts=[stored, None])
    assert [[a.text for a in e.attempts] for e in episodes] == [["1", "1"], ["1", "2"]]
    assert [[a.sampled for a in e.attempts] for e in episodes] == [[False, True], [True, True]]
    assert episodes[0].attempts[0].grade == grade
    assert len(server.asked) == 3


def test_no_more_chains_are_played_at_once_than_asked_for():
    # Each request waits until three are there, so fewer than three at once would never end.
    three = threading.Barrier(3)

    def answer(number: int, request: dict[str, Any]) -> tuple[int, Any]:
        three.wait(timeout=60)
        return says("1")

    with serving(answer) as server:
        done: list[int] = []
        player(server, concurrency=3).play(PROBLEMS, GREEDY, (0, "evaluate"), progress=done.append)
    assert server.most == 3
    assert done == [1] * 6


def test_the_parts_of_an_evaluation_hold_a_few_problems_for_each_chain():
    played = EndpointPlayer("http://127.0.0.1", "m", CHAT, GRADER, concurrency=8)
    assert played.problems_at_once(GREEDY) == 32
    assert played.problems_at_once(Plan((100, 1), (8, 8), SamplingSettings())) == 1


def test_an_overloaded_or_failing_server_is_asked_again():
    def answer(number: int, request: dict[str, Any]) -> tuple[int, Any]:
        failures = {0: (429, {"error": {"message": "slow down"}}), 1: (500, "<html>"), 2: (503, {"detail": "loading"})}
        return failures.get(number) or echo(number, request)

    with serving(answer) as server:
        (episode,) = player(server).play(PROBLEMS[2:3], GREEDY, (0, "evaluate"))
    assert [a.text for a in episode.attempts] == ["2", "3"]
    assert len(server.asked) == 3 + 2


@pytest.mark.parametrize(
    ("script", "asked", "message"),
    [
        (
            refuses(429, "slow\ndown"),
            3,
            ", model m: still too many requests after 2 retries (429: slow down); wait or lower --concurrency, "
            "then repeat the command, which goes on where -o FILE keeps what is finished",
        ),
        (
            refuses(503, "loading"),
            3,
            ", model m: no answer after 2 retries (503: loading); start it again, "
            "then repeat the command, which goes on where -o FILE keeps what is finished",
        ),
        (refuses(401, f"bad {SECRET}"), 1, ", model m: wants a key (401); set SCORE_API_KEY in the environment"),
        (
            refuses(400, "the maximum context length is 64 tokens"),
            1,
            ", model m: refuses problem p0, attempt 1 (400: the maximum context length is 64 tokens); "
            "lower eval.max_new_tokens, set chat.keep_attempts, or serve it with a longer context",
        ),
        (
            lambda number, request: (422, {"detail": "System role not supported"}),
            1,
            ", model m: refuses problem p0, attempt 1 (422: System role not supported); correct what it names",
        ),
        (
            lambda number, request: (200, "<html>a page</html>"),
            1,
            ": problem p0, attempt 1: no completion in the answer; correct the URL",
        ),
        (
            lambda number, request: says("1", usage=False),
            1,
            ": problem p0, attempt 1: the answer says no token counts; serve it with another server",
        ),
    ],
    ids=["rate limit", "overload", "key", "context", "system role", "a web page", "no counts"],
)
def test_what_a_server_refuses_is_one_line_with_the_mend(script: Script, asked: int, message: str):
    with serving(script) as server, pytest.raises(EndpointError) as error:
        player(server, retries=2).play(PROBLEMS[:1], GREEDY, (0, "evaluate"))
    assert str(error.value) == f"--endpoint {server.url}/v1{message}"
    assert len(server.asked) == asked


def test_a_model_that_the_server_has_not_is_named_beside_those_that_it_has():
    models = {"object": "list", "data": [{"id": name, "object": "model"} for name in ("qwen", "llama")]}
    unknown = refuses(404, "The model `m` does not exist.")
    with serving(unknown, (200, models)) as server, pytest.raises(EndpointError) as error:
        player(server).play(PROBLEMS, GREEDY, (0, "evaluate"))
    said = "(404: The model `m` does not exist.); it has qwen, llama; correct the model's name or the URL"
    assert str(error.value) == f"--endpoint {server.url}/v1: no model 'm' there {said}"


def test_one_refusal_ends_the_rest():
    def answer(number: int, request: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"message": "no"}) if request["messages"][0]["content"] == "3 + 1" else echo(number, request)

    with serving(answer) as server, pytest.raises(EndpointError, match=r"refuses problem p3, attempt 1 \(400: no\)"):
        player(server, concurrency=1).play(PROBLEMS, GREEDY, (0, "evaluate"))
    assert len(server.asked) == 3 * 2 + 1


def test_the_key_comes_from_the_environment_and_stands_in_no_message(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("SCORE_API_KEY", SECRET)
    no = refuses(403, f"{SECRET} may not")
    with serving(no, no(0, {})) as server:
        with pytest.raises(EndpointError) as error:
            player(server).play(PROBLEMS[:1], GREEDY, (0, "evaluate"))
        with pytest.raises(EndpointError) as checked:
            player(server).check()
    assert server.keys == [f"Bearer {SECRET}"]
    message = "model m: refuses the key in SCORE_API_KEY (403); correct it in the environment"
    assert str(error.value) == str(checked.value) == f"--endpoint {server.url}/v1, {message}"


def test_a_server_that_is_not_there_is_missed_at_once_and_one_without_a_list_of_models_is_not():
    with serving(echo, (500, "no cache directory")) as server:
        player(server).check()
        assert server.listed == 1
        gone = player(server)
    with pytest.raises(EndpointError, match=r"/v1: no server there \(.*\); start it, or correct the URL"):
        gone.check()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.org/openai/v1/", "https://api.example.org/openai/v1"),
        ("https://api.example.org/v1/chat/completions", "https://api.example.org/v1"),
    ],
)
def test_an_address_without_a_path_means_v1(given: str, found: str):
    assert read_url(given) == found


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://user:{SECRET}@api.example.org/v1", "--endpoint https://api.example.org: has a key or options"),
        (f"https://api.example.org/v1?api_key={SECRET}", "--endpoint https://api.example.org: has a key or options"),
        ("127.0.0.1:8000", "--endpoint 127.0.0.1:8000: not an http"),
        ("ftp://127.0.0.1", "--endpoint ftp://127.0.0.1: not an http"),
        ("http://127.0.0.1:port", "--endpoint: not a URL"),
    ],
)
def test_an_address_that_cannot_be_or_holds_a_key_is_refused_without_the_key(url: str, message: str):
    with pytest.raises(ConfigError) as error:
        read_url(url)
    assert str(error.value).startswith(message)
    assert SECRET not in str(error.value)


def test_a_template_of_ones_own_is_the_servers_business():
    with pytest.raises(ConfigError, match=r"chat.template=mine.jinja: an endpoint uses its server's"):
        EndpointPlayer("http://127.0.0.1", "m", ChatSettings(template="mine.jinja"), GRADER)


def test_what_the_protocol_does_not_know_goes_beside_it_where_it_is_set():
    chat = ChatSettings(enable_thinking=False, template_options={"reasoning_effort": "low"})
    plan = Plan((1,), (8,), SamplingSettings(temperature=1.0, top_k=20, min_p=0.1))
    with serving(lambda number, request: says("1")) as server:
        player(server, chat).play(PROBLEMS[:1], plan, (0, "evaluate"))
    (request,) = server.asked
    assert (request["top_k"], request["min_p"]) == (20, 0.1)
    assert request["chat_template_kwargs"] == {"reasoning_effort": "low", "enable_thinking": False}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"system": "Be brief.", "keep_attempts": 1},
        {"instruction": ["Redo it.", "Look again.", "Once more."], "keep_attempts": 2},
        {
            "few_shot": [{"question": "1 + 0", "attempts": ["0", "1"]}, {"question": "2 + 0", "answer": "2"}],
            "instruction": ["Redo it.", "Look again."],
        },
    ],
    ids=["plain", "system prompt", "instructions", "solved problems"],
)
def test_the_messages_render_to_the_contexts_of_a_local_evaluation(options: dict[str, Any]):
    chat = make_chat(**options)
    attempts: list[Attempt] = []
    for text in ("5", "6", "7", "8"):
        messages = [*opening(chat.settings), *dialogue(chat.settings, "2 + 3", attempts)]
        rendered = chat.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        context = chat.context("2 + 3", attempts)
        assert encode(rendered) == context
        attempts.append(Attempt(context, encode(text + "<|im_end|>"), text, True))


def test_an_evaluation_needs_neither_model_nor_tokenizer_here_and_first_attempts_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)

    def evaluate(server: Server, *options: object) -> list[dict[str, Any]]:
        known = ["score", "eval", "no-such-model", "--endpoint", server.url, "--problems", "3", "-o", "x.json"]
        monkeypatch.setattr(sys, "argv", [*known, *map(str, options)])
        with pytest.raises(SystemExit, match="0"):
            main()
        return [json.loads(line) for line in Path("x.jsonl").read_text().splitlines()]

    with serving(lambda number, request: says(request["messages"][0]["content"])) as server:
        first = evaluate(server, "chat.max_prompt_tokens=1")
    assert "chat.max_prompt_tokens=1: tokens are the endpoint's business; no problem is" in capsys.readouterr().err
    assert {request["model"] for request in server.asked} == {"no-such-model"}
    assert [row["attempts"][1]["text"] for row in first] == [row["problem"]["question"] for row in first]
    Path("x.jsonl").rename("first.jsonl")
    with serving(lambda number, request: says("7")) as server:
        second = evaluate(server, "--first-attempts", "first.jsonl")
    assert len(server.asked) == 3
    assert [row["attempts"][0]["text"] for row in second] == [row["problem"]["question"] for row in first]
    assert [row["attempts"][1]["text"] for row in second] == ["7"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--retries", "3"], "--retries 3: is for an endpoint; give --endpoint URL, or leave it out"),
        (["--endpoint", "http://127.0.0.1:1", "--kl"], "--kl: an endpoint does not tell it; give the model's"),
        (["--endpoint", "http://127.0.0.1:1"], "--endpoint http://127.0.0.1:1/v1: no server there"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["score", "eval", "embedded", *options])
    with pytest.raises(SystemExit) as stop:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith(f"error: {message}")


def test_without_the_client_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"--endpoint needs the openai package: pip install 'score-rl\[endpoint\]'"):
        EndpointPlayer("http://127.0.0.1", "m", CHAT, GRADER)
