"""Reports in a real browser: nothing leaves, nothing runs, and every control does what it says."""

import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from wild_run import ATTACKS, attempt, made_up, wild_run, write_evaluation_of, write_run

from score_rl.episodes import Episode, Problem
from score_rl.report import build
from score_rl.settings import load
from score_rl.train import Trainer

CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
FLAGS += "--disable-component-update --disable-sync"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="no playwright; pip install 'score-rl[dev]'"),
]
TINY = ["train.validation_problems=16", "eval.problems=64", "stages.0.steps=2", "stages.1.steps=2"]
TINY += ["stages.0.problems=4", "stages.1.problems=4"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def embedded_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a short training of the embedded policy."""
    path = tmp_path_factory.mktemp("embedded")
    Trainer(load("arithmetic", TINY), path / "run").train()
    return build([path / "run"], path / "report.html")


@pytest.fixture(scope="module")
def wild_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wild")
    return build([wild_run(path)], path / "report.html")


@pytest.fixture(scope="module")
def plain_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hand-made run with levels, three attempts and several samples, and a stored KL."""
    path = tmp_path_factory.mktemp("plain")
    run = write_run(path / "run")
    kinds = [(True, True), (False, True), (True, False), (False, False)]
    played = [made_up(k, *kinds[k % 4], level=1 + k % 3) for k in range(400)]
    for name in ("base", "stage1", "stage2"):
        write_evaluation_of(run, name, played)
    kl = (
        '{"id": "p/1", "path": [0, 0], "attempts": [{"tokens": ["The sum"], "kl": [0.02]}, {"tokens": ["The", " sum"], '
    )
    (run / "eval" / "stage2.kl.jsonl").write_text(kl + '"kl": [0.001, 0.7]}]}\n')
    problem = Problem("many", "How many?", "3")
    texts = ("It is one.", "It is two, then.", "It is three, then.")
    chain = [attempt(text, k == 2, answer=str(k)) for k, text in enumerate(texts)]
    write_evaluation_of(run, "chains", [Episode(problem, tuple(chain), (k, 0, 0)) for k in range(2)], samples=2)
    return build([run], path / "report.html")


@pytest.fixture(scope="module")
def two_reports(plain_report: Path, wild_report: Path) -> Path:
    """The report of two runs, one of them hostile."""
    [wild] = [path for path in wild_report.parent.iterdir() if path.is_dir()]
    return build([plain_report.parent / "run", wild], plain_report.parent / "two.html")


class Tab:
    """A page that is open, and everything that went wrong with it."""

    def __init__(
        self, browser: Any, report: Path, *, width: int = 1280, scheme: str = "light", place: str = ""
    ) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort()
        )
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("popup", lambda popup: self.problems.append(f"popup: {popup.url}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = report.as_uri()
        self.page.set_default_timeout(60_000)
        self.page.goto(self.address + place)
        self.page.wait_for_selector("#detail header")

    def check(self) -> None:
        """Nothing was complained of, asked for or run since the page was opened."""
        assert self.problems == []
        assert {url.partition("#")[0] for url in self.asked} - {"data:,"} == {self.address}
        assert self.page.evaluate("window.hacked") is None
        assert self.page.url.partition("#")[0] == self.address
        self.page.context.close()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def awaits(self, selector: str, text: str) -> None:
        """Waits until a text begins so; the page's policy forbids what Playwright would wait for a function with."""
        from playwright.sync_api import expect

        expect(self.page.locator(selector)).to_have_text(re.compile("^" + re.escape(text)), timeout=60_000)

    def rows(self) -> list[str]:
        return self.page.locator(".row .who").all_inner_texts()


def findings(tab: Tab) -> list[str]:
    """Serious and critical findings of axe-core."""
    import axe_playwright_python

    [file] = Path(axe_playwright_python.__file__).parent.glob("axe.min.js")
    tab.page.evaluate(file.read_text() + "\n;null")
    found = tab.page.evaluate("axe.run().then((result) => result.violations)")
    serious = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return [f"{violation['id']}: {[node['html'][:90] for node in violation['nodes'][:3]]}" for violation in serious]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("which", ["embedded_report", "wild_report", "plain_report", "two_reports"])
def test_a_report_opens_clean_fits_the_screen_and_is_accessible(
    browser: Any, request: pytest.FixtureRequest, which: str, scheme: str, width: int
) -> None:
    tab = Tab(browser, request.getfixturevalue(which), width=width, scheme=scheme)
    page = tab.page
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    dark = scheme == "dark"
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(19, 21, 24)" if dark else "rgb(255, 255, 255)")
    assert findings(tab) == []
    tab.check()


def test_the_embedded_run_has_its_verdict_metrics_charts_and_transcripts(browser: Any, embedded_report: Path) -> None:
    tab = Tab(browser, embedded_report)
    assert tab.page.locator("h1").count() == 1
    assert "95% interval" in tab.text("h1")
    assert tab.page.locator("#result tbody tr").count() == 3
    assert tab.page.locator("figure svg[role=img]").count() >= 10
    assert tab.page.locator("figure details table").count() == tab.page.locator("figure svg").count()
    assert tab.text("#status") == "Showing 64 of 64 problems"
    assert tab.page.locator(".row").count() < 40  # the rows in sight, not all
    tab.check()


def test_two_runs_are_told_apart_in_verdicts_evaluations_and_links(browser: Any, two_reports: Path) -> None:
    tab = Tab(browser, two_reports, place="#run%2Fstage1/p%2F7")
    assert tab.text("h1") == "2 runs side by side."
    assert tab.page.locator("p.verdict").count() == 2
    assert tab.page.locator("#evaluation option").all_inner_texts()[0] == "run: Before training"
    assert tab.page.locator("#evaluation option:checked").inner_text() == "run: After Stage I"
    assert tab.text("#detail h3") == "p/7"
    tab.check()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_shown_as_text(browser: Any, wild_report: Path, name: str) -> None:
    tab = Tab(browser, wild_report)
    tab.page.fill("#search", name)
    tab.page.locator(".row").filter(has_text=name).first.click()
    shown = tab.page.locator(".question .text").text_content()
    expected = ATTACKS[name]
    for character, label in {"\u202e": "⟦RLO⟧", "\ud800": "⟦U+D800⟧", "\x00": "⟦U+0000⟧", "\u2028": "⟦LS⟧"}.items():
        assert (label in shown) == (character in expected.replace("\udc00\ud800", ""))
    if name not in ("direction", "surrogates", "controls"):
        assert shown == expected
        assert tab.page.locator(".attempt .text").first.text_content() == expected
    for mode in tab.page.locator(".modes input").all():
        mode.check()
    tab.check()


def test_a_megabyte_is_cut_with_a_word_and_does_not_hang(browser: Any, wild_report: Path) -> None:
    tab = Tab(browser, wild_report, place="#stage2/long")
    assert tab.text("#detail h3") == "long"
    assert tab.page.locator(".attempt .cut").all_inner_texts() == ["1,060,000 characters are left out here"] * 2
    assert "2 very long attempts are cut in the middle" in tab.text("#left-out")
    assert "Too long to be compared word by word." in tab.text("#detail")
    tab.page.locator(".detail button", has_text="Next").click()
    assert tab.text("#detail h3") == "rewritten"
    assert "The two have too little in common" in tab.text("#detail")
    tab.check()


def test_filters_show_what_they_say_and_how_many(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report)
    assert tab.text("#status") == "Showing 400 of 400 problems"
    tab.page.locator("#kinds button", has_text="i→c").click()
    assert tab.text("#status") == "Showing 100 of 400 problems"
    assert tab.rows()[:3] == ["p/1", "p/5", "p/9"]
    tab.page.get_by_label("Level").select_option("3")  # problems 2, 5, 8, ...; of them 5, 17, ... are i->c
    assert tab.text("#status") == "Showing 33 of 400 problems"
    assert tab.rows()[:2] == ["p/5", "p/17"]
    tab.page.fill("#least", "10")  # 8 + number % 5 tokens
    tab.page.fill("#most", "10")
    assert tab.rows()[:2] == ["p/17", "p/77"]
    tab.page.fill("#search", "IS 77 + 1")
    tab.awaits("#status", "Showing 1 of")
    assert tab.rows() == ["p/77"]
    assert tab.text("#detail h3") == "p/77"
    assert tab.page.evaluate("CSS.highlights.get('found').size") > 0
    tab.page.fill("#search", "nowhere to be found")
    tab.awaits("#list .none", "No problem fits these filters.")
    assert tab.text("#status") == "Showing 0 of 400 problems"
    assert tab.page.locator("#detail > *").count() == 0
    tab.check()


def test_the_list_can_be_scrolled_to_its_end(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report)
    tab.page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight }")
    tab.page.locator(".row", has_text="p/399").click()
    assert tab.text("#detail h3") == "p/399"
    assert tab.text(".facts").startswith("400 of 400")
    tab.check()


def test_changes_are_marked_in_both_attempts(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report, place="#stage2/p%2F1")
    assert tab.page.locator(".attempt del").all_inner_texts() == ["8"]
    assert tab.page.locator(".attempt ins").all_inner_texts() == ["2"]
    assert tab.page.locator(".attempt").first.get_attribute("aria-label") == "Attempt 1, wrong"
    assert "unparsable" in tab.text(".attempt >> nth=0")
    tab.page.get_by_label("plain text").check()
    assert tab.page.locator("del, ins").count() == 0
    tab.page.get_by_label("KL to the reference").check()
    assert tab.page.locator(".attempt .kl1").all_inner_texts() == ["The sum"]
    assert tab.page.locator(".attempt .kl3").first.get_attribute("title") == "0.700 nats"
    tab.check()


DIFFS = [
    ("", "", [], []),
    ("same text", "same text", [], []),
    ("", "all new", [], ["all new"]),
    ("all gone", "", ["all gone"], []),
    ("a b c d", "a x c d", ["b"], ["x"]),
    ("so 3 + 4 = 8.", "so 3 + 4 = 7, I think.", ["8"], ["7, I think"]),
    ("one two three four", "one four", ["two three "], []),
    ("6916620453", "6916630453", ["6916620453"], ["6916630453"]),
    ("naïve 語 words", "naive 語 words", ["naïve"], ["naive"]),
]


@pytest.mark.parametrize(("before", "after", "removed", "added"), DIFFS)
def test_the_comparison_of_words(
    browser: Any, plain_report: Path, before: str, after: str, removed: list[str], added: list[str]
) -> None:
    tab = Tab(browser, plain_report)
    left, right = tab.page.evaluate("([a, b]) => words(a, b)", [before, after])
    assert "".join(piece[0] for piece in left) == before and "".join(piece[0] for piece in right) == after
    assert [piece[0] for piece in left if piece[1]] == removed
    assert [piece[0] for piece in right if piece[1]] == added
    tab.check()


def test_any_two_texts_are_put_together_again_from_their_comparison(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report)
    wrong = tab.page.evaluate("""() => {
      let seed = 1;
      const draw = (n) => { seed = (seed * 48271) % 2147483647; return seed % n; };
      const text = () => Array.from({ length: draw(30) }, () => 'ab, \\n'[draw(5)].repeat(1 + draw(2))).join('');
      const failed = [];
      for (let round = 0; round < 3000; round += 1) {
        const [a, b] = [text(), text()];
        const sides = words(a, b);
        const kept = sides.map((side) => side.filter((p) => !p[1]).map((p) => p[0]).join(''));
        const all = sides.map((side) => side.map((p) => p[0]).join(''));
        const parts = sides.every((side) => side.every((p) => !p[1] || p[2].map((q) => q[0]).join('') === p[0]));
        if (all[0] !== a || all[1] !== b || kept[0] !== kept[1] || !parts) failed.push([a, b]);
      }
      return failed;
    }""")
    assert wrong == []
    tab.check()


def test_keys_lead_through_problems_evaluations_and_views(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report)
    press = tab.page.keyboard.press
    press("j")
    press("j")
    assert tab.text("#detail h3") == "p/2"
    assert tab.page.url.endswith("#stage2/p%2F2")
    press("k")
    assert tab.text("#detail h3") == "p/1"
    press("d")
    assert tab.page.locator("input[value=kl]").is_checked()
    press("/")
    assert tab.page.evaluate("document.activeElement.id") == "search"
    tab.page.keyboard.type("jk?")  # letters in a field are letters
    assert tab.page.input_value("#search") == "jk?"
    tab.page.fill("#search", "")
    tab.awaits("#status", "Showing 400")
    press("Escape")
    assert tab.page.evaluate("document.activeElement.id") == "list"
    before = tab.text("#detail h3")
    press("ArrowDown")
    press("ArrowLeft")
    after = f"p/{int(before[2:]) + 1}"
    tab.page.wait_for_url(f"**#stage1/{after.replace('/', '%2F')}")
    assert tab.page.locator("#evaluation option:checked").inner_text() == "After Stage I"
    assert tab.text("#detail h3") == after
    press("End")
    assert tab.text("#detail h3") == "p/399"
    active = tab.page.locator("#list").get_attribute("aria-activedescendant")
    assert tab.page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    press("?")
    assert tab.page.locator("#keys").is_visible()
    tab.page.locator("#single").uncheck()
    press("Escape")
    assert tab.page.locator("#keys").is_hidden()
    press("k")
    assert tab.text("#detail h3") == "p/399"  # single letters are switched off
    tab.check()


def test_a_link_opens_its_problem_and_one_to_nothing_says_so(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report, place="#stage1/p%2F250")
    assert tab.text("#detail h3") == "p/250"
    assert tab.page.locator("#evaluation option:checked").inner_text() == "After Stage I"
    tab.page.evaluate("location.hash = '#base/p%2F9'")
    tab.awaits("#detail h3", "p/9")
    tab.page.evaluate("location.hash = '#base/p%2F%E0%A4%A'")
    tab.awaits("#status", "p%2F%E0%A4%A is not in this page.")
    tab.check()


def test_samples_and_attempts_can_be_chosen(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report, place="#chains/many/2")
    assert tab.text("#detail h3") == "many · sample 2"
    assert tab.text("#status") == "Showing 2 of 2 samples"
    tab.page.get_by_label("Compare attempt").select_option("2")
    tab.page.get_by_label("with").select_option("3")
    assert tab.page.locator(".attempt del").all_inner_texts() == ["two"]
    assert tab.page.locator(".attempt ins").all_inner_texts() == ["three"]
    tab.check()


def test_the_theme_follows_the_system_until_one_is_chosen(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report, scheme="dark")

    def background() -> str:
        return tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")

    seen = []
    for _ in range(4):
        seen.append((tab.text("#theme"), background()))
        tab.page.locator("#theme").click()
    dark, light = "rgb(19, 21, 24)", "rgb(255, 255, 255)"
    assert seen == [
        ("Theme: auto", dark), ("Theme: light", light), ("Theme: dark", dark), ("Theme: auto", dark),
    ]  # fmt: skip
    tab.check()


def test_on_paper_there_is_the_result_in_light_and_no_control(browser: Any, plain_report: Path) -> None:
    tab = Tab(browser, plain_report, scheme="dark")
    tab.page.emulate_media(media="print")
    assert tab.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
    for selector in (".top nav", "#theme", ".tools", "#kinds", "#list", ".modes", "#settings", "figure details"):
        assert tab.page.locator(selector).first.is_hidden()
    for selector in ("h1", ".metrics", "figure svg", ".ribbon", ".line", "rect.bar", ".attempt"):
        assert tab.page.locator(selector).first.is_visible()
    assert tab.page.pdf(format="A4").startswith(b"%PDF")
    tab.check()


def test_without_scripts_the_result_and_the_charts_are_there(browser: Any, embedded_report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(embedded_report.as_uri())
    assert "95% interval" in page.locator("h1").inner_text()
    assert page.get_by_text("Transcripts are read with JavaScript").is_visible()
    context.close()
