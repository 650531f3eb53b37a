import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from score_rl.episodes import Attempt, Episode, Grade, Problem
from score_rl.errors import ConfigError
from score_rl.schema import EvalSettings
from score_rl.settings import load
from score_rl.sweep import Run, SweepDirectory, attempts_a_step, read_sweep, shortened, sweep_names
from score_rl.sweep_result import curves, edits, make_result, outcomes, thinned
from score_rl.sweeping import duration, estimate, make_runs

SINGLE = {"kind": "single_turn", "steps": 5, "problems": 4, "branch": [3], "max_new_tokens": [12]}
CONTENT: dict[str, Any] = {
    "name": "small",
    "overrides": ["stages.0.problems=4", "eval.problems=10"],
    "seeds": [0, 1],
    "reference": "score",
    "evaluations": {"sampled": {"samples": 8, "temperature": 0.7, "problems": 5}},
    "rows": {
        "base": {"train": False, "seeds": [7]},
        "score": {"title": "SCoRe", "overrides": ["stages.1.alpha=3", "stages.0.problems=5"]},
        "single": {"stages": [SINGLE], "evaluations": {"ten": {"attempts": 10}}},
    },
    "tables": {"all": {"rows": ["single", "score"]}},
}


def written(path: Path, **changed: Any) -> str:
    file = path / "small.yaml"
    file.write_text(json.dumps(CONTENT | changed))  # which is YAML, and keeps the order of rows
    return str(file)


def test_rows_times_seeds_seed_by_seed_with_stages_then_overrides(tmp_path):
    sweep = read_sweep(written(tmp_path))
    assert [run.name for run in sweep.runs] == [
        "base/seed-7", "score/seed-0", "single/seed-0", "score/seed-1", "single/seed-1"
    ]  # fmt: skip
    _, score, single, second, _ = sweep.runs
    assert second.settings == load(
        "arithmetic", ["stages.0.problems=5", "eval.problems=10", "stages.1.alpha=3", "seed=1"]
    )
    assert [stage.kind for stage in single.settings.stages] == ["single_turn"]
    sampled = score.evaluations["sampled"]
    assert (sampled.samples, sampled.sampling.temperature, sampled.problems, sampled.max_new_tokens) == (8, 0.7, 5, 12)
    assert single.evaluations["ten"].attempts == 10 and list(score.evaluations) == ["sampled"]
    assert (score.labels, sweep.runs[0].labels) == (["base", "stage1", "stage2"], ["base"])


def test_a_change_on_the_command_line_is_of_the_sweep_or_else_of_every_run(tmp_path):
    sweep = read_sweep(written(tmp_path), ["rows.score.seeds=[5]", "eval.problems=3"])
    assert [run.name for run in sweep.runs] == ["base/seed-7", "score/seed-5", "single/seed-0", "single/seed-1"]
    assert {run.settings.eval.problems for run in sweep.runs} == {3}


def test_the_copy_of_a_sweep_reads_as_the_sweep(tmp_path):
    sweep = read_sweep(written(tmp_path, rows=CONTENT["rows"] | {"score": {"title": "1e-5", "seeds": [3]}}))
    SweepDirectory(tmp_path / "made").begin(sweep)
    assert read_sweep(str(tmp_path / "made" / "sweep.yaml")) == sweep
    assert SweepDirectory(tmp_path / "made").load_runs([run.name for run in sweep.runs]) == sweep.runs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": [1]}, "small.yaml: unknown key seed; did you mean seeds?"),
        ({"rows": {"a": {"titel": "A"}}, "reference": "a"}, "unknown key rows.a.titel; did you mean rows.a.title?"),
        ({"rows": {"a": {"overrides": ["stages.1.step=3"]}}}, "small.yaml: rows.a: unknown key stages.1.step; did you"),
        (
            {"rows": {"a": {"overrides": ["stages.7.steps=3"]}}},
            "small.yaml: rows.a: stages.7.steps: stages has items 0",
        ),
        ({"rows": {"a": {"stages": [SINGLE | {"steps": "x"}]}}}, "small.yaml: rows.a: stages.0.steps='x': "),
        ({"rows": {"a": {"recipe": "arithmetics"}}}, "rows.a: arithmetics: no such recipe; did you mean arithmetic?"),
        ({"rows": {"a": {"overrides": ["seed=3"]}}}, "small.yaml: rows.a: seed=3: a sweep sets the seed; use seeds="),
        ({"rows": {"../a": {}}}, "rows.../a.[key]='../a': String should match pattern"),
        ({"reference": "scor"}, "small.yaml: reference=scor: no such row; rows: base, score, single"),
        ({"tables": {"all": {"rows": ["a"]}}}, "small.yaml: tables.all.rows: a is no row; rows: base, score, single"),
        ({"tables": {"all": {"rows": ["score", "score"]}}}, "tables.all.rows: score is there twice; name each once"),
        ({"seeds": [1, 1]}, "small.yaml: seeds: 1 is there twice"),
        ({"rows": {"a": {"seeds": [2, 2]}}}, "small.yaml: rows.a.seeds: 2 is there twice"),
        ({"rows": {"a": {"evaluations": {"sampled": {}}}}}, "rows.a.evaluations: sampled is one of the sweep's"),
        ({"evaluations": {"stage2": {}}}, "rows.base: evaluations.stage2: the run makes one of that name"),
        ({"evaluations": {"s": {"samples": 2}}}, "rows.base: evaluations.s: samples=2 with sampling.temperature=0"),
        (
            {"evaluations": {"s": {"first_attempts": "base", "problems": 11}}},
            "first_attempts are those of the run's own evaluation, which has eval.problems=10 and not 11",
        ),
        ({"evaluations": {"s": {"first_attempts": "base", "attempts": 1}}}, "corrects nothing; set attempts to 2"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_that_names_file_row_and_key(tmp_path, changed, message):
    rest = {} if "rows" not in changed else {"reference": None, "tables": {}}
    with pytest.raises(ConfigError) as error:
        read_sweep(written(tmp_path, **(rest | changed)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_sweep_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"papr: no such sweep; did you mean paper\?"):
        read_sweep("papr")


@pytest.mark.parametrize("name", sweep_names())
def test_a_shipped_sweep_reads_and_every_row_samples_at_most_one_budget(name):
    sweep = read_sweep(name)
    assert sweep.settings.name == name
    assert {row for table in sweep.settings.tables.values() for row in table.rows} == set(sweep.settings.rows)
    for run in shortened(sweep).runs:
        assert run.steps <= 3 * len(run.stages) and run.settings.eval.problems <= 16


def test_every_trained_row_of_the_paper_has_the_same_updates_and_questions():
    for run in read_sweep("paper").runs:
        if run.train:
            assert run.steps == 160
            assert {stage.problems for stage in run.stages} == {32}
            assert {stage.episodes for stage in run.stages} <= {8 * 32, 16 * 32}


def test_attempts_are_the_nodes_of_the_trees_less_the_stored_ones(tmp_path):
    single, stage2 = read_sweep(written(tmp_path)).runs[2], load("arithmetic").stages[1]
    assert single.attempts == 5 * 4 * 3 and single.steps == 5
    half = stage2.model_copy(update={"offline_fraction": 0.5, "offline_attempts": 8})
    # 64 questions with 8 + 8 attempts, of which the first 8 are stored for 32 of them
    assert attempts_a_step(half) == 64 * 16 - 32 * 8


def test_a_sweep_may_grow_and_may_not_change(tmp_path):
    directory = SweepDirectory(tmp_path / "made")
    directory.begin(read_sweep(written(tmp_path)))
    more = CONTENT["rows"] | {"more": {}, "score": CONTENT["rows"]["score"] | {"seeds": [0, 1, 2], "title": "Ours"}}
    grown = read_sweep(written(tmp_path, rows=more))
    directory.check(grown)
    directory.begin(grown)
    for changed, message in (
        ({}, "rows.score.seeds: 2 is gone; rows.more: gone"),
        ({"rows": more, "threads": 2}, r"\(threads: None -> 2\)"),
        ({"rows": more | {"base": {"seeds": [7]}}}, r"\(rows.base.train: False -> True\)"),
        ({"rows": more, "evaluations": {"sampled": CONTENT["evaluations"]["sampled"] | {"problems": 6}}},
         "rows.base.evaluations.sampled.problems: 5 -> 6"),
        ({"rows": more | {"single": CONTENT["rows"]["single"] | {"stages": [SINGLE | {"lr": 0.5}]}}},
         r"\(rows.single.stages.0.lr: 1e-05 -> 0.5\)"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            directory.check(read_sweep(written(tmp_path, **changed)))


FIXED = {"fixed": {"first_attempts": "base"}}


def test_an_evaluation_may_be_added_and_needs_no_training(tmp_path):
    """One run has its run directory still, of another the result alone is left, a third was never made."""
    before, directory = read_sweep(written(tmp_path)), SweepDirectory(tmp_path / "made")
    directory.begin(before)
    sampled = CONTENT["evaluations"]
    grown = read_sweep(written(tmp_path, evaluations=sampled | FIXED))
    directory.check(grown)
    directory.begin(grown)
    assert [run.evaluations for run in directory.load_runs(["score/seed-0"])] == [grown.runs[1].evaluations]
    for name in ("score/seed-0", "score/seed-1"):
        directory.result(name).parent.mkdir(parents=True, exist_ok=True)
        directory.result(name).write_text(json.dumps({"evaluations": {"sampled": {}}, "seconds": 9.0}))
    (directory.run("score/seed-0") / "eval").mkdir(parents=True)
    (directory.run("score/seed-0") / "eval" / "stage2.json").write_text("{}")
    lacking = {"score/seed-0": ["fixed"]}
    assert directory.trained(grown.runs).lacking == lacking
    assert set(directory.trained(grown.runs).results) == {"score/seed-0"} and not directory.results(grown.runs)
    assert set(directory.trained(before.runs).results) == {"score/seed-0", "score/seed-1"}
    assert directory.trained(before.runs).lacking == {}
    seconds = estimate(grown.runs, {"score/seed-0": {"seconds": 9.0}}, None, lacking).seconds
    # 10 problems with two attempts, at a quarter of what training costs
    assert seconds["score/seed-0"] == pytest.approx(9 * 0.25 * 10 * 2 / grown.runs[1].weight)
    assert seconds["score/seed-1"] == 9
    with pytest.raises(ConfigError, match=r"rows.score.evaluations.fixed.first_attempts: 'base' -> "):
        directory.check(read_sweep(written(tmp_path, evaluations=sampled | {"fixed": {}})))


def test_a_directory_with_something_else_and_one_at_work_are_refused(tmp_path):
    sweep = read_sweep(written(tmp_path))
    with pytest.raises(ConfigError, match=r"not empty \(small.yaml\) and no sweep"):
        SweepDirectory(tmp_path).check(sweep)
    directory = SweepDirectory(tmp_path / "made")
    with directory.locked(), pytest.raises(ConfigError, match="another `score sweep` is at work"), directory.locked():
        pass


def test_time_is_estimated_from_the_row_then_from_all_rows_then_from_what_was_timed(tmp_path):
    runs = read_sweep(written(tmp_path)).runs
    weight = {run.name: run.weight for run in runs}
    # single: 60 attempts trained; evaluated 2 x 10 x 2, 5 x 8 x 2, 10 x 10 and 2 validations of 1,000 x 2, by a quarter
    assert weight["single/seed-0"] == 60 + 0.25 * (40 + 80 + 100 + 4000)
    assert estimate(runs, {}).seconds == {}
    timed = estimate(runs, {"base/seed-7": {"seconds": 9.0}}, 2.0)
    assert timed.seconds == {name: 2 * w for name, w in weight.items() if name != "base/seed-7"}
    known = estimate(runs, {"single/seed-0": {"seconds": 30.0}}, 2.0).seconds
    assert known["single/seed-1"] == 30
    assert known["score/seed-1"] == pytest.approx(30 * weight["score/seed-1"] / weight["single/seed-0"])
    assert [duration(s) for s in (99.4, 100, 5999, 6000)] == ["99 s", "2 min", "100 min", "1.7 h"]


def marked(first: tuple[str, float | None], second: tuple[str, float | None]) -> Episode:
    attempts = tuple(
        Attempt((), (), text, True, grade=Grade(correct=reward == 1, reward=reward, answer=text))
        for text, reward in (first, second)
    )
    return Episode(Problem("p", "1 - 1", "0"), attempts, (0, 0))


def test_outcomes_and_edits_of_episodes():
    episodes = [marked(("ab", 1), ("ab", 1)), marked(("ab", 0), ("cd", 1)), marked(("abcd", None), ("abce", 0))]
    assert {key: outcomes(episodes)[key] for key in ("t1", "t2")} == {"t1": "10-", "t2": "110"}
    # equal: bin 0; all 4 of 4 characters: ratio 1, the last bin; 2 of 8: 0.25, bin 5 of [0.25, 0.3)
    assert edits(episodes) == [1, *[0] * 4, 1, *[0] * 13, 1]
    other = [Episode(Problem("q", "1 - 1", "0"), e.attempts, e.path) for e in episodes]
    assert outcomes(other)["problems"] != outcomes(episodes)["problems"]


def test_curves_are_means_of_neighbours_and_leave_out_what_is_no_number():
    rows = [
        {"step": k, "acc/t1": float(k), "kl/t1": float("nan"), "optim/lr": 1.0, "stage": "a"} for k in range(1, 122)
    ]
    found = curves(rows)
    assert list(found) == ["acc/t1"] and len(found["acc/t1"]) == 41  # 3 steps a point, as 2 would leave 61
    assert found["acc/t1"][0] == [2.0, 2.0] and found["acc/t1"][-1] == [121.0, 121.0]
    assert thinned([(1, 4.0)]) == [[1, 4.0]]


def test_a_result_says_what_the_run_directory_has(tiny_run, tmp_path):
    settings = load(str(tiny_run / "config.yaml"))
    path = tmp_path / "run"
    shutil.copytree(tiny_run, path)
    shutil.copy(path / "eval" / "base.json", path / "eval" / "ten.json")
    (path / "eval" / "base.jsonl").unlink()  # outcomes and edits are of the last model's episodes
    run = Run("score", 0, settings, {"ten": EvalSettings()}, True)
    result = make_result(run, path, 12.5, 1)
    stored = len((path / "offline" / "stage1.jsonl").read_text().splitlines())
    # 12 steps of 4 questions with 2 + 4 attempts, the first 2 stored for 2 of them; 2 steps with all 6
    assert result["attempts_sampled"] == 12 * (4 * 6 - 2 * 2) + 2 * 4 * 6 + stored
    assert (result["row"], result["seed"], result["seconds"], result["steps"]) == ("score", 0, 12.5, 14)
    assert list(result["evaluations"]) == ["base", "stage1", "stage2", "ten"] and result["final"] == "stage2"
    assert result["evaluations"]["stage2"] == json.loads((path / "eval" / "stage2.json").read_text())
    share = result["evaluations"]["stage2"]["acc/t2"]
    assert result["outcomes"]["t2"].count("1") == share * 8 and len(result["outcomes"]["t3"]) == 8
    assert [step for step, _ in result["curves"]["acc/t2"]] == list(range(1, 15))


CRASH = """
import os, signal
def die(prediction, problem):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_fails_and_one_that_crashes_are_kept_and_the_others_go_on(tmp_path):
    (tmp_path / "crash.py").write_text(CRASH)
    rows = {
        "wrong": {"overrides": [f"model.path={tmp_path}/none"]},
        "dies": {"overrides": [f"reward={{fn: '{tmp_path}/crash.py:die'}}"]},
        "good": {"overrides": ["eval.problems=3"]},
    }
    rows = {name: row | {"train": False} for name, row in rows.items()}
    file = written(tmp_path, rows=rows, seeds=[0], reference=None, tables={}, threads=1, evaluations={})
    sweep, directory = read_sweep(file), SweepDirectory(tmp_path / "made")
    directory.begin(sweep)
    outcome = make_runs(sweep, directory, jobs=1, batch=3, console=Console(quiet=True))
    assert outcome.failed == ["wrong/seed-0", "dies/seed-0"] and outcome.signal is None
    assert directory.failure("wrong/seed-0").read_text().startswith("ConfigError: model.path=")
    assert "killed by SIGKILL" in directory.failure("dies/seed-0").read_text()
    assert list(directory.results(sweep.runs)) == ["good/seed-0"]
