import json
from pathlib import Path

import pytest

from score_rl.data.arithmetic import arithmetic
from score_rl.data.load import load_problems, register_source, sources
from score_rl.episodes import Problem
from score_rl.errors import ConfigError, DataError
from score_rl.schema import DataSettings

SIZES = {"digits": 4, "train": 300, "validation": 40, "test": 50}
SPLITS = ("train", "validation", "test")


def write(directory: Path, **splits: str) -> DataSettings:
    """A directory with these files, and one good row in the others."""
    for split in SPLITS:
        row = json.dumps({"question": f"{split}?", "answer": "1"}) + "\n"
        (directory / f"{split}.jsonl").write_text(splits.get(split, row), encoding="utf-8")
    return DataSettings(source=str(directory))


def test_arithmetic_splits_have_their_sizes_and_share_no_question():
    questions = {split: [p.question for p in arithmetic(split, **SIZES)] for split in SPLITS}
    assert {split: len(qs) for split, qs in questions.items()} == {"train": 300, "validation": 40, "test": 50}
    assert len(set().union(*questions.values())) == 390


@pytest.mark.parametrize("split", SPLITS)
def test_arithmetic_answers_are_right_and_all_of_one_width(split):
    for problem in arithmetic(split, **SIZES):
        a, b = problem.question.split(" - ")
        assert int(a) >= int(b)
        assert int(a) - int(b) == int(problem.answer)
        assert {len(a), len(b), len(problem.answer)} == {4}


def test_arithmetic_ids_differ_within_and_between_splits():
    assert len({p.id for split in SPLITS for p in arithmetic(split, **SIZES)}) == 390


def test_arithmetic_questions_are_these_in_every_version():
    # Two runs are compared on the same test questions, so the stream must never change.
    assert [p.question for p in arithmetic("test", digits=3, train=9, validation=2, test=3)] == [
        "399 - 389",
        "791 - 530",
        "651 - 400",
    ]


@pytest.mark.parametrize(
    ("split", "changed"),
    [
        pytest.param("test", {"train": 700}, id="the test split from more training data"),
        pytest.param("validation", {"train": 700}, id="the validation split from more training data"),
        pytest.param("test", {"validation": 80}, id="the test split from more validation data"),
    ],
)
def test_a_larger_split_does_not_disturb(split, changed):
    assert arithmetic(split, **SIZES) == arithmetic(split, **{**SIZES, **changed})


def test_more_training_data_begins_with_the_smaller_training_data():
    assert arithmetic("train", **{**SIZES, "train": 700})[:300] == arithmetic("train", **SIZES)


def test_arithmetic_with_too_few_digits_is_refused():
    with pytest.raises(ConfigError, match=r"data\.options\.digits=2 has too few problems for 53000; use more digits"):
        arithmetic("train", digits=2)


def test_rows_of_a_directory_become_problems_and_keep_their_other_fields(tmp_path):
    rows = [{"q": "1 + 1", "gold": 2, "level": 3}, {"q": "2 + 2", "gold": "4"}]
    write(tmp_path, train="\n".join(json.dumps(row) for row in rows))
    settings = DataSettings(source=str(tmp_path), question_field="q", answer_field="gold")
    assert load_problems(settings, "train") == [
        Problem("train/1", "1 + 1", "2", {"level": 3}),
        Problem("train/2", "2 + 2", "4", {}),
    ]


def test_each_split_is_read_from_its_own_file(tmp_path):
    settings = write(tmp_path)
    assert [load_problems(settings, split)[0].question for split in SPLITS] == ["train?", "validation?", "test?"]


def test_ids_come_from_the_field_that_is_named(tmp_path):
    settings = write(tmp_path, train='{"question": "q", "answer": "a", "key": 17}')
    assert load_problems(settings.model_copy(update={"id_field": "key"}), "train")[0].id == "17"


GOOD = '{"question": "q", "answer": "a", "key": 1}\n'


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        pytest.param(
            GOOD + '{"prompt": "q", "answer": "a"}',
            {},
            r"train\.jsonl:2: no field 'question' \(fields: prompt, answer\); set data\.question_field",
            id="without the question field",
        ),
        pytest.param(
            GOOD, {"answer_field": "gold"}, r"train\.jsonl:1: no field 'gold' .*set data\.answer_field", id="gold"
        ),
        pytest.param(
            GOOD, {"id_field": "uid"}, r"train\.jsonl:1: no field 'uid' .*set data\.id_field", id="without the id"
        ),
        pytest.param(
            GOOD + GOOD,
            {"id_field": "key"},
            r"train\.jsonl:2: key='1' a second time; ids must differ",
            id="with the id of another",
        ),
        pytest.param(
            '{"question": "", "answer": "a"}', {}, r":1: question=''; expected text", id="with an empty question"
        ),
        pytest.param(
            '{"question": "q", "answer": null}', {}, r":1: answer=None; expected text", id="without an answer"
        ),
        pytest.param(
            '{"question": "q", "answer": [1]}', {}, r":1: answer=\[1\]; expected text", id="with a list of answers"
        ),
        pytest.param(GOOD + "{", {}, r"train\.jsonl:2: not valid JSON", id="that is no JSON"),
    ],
)
def test_a_row_is_refused_by_file_and_line(tmp_path, content, fields, message):
    settings = write(tmp_path, train=content).model_copy(update=fields)
    with pytest.raises(DataError, match=message):
        load_problems(settings, "train")


def test_zero_is_an_answer(tmp_path):
    assert load_problems(write(tmp_path, train='{"question": "1 - 1", "answer": 0}'), "train")[0].answer == "0"


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_split_without_a_problem_is_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"data\.source=.*: the train split is empty"):
        load_problems(write(tmp_path, train=content), "train")


def test_a_directory_without_one_of_the_files_is_refused_by_the_file(tmp_path):
    settings = write(tmp_path)
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"validation\.jsonl: cannot be read \(No such file or directory\)"):
        load_problems(settings, "validation")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "arithmetics",
            {},
            r"data\.source=arithmetics: neither a directory .* nor a known source; did you mean arithmetic\?",
        ),
        ("arithmetic", {"digit": 3}, r"data\.options\.digit: unknown option; did you mean digits\?"),
        ("arithmetic", {"split": "test"}, r"data\.options\.split: unknown option"),
        ("arithmetic", {"digits": "ten"}, r"data\.options\.digits='ten': expected int"),
        ("arithmetic", {"digits": 4.5}, r"data\.options\.digits=4\.5: expected int"),
        ("arithmetic", {"digits": True}, r"data\.options\.digits=True: expected int"),
    ],
)
def test_a_source_or_an_option_that_does_not_exist_is_refused(source, options, message):
    with pytest.raises(ConfigError, match=message):
        load_problems(DataSettings(source=source, options=options), "train")


def test_options_of_a_source_are_refused_for_a_directory(tmp_path):
    settings = write(tmp_path).model_copy(update={"options": {"digits": 10}})
    with pytest.raises(ConfigError, match=r"data\.options=.*a directory takes none; set data\.options=\{\}"):
        load_problems(settings, "train")


@pytest.fixture
def doubles():
    @register_source("doubles")
    def source(split: str, *, number: int) -> list[Problem]:
        return [Problem(f"{split}/{i}", f"{i} + {i}", str(2 * i)) for i in range(number)]

    yield source
    del sources["doubles"]


@pytest.mark.usefixtures("doubles")
def test_a_registered_source_gets_its_options_and_must_have_them():
    assert [p.answer for p in load_problems(DataSettings(source="doubles", options={"number": 3}), "test")] == [
        "0",
        "2",
        "4",
    ]
    with pytest.raises(ConfigError, match=r"data\.options\.number is missing; set data\.options\.number="):
        load_problems(DataSettings(source="doubles"), "test")
    with pytest.raises(DataError, match=r"data\.source=doubles: the test split is empty"):
        load_problems(DataSettings(source="doubles", options={"number": 0}), "test")
