"""The schema of a sweep: which runs are made, what is evaluated of each, and which rows its tables have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, model_validator

from score_rl.schema import SCIENTIFIC, EvalSettings
from score_rl.strict import NonNegative, Positive, Schema

Name = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""Of a row or an evaluation: also a file's name."""
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Dumper(yaml.SafeDumper):
    """SafeDumper that knows which text would be read back as a number."""


_Dumper.add_implicit_resolver(*SCIENTIFIC)


class Judged(EvalSettings):
    """An evaluation that a sweep makes of a run's last model."""

    first_attempts: Literal["base"] | None = None
    """`base`: attempt 1 is the one that the model gave before training, in the run's own evaluation."""


class ExtraEvaluation(Schema):
    """An evaluation beside the run's own, in the words of `score eval`; what is null is as in the run's `eval`."""

    attempts: Positive | None = None
    samples: Positive | None = None
    temperature: NonNegative | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    problems: Positive | None = None
    first_attempts: Literal["base"] | None = None
    """`base`: go on from what the model said at attempt 1 before training."""

    def applied(self, settings: EvalSettings) -> Judged:
        """The run's evaluation with these changes.

        Raises:
            ValidationError: a combination that cannot work.
        """
        content = settings.model_dump(mode="json")
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        for name in {"temperature", "top_p"} & given.keys():
            content["sampling"][name] = given.pop(name)
        return Judged.model_validate(content | given)


class RowSettings(Schema):
    """A row of the tables: one recipe with changes, run with several seeds."""

    title: str = ""
    """What tables call it; its name when empty."""
    recipe: str | None = None
    """The sweep's when null."""
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    """In place of the recipe's stages, before any override."""
    overrides: list[str] = Field(default_factory=list)
    """`key=value` as on the command line, after those of the sweep."""
    seeds: Seeds | None = None
    """The sweep's when null."""
    train: bool = True
    """False: the model as it is, evaluated."""
    evaluations: dict[Name, ExtraEvaluation] = Field(default_factory=dict)
    """Beside those of the sweep."""
    paper: dict[str, float] = Field(default_factory=dict)
    """What the paper reports for this row, in percent, e.g. `{acc_t1: 60.0, acc_t2: 64.4}`."""


class TableSettings(Schema):
    """A table: its rows, in order."""

    title: str = ""
    rows: Annotated[list[str], Field(min_length=1)]


class SweepSettings(Schema):
    """Everything that determines a sweep."""

    name: Name
    recipe: str = "arithmetic"
    overrides: list[str] = Field(default_factory=list)
    """`key=value` for every row, as on the command line."""
    seeds: Seeds = Field(default=[0])
    threads: Positive | None = None
    """Of each run; when null, this machine's cores shared among the runs that go on at once. The last digits of a run
    depend on it, so set it where numbers must not depend on how many runs went on at once."""
    reference: str | None = None
    """The row that the others are compared with."""
    evaluations: dict[Name, ExtraEvaluation] = Field(default_factory=dict)
    """Made of every finished run's last model, beside the run's own."""
    rows: Annotated[dict[Name, RowSettings], Field(min_length=1)]
    tables: dict[Name, TableSettings] = Field(default_factory=dict)

    def seeds_of(self, row: str) -> list[int]:
        """Seeds that a row is run with."""
        found = self.rows[row].seeds
        return self.seeds if found is None else found

    def dump(self) -> str:
        """YAML that is read back as an equal object."""
        return str(yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True))

    @model_validator(mode="after")
    def _names_exist(self) -> SweepSettings:
        known = ", ".join(self.rows)
        if self.reference is not None and self.reference not in self.rows:
            raise ValueError(f"reference={self.reference}: no such row; rows: {known}")
        for name, table in self.tables.items():
            unknown = [row for row in table.rows if row not in self.rows]
            if unknown:
                raise ValueError(f"tables.{name}.rows: {unknown[0]} is no row; rows: {known}")
            _refuse_twice(f"tables.{name}.rows", table.rows)
        _refuse_twice("seeds", self.seeds)
        for name, row in self.rows.items():
            _refuse_twice(f"rows.{name}.seeds", row.seeds or [])
            both = self.evaluations.keys() & row.evaluations.keys()
            if both:
                raise ValueError(f"rows.{name}.evaluations: {min(both)} is one of the sweep's; use another name")
        return self


def _refuse_twice(key: str, values: list[Any]) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"{key}: {twice[0]} is there twice; name each once")
