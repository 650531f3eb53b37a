"""Evaluations as the command line makes them: what they write, and that a kill costs no more than the part it hits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graded
import pytest
import torch
from tiny import make_model, make_policy, make_tokenizer, plain_logprobs, stir

from score_rl.chat import Chat
from score_rl.cli import main
from score_rl.episodes import Episode
from score_rl.errors import ConfigError, DataError
from score_rl.evaluation import fixed_attempts
from score_rl.grading import make_grader
from score_rl.loading import load_policy
from score_rl.results import Partial, fingerprint, read_episodes, write_files
from score_rl.schema import ChatSettings, ModelSettings, RewardSettings
from score_rl.token_kl import pieces, token_kl, with_contexts

SAMPLED = ["--problems", 48, "--samples", 4, "--temperature", 1, "--attempts", 3, "eval.rows=16"]
PARTS = 12  # of 16 rows, four problems each

Score = Callable[..., dict[str, Any]]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Score:
    """Runs `score eval ... --json` in this process, in an empty directory, and gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["score", "eval", *map(str, arguments), "--json"])
        capsys.readouterr()
        with contextlib.suppress(SystemExit):  # whose code tells nothing that the empty output does not
            main()
        out: dict[str, Any] = json.loads(capsys.readouterr().out)
        return out

    return run


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "score_rl", "eval", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(process: subprocess.Popen[str], path: Path, lines: int) -> None:
    """Until the file has so many lines."""
    while not path.is_file() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_killed_evaluation_goes_on_to_the_bits_of_an_undisturbed_one(score: Score, tmp_path: Path) -> None:
    undisturbed = score("embedded", *SAMPLED, "-o", "whole.json")
    killed = start("embedded", *SAMPLED, "-o", "killed.json")
    wait_for(killed, Path("killed.partial.jsonl"), 1 + 2 * 16)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    left = Path("killed.partial.jsonl").read_text()
    done = (left.count("\n") - 1) // 16
    assert 2 <= done < PARTS, "killed too late to leave anything to do"
    # As if the kill had also hit a part half written, in the middle of a line.
    Path("killed.partial.jsonl").write_text(left + left.splitlines()[1] + "\n" + left.splitlines()[2][:100])
    assert score("embedded", *SAMPLED, "-o", "killed.json") == undisturbed
    for name in ("{}.json", "{}.jsonl"):
        assert Path(name.format("killed")).read_bytes() == Path(name.format("whole")).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "killed.json",
        "killed.jsonl",
        "whole.json",
        "whole.jsonl",
    ]


def test_what_is_finished_is_not_played_again(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    from score_rl.rollout import Player

    played: list[int] = []
    play = Player.play

    def counted(self: Player, problems: Any, *rest: Any, **options: Any) -> list[Episode]:
        played.extend(options["first"] + i for i in range(len(problems)))
        return play(self, problems, *rest, **options)

    monkeypatch.setattr(Player, "play", counted)
    expected = score("embedded", *SAMPLED, "-o", "a.json")
    assert played == list(range(48))
    lines = Path("a.jsonl").read_text().splitlines(keepends=True)
    header = partial_header("a.json")
    for kept, again in ((25, 44), (0, 48), (48 * 4, 0)):  # 25 rows are six problems, of which four are a part
        Path("a.partial.jsonl").write_text(header + "".join(lines[:kept]))
        played.clear()
        assert score("embedded", *SAMPLED, "-o", "a.json") == expected
        assert played == list(range(48 - again, 48))


def partial_header(output: str) -> str:
    """The first line of the partial file of `SAMPLED`, from an evaluation that is stopped as soon as it is there."""
    process = start("embedded", *SAMPLED, "-o", output)
    path = Path(output).with_suffix(".partial.jsonl")
    wait_for(process, path, 1)
    process.kill()
    process.communicate()
    return path.read_text().splitlines(keepends=True)[0]


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    output = tmp_path / "a.json"
    process = start("embedded", *SAMPLED, "--problems", 2000, "-o", output)
    wait_for(process, tmp_path / "a.partial.jsonl", 17)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert f"interrupted: what is finished is in {tmp_path / 'a.partial.jsonl'}, and the same command goes" in errors
    assert "Traceback" not in errors and not output.exists()


def opened(path: Path, identity: dict[str, Any], **options: Any) -> Partial:
    partial = Partial(path, identity, 1)
    partial.open(4, 2, **options)
    return partial


def test_another_evaluation_is_refused_unless_it_may_be_discarded(tmp_path: Path) -> None:
    path = tmp_path / "a.partial.jsonl"
    opened(path, {"seed": 0, "eval": {"samples": 4, "attempts": 2}})
    with pytest.raises(ConfigError) as refused:
        opened(path, {"seed": 1, "eval": {"samples": 4, "attempts": 3}})
    assert str(refused.value) == (
        f"{path}: left by an evaluation with other settings (eval.attempts: 2 -> 3; seed: 0 -> 1); use them, choose "
        "another file with -o, or discard it with --fresh"
    )
    assert opened(path, {"seed": 1}, fresh=True).problems == 0
    assert json.loads(path.read_text()) == {"evaluation": {"seed": 1}}
    path.write_text("{}\n")
    with pytest.raises(DataError, match="not what an evaluation leaves; move it, or discard it with --fresh"):
        opened(path, {"seed": 1})


def test_a_model_with_other_weights_or_another_tokenizer_is_another_model(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        make_model(seed=seed).save_pretrained(tmp_path / name)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "same") != fingerprint(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "same")
    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "same")


def test_all_rates_follow_from_the_stored_episodes(score: Score) -> None:
    Path("data").mkdir()
    questions = [(f"{7034512345 + 37 * i} - {1234567890 + 1011 * i}", 5799944455 - 974 * i) for i in range(60)]
    data = [{"question": q, "answer": f"{a:010d}", "level": 1 + i % 3} for i, (q, a) in enumerate(questions)]
    Path("data/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for samples in (1, 4):
        found = score("embedded", "--data", "data", "--samples", samples, "--temperature", 1, "-o", "a.json")
        # Plain JSON and arithmetic, without a line of ours.
        episodes = [json.loads(line) for line in Path("a.jsonl").read_text().split("\n")[:-1]]
        total = len(episodes)
        one, two = ([e["attempts"][k] for e in episodes] for k in (0, 1))
        right = [(a["grade"]["correct"], b["grade"]["correct"]) for a, b in zip(one, two, strict=True)]
        fixed, broken = right.count((False, True)), right.count((True, False))
        same = sum(a["grade"]["answer"] == b["grade"]["answer"] for a, b in zip(one, two, strict=True))
        expected = {"acc/t1": sum(a for a, _ in right) / total, "acc/t2": sum(b for _, b in right) / total}
        expected |= {"delta/t1_t2": (fixed - broken) / total, "delta/i_c": fixed / total, "delta/c_i": broken / total}
        expected |= {"rate/fix": fixed / sum(not a for a, _ in right), "rate/break": broken / sum(a for a, _ in right)}
        expected |= {"unchanged/t2": same / total, "length/t2": sum(len(b["token_ids"]) for b in two) / total}
        expected |= {"identical/t2": sum(a["text"] == b["text"] for a, b in zip(one, two, strict=True)) / total}
        hard = [b for (_, b), e in zip(right, episodes, strict=True) if e["problem"]["meta"]["level"] == 3]
        expected |= {"by/level=3/acc/t2": sum(hard) / len(hard), "by/level=3/problems": 20, "problems": 60}
        assert fixed and broken and total == 60 * samples
        assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-12)
        counts = [round(found[f"delta/{key}"] * total) for key in ("t1_t2", "i_c", "c_i")]
        assert counts[0] == counts[1] - counts[2] and found["delta/t1_t2"] == counts[0] / total


def test_rows_hold_neither_contexts_nor_the_engines_logprobs(score: Score) -> None:
    score("embedded", "--problems", 3, "-o", "a.json")
    attempts = [attempt for row in rows("a.jsonl") for attempt in row["attempts"]]
    assert [(a["context_ids"], a["engine_logprobs"]) for a in attempts] == [([], [])] * 6
    assert all(a["token_ids"] and a["grade"] for a in attempts)


def test_names_say_how_an_evaluation_was_made(score: Score, tiny_run: Path, tmp_path: Path) -> None:
    os.symlink(tiny_run / "config.yaml", "config.yaml")
    for name in ("stage1", "stage2"):
        os.symlink(tiny_run / name, name)
    score(".", "--attempts", 2)
    score(".", "--samples", 2, "--temperature", 0.5, "--top-p", 0.9, "--stage", "stage1")
    metrics = score(".", "--attempts", 2, "--first-attempts", "eval/stage2-test-2-attempts.jsonl")
    assert metrics["first_attempts"] == "eval/stage2-test-2-attempts.jsonl"
    score(".", "--attempts", 2, "--data", "arithmetic", "--problems", 4)
    assert sorted(path.name for path in Path("eval").glob("*.json")) == [
        "stage1-test-3-attempts-2-samples-temperature-0.5-top-p-0.9.json",
        "stage2-test-2-attempts-after-stage2-test-2-attempts.json",
        "stage2-test-2-attempts-on-arithmetic.json",
        "stage2-test-2-attempts.json",
    ]


def test_fixed_first_attempts_are_anothers_and_what_follows_is_ones_own(score: Score) -> None:
    few = ["--problems", 12, "--samples", 2, "--temperature", 1]
    first = score("embedded", *few, "-o", "theirs.json")
    # From one's own first attempts follow one's own second ones: no token is lost between text and tokens.
    again = score("embedded", *few, "-o", "ours.json", "--first-attempts", "theirs.jsonl")
    for mine, other in zip(rows("ours.jsonl"), rows("theirs.jsonl"), strict=True):
        assert [a["sampled"] for a in mine["attempts"]] == [False, True]
        assert [a["token_ids"] for a in mine["attempts"]] == [a["token_ids"] for a in other["attempts"]]
    assert again == first | {"first_attempts": "theirs.jsonl"}
    stir(load_policy(ModelSettings(path="embedded")), size=0.02).save(Path("other"))
    score("other", *few, "-o", "others.json", "--first-attempts", "theirs.jsonl")
    texts = [[[a["text"] for a in row["attempts"]] for row in rows(f"{name}.jsonl")] for name in ("theirs", "others")]
    assert [row[0] for row in texts[0]] == [row[0] for row in texts[1]]
    assert [row[1] for row in texts[0]] != [row[1] for row in texts[1]]


def test_first_attempts_of_other_problems_are_refused(score: Score, tmp_path: Path) -> None:
    score("embedded", "--problems", 2, "-o", "a.json")
    problems = [episode.problem for episode in read_episodes(tmp_path / "a.jsonl")]
    grader = make_grader(RewardSettings())
    with pytest.raises(DataError, match=f"problem {problems[0].id}: 1 first attempts and eval.samples=2; evaluate"):
        fixed_attempts(Path("a.jsonl"), problems, 2, grader, None)
    with pytest.raises(DataError, match="has another question there; give an evaluation of the same data"):
        fixed_attempts(Path("a.jsonl"), [dataclasses.replace(problems[0], question="1 - 1")], 1, grader, None)
    with pytest.raises(DataError, match="problem new: not in it; evaluate fewer"):
        fixed_attempts(Path("a.jsonl"), [dataclasses.replace(problems[0], id="new")], 1, grader, None)
    (held,) = fixed_attempts(Path("a.jsonl"), problems[:1], 1, grader, None)
    assert (held[0].token_ids, held[0].length, held[0].sampled) == ((), 11, False)


def exact_kl(policy: Any, episode: Episode, turn: int) -> list[float]:
    """KL of each token of an attempt, from both models' own logits."""
    attempt = episode.attempts[turn]
    ids = attempt.context_ids + attempt.token_ids
    with torch.no_grad():
        mine = plain_logprobs(policy.causal_lm, ids)
        with policy.reference() as reference:
            theirs = plain_logprobs(reference, ids)
    kl = (mine.exp() * (mine - theirs)).sum(-1)
    return kl[len(attempt.context_ids) - 1 : -1].tolist()


@pytest.mark.parametrize("lora", [False, True])
def test_kl_is_that_of_the_whole_vocabulary_at_each_token(score: Score, tiny_model: Path, lora: bool) -> None:
    small = ["data.options={digits: 4, train: 8, validation: 4, test: 6}", "eval.max_new_tokens=6", "--attempts", 3]
    score(tiny_model, *small, "--temperature", 1, "-o", "a.json")
    policy = stir(make_policy(lora=lora))
    chat = Chat(policy.tokenizer, ChatSettings())
    episodes = read_episodes(Path("a.jsonl"))
    lines = list(token_kl(policy, chat, episodes, temperature=1.0, max_tokens=200))
    assert [(line["id"], tuple(line["path"])) for line in lines] == [(e.problem.id, e.path) for e in episodes]
    for line, episode in zip(lines, episodes, strict=True):
        restored = with_contexts(episode, chat)
        for turn, attempt in enumerate(line["attempts"]):
            assert attempt["kl"] == pytest.approx(exact_kl(policy, restored, turn), abs=1e-5)
            assert len(attempt["tokens"]) == len(attempt["kl"]) == episode.attempts[turn].length
    assert max(max(attempt["kl"]) for line in lines for attempt in line["attempts"]) > 0.01


def test_a_run_is_compared_with_its_base_and_an_adapter_with_the_model_under_it(
    score: Score, tiny_model: Path, tiny_run: Path
) -> None:
    metrics = score(tiny_run, "--stage", "stage1", "--kl", "-o", "a.json")
    lines = rows("a.kl.jsonl")
    assert len(lines) == 8 and all(len(line["attempts"]) == 3 for line in lines)
    for k in (1, 2, 3):
        sums = [sum(line["attempts"][k - 1]["kl"]) for line in lines]
        assert metrics[f"kl/t{k}"] == pytest.approx(sum(sums) / 8)
    texts = [re.sub("<[a-z]+>", "", "".join(a["tokens"])) for a in lines[0]["attempts"]]
    assert texts == [a["text"] for a in rows("a.jsonl")[0]["attempts"]]
    policy = load_policy(ModelSettings(path=str(tiny_run / "stage1")))
    policy.freeze_reference(load_policy(ModelSettings(path=str(tiny_model))).model)
    first = with_contexts(read_episodes(Path("a.jsonl"))[0], Chat(policy.tokenizer, ChatSettings()))
    assert lines[0]["attempts"][0]["kl"] == pytest.approx(exact_kl(policy, first, 0), abs=1e-5)
    adapted = load_policy(ModelSettings(path=str(tiny_model), lora={"rank": 2}))
    adapted.save(Path("adapter"))
    small = ["data.options={digits: 4, train: 8, validation: 4, test: 6}", "eval.max_new_tokens=6"]
    fresh = score("adapter", *small, "--kl", "-o", "b.json")
    assert fresh["kl/t1"] == pytest.approx(0, abs=1e-6)  # a fresh adapter changes nothing


def test_pieces_of_a_text_are_its_characters_and_no_halves() -> None:
    class Bytes:
        """Tokens are bytes, as in many vocabularies for what they have no other token for."""

        def decode(self, ids: list[int], **options: object) -> str:
            return bytes(ids).decode("utf-8", errors="replace")

    chat: Any = type("Spoken", (), {"tokenizer": Bytes()})
    assert pieces(chat, list("aé–b".encode())) == ["a", "", "é", "", "", "–", "b"]
    assert pieces(chat, list("é".encode())[:1]) == ["\ufffd"]


def test_half_a_surrogate_pair_is_stored_and_read_back_as_it_was(tmp_path: Path) -> None:
    # As a server may send it: JSON can name it, and UTF-8 cannot hold it.
    made = [
        graded.episode("wr"),
        dataclasses.replace(graded.episode("wr"), attempts=(graded.attempt("w", text="\ud800é"),) * 2),
    ]
    partial = opened(tmp_path / "a.partial.jsonl", {})
    partial.append(made)
    assert [e.attempts[1].text for e in opened(tmp_path / "a.partial.jsonl", {}).episodes] == ["", "\ud800é"]
    write_files(tmp_path / "a.json", {}, made)
    assert read_episodes(tmp_path / "a.jsonl")[1].attempts[1].text == "\ud800é"
