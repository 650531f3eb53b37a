"""Problems from a registered source, from files, or from the hub; and which rows are which split."""

from itertools import combinations
from pathlib import Path
from typing import Any

from score_rl.data.files import HUB_NAME, Row, Store, open_store
from score_rl.data.splits import Slice, parse_split
from score_rl.episodes import Problem
from score_rl.errors import ConfigError, DataError
from score_rl.registry import Registry, check_options, suggest
from score_rl.schema import DataSettings

sources = Registry("data source")
register_source = sources.register

_SPLITS = ("train", "validation", "test")


def load_problems(settings: DataSettings, split: str) -> list[Problem]:
    """The problems of one split (`train`, `validation` or `test`), in the order of the data, all with ids of their own.

    Raises:
        ConfigError: no such source, keys or options that it does not take, or splits that share rows.
        DataError: a file, a split or a field is missing, a row cannot be used, or there is no problem at all.
    """
    import score_rl.data.arithmetic
    import score_rl.data.tasks
    import score_rl.data.walk  # noqa: F401 - each files its sources

    path = Path(settings.source)
    if settings.source in sources or (":" in settings.source and not path.exists()):
        source = sources.find(settings.source, key="data.source")
        keys = "config revision splits question_field answer_field id_field drop_empty"
        _refuse_keys(settings, keys, f"the source {settings.source}")
        check_options(source, settings.options, key="data.options", given=("split",))
        found = [(f"data.source={settings.source}", problem) for problem in source(split, **settings.options)]
    elif path.exists() or HUB_NAME.fullmatch(settings.source):
        kind = "a directory" if path.is_dir() else "a file" if path.exists() else "a data set of the hub"
        _refuse_keys(settings, "options config revision" if path.exists() else "options", kind)
        store = open_store(settings.source, config=settings.config, revision=settings.revision)
        found = [(row.place, _problem(row, settings)) for row in split_rows(store, settings, split)]
    else:
        raise ConfigError(
            f"data.source={settings.source}: neither a directory with train.jsonl, validation.jsonl and test.jsonl "
            "(or .parquet, .csv), nor a data set of the hub (owner/name), nor your own file.py:function, "
            f"nor a known source{suggest(settings.source, list(sources))}"
        )
    problems: dict[str, Problem] = {}
    for place, problem in found:
        if problem is not None:
            if problem.id in problems:  # a problem's episodes are compared with each other, found by its id
                raise DataError(f"{place}: {settings.id_field or 'id'}={problem.id!r} a second time; ids must differ")
            problems[problem.id] = problem
    if not problems:
        wanted = getattr(settings.splits, split)
        why = f" (data.splits.{split}={wanted})" if wanted != split else ""
        why += f"; data.drop_empty left out {len(found)} rows without '{settings.answer_field}'" if found else ""
        raise DataError(f"data.source={settings.source}: the {split} split is empty{why}")
    return list(problems.values())


def load_splits(settings: DataSettings, held_out: str) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """Training, validation and held-out problems; no question of the first is in one of the others.

    Raises:
        ConfigError, DataError: as `load_problems`.
        DataError: training questions that stand in another split, unless `data.drop_leaked` leaves them out.
    """
    train, validation, test = (load_problems(settings, split) for split in ("train", "validation", held_out))
    odd = set(leaked(train, [*validation, *test]))
    if odd and not settings.drop_leaked:
        raise DataError(
            f"data.source={settings.source}: {len(odd)} training questions also stand in an evaluation split, e.g. "
            f"{min(odd)}; take them out, or set data.drop_leaked=true"
        )
    train = [problem for problem in train if problem.id not in odd]
    if not train:
        raise DataError(f"data.source={settings.source}: every training question also stands in an evaluation split")
    return train, validation, test


def leaked(train: list[Problem], test: list[Problem]) -> list[str]:
    """Ids of the problems of `train` whose question also stands in `test`, blanks and line ends aside."""
    tested = {" ".join(problem.question.split()) for problem in test}
    return [problem.id for problem in train if " ".join(problem.question.split()) in tested]


def split_rows(store: Store, settings: DataSettings, split: str) -> list[Row]:
    """The rows of one split as `data.splits` wants it.

    Raises:
        ConfigError: a split that is not in the notation, or two that share rows.
        DataError: a part that the store does not have.
    """
    wanted = {name: parse_split(getattr(settings.splits, name), key=f"data.splits.{name}") for name in _SPLITS}
    for part in wanted[split]:
        if part.name not in store.names:
            raise DataError(_no_part(store, settings, split, part.name, wanted))
    _refuse_overlap(store, settings, wanted)
    return [store.rows(part.name)[place] for part in wanted[split] for place in part.rows(len(store.rows(part.name)))]


def _refuse_keys(settings: DataSettings, keys: str, kind: str) -> None:
    for key in keys.split():
        value = getattr(settings, key)
        if value != getattr(DataSettings(), key):
            mend = "set data.options={}" if key == "options" else f"remove data.{key}"
            raise ConfigError(f"data.{key}={value}: {kind} takes none; {mend}")


def _no_part(store: Store, settings: DataSettings, split: str, name: str, wanted: dict[str, list[Slice]]) -> str:
    key, value = f"data.splits.{split}", getattr(settings.splits, split)
    message = (
        f"data.source={settings.source}: no '{name}' for {key}={value} (found: {', '.join(store.names) or 'none'})"
    )
    if not store.names:
        return f"{message}; expected {name}.jsonl, {name}.parquet or {name}.csv"
    # Nobody is told to train on what is called test while there is something else to cut.
    whole = min(store.names, key=lambda name: (name != "train", name == "test", name == "validation"))
    others = [o for o in _SPLITS[1:] if any(p.name == whole or p.name not in store.names for p in wanted[o])]
    if not others:
        return f"{message}; name one of these"
    size = max(1, min(500, len(store.rows(whole)) // 10))
    cuts = {"train": f"[:-{len(others) * size}]"}
    for place, other in enumerate(others):
        start, stop = (len(others) - place) * size, (len(others) - place - 1) * size
        cuts[other] = f"[-{start}:{-stop or ''}]"
    carved = " ".join(f"'data.splits.{other}={whole}{cut}'" for other, cut in cuts.items())
    return f"{message}; name one of these, or cut it from another: {carved}"


def _refuse_overlap(store: Store, settings: DataSettings, wanted: dict[str, list[Slice]]) -> None:
    uses: dict[str, list[tuple[str, Slice]]] = {}
    for split, parts in wanted.items():
        for part in parts:
            uses.setdefault(part.name, []).append((split, part))
    for name, users in uses.items():
        if len(users) < 2 or name not in store.names:
            continue
        total = len(store.rows(name))
        for (a, first), (b, second) in combinations(users, 2):
            x, y = first.rows(total), second.rows(total)
            shared = min(x.stop, y.stop) - max(x.start, y.start)
            if shared > 0 and len(x) and len(y):
                both = " and ".join(dict.fromkeys(f"data.splits.{s}={getattr(settings.splits, s)}" for s in (a, b)))
                raise ConfigError(
                    f"{both} take {shared} rows of '{name}' twice (it has {total}); a row may be in one place only, "
                    "or what is measured was trained on: let one end where the other begins"
                )


def _problem(row: Row, settings: DataSettings) -> Problem | None:
    """The problem of a row; None for one without an answer that may be left out."""
    question = _text(row, settings.question_field, "data.question_field")
    identity = row.id if settings.id_field is None else _text(row, settings.id_field, "data.id_field")
    answer: str | list[str] = ""
    if settings.answer_field is not None:
        value = row.values.get(settings.answer_field)
        if is_empty(value):
            if settings.drop_empty:
                return None
            row.field(settings.answer_field, key="data.answer_field")
            raise DataError(
                f"{row.place}: {settings.answer_field}={value!r}; expected text, a number or a list of accepted "
                "answers; mend the row, or leave such rows out with data.drop_empty=true"
            )
        answer = _answer(row, settings.answer_field, value)
    taken = (settings.question_field, settings.answer_field)
    return Problem(identity, question, answer, {key: value for key, value in row.values.items() if key not in taken})


def _text(row: Row, field: str, key: str) -> str:
    value = row.field(field, key=key)
    if not isinstance(value, str | int | float) or is_empty(value):
        raise DataError(f"{row.place}: {field}={value!r}; expected text or a number")
    return str(value)


def _answer(row: Row, field: str, value: Any) -> str | list[str]:
    accepted = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) and not is_empty(item) for item in accepted):
        raise DataError(f"{row.place}: {field}={value!r}; expected text, a number or a list of accepted answers")
    return [str(item) for item in value] if isinstance(value, list) else str(value)


def is_empty(value: Any) -> bool:
    """Whether a value is None, blank text, an empty list, or the NaN that tables have for nothing."""
    return value is None or value == [] or value != value or (isinstance(value, str) and not value.strip())
