"""Recipes from the settings files of other SCoRe programs: BY571/SCoRe and VityaVitalich/SCoRe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from score_rl.errors import ConfigError
from score_rl.prior import by571, vityavitalich
from score_rl.prior.by571 import By571
from score_rl.prior.conversion import Conversion, leaves, read_theirs
from score_rl.prior.vityavitalich import VityaVitalich
from score_rl.settings import parse_yaml


def import_config(
    path: Path, overrides: list[str] | None = None, *, train_rows: int | None = None, processes: int | None = None
) -> Conversion:
    """What a file of another program becomes here.

    Args:
        overrides: `key=value` in our keys; they also answer for what has no equal.
        train_rows: rows of its training split, where the data is not on this machine (BY571: epochs).
        processes: that theirs would be launched on (VityaVitalich: batch sizes); 1 when None.

    Raises:
        ConfigError: no such file, of neither program, with a key that the program does not know, or an option that is
            for the other program.
        DataError: the data is here and cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    schema = _program(content, path)
    made = Conversion(_NAMES[schema], str(path), set(leaves(content, schema)), overrides or [])
    theirs = read_theirs(schema, content, str(path))
    if isinstance(theirs, By571):
        if processes is not None:
            raise ConfigError(f"--processes {processes}: {_NAMES[schema]} has one process and its file all batch sizes")
        by571.convert(theirs, made, train_rows)
    else:
        if train_rows is not None:
            raise ConfigError(f"--train-rows {train_rows}: {_NAMES[schema]} counts episodes, not epochs; leave it out")
        vityavitalich.convert(theirs, made, processes=processes or 1)
    return made


_NAMES: dict[type[By571] | type[VityaVitalich], str] = {By571: "BY571/SCoRe", VityaVitalich: "VityaVitalich/SCoRe"}


def _program(content: dict[str, Any], path: Path) -> type[By571] | type[VityaVitalich]:
    """Whose keys they are: `run_name` is in both files, everything else in one."""
    if "stages" in content:
        raise ConfigError(f"{path}: has stages, so it is a recipe already; train it with score train {path}")
    found = {schema: sum(key in schema.model_fields and key != "run_name" for key in content) for schema in _NAMES}
    if not any(found.values()):
        raise ConfigError(
            f"{path}: neither of BY571/SCoRe (sections model, dataset, prompts, reward, train) nor of "
            "VityaVitalich/SCoRe (model_path, task_type, train_stage, ...)"
        )
    return max(found, key=lambda schema: found[schema])
