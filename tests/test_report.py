"""The report: its verdict, what it counts and draws, and that nothing in it can be anything but text."""

import base64
import hashlib
import json
import re
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from wild_run import ATTACKS, attempt, made_up, wild_run, write_evaluation_of, write_run

from score_rl.cli import main
from score_rl.episodes import Episode, Problem
from score_rl.errors import ConfigError, DataError
from score_rl.report import build, render
from score_rl.report.charts import Axes, Series, flow, line_chart, whole_percent
from score_rl.report.differences import differences
from score_rl.report.parts import Flag, by_field, curves, flags, over_attempts, over_samples, over_tokens
from score_rl.report.source import Played, Shown, read_runs
from score_rl.report.summary import change, summarise
from score_rl.report.svg import ticks
from score_rl.report.text import number, percent, script_json, visible
from score_rl.report.transcripts import HEAD_CHARACTERS, TAIL_CHARACTERS, Packed, pack, share_room
from score_rl.report.verdict import judge

ROOM = 10**7


def run_of(tmp_path: Path, base: list[Episode], last: list[Episode], **more: object) -> Path:
    run = write_run(tmp_path / "run")
    write_evaluation_of(run, "base", base)
    write_evaluation_of(run, "stage1", base)
    write_evaluation_of(run, "stage2", last, **more)
    return run


def episodes(kept: int, won: int, lost: int, missed: int) -> list[Episode]:
    kinds = [(True, True)] * kept + [(False, True)] * won + [(True, False)] * lost + [(False, False)] * missed
    return [made_up(number, *kind) for number, kind in enumerate(kinds)]


def verdict_of(run: Path) -> tuple[str, str, list[str]]:
    [read] = read_runs([run])
    found = judge(read, {e.name: summarise(e.episodes()) for e in read.evaluations})
    return found.kind, f"{found.claim}: {found.rest}", found.notes


def test_the_verdict_is_yes_where_the_interval_lies_above_0(tmp_path: Path) -> None:
    run = run_of(tmp_path, episodes(60, 0, 0, 40), episodes(60, 30, 2, 8))
    kind, sentence, notes = verdict_of(run)
    assert kind == "yes"
    # 60 + 30 of 100 are right at attempt 2, 60 + 2 at attempt 1
    start = "It self-corrects: after Stage II the second attempt is right on 90.0% of problems and the first on 62.0%, "
    assert sentence.startswith(start + "a gain of 28.0 points (95% interval +")
    assert notes == ["Attempt 1 is 2.0 points higher than before training, which may be chance (95% interval "
                     + notes[0].partition("95% interval ")[2]]  # fmt: skip


def test_a_gain_that_was_bought_with_attempt_1_is_said(tmp_path: Path) -> None:
    kind, _, notes = verdict_of(run_of(tmp_path, episodes(60, 0, 0, 40), episodes(20, 40, 0, 40)))
    assert kind == "yes"
    assert notes[0].startswith("Attempt 1 fell by 40.0 points from before training (95% interval −")
    assert notes[0].endswith("100 problems): part of the gain is a worse first attempt.")


def test_the_verdict_is_no_where_the_interval_lies_below_0(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, episodes(50, 0, 0, 50), episodes(30, 0, 20, 50)))
    assert kind == "no"
    assert "a loss of 20.0 points" in sentence


def test_the_verdict_is_no_where_a_gain_of_a_point_is_ruled_out(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, episodes(300, 0, 0, 300), episodes(300, 0, 0, 300)))
    assert kind == "no"
    assert "a gain of 1.0 points is ruled out" in sentence


def test_few_problems_leave_it_open_and_the_number_that_would_do_is_named(tmp_path: Path) -> None:
    kind, sentence, _ = verdict_of(run_of(tmp_path, episodes(10, 0, 0, 10), episodes(10, 2, 1, 7)))
    assert kind == "unsure"
    assert sentence.startswith("Can't tell whether it self-corrects: after Stage II")
    [needed] = re.findall(r"to tell a difference of 5.0 points takes about ([\d,]+) problems", sentence)
    # 3 of 20 flip: 7.85 * (0.15 - 0.05^2) / 0.05^2 = 463 at 80% power, with the interval's own width a little more
    assert 350 < int(needed.replace(",", "")) < 800


def test_cut_off_and_ungraded_attempts_are_said(tmp_path: Path) -> None:
    run = run_of(tmp_path, episodes(5, 0, 0, 5), episodes(5, 5, 0, 0), **{"truncated/t2": 0.2, "ungraded": 3})
    _, _, notes = verdict_of(run)
    assert (
        "0.0% of attempts 1 and 20.0% of attempts 2 were cut off at the token limit: every accuracy is a lower bound."
        in notes
    )
    assert "3 episodes could not be graded and count in nothing." in notes


def test_a_run_that_still_trains_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=[{"step": 12, "stage": "stage1", "acc/t1": 0.5}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "acc')  # a line that is being written
    assert verdict_of(run)[0] == "none"
    assert verdict_of(run)[2] == ["The run has not finished: step 12 of 160. Numbers are those so far."]
    assert "Nothing measured yet" in render([run])


def test_before_the_first_stage_has_finished_the_verdict_is_about_the_base_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation_of(run, "base", episodes(300, 0, 0, 300))
    kind, sentence, _ = verdict_of(run)
    assert kind == "none"
    assert sentence.startswith("No stage finished: it does not self-correct yet; before training the second attempt is")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run \(no config.yaml in it\)"):
        render([tmp_path])
    run = write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is there twice"):
        render([run, tmp_path / "run" / "." / ""])


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_broken_file_of_metrics_is_named(tmp_path: Path, content: str) -> None:
    run = run_of(tmp_path, episodes(1, 0, 0, 0), episodes(1, 0, 0, 0))
    (run / "eval" / "stage1.json").write_text(content)
    with pytest.raises(DataError, match=r"stage1\.json: "):
        render([run])


@pytest.mark.parametrize(
    "row",
    [{}, {"problem": {"id": 1}}, {"problem": {"id": "1", "question": "?", "answer": "1"}, "attempts": [], "path": [0]}],
    ids=["empty", "no question", "no attempts"],
)
def test_a_broken_episode_is_named_with_its_line(tmp_path: Path, row: dict[str, object]) -> None:
    run = run_of(tmp_path, episodes(1, 0, 0, 0), episodes(1, 0, 0, 0))
    with (run / "eval" / "stage1.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"stage1\.jsonl:2: no episode"):
        render([run])


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, episodes(1, 1, 0, 0), episodes(1, 1, 0, 0)) for name in ("a", "b")]
    assert [run.name for run in read_runs(runs)] == ["a/run", "b/run"]


def test_flow_and_histogram_count_what_the_episodes_say() -> None:
    def shown(text: str, correct: bool | None) -> Shown:
        return Shown(text, None, correct, None, 1, True)

    pairs = [("abcd", False, "abce", True), ("same", True, "same", True), ("abc", True, "xyz", False)]
    rows = [Played(str(k), "", "", {}, (0,), (shown(a, b), shown(c, d))) for k, (a, b, c, d) in enumerate(pairs)]
    rows.append(Played("u", "", "", {}, (0,), (shown("?", None), shown("?", True))))
    rows.append(Played("l", "", "", {}, (0,), (shown("a" * (HEAD_CHARACTERS + 1), True), shown("b", True))))
    found = summarise(rows)
    assert found.flow == {(False, True): 1, (True, True): 2, (True, False): 1}
    assert (found.episodes, found.identical, found.too_long, found.measured) == (4, 1, 1, 3)
    # abcd to abce: one letter out and one in, of eight: 0.25, in the bin from 0.25 to 0.3; abc to xyz: 1, in the last
    assert [place for place, count in enumerate(found.ratios) if count] == [5, 19]


def test_a_change_between_evaluations_is_paired_by_problem() -> None:
    def summary(marks: dict[str, list[bool]]) -> object:
        rows = [
            Played(name, "", "", {}, (k,), (Shown("", None, right, None, 1, True),))
            for name, samples in marks.items()
            for k, right in enumerate(samples)
        ]
        return summarise(rows)

    before = summary({"a": [False], "b": [True], "c": [False], "only": [True]})
    after = summary({"c": [True], "a": [True], "b": [True], "other": [False]})
    interval, problems = change(before, after, 1)
    assert (interval.value, problems) == (pytest.approx(2 / 3), 3)
    interval, problems = change(summary({"a": [False, True], "b": [True, True]}), after, 1)
    assert (interval.value, problems) == (pytest.approx(0.25), 2)  # a: from a half to 1, b: 1 as before
    assert change(before, after, 2) is None


def test_several_runs_are_compared_on_the_problems_that_they_share(tmp_path: Path) -> None:
    better = run_of(tmp_path / "better", episodes(0, 0, 0, 1), episodes(60, 35, 0, 5))
    paths = [run_of(tmp_path / "a", episodes(0, 0, 0, 1), episodes(60, 0, 0, 40)), better]
    paths.append(run_of(tmp_path / "other", episodes(0, 0, 0, 1), []))
    runs = read_runs(paths)
    summaries = {(run.name, e.name): summarise(e.episodes()) for run in runs for e in run.evaluations}
    pair, nothing = differences(runs, summaries)
    assert (pair.first, pair.other) == ("a/run", "better/run")
    assert pair.note == "100 problems that both answered; p is corrected for 3 tests (Holm)."
    assert [(row.name, row.first, row.other, row.says) for row in pair.rows] == [
        ("acc@t1", "60.0", "60.0", "can't tell"),
        ("acc@t2", "60.0", "95.0", "the other is better"),
        ("Δ(t1, t2)", "0.0", "+35.0", "the other is better"),
    ]
    assert pair.rows[1].change.startswith("+35.0 [+")
    assert (nothing.note, nothing.rows) == ("Nothing to compare yet.", [])


def test_flags_of_one_kind_without_a_break_are_one() -> None:
    class Run:
        steps = [{"step": k, "stage": "stage1", "watch/copying": 1.0} for k in (3, 4, 5, 9)]  # noqa: RUF012

    assert flags(Run()) == [Flag("watch/copying", "stage1", 3, 5), Flag("watch/copying", "stage1", 9, 9)]


def test_curves_mark_stages_and_the_steps_that_the_watch_marked(tmp_path: Path) -> None:
    steps = [
        {"step": k, "stage": "stage1" if k < 11 else "stage2", "unchanged/t2": 0.99, "acc/t1": 0.5, "acc/t2": k / 20}
        | ({"watch/copying": 1.0} if k in (4, 5, 6) else {})
        for k in range(1, 21)
    ]
    [run] = read_runs([write_run(tmp_path / "run", steps=steps)])
    drawn = {chart.title: chart.svg for chart in curves(run, flags(run))}
    assert list(drawn) == ["Right answers in training", "Unchanged answers"]
    assert ['class="flag"' in svg for svg in drawn.values()] == [False, True]
    assert all("Stage I<" in svg and "Stage II<" in svg and svg.count('class="stage"') == 1 for svg in drawn.values())


def test_charts_of_more_attempts_and_samples_show_the_stored_numbers(tmp_path: Path) -> None:
    more = {"acc/t3": 0.9, "acc/t3.low": 0.8, "acc/t3.high": 0.95, "samples": 4}
    more |= {f"pass/t{k}@{n}": 0.1 * k + 0.1 * n for k in (1, 2) for n in (1, 2, 4)}
    more |= {"scaling/parallel@1": 0.5, "scaling/parallel@1.tokens": 11.0}
    more |= {
        "scaling/mixed@2": 0.6,
        "scaling/mixed@2.tokens": 22.0,
        "scaling/mixed@2.low": 0.5,
        "scaling/mixed@2.high": 0.7,
    }
    more |= {"scaling/mixed@4": 0.7, "scaling/mixed@4.tokens": 44.0}
    more |= {"by/level=5/acc/t1": 0.25, "by/level=5/acc/t2": 0.75, "by/level=5/problems": 12}
    run = run_of(tmp_path, episodes(1, 1, 0, 0), episodes(1, 1, 0, 0), **more)
    last = read_runs([run])[0].evaluations[-1:]
    [over] = over_attempts(last)
    assert [row[0] for row in over.rows] == ["1", "2", "3"] and over.rows[-1][1] == "90% [80%, 95%]"
    [tokens] = over_tokens(last)
    assert tokens.head[0] == "generated tokens a problem"
    assert tokens.rows == [["11", "50%", ""], ["22", "", "60% [50%, 70%]"], ["44", "", "70%"]]
    [samples] = over_samples(last)
    assert samples.head == ["samples n", "pass@n, attempt 1", "pass@n, attempt 2"]
    assert samples.rows[-1] == ["4", "50%", "60%"]
    [level] = by_field(last)
    assert level.rows == [["5", "12 problems", "25.0% [25.0, 25.0]", "75.0% [75.0, 75.0]"]]


def test_the_bands_of_a_flow_are_as_thick_as_their_shares() -> None:
    chart = flow("After", {(True, True): 50, (False, True): 25, (False, False): 25})
    assert [row[1:] for row in chart.rows] == [["50", "50.0%"], ["0", "0.0%"], ["25", "25.0%"], ["25", "25.0%"]]
    assert len(re.findall('class="ribbon', chart.svg)) == 3  # nothing is drawn of what did not happen
    [(_, begin, end)] = re.findall(r'd="M(\S+) (\S+)C[^"]+ (\S+)Z" class="ribbon won"', chart.svg)
    assert float(end) - float(begin) == pytest.approx(150 / 4)  # a quarter of a chart 150 high


def test_a_line_chart_has_a_table_with_its_numbers_and_leaves_out_nothing_between() -> None:
    line = Series("accuracy", "t2", [(x, x / 1000) for x in range(1000)], smooth=10)
    chart = line_chart("Title", "Note.", [line], Axes("step", whole_percent))
    assert chart is not None
    assert chart.head == ["step", "accuracy"]
    assert chart.rows[0] == ["0", "0%"] and chart.rows[-1] == ["999", "99.9%"] and len(chart.rows) <= 42
    assert chart.svg.count("L") < 600  # a thousand points are drawn as means of neighbours
    assert line_chart("Title", "", [Series("none", "t1", [])], Axes("step", whole_percent)) is None


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (0.31, 0.36),
        (-0.2, 0.4),
        (5.0, 5.0),
        (0.0, 0.0),
        (1e-6, 3e-6),
        (0.0, 12345.0),
        (0.0, 1e-320),
        (0.3, 0.1 + 0.2),
    ],
)
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert found[0] <= low + 1e-12 and found[-1] >= high - 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, 10**400, True, "0.5", None, [1]])
def test_what_is_no_measured_number_is_none(value: object) -> None:
    assert number({"key": value}, "key") is None and number({}, "key") is None
    assert number({"key": 1}, "key") == 1.0


def test_numbers_have_a_true_minus_and_zero_has_no_sign() -> None:
    assert [percent(x, sign=True) for x in (0.05, -0.05, 0.0, -0.0001)] == ["+5.0", "−5.0", "0.0", "0.0"]


def unpack(data: str) -> list[list[object]]:
    return [json.loads(line) for line in zlib.decompress(base64.b64decode(data), -15).decode("ascii").splitlines()]


def test_packed_transcripts_hold_everything_where_there_is_room(tmp_path: Path) -> None:
    run = run_of(tmp_path, episodes(1, 0, 0, 0), [made_up(1, False, True, level=3)])
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
    page = render([run_of(tmp_path, episodes(1, 1, 0, 0), episodes(1, 1, 0, 0))])
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;;" in policy.replace("'", "&#39;")
    assert "default-src &#39;none&#39;" in policy.replace("'", "&#39;") and "unsafe" not in policy


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = run_of(tmp_path, episodes(2, 1, 0, 1), episodes(2, 1, 0, 1))
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
    page = render([run_of(tmp_path, episodes(1, 0, 0, 0), last)], megabytes=0.25)
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
    run = run_of(tmp_path, episodes(1, 1, 0, 0), episodes(1, 1, 0, 0))
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
