"""Replays of a log by each policy at several loads, and the highest load that each serves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sagellm_lifetime.assessment.capacity import Gain, Highest, gain, highest_load, middle
from sagellm_lifetime.assessment.intervals import Range
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.replays import (
    DEFAULT,
    ORACLE,
    ORACLES,
    OURS,
    PROMPTS,
    TUNED,
    Replays,
)
from sagellm_lifetime.assessment.steady import Figures
from sagellm_lifetime.assessment.windows import Windows

CURVE: Final = (DEFAULT, TUNED, PROMPTS, OURS)
"""Policies whose capacity is sought."""
LOWEST: Final = 1 / 8
MOST: Final = 16.0
"""Ends of the search. Lower loads take as many steps as tokens, and tell little."""


@dataclass(frozen=True)
class Load:
    """All policies at one load.

    Attributes:
        multiple: of the log's own rate.
        watermarks: by policy, the watermark that is best for it here.
        figures: by policy, one for each window.
    """

    multiple: float
    watermarks: Mapping[str, float]
    figures: Mapping[str, Sequence[Figures]]

    def change(self, key: str) -> Range:
        """Return the change of a figure under ``lifetime``, as a share, against :attr:`base`."""
        changes = []
        for mine, base in zip(self.figures[OURS], self.base, strict=True):
            before, after = getattr(base, key), getattr(mine, key)
            changes.append(after / before - 1 if before > 0 else 0.0)
        return Range.of(changes)

    @property
    def base(self) -> list[Figures]:
        """Return what every change is against: in each window vLLM's default or the tuned
        watermark, the one with the lower mean latency.
        """
        pairs = zip(self.figures[DEFAULT], self.figures[TUNED], strict=True)
        return [min(pair, key=lambda figures: figures.mean_s) for pair in pairs]

    def range(self, name: str, key: str) -> Range:
        """Return a figure of a policy over the windows."""
        return Range.of([float(getattr(figures, key)) for figures in self.figures[name]])

    @property
    def nobody_waits(self) -> bool:
        """Return True if nobody waits under vLLM's default in any window."""
        return all(figures.nobody_waits for figures in self.figures[DEFAULT])

    def keeps_up(self, name: str) -> bool:
        """Return True if the queue grows in no window."""
        return all(figures.keeps_up for figures in self.figures[name])


@dataclass(frozen=True)
class ReplayPart:
    """The replay of a log.

    Attributes:
        rate: requests a second of the log's test part; None where it has no arrival times.
        unit: requests a second of the load 1: ``rate`` where there is one.
        peak: rate of the busiest of 24 parts of the test part, as a multiple of its mean.
        loads: figures at several multiples of the log's rate.
        capacity: by policy, the highest load within the objective, one for each window.
        free: load below which nobody waits under vLLM's default, in the first window; sought only
            where nobody waits at any of ``loads``.
        precision: of ``capacity``, as a ratio above 1.
        watermarks: by policy, the watermark for ``capacity``.
        requests: requests of a window at the log's own rate.
        left_out: requests too large for the engine.
        of: requests of the test part.
        notes: remarks on how the load is set.
        version: of vLLM.
        runs: number of replays.
    """

    rate: float | None
    unit: float
    peak: float | None
    loads: tuple[Load, ...]
    capacity: Mapping[str, tuple[Highest, ...]]
    free: Highest | None
    precision: float
    watermarks: Mapping[str, float]
    requests: int
    left_out: int
    of: int
    notes: tuple[str, ...]
    version: str
    runs: int

    @property
    def windows(self) -> int:
        """Return the number of windows."""
        return len(self.capacity[DEFAULT])

    def served(self, name: str) -> Highest:
        """Return the load that a policy serves within the objective: the median, maybe a bound."""
        return middle(self.capacity[name])

    @property
    def best_of_vllm(self) -> str:
        """Return the policy of vLLM itself that serves more: its default or a watermark."""
        tuned, default = self.served(TUNED).load, self.served(DEFAULT).load
        return TUNED if tuned > default else DEFAULT

    @property
    def more_load(self) -> Gain | None:
        """Return how much more load ``lifetime`` serves than :attr:`best_of_vllm`."""
        return gain(self.capacity[OURS], self.capacity[self.best_of_vllm])

    @property
    def more_by_prompts(self) -> Gain | None:
        """Return how much more load than :attr:`best_of_vllm` the shortest prompt first serves."""
        return gain(self.capacity[PROMPTS], self.capacity[self.best_of_vllm])

    @property
    def never_met(self) -> bool:
        """Return True if no policy meets the objective in any window, at any load."""
        return all(h.end == "less" for several in self.capacity.values() for h in several)

    @property
    def always_met(self) -> bool:
        """Return True if every policy meets the objective at the highest load that was tried."""
        return all(h.end == "more" for several in self.capacity.values() for h in several)

    def to_json(self) -> dict[str, Any]:
        """Return all figures for ``--json``."""
        capacity = {
            name: [
                {"multiple": h.load, "requests_per_s": h.load * self.unit, "end": h.end}
                for h in several
            ]
            for name, several in self.capacity.items()
        }
        more, by_prompts = self.more_load, self.more_by_prompts
        return {
            "rate": self.rate,
            "unit": self.unit,
            "peak": self.peak,
            "windows": self.windows,
            "requests": self.requests,
            "left_out": self.left_out,
            "of": self.of,
            "notes": list(self.notes),
            "engine": f"vLLM {self.version}",
            "runs": self.runs,
            "nobody_waits_below": None
            if self.free is None
            else {
                "multiple": self.free.load,
                "requests_per_s": self.free.load * self.unit,
                "end": self.free.end,
            },
            "capacity": capacity,
            "capacity_precision": self.precision,
            "capacity_watermarks": dict(self.watermarks),
            "more_load": None if more is None else more.share.to_json(),
            "more_load_bound": None if more is None else more.bound or None,
            "more_load_against": self.best_of_vllm,
            "more_load_without_prediction": None
            if by_prompts is None
            else by_prompts.share.to_json(),
            "loads": [
                {
                    "multiple": load.multiple,
                    "watermarks": dict(load.watermarks),
                    "nobody_waits": load.nobody_waits,
                    "policies": {
                        name: [figures.to_json() for figures in several]
                        for name, several in load.figures.items()
                    },
                }
                for load in self.loads
            ],
        }


def replay_part(
    replays: Replays,
    windows: Windows,
    multiples: Sequence[float],
    objective: Objective,
    *,
    precision: float,
    version: str,
    notes: Sequence[str] = (),
) -> ReplayPart:
    """Return what each policy does to the windows of a log.

    Args:
        replays: runs of the windows.
        windows: of the log; without a rate of its own they are put at the load that vLLM's default
            just serves.
        multiples: of the rate.
        objective: what counts as served.
        precision: of the capacities, see :func:`highest_load`.
        version: of vLLM.
        notes: remarks on the setting.
    """
    notes = list(notes)
    several = range(len(replays.windows))
    if windows.rate is None:
        just = highest_load(
            _meets(replays, DEFAULT, 0, objective), lowest=1 / 1024, most=1024, precision=1.2
        )
        replays = replace(
            replays,
            windows=[replace(w, rate=w.rate * just.load) for w in replays.windows],
            _kept={},
        )
        notes.append("the log has no arrival times on one clock: arrivals are drawn")
    loads = tuple(replay_load(replays, multiple) for multiple in multiples)
    default = tuple(
        highest_load(
            _meets(replays, DEFAULT, w, objective), lowest=LOWEST, most=MOST, precision=precision
        )
        for w in several
    )
    marks = {DEFAULT: 0.0, PROMPTS: 0.0, OURS: 0.0}
    # Where vLLM's default passes at the highest load that is tried, no watermark can serve more.
    if any(found.end != "more" for found in default):
        above = default[0].load * 1.15
        marks = replays.tuned(above, lambda f: 1e-6 * f.mean_s - f.within)
        marks[DEFAULT] = marks.pop(TUNED)

    def sought(name: str) -> tuple[Highest, ...]:
        tests = [_meets(replays, name, w, objective, marks[name]) for w in several]
        return tuple(
            highest_load(test, start=found.load, lowest=LOWEST, most=MOST, precision=precision)
            for test, found in zip(tests, default, strict=True)
        )

    capacity = {
        DEFAULT: default,
        TUNED: sought(DEFAULT) if marks[DEFAULT] else default,
        PROMPTS: sought(PROMPTS),
        OURS: sought(OURS),
    }
    tuned = better_setting({0.0: default, marks[DEFAULT]: capacity[TUNED]})
    capacity[TUNED] = capacity[TUNED] if tuned else default
    free = None
    if all(load.nobody_waits for load in loads):
        free = highest_load(
            lambda multiple: replays.figures(DEFAULT, multiple, 0).nobody_waits,
            # A power of 2, as the search for the capacity has replayed them.
            start=min(2.0 ** math.ceil(math.log2(max(multiples))), MOST),
            most=MOST,
            precision=1.2,
        )
    return ReplayPart(
        rate=windows.rate,
        unit=replays.windows[0].rate * windows.cores,
        peak=windows.peak,
        loads=loads,
        capacity=capacity,
        free=free,
        precision=precision,
        watermarks=marks | {DEFAULT: 0.0, TUNED: tuned},
        requests=replays.windows[0].size,
        left_out=windows.left_out,
        of=windows.of,
        notes=tuple(notes),
        version=version,
        runs=replays.runs,
    )


def better_setting(capacity: Mapping[float, Sequence[Highest]]) -> float:
    """Return the watermark that serves the most load; the first of several, so put none first.

    >>> better_setting({0.0: [Highest(1.2)], 0.2: [Highest(1.1)]})
    0.0
    """
    return max(capacity, key=lambda mark: middle(capacity[mark]).load)


def replay_load(replays: Replays, multiple: float) -> Load:
    """Return all policies at one load, each but vLLM's default with the best watermark here.

    The oracle is the better of :data:`ORACLES` here, on the first window.
    """
    marks = replays.tuned(multiple, lambda f: f.mean_s)
    ours = marks[OURS]
    oracle = min(ORACLES, key=lambda name: replays.figures(name, multiple, 0, ours).mean_s)
    settings = {
        DEFAULT: (DEFAULT, 0.0),
        TUNED: (DEFAULT, marks[TUNED]),
        PROMPTS: (PROMPTS, marks[PROMPTS]),
        OURS: (OURS, ours),
        ORACLE: (oracle, ours),
    }
    figures = {
        label: [replays.figures(name, multiple, w, mark) for w in range(len(replays.windows))]
        for label, (name, mark) in settings.items()
    }
    return Load(multiple, {label: mark for label, (_, mark) in settings.items()}, figures)


def _meets(
    replays: Replays, name: str, window: int, objective: Objective, watermark: float = 0.0
) -> Callable[[float], bool]:
    """Return a function of the load: whether a policy meets the objective in a window."""
    return lambda multiple: replays.figures(name, multiple, window, watermark).meets(objective)
