"""Text from outside, made safe to put into a page and visible to whoever reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

NAMES = {
    0x061C: "ALM", 0x200B: "ZWSP", 0x200E: "LRM", 0x200F: "RLM", 0x2028: "LS", 0x2029: "PS", 0x202A: "LRE",
    0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO", 0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI",
    0x2068: "FSI", 0x2069: "PDI", 0xFEFF: "BOM",
}  # fmt: skip
"""Characters that change how others look, or are not seen themselves."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with control characters, bidirectional controls and surrogates spelled out.

    >>> visible("a\\u202eb\\x00")
    'a⟦RLO⟧b⟦U+0000⟧'
    """
    return _HIDDEN.sub(lambda found: f"⟦{NAMES.get(ord(found[0]), f'U+{ord(found[0]):04X}')}⟧", text)


def finalize(value: Any) -> Any:
    """What a template shows of a value: markup of our own as it is, anything else as visible text."""
    return value if isinstance(value, Markup) else visible(str(value))


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element or is no JavaScript."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def number(metrics: Mapping[str, Any], key: str) -> float | None:
    """A number among metrics, or None where there is none, or one that no run measures."""
    value = metrics.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return None
    return float(value)


def percent(share: float, *, sign: bool = False) -> str:
    """A share in percent with one digit, a true minus, and a sign where asked for.

    >>> percent(-0.0304, sign=True)
    '−3.0'
    """
    text = f"{100 * share:{'+' if sign else ''}.1f}"
    return ("0.0" if text in ("-0.0", "+0.0") else text).replace("-", "−")


def short(value: float) -> str:
    """A number of any size, with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def about(count: int) -> str:
    """A count with two digits that count.

    >>> about(14713)
    '15,000'
    """
    return f"{round(count, 1 - math.floor(math.log10(count))):,}"
