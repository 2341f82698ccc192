"""Compare predictors and baselines on a history: split, fit, score.

>>> from sagellm_lifetime.workloads import generate
>>> data = Dataset.of(generate("chat", 200, seed=1), "chat")
>>> result = Study(data, StudySettings(predictors=("survival",), online=False)).run()
>>> result.settings["how"]
'split by time: trained on 140 rows, scored on the other 60'
>>> sorted(result.to_json()["baselines"])[0]
'constant_median'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from sagellm_lifetime.core.errors import HistoryError, RequestError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.evaluation.cross_fitting import cross_fitted, trained
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.evaluation.points import known_lengths
from sagellm_lifetime.evaluation.protocol import Evaluation, evaluate
from sagellm_lifetime.evaluation.rivals.base import Rival
from sagellm_lifetime.evaluation.verdict import Verdict, verdict
from sagellm_lifetime.history import History
from sagellm_lifetime.history.overlap import MANY, share_of, sketch
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.registry import DEFAULT, create_predictor, predictor_class

Progress = Callable[[str, float], None]
"""Called with what is being done and the share of it that is done, 0 to 1."""
Way = Literal["auto", "time", "session", "prompt"]


@dataclass(frozen=True)
class StudySettings:
    """Settings of a study: the predictors and how they are scored.

    Attributes:
        predictors: names, each trained on the training part.
        split: how the history is cut 70/30 where no other history is given to train on.
        online: learn from each row at its finish, in simulated time; ``None``: where every row has
            an arrival time.
        max_rows: score a random part of this many rows; ``None`` for all.
        seed: of everything random.
        options: options of predictors by name, as :func:`create_predictor` takes them.

    Raises:
        UnknownNameError: no predictor has one of the names.
        RequestError: no predictor is named, or ``max_rows`` is below 1.
    """

    predictors: Sequence[str] = (DEFAULT,)
    split: Way = "auto"
    online: bool | None = None
    max_rows: int | None = None
    seed: int = 0
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.predictors:
            raise RequestError("no predictor is named")
        for name in self.predictors:
            predictor_class(name)
        if self.max_rows is not None and self.max_rows < 1:
            raise RequestError(f"max_rows must be 1 or more, got {self.max_rows}")


@dataclass(frozen=True, eq=False)
class StudyResult:
    """Scores of all predictors and baselines on the same rows.

    Attributes:
        evaluations: one a predictor, in the order of the settings.
        settings: how the scores came about; goes into the JSON as it is.
        online: whether the predictors learned while they were scored.
    """

    evaluations: Sequence[Evaluation]
    settings: dict[str, Any]
    online: bool

    @property
    def is_test(self) -> bool:
        """Return True unless many of the training rows are among the scored ones."""
        return bool(self.settings["seen_before"] < MANY)

    @property
    def verdict(self) -> Verdict | None:
        """Return who is ahead over all steps; None from too few rows, or from rows trained on."""
        return verdict(self.evaluations) if self.is_test else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of ``evaluate --json``."""
        return to_json(self.evaluations, self.settings)


class Study:
    """A history, predictors, and the baselines beside them.

    Args:
        data: rows to score; cut in two where there is nothing else to train on.
        settings: what is compared.
        train: history to train on; with ``predictor``, for the baselines alone.
        predictor: a trained predictor, scored in place of those that the settings name; copies of
            it are scored, so it learns nothing.
        origin: where ``predictor`` comes from, for people.

    Raises:
        HistoryError: the history cannot be split, trained on or scored.

    Attributes:
        how: where predictors and rows come from, in one sentence.
        left_out: baselines that could not be fitted and the reasons; filled by :meth:`fit`.
        seen_before: estimated share of the training rows that are among those to be scored; from
            arrival times and lengths, 0 where there are none.
    """

    def __init__(
        self,
        data: Dataset,
        settings: StudySettings | None = None,
        *,
        train: Dataset | None = None,
        predictor: Predictor | None = None,
        origin: str = "memory",
    ) -> None:
        self.settings = settings or StudySettings()
        self.left_out: Mapping[str, str] = {}
        self._read = [data] if train is None else [data, train]
        self._scored = data
        self._train = train
        self._given = predictor
        self._split: str | None = None
        self._fitted: tuple[list[Predictor], list[Rival]] | None = None
        if predictor is not None:
            self.how = f"{predictor.name} of {origin}, scored on {counted(len(data.rows), 'row')}; "
            if train is None:
                self.how += "each baseline trained on the half of these rows it is not scored on"
            else:
                self.how += f"baselines trained on {train.name}"
        elif train is not None:
            rows = counted(len(train.rows), "row")
            self.how = f"trained on {rows} of {train.name}, scored on {len(data.rows):,}"
        else:
            parts = split(data.rows, self.settings.split, clock=data.clock)
            self._scored = replace(data, rows=parts.test)
            self._train = replace(data, rows=parts.train)
            self._split = parts.by
            self.how = (
                f"split by {parts.by}: trained on {counted(len(parts.train), 'row')}, "
                f"scored on the other {len(parts.test):,}"
            )
        self.seen_before = self._seen_before()
        if self.seen_before >= MANY:
            self.how += (
                f"; about {self.seen_before:.0%} of the training rows are among these, "
                "so this is no test on unseen rows, and there is no verdict"
            )
        self._check()

    def _seen_before(self) -> float:
        """Return the share of the training rows that are among those to be scored, 0 to 1."""
        if self._given is not None:
            training = self._given.summary.get("sketch") or []
        elif self._train is not None:
            training = sketch(self._train.rows)
        else:
            training = []
        return share_of(training, self._scored.rows)

    def _check(self) -> None:
        """Refuse, before anything is trained, what could not be scored in the end."""
        rows = self._scored.rows
        if not self._scored.has_tokens:
            raise HistoryError("nothing to evaluate: no row of the test part has generated tokens")
        if not known_lengths(rows)[rows["actual_length"].to_numpy() > 0].any():
            raise HistoryError(
                "nothing to evaluate: no row of the test part ended by itself or at a cap that it "
                "names, so every length is a lower bound"
            )
        if self.settings.online and not self._scored.has_all_arrivals:
            raise HistoryError(
                "--online needs 'arrival_time' in every row: add the column, or leave --online out"
            )
        if self._given is None and self._train is not None and not self._train.has_tokens:
            raise HistoryError(
                "nothing to train on: no row of the training part has generated tokens"
            )

    @property
    def online(self) -> bool:
        """Return True if the predictors learn while they are scored."""
        online = self.settings.online
        return self._scored.has_all_arrivals if online is None else online

    def fit(self, progress: Progress | None = None) -> None:
        """Fit the baselines, which may refuse the history at once, then the predictors.

        Without a training part each baseline is fitted on either half of the rows and answers for
        the other half.

        Raises:
            LifetimeError: a predictor cannot be fitted on these rows.
        """
        step = progress or _silent
        step("training the baselines", 0.0)
        if self._train is not None:
            rivals, self.left_out = trained(self._train.rows)
        else:
            rows, rivals, self.left_out = cross_fitted(self._scored.rows, self._scored.clock)
            self._scored = replace(self._scored, rows=rows)
        if self._given is not None:
            self._fitted = [self._given], rivals
            return
        assert self._train is not None
        predictors = []
        for name in self.settings.predictors:
            options = self.settings.options.get(name, {})
            predictor = create_predictor(name, seed=self.settings.seed, **options)
            tell = labelled(step, f"training {name}")
            predictor.fit(History(self._train.rows), progress=tell, clock=self._train.clock)
            predictors.append(predictor)
        self._fitted = predictors, rivals

    def run(self, progress: Progress | None = None) -> StudyResult:
        """Score everybody; call :meth:`fit` first where nobody did.

        Copies of the predictors are scored, and online the copies learn: a second run scores the
        same, also after one that was interrupted, and a predictor that was given learns nothing.

        Raises:
            LifetimeError: a predictor cannot be fitted on these rows.
        """
        if self._fitted is None:
            self.fit(progress)
        assert self._fitted is not None
        predictors, rivals = self._fitted
        settings, online = self.settings, self.online
        evaluations = []
        for predictor in predictors:
            count = _counter(labelled(progress or _silent, f"scoring {predictor.name}"))
            evaluations.append(
                evaluate(
                    predictor.clone(),
                    self._scored.rows,
                    online=online,
                    clock=self._scored.clock,
                    seed=settings.seed,
                    max_rows=settings.max_rows,
                    rivals=rivals,
                    progress=count,
                )
            )
        return StudyResult(evaluations, self._record(), online)

    def _record(self) -> dict[str, Any]:
        """Return how the scores came about, for the JSON."""
        if self._given is not None:
            training_rows = self._given.summary.get("rows")
        else:
            training_rows = None if self._train is None else len(self._train.rows)
        return {
            "how": self.how,
            "split": self._split,
            "training_rows": training_rows,
            "seen_before": round(self.seen_before, 3),
            "left_out": dict(self.left_out),
            "seed": self.settings.seed,
            "max_rows": self.settings.max_rows,
            "data": self._read[0].name,
            "clock": self._read[0].recorded_clock,
            "read": {each.name: dict(each.reading) for each in self._read},
        }


def to_json(evaluations: Sequence[Evaluation], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of the first predictor; all of them below ``predictors``."""
    seen = settings.get("seen_before", 0.0) >= MANY
    ahead = None if seen else verdict(evaluations)
    found = {
        **evaluations[0].to_dict(),
        "verdict": None if ahead is None else ahead.to_dict(),
        "settings": settings,
    }
    if len(evaluations) > 1:
        found["predictors"] = {each.name: each.to_dict() for each in evaluations}
    return found


def labelled(progress: Progress, label: str) -> Progress:
    """Return a progress callback that names the stage before what is being done in it."""
    if not label:
        return progress
    return lambda what, share: progress(f"{label}: {what}" if what else label, share)


def _counter(progress: Progress) -> Callable[[int, int], None]:
    """Return a callback of (rows done, rows in all) that reports their share."""
    return lambda done, total: progress("", done / max(total, 1))


def _silent(_what: str, _share: float) -> None:
    return
