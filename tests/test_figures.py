"""The figures of a sweep: what is drawn of which numbers, and that each file is whole by itself."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_sweep import bits, write_result, write_sweep
from wild_run import ATTACKS

from score_rl.figures import Figure, as_file, figures
from score_rl.metrics import put
from score_rl.stats import wilson
from score_rl.table_source import read_sweep

SVG = "{http://www.w3.org/2000/svg}"


def figure_of(sweep: Path, name: str) -> Figure:
    return next(figure for figure in figures(read_sweep(sweep)) if figure.name == name)


def made(tmp_path: Path) -> Path:
    """Two rows with all that figures can show, of which the second has two seeds."""
    rows = {"score": {"title": "SCoRe"}, "plain": {"title": "Multi-turn RL", "seeds": [0, 1]}, "todo": {}}
    extra = {"warm": {"samples": 4}, "long": {"attempts": 3}, "fixed": {"first_attempts": "base"}}
    sweep = write_sweep(tmp_path, rows, evaluations=extra)
    warm, long, fixed = {}, {}, {"first_attempts": "base"}
    put(fixed, "rate/fix", wilson(30, 100))
    for key, right in (("parallel@1", 50), ("parallel@2", 52), ("parallel@4", 60), ("sequential@2", 70)):
        put(warm, f"scaling/{key}", wilson(right, 100))
    put(warm, "scaling/sequential@4", wilson(80, 100))
    for k in (1, 2, 3):
        put(long, f"acc/t{k}", wilson(40 + 10 * k, 100))
    for row, seed, more in (("score", 0, 0.0), ("plain", 0, 0.1), ("plain", 1, 0.3)):
        curves = {"acc/t1": [[1, 0.25], [2, 0.5]], "acc/t2": [[1, 0.25], [2, 0.5 + more]]}
        curves |= {"unchanged/t2": [[1, 0.75], [2, 0.5 + more]], "delta/i_c": [[2, 0.25]]}
        if row == "score":
            curves["offline/delta/i_c"] = [[2, 0.5]]
        evaluations = {"warm": warm, "long": long} | ({"fixed": fixed} if row == "score" else {})
        write_result(sweep, row, seed, bits(5, 5, 5, 5), curves=curves, evaluations=evaluations)
    return sweep


def test_curves_are_means_over_seeds_with_the_lowest_and_the_highest(tmp_path: Path) -> None:
    score, plain = figure_of(made(tmp_path), "training").charts
    assert (score.title, score.note) == ("SCoRe", "1 seed.")
    assert score.rows == [["1", "25%", "25%"], ["2", "50%", "50%"]]
    assert plain.note == "2 seeds."
    assert plain.rows == [["1", "25% [25%, 25%]", "25% [25%, 25%]"], ["2", "50% [50%, 50%]", "70% [60%, 80%]"]]


def test_seeds_are_averaged_at_the_steps_that_all_have(tmp_path: Path) -> None:
    sweep = made(tmp_path)
    write_result(sweep, "plain", 1, bits(5, 5, 5, 5), curves={"acc/t1": [[2, 0.75], [3, 0.9]]})
    _, plain = figure_of(sweep, "training").charts
    assert plain.rows[-1] == ["2", "62.5% [50%, 75%]", "60%"]  # attempt 2 of the one seed that has it


def test_changed_answers_stand_before_the_references(tmp_path: Path) -> None:
    score, plain = figure_of(made(tmp_path), "answers").charts
    assert score.head == ["step", "this row"]
    assert score.rows == [["1", "25%"], ["2", "50%"]]
    assert plain.head == ["step", "SCoRe", "this row"]
    assert plain.rows[1] == ["2", "50%", "30% [20%, 40%]"]


def test_corrections_of_fixed_attempts_are_drawn_where_there_are_any(tmp_path: Path) -> None:
    after, over_training = figure_of(made(tmp_path), "fixed").charts
    # of 10 wrong first attempts of its own 5 were put right
    assert after.rows == [["SCoRe", "1 seed", "30.0% [21.9, 39.6]", "50.0% [23.7, 76.3]"]]
    assert over_training.rows == [["2", "50%", "25%"]]


def test_votes_and_long_chains_come_from_the_evaluations_that_have_them(tmp_path: Path) -> None:
    sweep = made(tmp_path)
    votes, chain = figure_of(sweep, "scaling").charts[0], figure_of(sweep, "attempts").charts[0]
    assert [row[0] for row in votes.rows] == ["1", "2", "4"]
    assert votes.rows[2][1:] == ["60% [50.2%, 69.1%]", "80% [71.1%, 86.7%]"]
    assert [row[1].split(" ")[0] for row in chain.rows] == ["50%", "60%", "70%"]


def test_identical_texts_have_a_bar_of_their_own(tmp_path: Path) -> None:
    sweep = made(tmp_path)
    # of 8 episodes 4 lie in the first bin, 2 of which (a quarter of all) are the same text
    score, plain = figure_of(sweep, "edits").charts
    assert score.rows == [["identical texts", "25.0%"], ["0 to 0.05", "25.0%"], ["0.95 to 1", "50.0%"]]
    assert plain.rows == score.rows and plain.note.startswith("2 seeds. 25.0% of second attempts")


def test_a_figure_without_numbers_is_left_out_and_says_what_it_needs(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, {"base": {"train": False}})
    write_result(sweep, "base", 0, bits(5, 5, 5, 5))
    found = {figure.name: figure for figure in figures(read_sweep(sweep))}
    assert [name for name, figure in found.items() if figure.charts] == ["edits"]
    assert found["attempts"].left_out == (
        "No figure of right answers at each of many attempts: it needs an evaluation of three attempts or more, "
        "e.g. evaluations.ten={attempts: 10}."
    )


def test_all_panels_have_one_scale(tmp_path: Path) -> None:
    charts = figure_of(made(tmp_path), "training").charts
    scales = [re.findall(r'text-anchor="end">([\d.]+%)<', chart.svg) for chart in charts]
    assert scales[0] == scales[1] == ["20%", "40%", "60%", "80%"]


@pytest.mark.parametrize("name", ["edits", "training", "answers", "fixed", "scaling", "attempts"])
def test_a_file_is_whole_by_itself(tmp_path: Path, name: str) -> None:
    text = as_file(figure_of(made(tmp_path), name))
    root = ElementTree.fromstring(text)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    panels = root.findall(f"{SVG}svg")
    assert panels and root.find(f"{SVG}title") is not None
    for panel in panels:
        x, y, wide, high = (float(panel.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + wide <= width and y + high <= height
    assert not re.search(r"var\(|light-dark|url\(|href|@import", text)
    classes = {word for found in re.findall(r'class="([^"]+)"', text) for word in found.split()}
    style = re.findall(r"\.([\w-]+)", re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0])
    assert classes <= set(style)


def test_hostile_titles_leave_a_file_well_formed(tmp_path: Path) -> None:
    attacks = [attack for attack in ATTACKS.values() if "\ud800" not in attack] + ["\ufffe]]>&", "x" * 500]
    rows = {f"r{k}": {"title": attack} for k, attack in enumerate(attacks)}
    sweep = write_sweep(tmp_path, rows)
    for row in rows:
        write_result(sweep, row, 0, bits(5, 5, 5, 5), curves={"unchanged/t2": [[1, 0.5], [2, 0.6]]})
    for name in ("edits", "answers"):
        root = ElementTree.fromstring(as_file(figure_of(sweep, name)))
        tags = {found.tag.removeprefix(SVG) for found in root.iter()}
        assert tags <= {"svg", "style", "title", "rect", "text", "path", "circle"}
        assert len(root.findall(f"{SVG}svg")) == len(rows)
