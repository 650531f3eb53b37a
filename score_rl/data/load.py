"""Problems from a registered source or from JSON Lines files."""

import inspect
from pathlib import Path

from score_rl.episodes import Problem
from score_rl.errors import ConfigError, DataError
from score_rl.records import read_jsonl
from score_rl.registry import Registry, suggest
from score_rl.schema import DataSettings

sources = Registry("data source")
register_source = sources.register


def load_problems(settings: DataSettings, split: str) -> list[Problem]:
    """The problems of one split (`train`, `validation` or `test`).

    Raises:
        ConfigError: no such source, or options that it does not take.
        DataError: a file or a field is missing, or there is no problem at all.
    """
    import score_rl.data.arithmetic  # noqa: F401 - files its source

    directory = Path(settings.source)
    if settings.source in sources:
        source = sources[settings.source]
        known = [p for p in inspect.signature(source).parameters if p != "split"]
        for option in settings.options:
            if option not in known:
                raise ConfigError(f"data.options.{option}: unknown option{suggest(option, known)}")
        try:
            problems = source(split, **settings.options)
        except TypeError as error:
            raise ConfigError(f"data.options={settings.options}: {error}") from error
    elif directory.is_dir():
        problems = _read_split(directory / f"{split}.jsonl", settings)
    else:
        raise ConfigError(
            f"data.source={settings.source}: neither a directory with train.jsonl, validation.jsonl and test.jsonl "
            f"nor a known source{suggest(settings.source, list(sources))}"
        )
    if not problems:
        raise DataError(f"data.source={settings.source}: the {split} split is empty")
    return problems


def _read_split(path: Path, settings: DataSettings) -> list[Problem]:
    problems = []
    for number, row in read_jsonl(path):
        for key, name in (
            ("data.question_field", settings.question_field),
            ("data.answer_field", settings.answer_field),
        ):
            if row.get(name) in (None, ""):
                raise DataError(f"{path}:{number}: no field '{name}' (fields: {', '.join(row)}); set {key}")
        question, answer = str(row[settings.question_field]), str(row[settings.answer_field])
        fields = (settings.question_field, settings.answer_field)
        meta = {key: value for key, value in row.items() if key not in fields}
        name = (
            str(row[settings.id_field]) if settings.id_field and settings.id_field in row else f"{path.stem}/{number}"
        )
        problems.append(Problem(name, question, answer, meta))
    return problems
