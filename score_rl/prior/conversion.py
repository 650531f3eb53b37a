"""What another program's settings became: a recipe of ours, and a line for each of their keys."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from score_rl.data.files import HUB_NAME, Store, open_store
from score_rl.data.load import load_problems
from score_rl.errors import ConfigError
from score_rl.registry import suggest
from score_rl.schema import SCIENTIFIC, DataSettings, Schema, Settings
from score_rl.settings import override, parse

T = TypeVar("T", bound=Schema)
Kind = Literal["same", "differs", "left out", "refused"]

MAX_VALIDATION = 500
NOTE_WIDTH = 110


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which would be read back as a number."""


_Dumper.add_implicit_resolver(*SCIENTIFIC)


class Line(NamedTuple):
    """What became of one key.

    Attributes:
        key: in their file, or `(what)` for something that their program fixes.
        kind: `same` (means the same here), `differs` (the recipe does it another way), `left out` (changes nothing that
            is learned or measured, or has no effect there either), `refused` (would, and has no equal here).
        ours: the keys it went to, with their values.
        note: how it differs, or why it is not there.
    """

    key: str
    value: Any
    kind: Kind
    ours: dict[str, Any]
    note: str = ""

    @property
    def target(self) -> str:
        """`key=value` of ours, with `*` for a key that all stages share."""
        found: dict[str, Any] = {}
        for path, value in self.ours.items():
            parts = path.split(".")
            if parts[0] == "stages" and len(parts) > 1:
                stages = [p for p in self.ours if p.split(".")[2:] == parts[2:] and p.startswith("stages.")]
                if len(stages) > 1 and len({str(self.ours[p]) for p in stages}) == 1:
                    path = ".".join(["stages.*", *parts[2:]])
            found[path] = value
        return ", ".join(path if self.kind == "refused" else f"{path}={shorten(v)}" for path, v in found.items())


def shorten(value: Any) -> str:
    """A value in at most 40 characters, as YAML would have it."""
    text = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else str(value)
    text = " ".join(str(text).split())
    return text if len(text) <= 40 else f"{text[:36]} ..."


class Conversion:
    """A recipe in the making.

    Args:
        program: whose settings they are.
        source: their file, for messages.
        given: the keys that stand in it, dotted.
        overrides: `key=value` in our keys, which win over what is carried over.
    """

    def __init__(self, program: str, source: str, given: set[str], overrides: list[str]) -> None:
        self.program = program
        self.source = source
        self.given = given
        self.overrides = overrides
        self.content: dict[str, Any] = {}
        self.lines: list[Line] = []

    def same(self, key: str, value: Any, ours: Mapping[str, Any], note: str = "") -> None:
        """A key that means the same here."""
        self._add(Line(key, value, "same", dict(ours), note))

    def differs(self, key: str, value: Any, ours: Mapping[str, Any], note: str) -> None:
        """A key that the recipe follows in another way, or not to the letter."""
        self._add(Line(key, value, "differs", dict(ours), note))

    def left_out(self, key: str, value: Any, note: str) -> None:
        """A key that changes nothing that is learned or measured."""
        self._add(Line(key, value, "left out", {}, note))

    def refuse(self, key: str, value: Any, ours: list[str], note: str) -> None:
        """A key without an equal here; `ours` are the keys that the user must set instead."""
        self._add(Line(key, value, "refused", dict.fromkeys(ours), note))

    def _add(self, line: Line) -> None:
        self.lines.append(line)
        if line.kind != "refused":
            for path, value in line.ours.items():
                put(self.content, path, value)

    def is_overridden(self, path: str) -> bool:
        """Whether an override sets the key `path`, a part of it, or what it is part of."""
        keys = [assignment.partition("=")[0] for assignment in self.overrides]
        return any(path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for key in keys)

    @property
    def says_splits(self) -> bool:
        """Whether the overrides say which rows are which split."""
        keys = [assignment.partition("=")[0] for assignment in self.overrides]
        return any(key == "data" or key.startswith("data.splits") for key in keys)

    def _overridden(self, section: str = "") -> dict[str, Any]:
        """The content as it is now, with the overrides applied, all or those of one section."""
        content = copy.deepcopy(self.content)
        for assignment in self.overrides:
            if assignment.partition("=")[0].partition(".")[0].startswith(section):
                override(content, assignment)
        return content

    def store(self) -> Store | None:
        """The rows, where they are on this machine."""
        source = self._overridden("data")["data"].get("source")
        return open_store(source) if isinstance(source, str) and Path(source).exists() else None

    def count_rows(self, part: str) -> int | None:
        """Rows of a part of the data, where it is on this machine.

        Raises:
            ConfigError: it has no such part.
            DataError: it cannot be read.
        """
        store = self.store()
        if store is not None and part not in store.names:
            found = ", ".join(store.names) or "none"
            raise ConfigError(f"{store.label}: no part '{part}' (found: {found}); say with data.splits what is which")
        return None if store is None else len(store.rows(part))

    def count_problems(self) -> int | None:
        """Problems of the training split that the overrides name; None where they would come from the hub.

        Raises:
            ScoreError: the data cannot be read.
        """
        data = DataSettings.model_validate(self._overridden("data")["data"])
        return None if HUB_NAME.fullmatch(data.source) and self.store() is None else len(load_problems(data, "train"))

    def settings(self) -> Settings:
        """The recipe.

        Raises:
            ConfigError: a key was refused and no override sets what it stands for, or the recipe is not valid.
        """
        for line in self.lines:
            missing = [path for path in line.ours if not self.is_overridden(path)]
            if line.kind == "refused" and missing:
                mend = " ".join(f"{path}=..." for path in missing)
                raise ConfigError(f"{self.source}: {line.key}={shorten(line.value)}: {line.note}; else set {mend}")
        return parse(self._overridden(), f"{self.source} as a recipe")

    def recipe(self) -> str:
        """The recipe's YAML, headed by what it does not do as their program did.

        Raises:
            ConfigError: as `settings`.
        """
        content = self.settings().model_dump(mode="json", exclude_unset=True)
        head = [f"# {self.program} settings from {Path(self.source).name}, by `score import-config`."]
        for kind, title in (("differs", "What differs:"), ("refused", "Set by hand, for want of an equal:")):
            lines = [line for line in self.lines if line.kind == kind]
            if lines:
                head += [f"# {title}", *(f"# - {line.key}: {' '.join(line.note.split())}" for line in lines)]
        dumped = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=NOTE_WIDTH)
        return "\n".join(head) + "\n" + str(dumped)


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets `a.b` or `stages.0.lr`, making mappings and stages that are not there yet."""
    node: Any = content
    *parents, last = path.split(".")
    for key in parents:
        if key == "stages":
            node = node.setdefault(key, [])
        elif isinstance(node, list):
            while len(node) <= int(key):
                node.append({})
            node = node[int(key)]
        else:
            node = node.setdefault(key, {})
    node[last] = value


class Cut(NamedTuple):
    """What of a part trains and what validates, in the notation of `data.splits`, and the rows that train, if known."""

    train: str
    validation: str
    rows: int | None


def cut_validation(store: Store | None, part: str, rows: int | None, *, held: int = 0) -> Cut:
    """Validation rows for a program that has none: those of the data, or the last 5%, at most 500.

    Args:
        rows: of the part; None where nobody knows, and the cut is in percent (then `held` must be 0).
        held: rows at its beginning that are the test split.

    Raises:
        ConfigError: nothing is left to train on.
    """
    start = str(held) if held else ""
    if store is not None and "validation" in store.names:
        return Cut(f"{part}[{start}:]" if held else part, "validation", None if rows is None else rows - held)
    if rows is None:
        return Cut(f"{part}[:95%]", f"{part}[95%:]", None)
    size = max(1, min(MAX_VALIDATION, (rows - held) // 20))
    if rows - held - size < 1:
        raise ConfigError(f"{rows} rows of '{part}' leave none to train on: {held} are the test split, {size} validate")
    return Cut(f"{part}[{start}:-{size}]", f"{part}[-{size}:]", rows - held - size)


def leaves(content: Mapping[str, Any], schema: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of their file, down to what their schema does not divide further."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        field = schema.model_fields.get(str(key))
        inner = field.annotation if field is not None else None
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, Schema):
            found |= leaves(value, inner, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def leaf_names(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that their program knows."""
    names: list[str] = []
    for key, field in schema.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Schema):
            names += leaf_names(inner, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def read_theirs(schema: type[T], content: Mapping[str, Any], source: str) -> T:
    """Their settings.

    Raises:
        ConfigError: a key that their program does not know, lacks, or has with another kind of value.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{source}: unknown key {key}{suggest(key, leaf_names(schema))}") from error
        if first["type"] == "missing":
            raise ConfigError(f"{source}: key {key} is missing; their program needs it too") from error
        raise ConfigError(f"{source}: {key}={first['input']!r}: {first['msg']}") from error
