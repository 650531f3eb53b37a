"""Extractors: the answer inside an attempt's text, or None. A missing answer is never equal to anything."""

import re
from collections.abc import Callable

from score_rl.registry import Registry

Extractor = Callable[[str], str | None]
extractors = Registry("extractor")
register_extractor = extractors.register

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@register_extractor("identity")
def identity(text: str) -> str | None:
    """The whole text without surrounding blanks; None when nothing is left.

    >>> identity(" 42 ")
    '42'
    """
    return text.strip() or None


@register_extractor("last_number")
def last_number(text: str) -> str | None:
    """The last number, without thousands commas.

    >>> last_number("first 7, then 1,234.")
    '1234'
    """
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None
