"""Tables as text: whatever stands in a title stays text in the page, in Markdown, LaTeX and CSV."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from made_sweep import bits, table_of, write_result, write_sweep
from wild_run import ATTACKS

from score_rl.report import render
from score_rl.table_text import as_csv, escape_latex, escape_markdown, latex, markdown


class Tags(HTMLParser):
    """Tags of a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value or "" for name, value in attrs if name in ("src", "href")}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile(tmp_path: Path) -> Path:
    """A sweep whose titles are attacks."""
    attacks = {f"r{k}": attack for k, attack in enumerate(ATTACKS.values()) if "\ud800" not in attack}
    rows = {"score": {"title": "=1+1|`a`"}} | {name: {"title": attack} for name, attack in attacks.items()}
    sweep = write_sweep(tmp_path, rows, tables={"t": {"title": "<b>x</b>\n| y |", "rows": list(rows)}})
    for row in rows:
        write_result(sweep, row, 0, bits(5, 5, 5, 5), curves={"acc/t1": [[1, 0.5], [2, 0.6]]})
    return sweep


def test_hostile_titles_are_text_in_the_page(tmp_path: Path) -> None:
    page = render([hostile(tmp_path)])
    found, plain = Tags(), Tags()
    found.feed(page)
    sweep = write_sweep(tmp_path / "plain", {"score": {}, "b": {}})
    for row in ("score", "b"):
        write_result(sweep, row, 0, bits(5, 5, 5, 5), curves={"acc/t1": [[1, 0.5], [2, 0.6]]})
    plain.feed(render([sweep]))
    assert found.tags == plain.tags and found.attributes == plain.attributes
    assert "script" not in found.tags
    assert {link for link in found.links if link[0] != "#"} == {"data:,"}
    assert "<b>x</b>" in found.text
    for hidden in "\u202e\u2066\x00\x1b\ufeff":
        assert hidden not in page


def test_hostile_titles_stay_in_their_cells(tmp_path: Path) -> None:
    found = table_of(hostile(tmp_path))
    rows = len(found.lines)
    page = markdown("made", [found], [], [])
    cells = [re.findall(r"(?<!\\)\|", line) for line in page.splitlines() if line.startswith("| ")]
    assert {len(line) for line in cells[: rows + 2]} == {9} and len(cells) == 2 * (rows + 2) - 1
    assert not re.search(r"(?<!\\)[<`$]|(?<!\\)\]\(", re.sub(r" \| < 0\.0001 \|", "", page))
    text = latex([found])
    assert text.count(r"\begin{tabular}") == 2
    assert len(re.findall(r"(?m) \\\\$", text)) == 2 * (rows + 1) - 1
    assert not re.search(r"(?m)^\[", text)
    depth = re.sub(r"\\[{}]", "", text)
    assert depth.count("{") == depth.count("}")
    read = list(csv.DictReader(io.StringIO(as_csv([found]))))
    assert len(read) == rows
    assert read[0]["title"] == "'=1+1|`a`"
    assert all(row["table"] == "t" and row["acc/t1"] == "0.5" for row in read)


def test_text_for_latex_and_markdown() -> None:
    assert escape_latex("a\\b{c}_^~[1]\n\n<x>") == (
        r"a\textbackslash{}b\{c\}\_\textasciicircum{}\textasciitilde{}{[}1{]} \textless{}x\textgreater{}"
    )
    assert escape_markdown("# a\n- [b](c) | `d` <e> *f*") == r"\# a - \[b\](c) \| \`d\` \<e\> \*f\*"
