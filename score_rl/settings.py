"""Reading settings: defaults < recipe YAML < `key.path=value`, with errors that name the key and the mend."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from score_rl.errors import ConfigError
from score_rl.schema import SCIENTIFIC, Schema, Settings


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a number and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader, which would keep the last of two equal keys without a word."""
        keys = [self.construct_object(key) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is there twice; keep one", mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(*SCIENTIFIC)


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: not YAML; the message names `source` and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with one more number format
    except (yaml.YAMLError, ValueError) as error:  # the latter for what looks like a date and is none
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', error)})") from error


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(
        file.name.removesuffix(".yaml") for file in files("score_rl.recipes").iterdir() if file.name.endswith(".yaml")
    )


def read_recipe(recipe: str) -> tuple[str, dict[str, Any]]:
    """Source (for messages) and content of a recipe given by shipped name or by path.

    Raises:
        ConfigError: no such recipe, or its content is no mapping.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"{recipe}: no such file; shipped recipes: {', '.join(recipe_names())}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{recipe}: cannot be read ({error})") from error
    elif recipe in recipe_names():
        text = (files("score_rl.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        near = get_close_matches(recipe, recipe_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped recipes: {', '.join(recipe_names())}"
        raise ConfigError(f"{recipe}: no such recipe; {hint} (or give the path of a .yaml file)")
    content = parse_yaml(text, recipe)
    if not isinstance(content, dict):
        raise ConfigError(f"{recipe}: expected keys and values, found {type(content).__name__}")
    return recipe, content


def override(content: dict[str, Any], assignment: str) -> None:
    """Applies one `key.path=value`; list items are addressed by their number from 0, as in `stages.1.steps=50`.

    Raises:
        ConfigError: no `=`, or a path through a list that has no such item.
    """
    path, sign, text = assignment.partition("=")
    if not sign or not path:
        raise ConfigError(f"{assignment}: expected key.path=value, e.g. stages.1.steps=50")
    *parents, last = path.split(".")
    node: Any = content
    for depth, key in enumerate([*parents, last]):
        done = ".".join([*parents, last][:depth])
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise ConfigError(f"{path}: {done} has items 0 to {len(node) - 1}, not {key}")
        elif not isinstance(node, dict):
            raise ConfigError(f"{path}: {done} is {node!r} and has no keys")
        slot: Any = int(key) if isinstance(node, list) else key
        if depth == len(parents):
            node[slot] = parse_yaml(text, assignment)
        elif isinstance(node, list):
            node = node[slot]
        else:
            if node.get(slot) is None:
                node[slot] = {}
            node = node[slot]


def _known_keys(location: tuple[Any, ...], schema: type[BaseModel]) -> list[str]:
    """Keys that the schema has beside the one at `location`."""
    for key in location[:-1]:
        field = schema.model_fields.get(key)
        if field is not None:
            annotation = field.annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            schema = next((c for c in candidates if isinstance(c, type) and issubclass(c, Schema)), schema)
    return list(schema.model_fields)


def explain(source: str, error: ValidationError, schema: type[BaseModel] = Settings) -> str:
    """One line on the first fault: source, key, value and mend."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    key = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location, schema)
        near = get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        prefix = ".".join(str(part) for part in location[:-1])
        path = f"{prefix}." if prefix else ""
        hint = f"did you mean {path}{near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{source}: unknown key {key}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{source}: key {key} is missing; set {key}=..."
    if first["type"] == "value_error":
        return f"{source}: {key + ': ' if key else ''}{message}"
    return f"{source}: {key}={first['input']!r}: {message}"


def parse(content: dict[str, Any], source: str) -> Settings:
    """Settings from a mapping.

    Raises:
        ConfigError: one line that names the source, the key, the value and the mend.
    """
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(explain(source, error)) from error


def load(recipe: str, overrides: list[str] | None = None) -> Settings:
    """Settings of a recipe (shipped name or path) with `key.path=value` overrides applied.

    Raises:
        ConfigError: as `read_recipe`, `override` and `parse`.
    """
    source, content = read_recipe(recipe)
    for assignment in overrides or []:
        override(content, assignment)
    return parse(content, source)


def differing_keys(old: Settings, new: Settings) -> list[str]:
    """`key: old -> new` for every setting that differs."""
    return differences(old.model_dump(mode="json"), new.model_dump(mode="json"))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: old -> new` for every key, as deep as it lies, whose values differ."""

    def flatten(value: Any, path: str) -> dict[str, Any]:
        if isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            items = enumerate(value)  # type: ignore[assignment]
        else:
            return {path: value}
        return {k: v for key, item in items for k, v in flatten(item, f"{path}.{key}" if path else str(key)).items()}

    before, after = flatten(old, ""), flatten(new, "")
    return [
        f"{key}: {before.get(key, 'unset')!r} -> {after.get(key, 'unset')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, "unset") != after.get(key, "unset")
    ]
