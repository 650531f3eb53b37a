"""The collapse watch: what a run's numbers look like when it stops learning to correct (ALGORITHM, section 5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

WINDOW = 10
"""Steps that are averaged before anything is compared."""


@dataclass
class Watch:
    """Compares the mean of the last steps of a stage with the mean of its first ones.

    Attributes:
        kl_band: upper end of the KL of attempt 1 (nats per attempt) while it is pinned, or None where it is free.
    """

    kl_band: float | None = None
    first: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, deque[float]] = field(default_factory=dict)

    def look(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Warnings by key (`watch/copying`, ...), each with what to do, for one more step's metrics."""
        for key, value in metrics.items():
            self.recent.setdefault(key, deque(maxlen=WINDOW)).append(value)
            start = self.first.setdefault(key, [])
            if len(start) < WINDOW:
                start.append(value)
        if len(next(iter(self.recent.values()), ())) < WINDOW:
            return {}
        warnings = {}
        if self._now("unchanged/t2") > 0.98:
            warnings["watch/copying"] = "attempt 2 repeats attempt 1; lower beta1, raise alpha, or lengthen stage1"
        if self._change("acc/t1") < -0.05 and self._change("delta/t1_t2") > 0.02:
            warnings["watch/farming"] = "attempt 1 falls while delta rises; raise beta2 or lower alpha"
        for k in (1, 2):
            begun, now = fmean(self.first.get(f"length/t{k}", [0.0])), self._now(f"length/t{k}")
            if begun and not 0.5 < now / begun < 2:
                warnings[f"watch/length_t{k}"] = (
                    f"attempt {k} went from {begun:.0f} to {now:.0f} tokens; check the transcripts"
                )
        if self.kl_band is not None and self._now("kl/t1") > self.kl_band:
            warnings["watch/kl_t1"] = (
                f"KL of attempt 1 is above {self.kl_band:g} nats; raise beta2 or set adaptive_beta2"
            )
        if self._now("groups/no_signal") > 0.95:
            warnings["watch/no_signal"] = (
                "nearly all groups have equal rewards, so no gradient; change temperature or data"
            )
        return warnings

    def state(self) -> dict[str, dict[str, list[float]]]:
        """What a checkpoint keeps."""
        return {"first": dict(self.first), "recent": {key: list(values) for key, values in self.recent.items()}}

    def load_state(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Restores what `state` gave."""
        self.first = {key: list(values) for key, values in state["first"].items()}
        self.recent = {key: deque(values, maxlen=WINDOW) for key, values in state["recent"].items()}

    def _now(self, key: str) -> float:
        return fmean(self.recent[key]) if key in self.recent else 0.0

    def _change(self, key: str) -> float:
        return self._now(key) - fmean(self.first[key]) if key in self.first else 0.0
