"""What a reward is: `(prediction, problem) -> Grade`, or a function of TRL's shape; and the registry of them."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from score_rl.episodes import Grade, Problem
from score_rl.errors import ConfigError
from score_rl.registry import Registry
from score_rl.waiting import wait_for

F = TypeVar("F", bound=Callable[..., Any])

rewards = Registry("reward")


def register_reward(
    name: str,
    *,
    slow: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
    warm_up: Callable[[], None] | None = None,
) -> Callable[[F], F]:
    """Decorator that files a reward under `name`.

    Args:
        slow: it can run long, or be made to by what it reads, so it runs in worker processes with a deadline.
        check: called with the reward's options before training starts; raises ConfigError if it cannot work here.
        warm_up: called once in each worker process, outside any deadline.
    """

    def file(function: F) -> F:
        function.slow, function.check, function.warm_up = slow, check, warm_up  # type: ignore[attr-defined]
        return rewards.register(name)(function)

    return file


def is_batched(function: Callable[..., Any]) -> bool:
    """Whether a function has TRL's shape: `def f(completions, **columns) -> list[float | None]`."""
    return "completions" in inspect.signature(function).parameters


def number_grade(value: Any, threshold: float) -> Grade:
    """The grade that a bare number stands for; None and NaN leave the episode out."""
    if value is None or math.isnan(value):
        return Grade(False, None, None, "ungraded")
    return Grade(float(value) >= threshold, float(value))


def call_one(function: Callable[..., Any], prediction: str, problem: Problem, threshold: float) -> Grade:
    """The grade of one prediction by a function that returns a Grade, a number or None."""
    found = function(prediction, problem)
    return found if isinstance(found, Grade) else number_grade(found, threshold)


def call_batched(
    function: Callable[..., Any],
    predictions: Sequence[str],
    problems: Sequence[Problem],
    options: dict[str, Any],
    threshold: float,
) -> list[Grade]:
    """Grades by a function of TRL's shape.

    It gets `completions` and `prompts` as lists of messages (as bare text with the option `completions: text`),
    `question`, `answer` and every column that all problems have, and the remaining options as they are.

    Raises:
        ConfigError: it wants a column that is not there, or does not return one number for each completion.
    """
    texts = options.get("completions", "messages") == "text"
    shared = set.intersection(*(set(problem.meta) for problem in problems))
    columns: dict[str, Any] = {name: [problem.meta[name] for problem in problems] for name in sorted(shared)}
    columns |= {"question": [p.question for p in problems], "answer": [p.answer for p in problems]}
    columns["prompts"] = [p.question if texts else [{"role": "user", "content": p.question}] for p in problems]
    columns["completions"] = [p if texts else [{"role": "assistant", "content": p}] for p in predictions]
    columns |= {key: value for key, value in options.items() if key != "completions"}
    parameters = inspect.signature(function).parameters
    name = getattr(getattr(function, "func", function), "__name__", "the reward function")
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        missing = [n for n, p in parameters.items() if n not in columns and p.default is inspect.Parameter.empty]
        if missing:
            raise ConfigError(f"reward.fn: {name} wants the column {missing[0]!r}; the data has {', '.join(columns)}")
        columns = {key: value for key, value in columns.items() if key in parameters}
    values = function(**columns)
    if inspect.isawaitable(values):
        values = _wait(values)
    if not isinstance(values, list | tuple) or len(values) != len(predictions):
        raise ConfigError(
            f"reward.fn: {name} must return one number or None for each of {len(predictions)} completions"
        )
    return [number_grade(value, threshold) for value in values]


def _wait(awaitable: Any) -> Any:
    async def run() -> Any:
        return await awaitable

    return wait_for(run())
