"""The page of a report: how much it holds, and that nothing in it can be anything but text."""

import base64
import hashlib
import json
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from wild_run import ATTACKS, attempt, made_up, outcomes, run_of, wild_run

from score_rl.cli import main
from score_rl.episodes import Episode, Problem
from score_rl.report import build, render
from score_rl.report.source import Played, Shown, read_runs
from score_rl.report.text import script_json, visible
from score_rl.report.transcripts import HEAD_CHARACTERS, TAIL_CHARACTERS, Packed, pack, share_room

ROOM = 10**7


def unpack(data: str) -> list[list[object]]:
    return [json.loads(line) for line in zlib.decompress(base64.b64decode(data), -15).decode("ascii").splitlines()]


def test_packed_transcripts_hold_everything_where_there_is_room(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcomes(1, 0, 0, 0), [made_up(1, False, True, level=3)])
    [evaluation] = [e for e in read_runs([run])[0].evaluations if e.name == "stage2"]
    packed = pack(evaluation.episodes(), {("p/1", (0, 0)): [{"tokens": ["a"], "kl": [0.25]}]}, ROOM)
    assert (packed.episodes, packed.all_episodes, packed.samples, packed.cut) == (1, 1, 1, 0)
    first = ["The sum of the two is 8.", "8", 0, "unparsable", 9, 1, [["a"], [250]]]
    second = ["The sum of the two is 2.", "2", 1, None, 9, 1]
    assert unpack(packed.data) == [[0, 0, [first, second], ["p/1", "What is 1 + 1?", "2", {"level": "3"}]]]


def test_without_room_the_first_samples_of_the_first_problems_stay() -> None:
    def sample(problem: int, number: int) -> Played:
        text = hashlib.sha512(f"{problem} {number}".encode()).hexdigest()
        return Played(str(problem), "q", "a", {}, (number,), (Shown(text, None, True, None, 1, True),))

    rows = [sample(problem, number) for problem in range(100) for number in range(3)]
    packed = pack(rows, {}, 20_000)
    kept = [(line[1], line[0]) for line in unpack(packed.data)]
    assert packed.size_bytes == len(packed.data) <= 20_000 and 100 < packed.episodes < 300
    assert kept == sorted(kept) and kept[:100] == [(0, problem) for problem in range(100)]
    assert (packed.all_episodes, packed.all_problems, packed.problems) == (300, 100, 100)
    assert pack(rows, {}, 0).episodes == 0


def test_small_evaluations_leave_their_room_to_large_ones() -> None:
    def packed(problems: int) -> Packed:
        texts = [hashlib.sha512(str(k).encode()).hexdigest() for k in range(problems)]
        return pack([Played(t, t, t, {}, (0,), (Shown(t, None, True, None, 1, True),)) for t in texts], {}, ROOM)

    small, large = packed(50), packed(2000)
    room = small.size_bytes + large.size_bytes // 2
    found = share_room({"large": large, "small": small}, room)
    assert found["small"] == small
    assert large.size_bytes * 0.4 < found["large"].size_bytes <= large.size_bytes // 2
    assert len(unpack(found["large"].data)) == found["large"].episodes == found["large"].problems
    assert share_room({"large": large}, -1)["large"].episodes == 0


def test_a_long_text_keeps_its_begin_and_its_end() -> None:
    text = "b" * HEAD_CHARACTERS + "m" * 5 + "e" * TAIL_CHARACTERS
    packed = pack([Played("1", text, "", {}, (0,), (Shown(text, text, True, text, 1, True),))], {}, ROOM)
    [[_, _, [[cut, answer, _, note, _, _]], [_, question, _, _]]] = unpack(packed.data)
    assert cut == question == ["b" * HEAD_CHARACTERS, 5, "e" * TAIL_CHARACTERS]
    assert answer == note == "b" * 1999 + "…"
    assert packed.cut == 1


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_json_in_a_script_element_ends_nothing_and_means_the_same(text: str) -> None:
    written = script_json({"text": text})
    assert not set(written) & set("<>&\u2028\u2029") and written.isascii()
    assert json.loads(written) == {"text": text}


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert visible("a\u202eb\u2066c\ud800d\x00e\x1b\ttab\n") == "a⟦RLO⟧b⟦LRI⟧c⟦U+D800⟧d⟦U+0000⟧e⟦U+001B⟧\ttab\n"


class Tags(HTMLParser):
    """Elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_a_page_of_hostile_text_has_no_element_or_attribute_that_is_not_ours(tmp_path: Path) -> None:
    page = render([wild_run(tmp_path)])
    tags = Tags(page).tags
    names = {tag for tag, _ in tags}
    assert not names & {"img", "base", "form", "iframe", "object", "embed", "textarea", "plaintext", "a:href", "image"}
    assert [attrs.get("type") for tag, attrs in tags if tag == "script"].count(None) == 1
    attributes = {(tag, name) for tag, attrs in tags for name in attrs}
    assert not {name for _, name in attributes if name.startswith("on") or name in ("src", "style", "action")}
    links = {attrs["href"] for _, attrs in tags if "href" in attrs}
    assert {link for link in links if not (link or "").startswith("#")} == {"data:,"}
    assert "window.hacked" in page  # as text it is there


def test_the_policy_allows_exactly_the_style_and_the_script_of_the_page(tmp_path: Path) -> None:
    page = render([run_of(tmp_path, outcomes(1, 1, 0, 0), outcomes(1, 1, 0, 0))])
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;;" in policy.replace("'", "&#39;")
    assert "default-src &#39;none&#39;" in policy.replace("'", "&#39;") and "unsafe" not in policy


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = run_of(tmp_path, outcomes(2, 1, 0, 1), outcomes(2, 1, 0, 1))
    assert build([run], tmp_path / "a.html").read_bytes() == build([run], tmp_path / "b.html").read_bytes()


def test_five_hundred_problems_of_three_evaluations_stay_under_three_megabytes(tmp_path: Path) -> None:
    words = [hashlib.md5(str(k).encode()).hexdigest()[: 3 + k % 6] for k in range(4000)]

    def long(number: int, second: bool) -> Episode:
        text = " ".join(words[(number * 7 + k * k) % 4000] for k in range(400))
        problem = Problem(f"p/{number}", text[:300], "1")
        return Episode(problem, (attempt(text, False), attempt(text[:1500] + text[::-1][:700], second)), (0, 0))

    played = [long(number, number % 2 == 0) for number in range(500)]
    path = build([run_of(tmp_path, played, played)], tmp_path / "report.html")
    assert path.stat().st_size < 3e6


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    last = [made_up(k, True, True, text=hashlib.md5(b"%d" % k).hexdigest()) for k in range(4000)]
    page = render([run_of(tmp_path, outcomes(1, 0, 0, 0), last)], megabytes=0.25)
    [index] = re.findall(r'id="index">(.*?)</script>', page)
    [note] = next(line for line in json.loads(index) if line["key"] == "stage2")["notes"]
    assert re.fullmatch(
        r"This page holds [\d,]+ of 4,000 episodes \([\d,]+ of 4,000 problems, first samples first\); "
        r"the others are in eval/stage2.jsonl, or make the page larger with score report --megabytes.",
        note,
    )
    assert len(page) < 250_000


def test_the_command_writes_the_page_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, outcomes(1, 1, 0, 0), outcomes(1, 1, 0, 0))
    monkeypatch.chdir(tmp_path)

    def said(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["score", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, "".join(capsys.readouterr())

    assert said(run) == (0, "report in report.html (0.1 MB)\n")
    assert (tmp_path / "report.html").read_text() == render([run])
    assert said(run, "-o", run)[1] == f"error: -o {run}: is a directory; name the HTML file to write\n"
    assert said(tmp_path, "-o", "a/b.html")[0] == 2
    assert said(run, "-o", "a/b.html")[0] == 0 and (tmp_path / "a" / "b.html").is_file()
