"""The objective of a service: time to the first token, time per token, share that gets both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.replay.result import RunResult

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_FORM: Final = "ttft=2s,tpot=100ms,share=0.95"


@dataclass(frozen=True, slots=True)
class Objective:
    """A service level objective.

    Attributes:
        ttft_s: largest time to the first token, seconds.
        tpot_s: largest mean time of every further token, seconds.
        share: share of the requests that must have both, above 0 and at most 1.

    Raises:
        RequestError: a time is not above 0, or the share is out of range.

    >>> Objective.parse("ttft=500ms,share=0.9")
    Objective(ttft_s=0.5, tpot_s=0.1, share=0.9)
    """

    ttft_s: float = 2.0
    tpot_s: float = 0.1
    share: float = 0.95

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"objective: {name} must be above 0 seconds, got {value:g}")
        if not 0 < self.share <= 1:
            raise RequestError(f"objective: share must be above 0 and at most 1, got {self.share}")

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Return the objective of a text such as ``ttft=2s,tpot=100ms,share=0.95``.

        What is not named keeps its default; a time without a unit is in seconds.

        Raises:
            RequestError: a part cannot be read.
        """
        values: dict[str, float] = {}
        names = {"ttft": "ttft_s", "tpot": "tpot_s", "share": "share"}
        for part in text.split(","):
            key, given, value = (piece.strip().lower() for piece in part.partition("="))
            if not given or key not in names or names[key] in values:
                raise RequestError(f"--slo: {shown(part.strip())}: write it as {_FORM}")
            values[names[key]] = _share(value) if key == "share" else _seconds(value)
        return cls(**values)

    def met(self, result: RunResult) -> np.ndarray:
        """Return which requests of a run met both times; bool, shape ``(n,)``."""
        ttft = result.first - result.arrival
        tpot = (result.finish - result.first) / np.maximum(result.output - 1, 1)
        return np.asarray((ttft <= self.ttft_s) & (tpot <= self.tpot_s))

    def says(self) -> str:
        """Return the objective in words.

        >>> Objective(0.001, 0.001).says()
        '95 % of the requests with a first token within 1 ms and 1 ms a token'
        """
        return (
            f"{100 * self.share:g} % of the requests with a first token within "
            f"{_time(self.ttft_s)} and {_time(self.tpot_s)} a token"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the objective for ``--json``."""
        return {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "share": self.share}


def _time(seconds: float) -> str:
    """Return a time in seconds, or in milliseconds below one.

    >>> _time(2.0), _time(0.1)
    ('2 s', '100 ms')
    """
    return f"{seconds:g} s" if seconds >= 1 else f"{1e3 * seconds:g} ms"


def _seconds(text: str) -> float:
    number = text.rstrip("smu ")
    unit = text[len(number) :].strip() or "s"
    if unit not in _UNITS:
        raise RequestError(f"--slo: {shown(text)} is no time: write it as {_FORM}")
    return _number(number, text) * _UNITS[unit]


def _share(text: str) -> float:
    if text.endswith("%"):
        return _number(text[:-1], text) / 100
    return _number(text, text)


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RequestError(f"--slo: {shown(whole)} is no number: write it as {_FORM}") from None
