import json
import os
from pathlib import Path
from typing import Any

import pytest

from score_rl.errors import CheckpointError, ConfigError
from score_rl.run import RunDirectory, environment, final_model, stage_plan
from score_rl.schema import Settings
from score_rl.settings import parse

STAGES = [{"kind": "stage1", "steps": 3, "branch": [2, 2]}, {"kind": "stage2", "steps": 4, "branch": [2, 2]}]


def settings(**fields: Any) -> Settings:
    return parse({"name": "tiny", "stages": STAGES, **fields}, "tiny.yaml")


def begun(path: Path, **fields: Any) -> RunDirectory:
    """A run that has been started in `path`."""
    run = RunDirectory(path)
    run.begin(settings(**fields), fresh=False)
    return run


def finish(run: RunDirectory, label: str) -> None:
    """What a finished stage leaves."""
    run.model(label).mkdir()
    (run.model(label) / "tokenizer_config.json").write_text("{}")


def everything(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("place", ["run", "deep/er/run"])
def test_a_new_directory_may_be_used_and_is_not_made_by_the_check(tmp_path, place):
    RunDirectory(tmp_path / place).check(settings(), fresh=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_may_be_used(tmp_path):
    RunDirectory(tmp_path).check(settings(), fresh=False)


def test_a_run_with_the_same_settings_may_go_on(tmp_path):
    begun(tmp_path, seed=3).check(settings(seed=3), fresh=False)


def test_a_run_with_other_settings_is_refused_by_each_key_with_both_values(tmp_path):
    run = begun(tmp_path)
    with pytest.raises(ConfigError) as refused:
        run.check(settings(seed=3, eval={"problems": 7}), fresh=False)
    assert "holds a run with other settings (eval.problems: 500 -> 7; seed: 0 -> 3)" in str(refused.value)
    assert "use them, choose another directory with -o, or discard the run with --fresh" in str(refused.value)


def test_other_settings_are_allowed_where_the_run_is_discarded(tmp_path):
    begun(tmp_path).check(settings(seed=3), fresh=True)


def test_a_directory_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ConfigError, match=r"not empty and no run \(no config\.yaml\); choose another directory with -o"
    ):
        RunDirectory(tmp_path).check(settings(), fresh=False)
    assert everything(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", r"config\.yaml:1: not valid YAML"),
        ("name: tiny\nstages: []\n", r"config\.yaml: stages=\[\]: .*at least 1 item"),
        ("name: tiny\nstagez: []\n", r"config\.yaml: .*stage"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_whose_settings_cannot_be_read_is_refused_by_file(tmp_path, content, message, fresh):
    # Also where it would be discarded: many programs have a config.yaml, and theirs is not ours to delete.
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        RunDirectory(tmp_path).check(settings(), fresh=fresh)


@pytest.mark.parametrize("place", ["file", "file/run", "file/deep/run"])
def test_a_place_below_a_file_is_refused_by_the_file(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"/file is no directory; choose another one with -o"):
        RunDirectory(tmp_path / place).check(settings(), fresh=False)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_is_refused_by_name(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written; choose another directory with -o"):
        RunDirectory(tmp_path / "run").check(settings(), fresh=False)


def test_beginning_writes_settings_that_load_back_and_the_environment(tmp_path):
    run = begun(tmp_path / "run", seed=3)
    assert run.load_settings() == settings(seed=3)
    written = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert written == json.loads(json.dumps(environment(settings(seed=3))))
    assert written["seed"] == 3
    assert written["versions"]["torch"]


def test_going_on_keeps_what_the_run_has_written(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"step": 1}])
    run.begin(settings(), fresh=False)
    assert run.metrics.read_text() == '{"step": 1}\n'


def test_a_fresh_start_deletes_the_run_and_nothing_else(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"step": 1}])
    run.append(run.episodes("stage1"), [{"step": 1}])
    finish(run, "stage1")
    (run.checkpoints / "step-0-000001").mkdir(parents=True)
    (run.eval).mkdir()
    (run.eval / "base.json").write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text("mine, and no stage of this run")
    run.begin(settings(seed=3), fresh=True)
    assert set(everything(tmp_path)) == {"config.yaml", "environment.json", "notes.txt", "model/tokenizer_config.json"}
    assert run.load_settings().seed == 3


def test_a_fresh_start_in_a_directory_that_is_no_run_deletes_nothing(tmp_path):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine.json").write_text("mine")
    RunDirectory(tmp_path).begin(settings(), fresh=True)
    assert (tmp_path / "eval" / "mine.json").read_text() == "mine"


def test_files_are_cut_back_to_their_length_at_the_checkpoint(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"step": 1}])
    run.append(run.episodes("stage1"), [{"step": 1}])
    sizes = run.sizes()
    assert sizes == {"metrics.jsonl": 12, "episodes/stage1.jsonl": 12}  # {"step": 1} and a line end
    run.append(run.metrics, [{"step": 2}])
    run.append(run.episodes("stage1"), [{"step": 2}])
    run.append(run.episodes("stage2"), [{"step": 3}])  # a file that the checkpoint did not know yet
    run.rewind(sizes)
    assert run.sizes() == sizes | {"episodes/stage2.jsonl": 0}
    assert run.metrics.read_text() == '{"step": 1}\n'


def test_a_line_that_was_cut_off_by_a_kill_goes_with_the_rewind(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"step": 1}])
    sizes = run.sizes()
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "acc/t')
    run.rewind(sizes)
    run.append(run.metrics, [{"step": 2}])
    assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_shorter_than_at_the_checkpoint_is_refused_and_not_padded(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"step": 1}])
    sizes = run.sizes()
    run.metrics.write_text("{}\n")
    with pytest.raises(
        CheckpointError, match=r"metrics\.jsonl: shorter than when the checkpoint was written; .*--fresh"
    ):
        run.rewind(sizes)
    assert run.metrics.read_text() == "{}\n"


def test_lengths_are_bytes_and_not_characters(tmp_path):
    run = begun(tmp_path)
    run.append(run.metrics, [{"text": "é"}])
    assert run.sizes()["metrics.jsonl"] == len('{"text": "é"}\n'.encode()) == 15


def test_lines_that_cannot_be_written_are_refused_by_file(tmp_path):
    run = begun(tmp_path)
    (tmp_path / "episodes").write_text("a file where a directory belongs")
    with pytest.raises(CheckpointError, match=r"stage1\.jsonl: cannot be written .*the last checkpoint is intact"):
        run.append(run.episodes("stage1"), [{"step": 1}])


@pytest.mark.parametrize(
    ("iterations", "plan"),
    [
        (1, [("stage1", 0), ("stage2", 1)]),
        (3, [("stage1", 0), ("stage2", 1), ("stage1-2", 0), ("stage2-2", 1), ("stage1-3", 0), ("stage2-3", 1)]),
    ],
)
def test_the_plan_goes_through_all_stages_once_an_iteration(iterations, plan):
    assert stage_plan(settings(train={"iterations": iterations})) == plan


def test_the_plan_uses_the_names_that_stages_were_given():
    named = [{**STAGES[0], "name": "warm"}, {**STAGES[0], "name": "pin"}]
    assert stage_plan(settings(stages=named)) == [("warm", 0), ("pin", 1)]


@pytest.mark.parametrize(
    ("finished", "last"),
    [
        (["stage1"], "stage1"),
        (["stage1", "stage2"], "stage2"),
        (["stage1", "stage2", "stage1-2"], "stage1-2"),
        (["stage2-2", "stage2", "stage1-2", "stage1"], "stage2-2"),
    ],
)
def test_the_final_model_is_that_of_the_last_stage_that_finished(tmp_path, finished, last):
    run = begun(tmp_path, train={"iterations": 2})
    for label in finished:
        finish(run, label)
    assert final_model(tmp_path) == tmp_path / last


def test_a_stage_that_was_begun_and_not_saved_is_no_final_model(tmp_path):
    run = begun(tmp_path)
    finish(run, "stage1")
    run.model("stage2").mkdir()
    assert final_model(tmp_path) == tmp_path / "stage1"


def test_without_a_finished_stage_there_is_no_final_model(tmp_path):
    begun(tmp_path)
    with pytest.raises(ConfigError, match="no stage has finished; run `score train` on it again to go on"):
        final_model(tmp_path)


def test_a_directory_without_settings_has_no_final_model(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml: cannot be read \(No such file or directory\)"):
        final_model(tmp_path)
