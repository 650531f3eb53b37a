"""Named functions: a dictionary with a decorator and an error that suggests the nearest name."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from score_rl.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])


def suggest(name: str, known: list[str]) -> str:
    """`; did you mean X?` for the nearest known name, else the list of known names."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(known))}"


class Registry(dict[str, Callable[..., Any]]):
    """Functions by name.

    >>> shouts = Registry("shout")
    >>> @shouts.register("loud")
    ... def loud(text): return text.upper()
    >>> shouts.find("loud", key="reward.fn")("hi")
    'HI'
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that files a function under `name`."""

        def file(function: F) -> F:
            self[name] = function
            return function

        return file

    def find(self, name: str, *, key: str) -> Callable[..., Any]:
        """The function called `name`.

        Raises:
            ConfigError: nothing has that name; the message names the setting `key` and the nearest name.
        """
        if name not in self:
            raise ConfigError(f"{key}={name}: unknown {self.kind}{suggest(name, list(self))}")
        return self[name]
