"""What TensorBoard, Weights & Biases and trackio are given, read back from what they have written."""

import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from graded import episodes

from score_rl.errors import ConfigError, MissingExtra
from score_rl.report import render
from score_rl.run import RunDirectory
from score_rl.schema import LogSettings
from score_rl.settings import load
from score_rl.trackers import Trackers, check_installed, markdown_table
from score_rl.train import Trainer

SHORT = [
    "train.validation_problems=8",
    "train.checkpoint_every=1",
    "train.save_total_limit=9",
    "train.validate_every=9",
]
SHORT += ["eval.problems=8", "stages.0.steps=4", "stages.1.steps=2", "stages.0.problems=2", "stages.1.problems=2"]
ALL = "log.to=[tensorboard, wandb, trackio]"
REWARD = """
import os, signal
from pathlib import Path

RUN = Path({run!r})

def reward(prediction, problem):
    flag, lines = RUN.parent / "stopped", RUN / "metrics.jsonl"
    if not flag.exists() and lines.is_file() and lines.read_text().count("\\n") == 3:  # within step 3
        flag.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    return float(prediction == problem.answer)
"""


class Logged(NamedTuple):
    """A run of six steps with every tracker: stopped within step 3, set back to step 2 and gone on with to its end."""

    run: Path
    lines: dict[int, dict[str, Any]]
    store: Path
    said: tuple[str, str]
    printed: tuple[str, str]


def needs(name: str) -> None:
    pytest.importorskip(name, reason=f"pip install 'score-rl[{name}]'")


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    for name in ("tensorboard", "wandb", "trackio"):
        needs(name)
    home = tmp_path_factory.mktemp("logged")
    run = home / "run"
    (home / "rewards.py").write_text(REWARD.format(run=str(run)))
    command = [sys.executable, "-m", "score_rl", "train", "arithmetic", *SHORT, ALL, "--json", "-o", str(run)]
    command += [f"reward.fn={home / 'rewards.py'}:reward", "reward.extractor=null"]
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(home / "trackio")}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert first.returncode == 143, first.stderr
    (newest,) = (run / "checkpoints").glob("step-0-000003")
    newest.rename(home / "lost")
    second = subprocess.run([*command, "log.project=score"], capture_output=True, text=True, env=environment, cwd=home)
    assert second.returncode == 0, second.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    lines = {row.pop("step"): row for row in rows}
    return Logged(run, lines, home / "trackio", (first.stderr, second.stderr), (first.stdout, second.stdout))


def evaluated(run: Path, label: str) -> dict[str, Any]:
    """What a tracker is to show of an evaluation."""
    metrics = json.loads((run / "eval" / f"{label}.json").read_text())
    return {f"eval/{key}": value for key, value in metrics.items() if "/" in key and "." not in key}


def test_tensorboard_has_each_step_once_with_the_numbers_of_metrics_jsonl(logged: Logged) -> None:
    from tensorboard.backend.event_processing import plugin_event_accumulator
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list((logged.run / "tensorboard").iterdir())) == 2  # one a process
    events = EventAccumulator(
        str(logged.run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0}
    )
    events.Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for step, line in logged.lines.items():
        for key, value in line.items():
            if not isinstance(value, str):
                expected.setdefault(key, []).append((step, pytest.approx(value, rel=1e-6)))
    for step, label in ((0, "base"), (4, "stage1"), (6, "stage2")):
        for key, value in evaluated(logged.run, label).items():
            expected.setdefault(key, []).append((step, pytest.approx(value, rel=1e-6)))
    found = {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}
    assert found == expected

    # One length an episode: 2 problems x branch.
    first, *_ = events.Histograms("lengths/t1")
    stage = load("arithmetic", SHORT).stages[0]
    assert first.histogram_value.num == stage.episodes
    assert first.histogram_value.sum / stage.episodes == pytest.approx(logged.lines[1]["length/t1"])
    assert [event.step for event in events.Histograms("lengths/t2")] == [1, 2, 3, 4, 5, 6]
    texts = plugin_event_accumulator.EventAccumulator(str(logged.run / "tensorboard"))  # the one that takes text back
    texts.Reload()
    tables = texts.Tensors("episodes/text_summary")
    assert [event.step for event in tables] == [1, 2, 3, 4, 5, 6]
    stored = [json.loads(line) for line in (logged.run / "episodes" / "stage1.jsonl").read_text().splitlines()]
    rows = tables[0].tensor_proto.string_val[0].decode().splitlines()
    shown = [row for row in stored if row["step"] == 1]
    assert len(rows) == 2 + len(shown) == 2 + 4  # head, rule, train.log_episodes
    assert f"| {shown[0]['attempts'][1]['text']} |" in rows[2]


def records(path: Path) -> Iterator[Any]:
    """What is in an offline file of Weights & Biases: LevelDB's log format, after seven bytes of its own."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no room for a head: the block is filled up
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_wandb_goes_on_in_the_same_run_and_shows_no_step_twice(logged: Logged) -> None:
    files = sorted((logged.run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    steps: list[list[int]] = []
    ids, projects = set(), set()
    for file in files:
        steps.append([])
        for record in records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                projects.add((record.run.project, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                step = json.loads(items["_step"])
                steps[-1].append(step)
                line = logged.lines[step]
                assert {key for key in items if "/" in key and not key.startswith(("eval/", "lengths/"))} == {
                    key for key in line if "/" in key
                }
                for key in {"acc/t1", "loss", "stage"} & line.keys():
                    assert json.loads(items[key]) == line[key]
                for label in [label for label, last in (("base", 0), ("stage1", 4), ("stage2", 6)) if last == step]:
                    shown = {key: json.loads(items[key]) for key in items if key.startswith("eval/")}
                    assert shown == evaluated(logged.run, label)
                assert ("episodes" in items) == ("lengths/t1" in items) == (step > 0)
    assert steps == [[0, 1, 2, 3], [4, 5, 6]]  # the second process trains step 3 again, and does not show it
    assert ids == {json.loads((logged.run / "trackers.json").read_text())["id"]}
    assert projects == {("score", "run")}
    (table, *_) = sorted((logged.run / "wandb").glob("offline-run-*/files/media/table/episodes_*.table.json"))
    content = json.loads(table.read_text())
    assert content["columns"][:4] == ["problem", "question", "answer", "attempt 1"]
    assert len(content["data"]) == 4


def test_trackio_goes_on_in_the_same_run_and_shows_no_step_twice(logged: Logged) -> None:
    with sqlite3.connect(logged.store / "score.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    assert {name for name, _, _ in rows} == {json.loads((logged.run / "trackers.json").read_text())["id"]}
    shown = [(step, json.loads(metrics)) for _, step, metrics in rows]
    steps = {step: metrics for step, metrics in shown if "stage" in metrics}
    assert [step for step, metrics in shown if "stage" in metrics] == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step, metrics in shown if "eval/acc/t1" in metrics] == [0, 4, 6]
    for step, line in logged.lines.items():
        extra = {"lengths/t1", "lengths/t2", "episodes"} if step else set()
        assert steps[step].keys() == line.keys() | extra
        assert steps[step].get("loss") == line.get("loss")
    assert sum(steps[1]["lengths/t1"]["values"]) == load("arithmetic", SHORT).stages[0].episodes
    assert len(steps[1]["episodes"]["_value"]) == 4


def test_training_is_the_same_with_and_without_trackers_and_standard_output_stays_the_result(
    logged: Logged, tmp_path: Path
) -> None:
    reward = f"reward.fn={logged.run.parent / 'rewards.py'}:reward"
    Trainer(load("arithmetic", [*SHORT, reward, "reward.extractor=null"]), tmp_path / "plain").train()
    for stage in ("stage1", "stage2"):
        weights = (tmp_path / "plain" / stage / "model.safetensors").read_bytes()
        assert weights == (logged.run / stage / "model.safetensors").read_bytes()
    assert not (tmp_path / "plain" / "trackers.json").exists()
    assert logged.printed[0] == ""
    assert set(json.loads(logged.printed[1])) == {"run", "seconds", "base", "stage1", "stage2"}


def test_the_run_leaves_its_report_and_the_settings_it_ended_with(logged: Logged) -> None:
    assert (logged.run / "report.html").read_text() == render([logged.run])
    assert f"to look at: {logged.run / 'report.html'}" in logged.said[1]
    assert RunDirectory(logged.run).load_settings().log == LogSettings(
        to=["tensorboard", "wandb", "trackio"], project="score"
    )


def test_a_package_that_is_not_there_is_refused_by_its_extra_before_anything_is_made(tmp_path: Path) -> None:
    absent = load("arithmetic", SHORT).model_copy(update={"log": LogSettings.model_construct(to=["no_such_package"])})
    with pytest.raises(
        MissingExtra, match=r"log\.to=no_such_package needs .*: pip install 'score-rl\[no_such_package\]'"
    ):
        Trainer(absent, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_wandb_has_left_is_not_taken_for_the_package(tmp_path: Path) -> None:
    # Without the package `import wandb` finds such a directory, as a namespace; what is asked for is the distribution.
    (tmp_path / "no_such_package").mkdir()
    code = "from score_rl.trackers import *; check_installed(LogSettings.model_construct(to=['no_such_package']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "MissingExtra" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_an_extra_is_called_like_its_tracker_and_package(name: str) -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"][name]
    assert requirement.split(">=")[0] == name
    needs(name)
    assert version(name)
    check_installed(LogSettings(to=[name]))


def test_one_tracker_needs_no_list_and_an_unknown_one_is_refused_by_key() -> None:
    assert load("arithmetic", ["log.to=trackio"]).log.to == ["trackio"]
    with pytest.raises(ConfigError, match=r"log\.to\.0='tensorbord': .*'tensorboard', 'wandb' or 'trackio'"):
        load("arithmetic", ["log.to=tensorbord"])
    with pytest.raises(ConfigError, match=r"stages\.N\.name=wandb is taken"):
        load("arithmetic", ["stages.0.name=wandb"])


def test_a_run_may_go_on_with_other_trackers_and_with_nothing_else_changed(tmp_path: Path) -> None:
    before, after = load("arithmetic", ["log.to=wandb"]), load("arithmetic", ["log.to=[]", "log.every=5"])
    run = RunDirectory(tmp_path / "run")
    run.begin(before, fresh=False)
    run.check(after, fresh=False)
    run.begin(after, fresh=False)
    assert run.load_settings() == after
    with pytest.raises(ConfigError, match=r"other settings \(seed: 0 -> 1\)"):
        run.check(load("arithmetic", ["log.every=7", "seed=1"]), fresh=False)


def test_a_fresh_start_takes_a_new_name_and_deletes_what_trackers_left_in_the_run(tmp_path: Path) -> None:
    needs("tensorboard")
    settings, names = load("arithmetic", ["log.to=tensorboard"]), []
    run = RunDirectory(tmp_path / "run")
    for _ in range(2):
        run.begin(settings, fresh=True)
        assert not (run.path / "tensorboard").exists()
        trackers = Trackers(settings, run, pytest.fail)
        trackers.begin(0)
        trackers.step(0, {"loss": 1.0}, [], 0)
        trackers.finish(False)
        names.append(json.loads((run.path / "trackers.json").read_text())["id"])
    assert names[0] != names[1] and all(name.startswith("run-") for name in names)


def test_steps_between_are_left_out_and_validations_never_are(tmp_path: Path) -> None:
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, run = load("arithmetic", ["log.to=tensorboard", "log.every=3"]), RunDirectory(tmp_path)
    trackers = Trackers(settings, run, pytest.fail)
    trackers.begin(0)
    for step in range(8):
        trackers.step(step, {"loss": float(step)} | ({"validation/acc/t1": 0.5} if step == 4 else {}), [], 0)
    trackers.finish(False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 3, 4, 6]


def test_a_tracker_that_cannot_start_is_left_out_with_one_warning(tmp_path: Path) -> None:
    needs("tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the directory belongs")
    said: list[str] = []
    trackers = Trackers(load("arithmetic", ["log.to=tensorboard"]), RunDirectory(tmp_path), said.append)
    trackers.begin(0)
    for step in range(3):
        trackers.step(step, {"loss": 1.0}, episodes("wr"), 1)
    trackers.evaluation("base", 3, {"acc/t1": 0.5})
    trackers.finish(False)
    assert len(said) == 1
    assert said[0].startswith("warning: tensorboard: ")
    assert said[0].endswith("; nothing more is logged there, metrics.jsonl has everything")


SERVICE_DIES = """
import sys
from pathlib import Path
import psutil
from score_rl.run import RunDirectory
from score_rl.settings import load
from score_rl.trackers import Trackers

trackers = Trackers(load("arithmetic", ["log.to=wandb"]), RunDirectory(Path(sys.argv[1])), print)
trackers.begin(0)
trackers.step(0, {"loss": 1.0}, [], 0)
for process in psutil.Process().children(recursive=True):
    process.kill()
    process.wait()
for step in range(1, 9):
    trackers.step(step, {"loss": 1.0}, [], 0)
trackers.finish(False)
print("trained to the end")
"""


def test_a_service_that_dies_while_training_costs_one_warning(tmp_path: Path) -> None:
    needs("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline"}
    command = [sys.executable, "-c", SERVICE_DIES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    warning, end = done.stdout.splitlines()
    assert warning.startswith("warning: wandb: ")
    assert end == "trained to the end"


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # within tensorboard
def test_a_table_shows_what_a_model_wrote_as_it_is() -> None:
    hostile = "<script>alert(1)</script> | [a](javascript:b)\n*x* & `y`"
    shown = markdown_table(["attempt 1"], [[hostile]])
    assert shown.splitlines()[:2] == ["| attempt 1 |", "| --- |"]
    needs("tensorboard")
    from tensorboard.plugin_util import markdown_to_safe_html

    (cell,) = re.findall("<td>(.*)</td>", markdown_to_safe_html(shown))
    assert set(re.findall("<.*?>", cell)) == {"<br>"}
    assert unescape(cell).split("<br>") == hostile.splitlines()
