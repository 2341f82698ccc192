"""Windows of a log through vLLM's scheduler: each policy, at each load, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.steady import Figures, steady_figures
from sagellm_lifetime.assessment.windows import Window
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings
from sagellm_lifetime.replay.planned import planned_policies
from sagellm_lifetime.replay.policies import POLICIES
from sagellm_lifetime.replay.run import Run

DEFAULT: Final = "fcfs"
TUNED: Final = "fcfs-watermark"
PROMPTS: Final = "priority-prompt-length"
"""The order without a prediction: vLLM's priority queue, the shortest prompt first."""
OURS: Final = "lifetime"
ORACLE: Final = "lifetime-oracle"
ORACLES: Final = (ORACLE, "sjf-oracle")
"""Orders with known lengths, the better of which is the oracle: ours, whose bound on overtaking
depends on what is forecast, and shortest first without a bound."""
NAMES: Final = (DEFAULT, TUNED, PROMPTS, OURS, ORACLE)
WATERMARKS: Final = (0.01, 0.03, 0.1, 0.2)
"""Watermarks that are tried beside vLLM's default of none."""
WATERMARKS_QUICK: Final = (0.03, 0.2)


@dataclass
class Replays:
    """Runs of the windows of a log, kept by policy and load, so that none is made twice.

    Where nobody waits under vLLM's default, every policy makes its schedule, so no other is run.

    Args:
        windows: of the log.
        engine: settings of the engine.
        cost: model of the seconds of a step.
        objective: what counts as served.
        predictor: fitted on earlier rows; each run gets a clone.
        watermarks: that are tried beside none.
        tell: called with what is replayed now.

    Attributes:
        runs: number of runs so far.
    """

    windows: list[Window]
    engine: EngineSettings
    cost: StepCost
    objective: Objective
    predictor: Predictor
    watermarks: tuple[float, ...] = WATERMARKS
    tell: Callable[[str], None] = lambda _what: None
    runs: int = 0
    _kept: dict[tuple[str, float, int, float], Figures] = field(default_factory=dict)

    def figures(self, name: str, multiple: float, window: int, watermark: float = 0.0) -> Figures:
        """Return the figures of a policy on a window at a multiple of the rate.

        Args:
            name: of a policy, not ``fcfs-watermark``.
            multiple: of the log's rate.
            window: number of the window.
            watermark: vLLM's ``--watermark``.
        """
        at = round(multiple, 4)
        if name != DEFAULT or watermark:
            default = self.figures(DEFAULT, multiple, window)
            if default.nobody_waits and not default.preemptions:
                return default
        key = (name, at, window, watermark)
        if key not in self._kept:
            self._kept[key] = self._run(name, at, window, watermark)
        return self._kept[key]

    def tuned(self, multiple: float, better: Callable[[Figures], float]) -> dict[str, float]:
        """Return the watermark of each order that is best at a load, by policy.

        They are chosen on the first window, at this very load: that of vLLM's own order among all
        that are tried, the others among none and that one.

        Args:
            multiple: of the log's rate.
            better: lowest for the best figures.
        """

        def best(name: str, choices: tuple[float, ...]) -> float:
            return min(choices, key=lambda mark: better(self.figures(name, multiple, 0, mark)))

        theirs = best(DEFAULT, (0.0, *self.watermarks))
        few = (0.0, theirs) if theirs else (0.0,)
        return {TUNED: theirs, **{name: best(name, few) for name in (PROMPTS, OURS)}}

    def _run(self, name: str, multiple: float, window: int, watermark: float) -> Figures:
        mark = f", watermark {watermark:g}" if watermark else ""
        self.tell(f"{name}{mark}, window {window + 1}, {multiple:.3g} times the load")
        self.runs += 1
        policy = POLICIES[name] if name in POLICIES else planned_policies(self.predictor)[name]
        trace = self.windows[window].at(multiple)
        settings = replace(self.engine, **policy.overrides, watermark=watermark)
        return steady_figures(Run(trace, settings, self.cost, policy).execute(), self.objective)
