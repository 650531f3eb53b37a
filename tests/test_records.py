import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from score_rl.errors import CheckpointError, DataError
from score_rl.records import read_jsonl, to_lines, write_directory, write_text

FILL = """
import resource, signal, sys
from pathlib import Path
from score_rl.errors import CheckpointError
from score_rl.records import write_directory, write_text
{imports}
root = Path(sys.argv[1])
# What a full disk does to a write, a file size limit does too once its signal is ignored.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {write}
except CheckpointError as error:
    print(error)
else:
    print("nothing was refused")
"""
STOPPED_WHILE_FILLING = """
import os, sys
from pathlib import Path
from score_rl.records import write_directory

def fill(directory):
    (directory / "weights").write_text("new")
    os._exit(9)  # the power goes before anything is renamed

write_directory(Path(sys.argv[1]) / "step-1", fill)
"""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def fail_after(text: str, error: BaseException):
    def fill(directory: Path) -> None:
        (directory / "weights").write_text(text)
        raise error

    return fill


rows_of_json = st.lists(
    st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.none() | st.booleans(), max_size=3),
    max_size=4,
)


@given(rows_of_json)
def test_rows_come_back_in_order_with_their_line_numbers(tmp_path_factory, rows):
    # Line separators that are no newline (U+2028, U+0085) must stay inside their string and not end the line.
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_text(file, to_lines(rows))
    assert list(read_jsonl(file)) == list(enumerate(rows, start=1))


def test_empty_lines_are_passed_over_but_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n   \n{"a": 2}')
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b'{"a": 1}\n{"a": \n', r"rows\.jsonl:2: not valid JSON", id="a broken line is named"),
        pytest.param(b'{"a": 1}\n\n[1, 2]\n', r":3: expected a JSON object, found list", id="a list is named"),
        pytest.param(b"null\n", r":1: expected a JSON object, found NoneType", id="null is no object"),
        pytest.param(b'{"a": "\xff"}\n', r"rows\.jsonl: not UTF-8", id="another encoding is named"),
    ],
)
def test_a_line_that_is_no_object_is_refused_by_file_and_line(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_text_is_replaced_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "deep" / "a.json", "old")
    write_text(tmp_path / "deep" / "a.json", "new")
    assert (tmp_path / "deep" / "a.json").read_text() == "new"
    assert names(tmp_path / "deep") == ["a.json"]


def test_text_that_cannot_be_encoded_leaves_the_older_file(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):  # a lone surrogate is a mistake of ours, not of the disk
        write_text(file, "x" * 100_000 + "\ud800")
    assert file.read_text() == "old"


def test_a_path_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be written"):
        write_text(tmp_path / "file" / "a.json", "text")
    with pytest.raises(CheckpointError, match="step-1: cannot be written"):
        write_directory(tmp_path / "file" / "step-1", lambda directory: None)


def test_a_directory_is_replaced_whole(tmp_path):
    write_directory(tmp_path / "step-1", lambda d: (d / "old").write_text("1"))
    write_directory(tmp_path / "step-1", lambda d: (d / "new").write_text("2"))
    assert names(tmp_path) == ["step-1"]
    assert names(tmp_path / "step-1") == ["new"]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(28, "No space left on device"), id="with an error of the system"),
        pytest.param(RuntimeError("PytorchStreamWriter failed"), id="with an error of a library"),
    ],
)
def test_a_fill_that_fails_leaves_the_older_directory_as_it_was(tmp_path, error):
    write_directory(tmp_path / "step-1", lambda d: (d / "weights").write_text("old"))
    with pytest.raises(CheckpointError, match="step-1: cannot be written"):
        write_directory(tmp_path / "step-1", fail_after("half", error))
    assert names(tmp_path) == ["step-1"]
    assert (tmp_path / "step-1" / "weights").read_text() == "old"


def test_a_fill_that_fails_leaves_no_directory_where_there_was_none(tmp_path):
    with pytest.raises(CheckpointError):
        write_directory(tmp_path / "step-1", fail_after("half", OSError(28, "No space left on device")))
    assert names(tmp_path) == []


def test_an_interrupted_fill_is_cleaned_away_by_the_next_one(tmp_path):
    write_directory(tmp_path / "step-1", lambda d: (d / "weights").write_text("old"))
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "step-1", fail_after("half", KeyboardInterrupt()))
    assert (tmp_path / "step-1" / "weights").read_text() == "old"
    write_directory(tmp_path / "step-1", lambda d: (d / "more").write_text("new"))
    assert names(tmp_path) == ["step-1"]
    assert names(tmp_path / "step-1") == ["more"]


def test_a_process_that_dies_while_filling_leaves_the_older_directory(tmp_path):
    write_directory(tmp_path / "step-1", lambda d: (d / "weights").write_text("old"))
    died = subprocess.run([sys.executable, "-c", STOPPED_WHILE_FILLING, str(tmp_path)], check=False)
    assert died.returncode == 9
    assert (tmp_path / "step-1" / "weights").read_text() == "old"


@pytest.mark.parametrize("older", [False, True], ids=["no older directory", "an older directory"])
@pytest.mark.parametrize("leftover", [".step-1.partial", ".step-1.old"])
def test_leftovers_of_a_killed_process_are_cleaned(tmp_path, leftover, older):
    if older:
        write_directory(tmp_path / "step-1", lambda d: (d / "older").write_text("old"))
    (tmp_path / leftover).mkdir()
    (tmp_path / leftover / "stale").write_text("x")
    write_directory(tmp_path / "step-1", lambda d: (d / "weights").write_text("new"))
    assert names(tmp_path) == ["step-1"]
    assert names(tmp_path / "step-1") == ["weights"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize(
    ("imports", "write", "name"),
    [
        pytest.param("", "write_text(root / 'a.json', 'x' * 10_000)", "a.json", id="a text"),
        pytest.param(
            "import json", "write_directory(root / 'd', lambda d: (d / 'f').write_text('x' * 10_000))", "d", id="a file"
        ),
        pytest.param(
            "import torch",
            "write_directory(root / 'd', lambda d: torch.save(torch.zeros(9999), d / 'optimizer.pt'))",
            "d",
            id="an optimiser state",
        ),
        pytest.param(
            "import torch; from safetensors.torch import save_file",
            "write_directory(root / 'd', lambda d: save_file({'w': torch.zeros(9999)}, d / 'w.safetensors'))",
            "d",
            id="weights",
        ),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_older_content(tmp_path, imports, write, name):
    if name == "d":
        write_directory(tmp_path / name, lambda d: (d / "f").write_text("old"))
    else:
        write_text(tmp_path / name, "old")
    script = FILL.format(imports=imports, write=write)
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(f"{tmp_path / name}: cannot be written (")
    assert len(out.stdout.splitlines()) == 1
    assert names(tmp_path) == [name]
    assert (tmp_path / name / "f" if name == "d" else tmp_path / name).read_text() == "old"


def test_numbers_keep_every_digit(tmp_path):
    value = 0.1 + 0.2  # 0.30000000000000004
    write_text(tmp_path / "a.jsonl", to_lines([{"x": value}]))
    assert json.loads((tmp_path / "a.jsonl").read_text())["x"] == value


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_is_refused_by_name(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be written \(Permission denied\)"):
        write_text(tmp_path / "a.json", "text")
