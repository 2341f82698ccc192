"""Assess a log: choose a predictor, replay the log on an engine, and give one verdict.

>>> from sagellm_lifetime.assessment.engine import Engine
>>> history = Dataset.read("log.jsonl")  # doctest: +SKIP
>>> verdict = Assessment(history, Engine.of(gpu="h100", model_size="8b")).run()  # doctest: +SKIP
>>> print(verdict.headline())  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sagellm_lifetime.assessment.capacity import PRECISION
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.predictor_choice import (
    PredictorChoice,
    candidates,
    choose_predictor,
    cut,
)
from sagellm_lifetime.assessment.replay_part import ReplayPart, replay_part
from sagellm_lifetime.assessment.replays import WATERMARKS, WATERMARKS_QUICK, Replays
from sagellm_lifetime.assessment.verdict import Verdict
from sagellm_lifetime.assessment.windows import draw_windows, shares_prompts
from sagellm_lifetime.core.errors import MissingExtraError, RequestError
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.study import Progress
from sagellm_lifetime.predictor.registry import predictor_class
from sagellm_lifetime.vllm.compat.interface import check_interface
from sagellm_lifetime.vllm.compat.versions import version

MULTIPLES: Final = (1.0, 1.5, 2.0, 3.0)
MULTIPLES_QUICK: Final = (1.0, 2.0, 3.0)
NO_VLLM: Final = "the replay needs vLLM: pip install 'isagellm-lifetime[vllm]'"
_EXPECTED_RUNS: Final = 60
"""Runs a window, for the progress bar alone."""


@dataclass(frozen=True)
class AssessmentSettings:
    """The settings of an assessment.

    Attributes:
        multiples: loads, as multiples of the log's own rate.
        windows: number of windows that are replayed.
        cpu_s: CPU seconds that one run may take, roughly; the size of a window follows.
        quick: compare fewer predictors, on fewer rows.
        predictors: names of the candidates; empty for the usual ones.
        precision: of the capacities, as a ratio above 1.
        watermarks: that are tried for vLLM beside none.
        seed: of everything random.

    Raises:
        RequestError: a number is out of range.
        UnknownNameError: no predictor has one of the names.

    >>> AssessmentSettings.of(quick=True).windows
    1
    """

    multiples: Sequence[float] = MULTIPLES
    windows: int = 3
    cpu_s: float = 0.7
    quick: bool = False
    predictors: Sequence[str] = ()
    precision: float = PRECISION
    watermarks: tuple[float, ...] = WATERMARKS
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.predictors:
            predictor_class(name)
        if not self.multiples or not all(0 < multiple <= 100 for multiple in self.multiples):
            raise RequestError("multiples of the load must be above 0 and at most 100")
        if self.windows < 1:
            raise RequestError(f"windows must be 1 or more, got {self.windows}")

    @classmethod
    def of(
        cls, *, quick: bool = False, predictors: Sequence[str] = (), seed: int = 0
    ) -> AssessmentSettings:
        """Return the usual settings, or those of ``--quick``: one window, a coarser search."""
        if not quick:
            return cls(predictors=predictors, seed=seed)
        return cls(
            multiples=MULTIPLES_QUICK,
            windows=1,
            cpu_s=0.2,
            quick=True,
            predictors=predictors,
            precision=1.15,
            watermarks=WATERMARKS_QUICK,
            seed=seed,
        )


class Assessment:
    """A log, an engine and an objective; :meth:`run` returns the verdict.

    The constructor makes all checks that need no training.

    Args:
        history: the log.
        engine: what it would be served on.
        objective: what counts as served.
        settings: how thoroughly.

    Raises:
        HistoryError: the log cannot be split, trained on or replayed.
    """

    def __init__(
        self,
        history: Dataset,
        engine: Engine,
        objective: Objective | None = None,
        settings: AssessmentSettings | None = None,
    ) -> None:
        self.history = history
        self.engine = engine
        self.objective = objective or Objective()
        self.settings = settings or AssessmentSettings()
        self._parts = cut(history, quick=self.settings.quick)
        self._engine = engine.settings(prefix_caching=shares_prompts(history.rows))
        self._windows = draw_windows(
            self._parts.test,
            self._engine,
            engine.cost,
            count=self.settings.windows,
            cpu_s=self.settings.cpu_s,
            seed=self.settings.seed,
            cores=engine.cores,
        )

    def run(self, progress: Progress | None = None) -> Verdict:
        """Choose a predictor, replay the log where vLLM is installed, and return the verdict.

        Args:
            progress: called with the name of the present task and its finished share.

        Raises:
            LifetimeError: a predictor cannot be trained on the log, or vLLM has a version that is
                not supported.
        """
        tell = progress or _silent
        settings = self.settings
        names = list(settings.predictors) or candidates(quick=settings.quick)
        reason = ""
        try:
            check_interface()  # before any training: a vLLM of another version is refused
        except MissingExtraError:
            reason = NO_VLLM
        choice = choose_predictor(
            self._parts, names, quick=settings.quick, seed=settings.seed, progress=tell
        )
        replay = None if reason else self._replay(choice, tell)
        return Verdict(
            source=self.history.name,
            rows=len(self.history.rows),
            predictor=choice,
            engine=self.engine,
            objective=self.objective,
            replay=replay,
            why_no_replay=reason,
            reading=self.history.reading,
        )

    def _replay(self, choice: PredictorChoice, tell: Progress) -> ReplayPart:
        windows = self._windows.windows
        longest = max((window.trace for window in windows), key=self._engine.model_length)
        replays = Replays(
            windows,
            replace(self._engine, max_model_len=self._engine.model_length(longest)),
            self.engine.cost,
            self.objective,
            choice.predictor,
            self.settings.watermarks,
        )
        expected = _EXPECTED_RUNS * len(windows)
        replays.tell = lambda what: tell(what, min(replays.runs / expected, 0.99))
        return replay_part(
            replays,
            self._windows,
            self.settings.multiples,
            self.objective,
            precision=self.settings.precision,
            version=version(),
        )


def _silent(_what: str, _share: float) -> None:
    return
