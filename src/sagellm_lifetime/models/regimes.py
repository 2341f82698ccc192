"""Regimes: a workload that changes under the name of one model, and its return.

Counts do not fade, so a model whose traffic changed from chat to reasoning would be predicted from
a mixture as long as it had chat before. Instead of forgetting, a model has *generations*, each with
its own nodes and weights. Old generations are kept, and the best one becomes the present one again
when it predicts better. Without a change the predictions are those of one generation.

A new generation begins in two steps, so that the costly one is rare:

1. The distribution of the outcomes within their predictions changes
   (:mod:`~sagellm_lifetime.models.pit_change`). This costs a microsecond a completion, finds
   changes of scale and of spread, and may be wrong.
2. A *candidate* generation learns the same completions beside the present one, from nothing. It
   becomes the present one when its likelihood of completions, before they are counted, is higher
   by :data:`_WIN` nats (prequential, Dawid 1984), and is dropped when it stays behind. So every
   change counts that a new model predicts better, of any kind.

A candidate that has learned long before the change predicts a mixture, too. So when one that is
not young begins to win, a *fresh* one begins beside it. If the trial is won, the fresh one is the
candidate of the next, which begins at once.

Without a change an old generation has learned more than a new one, so a candidate loses. Its gain
must remain above :data:`_WIN` without the client that contributes most, so that no client begins a
generation for the other clients. Time is counted in completions; nothing is random.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.models.fair_share import lightest_of
from sagellm_lifetime.models.pit_change import BINS, RECENT, USUAL, PitChange

KEPT: Final = 4
"""Generations of a model that are kept, the present one included."""
MOST_MODELS: Final = 256
"""Models whose generations are kept."""
_SUSPECT: Final = 4.0
"""Nats of :class:`PitChange` at which a trial begins, when none was lost lately. After ``n`` lost
ones it is ``n + 1`` times that."""
_MOST_LOST: Final = 3
_SETTLED: Final = 150
"""Completions of a generation before which no trial begins: a young one changes by learning."""
_WIN: Final = 8.0
"""Nats by which a candidate must be better."""
_CLIP: Final = 3.0
"""Most nats that one completion adds or subtracts in a trial."""
_HOPELESS: Final = 80, -0.4
"""Completions of a trial, and mean nats of each, with which it ends early."""
_TRIAL: Final = 200
"""Completions after which a trial ends, unless the candidate has recently been better."""
_LONGEST_TRIAL: Final = 1000
_STALE: Final = 20
"""Completions of a trial from which on a fresh candidate begins when the gain does."""
_BEGINS: Final = 2.0
"""Nats of the gain with which a fresh candidate begins: with 0, most would be dropped at once."""
_RETURN: Final = 12.0
"""Nats by which an older generation must be better to return. With 5, bursts of one client made
predictions change between chat and reasoning and back twice as often."""
_RETURN_CLIP: Final = 2.5
"""Most nats that one completion adds to that, so that a few unusual lengths cause no return."""
_YOUNG: Final = 150
"""Completions of a new generation during which three times ``_RETURN`` is needed: an older one has
learned all clients already, and is often better at first."""


@dataclass(slots=True)
class _Trial:
    """A candidate generation.

    Attributes:
        number: its number.
        seen: completions watched.
        balance: its log likelihood over that of the present generation, nats.
        gain: the same since the present one was last better, nats.
        fresh: number of the candidate that began with the gain, 0 for none.
        support: contribution to ``gain`` of each client, nats.
    """

    number: int
    seen: int = 0
    balance: float = 0.0
    gain: float = 0.0
    fresh: int = 0
    support: dict[int, float] = field(default_factory=dict)

    def add(self, client: int, gain: float) -> None:
        """Add the gain of one completion of a client."""
        gain = max(min(gain, _CLIP), -_CLIP)
        self.seen += 1
        self.balance += gain
        self.gain += gain
        if self.gain <= 0.0:
            self.gain = 0.0
            self.support.clear()
        else:
            self.support[client] = self.support.get(client, 0.0) + gain

    @property
    def needs_fresh(self) -> bool:
        """Return True if a fresh candidate must begin."""
        return not self.fresh and self.seen > _STALE and self.gain > _BEGINS

    def is_won(self, *, has_one_client: bool) -> bool:
        """Return True if the candidate is better, even without the client that gains most."""
        if self.gain <= _WIN:
            return False
        return has_one_client or self.gain - max(self.support.values()) > _WIN

    def is_lost(self) -> bool:
        """Return True if the candidate is not getting better."""
        seen, mean = _HOPELESS
        if self.gain > 0.0 or self.seen < seen:
            return self.seen >= _LONGEST_TRIAL
        return self.seen >= _TRIAL or self.balance < mean * self.seen


@dataclass(slots=True)
class _Model:
    """Generations of one model.

    Attributes:
        kept: numbers of the generations, the least recently used first, the present one last.
        newest: largest number of a generation or a candidate so far.
        seen: completions watched.
        since: completions watched since the present generation became the present one.
        lost: trials lost lately, :data:`_MOST_LOST` at most.
        better: recent log likelihood of each of ``kept`` over that of the present one, nats.
        change: comparison of the outcomes with the predictions.
        trial: the candidate; ``None`` for none.
    """

    kept: list[int] = field(default_factory=lambda: [0])
    newest: int = 0
    seen: int = 0
    since: int = 0
    lost: int = 0
    better: list[float] = field(default_factory=lambda: [0.0])
    change: PitChange = field(default_factory=PitChange)
    trial: _Trial | None = None


class Regimes:
    """Generations of all models.

    Attributes:
        changes: number of times that a new generation began.
        returns: number of times that an older one became the present one again.
        trials: number of candidates.
        dropped: models and numbers of generations that are not kept any more; for the caller, who
            empties it.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[int, _Model] = OrderedDict()
        self.changes = 0
        self.returns = 0
        self.trials = 0
        self.dropped: list[tuple[int, int]] = []

    def present(self, model: int) -> int:
        """Return the number of the present generation of a model (its key, 0 for none)."""
        record = self._models.get(model)
        return record.kept[-1] if record else 0

    def candidates(self, model: int) -> list[int]:
        """Return the numbers of the candidates of a model that learn: none, one, or a fresh one."""
        record = self._models.get(model)
        if record is None or record.trial is None:
            return []
        trial = record.trial
        return [trial.number, trial.fresh] if trial.fresh else [trial.number]

    def older(self, model: int) -> list[int]:
        """Return the numbers of the other generations that are kept."""
        record = self._models.get(model)
        return record.kept[:-1] if record else []

    def rivals(self, model: int) -> list[int]:
        """Return :meth:`older`, and the candidate last."""
        record = self._models.get(model)
        if record is None:
            return []
        older = record.kept[:-1]
        return [*older, record.trial.number] if record.trial else older

    def watch(
        self, model: int, client: int, u: float, gains: list[float], *, has_one_client: bool
    ) -> bool:
        """Compare a completion with its prediction, and switch the generation if needed.

        Args:
            model: key of the model.
            client: key of the client, 0 for none and for all new ones.
            u: predicted probability of lengths up to the actual one.
            gains: log likelihood of the completion under each of :meth:`rivals`, less that under
                the present generation, nats.
            has_one_client: True if no other client is known.

        Returns:
            True if the present generation was replaced.
        """
        record = self._models.get(model)
        if record is None:
            record = self._new(model)
        elif len(self._models) > 1:
            self._models.move_to_end(model)
        record.seen += 1
        record.since += 1
        record.change.add(u)
        if record.trial:
            self._follow(model, record, record.trial, client, gains[-1])
            if self._is_won(model, record, record.trial, has_one_client=has_one_client):
                return True
        elif record.since >= _SETTLED and record.change.suspicion > _SUSPECT * (1 + record.lost):
            record.newest += 1
            record.trial = _Trial(record.newest)
            self.trials += 1
        return len(record.kept) > 1 and self._returns(model, record, gains)

    def _new(self, model: int) -> _Model:
        if len(self._models) >= MOST_MODELS:
            evicted = lightest_of(self._models, lambda record: record.seen)
            record = self._models.pop(evicted)
            if record.trial:
                self._drop_trial(evicted, record.trial)
            for number in record.kept:
                self._drop(evicted, number)
        record = self._models[model] = _Model()
        return record

    def _follow(self, model: int, record: _Model, trial: _Trial, client: int, gain: float) -> None:
        """Add the gain of one completion, and begin or drop the fresh candidate."""
        trial.add(client, gain)
        if trial.needs_fresh:
            record.newest += 1
            trial.fresh = record.newest
        elif trial.fresh and not trial.gain:
            self._drop(model, trial.fresh)
            trial.fresh = 0

    def _is_won(self, model: int, record: _Model, trial: _Trial, *, has_one_client: bool) -> bool:
        """End a trial if it is decided; return True if it was won."""
        if trial.is_won(has_one_client=has_one_client):
            record.trial, record.lost = _Trial(trial.fresh) if trial.fresh else None, 0
            record.change = PitChange()
            for number in record.kept[: 1 - KEPT]:
                self._drop(model, number)
            self._present(record, [*record.kept[1 - KEPT :], trial.number])
            self.changes += 1
            return True
        if trial.is_lost():
            self._drop_trial(model, trial)
            record.trial = None
            record.lost = min(record.lost + 1, _MOST_LOST)
            record.change.suspicion = 0.0
        return False

    def _returns(self, model: int, record: _Model, gains: list[float]) -> bool:
        """Compare the older generations with the present one; return True if one returned."""
        is_young = record.kept[-1] == max(record.kept) and record.since < _YOUNG
        enough = 3.0 * _RETURN if is_young else _RETURN
        best = -1
        for i, gain in enumerate(gains[: len(record.kept) - 1]):
            clipped = max(min(gain, _RETURN_CLIP), -_RETURN_CLIP)
            record.better[i] = min(max(0.0, record.better[i] + clipped), 3.0 * _RETURN + 1.0)
            if record.better[i] > enough and (best < 0 or record.better[i] > record.better[best]):
                best = i
        if best < 0:
            return False
        if record.trial:
            self._drop_trial(model, record.trial)
            record.trial = None
        record.change.forget_recent()
        kept = record.kept.copy()
        kept.append(kept.pop(best))
        self._present(record, kept)
        self.returns += 1
        return True

    @staticmethod
    def _present(record: _Model, kept: list[int]) -> None:
        record.kept, record.since, record.better = kept, 0, [0.0] * len(kept)

    def _drop_trial(self, model: int, trial: _Trial) -> None:
        self._drop(model, trial.number)
        self._drop(model, trial.fresh)

    def _drop(self, model: int, number: int) -> None:
        # Generation 0 is the tree that all models share.
        if number:
            self.dropped.append((model, number))

    def summary(self, names: Mapping[int, str]) -> dict[str, Any]:
        """Return the state for the metrics.

        Args:
            names: names of the models to list, by key.

        Returns:
            ``changes``, ``returns`` and ``trials``; and by model the number of its present
            ``generation``, the ``completions`` watched since, the ``generations`` that are kept,
            and 1 for ``in_trial`` while there is a candidate.
        """
        models = {
            names[key]: {
                "generation": record.kept[-1],
                "completions": record.since,
                "generations": len(record.kept),
                "in_trial": int(record.trial is not None),
            }
            for key, record in self._models.items()
            if key in names
        }
        return {
            "changes": self.changes,
            "returns": self.returns,
            "trials": self.trials,
            "models": models,
        }

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the generations as arrays."""
        records = list(self._models.values())
        trials = [record.trial or _Trial(0) for record in records]
        support = [
            (row, client, nats)
            for row, trial in enumerate(trials)
            for client, nats in trial.support.items()
        ]
        kept = np.full((len(records), KEPT), -1, dtype=np.int64)
        better = np.zeros((len(records), KEPT))
        for i, record in enumerate(records):
            kept[i, : len(record.kept)] = record.kept
            better[i, : len(record.kept)] = record.better
        counts = [
            (key, record.newest, record.seen, record.since, record.lost)
            for key, record in self._models.items()
        ]
        return {
            "models": np.minimum(np.array(counts, dtype=np.int64).reshape(-1, 5), LARGEST_KEY),
            "kept": kept,
            "better": better,
            "recent": _rows([record.change.recent for record in records]),
            "usual": _rows([record.change.usual for record in records]),
            "suspicion": np.array([record.change.suspicion for record in records]),
            "trial": np.array(
                [(t.number, t.seen, t.fresh) for t in trials], dtype=np.int64
            ).reshape(-1, 3),
            "gains": np.array([(t.balance, t.gain) for t in trials]).reshape(-1, 2),
            "support": np.array([s[:2] for s in support], dtype=np.int64).reshape(-1, 2),
            "support_nats": np.array([s[2] for s in support], dtype=np.float64),
            "changes": count_array(self.changes),
            "returns": count_array(self.returns),
            "trials": count_array(self.trials),
        }

    def restore(self, state: Arrays) -> None:
        """Replace the generations with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        counts = checked(state, "models", np.int64, (None, 5), 0, LARGEST_KEY)
        size = len(counts)
        if (counts[:, 1:] > MOST).any() or (counts[:, 4] > _MOST_LOST).any():
            raise ValueError("'models' holds impossible counts")
        kept = checked(state, "kept", np.int64, (size, KEPT), -1, MOST)
        better = checked(state, "better", np.float64, (size, KEPT), 0.0, 3.0 * _RETURN + 1.0)
        recent = checked(state, "recent", np.int64, (size, BINS), 1, RECENT)
        usual = checked(state, "usual", np.int64, (size, BINS), 1, USUAL)
        suspicion = checked(state, "suspicion", np.float64, (size,), 0.0).tolist()
        trials = _trials(state, size)
        models: OrderedDict[int, _Model] = OrderedDict()
        for i, (key, newest, seen, since, lost) in enumerate(counts.tolist()):
            numbers = kept[i].tolist()
            named = [number for number in numbers if number >= 0]
            if not named or numbers != named + [-1] * (KEPT - len(named)):
                raise ValueError("'kept' names no generation, or leaves a gap")
            trial = trials[i]
            tried = [n for n in (trial.number, trial.fresh) if n] if trial else []
            if len({*named, *tried}) < len(named) + len(tried) or max(*named, *tried, 0) > newest:
                raise ValueError("'models', 'kept' and 'trial' hold impossible generations")
            if since > seen:
                raise ValueError("'models' counts more completions since a change than in all")
            models[key] = _Model(
                kept=named,
                newest=newest,
                seen=seen,
                since=since,
                lost=lost,
                better=better[i, : len(named)].tolist(),
                change=PitChange(recent[i].tolist(), usual[i].tolist(), suspicion[i]),
                trial=trial,
            )
        if not len(models) == size <= MOST_MODELS:
            raise ValueError("'models' names one twice, or too many")
        self.changes = checked_count(state, "changes")
        self.returns = checked_count(state, "returns")
        self.trials = checked_count(state, "trials")
        self._models, self.dropped = models, []


def _rows(histograms: list[list[int]]) -> np.ndarray:
    return np.array(histograms, dtype=np.int64).reshape(len(histograms), BINS)


def _trials(state: Arrays, size: int) -> list[_Trial | None]:
    """Return the candidate of each model from a state, checked."""
    trial = checked(state, "trial", np.int64, (size, 3), 0, MOST)
    gains = checked(state, "gains", np.float64, (size, 2))
    support = checked(state, "support", np.int64, (None, 2), 0, LARGEST_KEY)
    nats = checked(state, "support_nats", np.float64, (len(support),)).tolist()
    none = trial[:, 0] == 0
    if trial[none].any() or gains[none].any():
        raise ValueError("'trial' or 'gains' holds values where there is no candidate")
    if (gains[:, 1] < 0.0).any() or (support[:, 0] >= size).any():
        raise ValueError("'gains' or 'support' of an impossible trial")
    trials = [
        _Trial(number, seen, balance, gain, fresh) if number else None
        for (number, seen, fresh), (balance, gain) in zip(
            trial.tolist(), gains.tolist(), strict=True
        )
    ]
    for (row, client), part in zip(support.tolist(), nats, strict=True):
        candidate = trials[row]
        if candidate is None or client in candidate.support:
            raise ValueError("'support' of no trial, or of one client twice")
        candidate.support[client] = part
    if any(one and one.gain > 0.0 and not one.support for one in trials):
        raise ValueError("'gains' of no client")
    return trials
