"""Regimes: detection of a workload that changes under the name of one model, and of its return.

Counts do not fade, so a model whose traffic changed from chat to reasoning would be predicted from
a mixture as long as it had chat before. Instead of forgetting, a model has *generations*: when the
completions no longer fit the predictions, a new generation begins, with its own nodes below the
root. Old generations are kept, and the best one becomes the present one again when its likelihood
is higher. Without a change the state and the predictions are those of one generation.

* A change is detected by a CUSUM (Page 1954) on ``u``, the predicted probability of lengths up to
  the actual one, which is uniform if predictions are right. Its steps are the logarithm of the
  ratio of the densities ``4 u^3`` and ``1.5 u^0.5``, and the mirror images for ``1 - u``.
  Predictions that are only somewhat too short (``1.5 u^0.5``) raise an alarm once in some
  ``exp(_ALARM)`` completions, right ones less often. (With ``6 u^5`` and ``2 u`` a change from chat
  to reasoning was not detected.)
* A return is detected by the summed logarithm of the ratio of the likelihoods of an older
  generation and the present one, from the last moment at which the present one was better.

Only completions within fair shares, of clients with a history, are watched, so that one busy client
cannot begin a generation for the others. Time is counted in completions; nothing is random.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from math import log
from typing import Final

import numpy as np

from sagellm_lifetime.core.arrays import Arrays
from sagellm_lifetime.core.checked import MOST, checked, checked_count, count_array
from sagellm_lifetime.features.name_keys import LARGEST_KEY
from sagellm_lifetime.models.fair_share import lightest_of

KEPT: Final = 4
"""Generations of a model that are kept, the present one included."""
_ALARM: Final = 12.0
"""Sum of a CUSUM that means a change, nats."""
_RETURN: Final = 5.0
"""Nats by which an older generation must be better. A late return costs more than a wrong one: with
7 and 10 nats the first 100 completions of a phase were up to three times worse."""
_MOST_GAIN: Final = 3.0
"""Maximum nats that one completion adds, so that one unusual length causes no return."""
_YOUNG: Final = 50
"""Completions during which three times ``_RETURN`` is needed: an older generation has learned all
clients already, and is always better at first."""
_SETTLED: Final = 150
"""Completions of a generation from which on a change can be detected."""
_MOST_MODELS: Final = 256
_LEAST: Final = 1e-6
_POWER: Final = 2.5
_STEP: Final = log(8.0 / 3.0)
_MIDDLE: Final = (3.0 / 8.0) ** (1.0 / _POWER)


@dataclass(slots=True)
class _Model:
    """Generations of one model.

    Attributes:
        kept: numbers of the generations, the least recently used first, the present one last.
        newest: largest number of a generation so far.
        seen: completions watched.
        since: completions watched in the present generation.
        longer: sum of the CUSUM for lengths above the predicted ones, nats.
        shorter: sum of the CUSUM for lengths below the predicted ones, nats.
        better: recent log likelihood of each of ``kept`` over that of the present one, nats.
    """

    kept: list[int] = field(default_factory=lambda: [0])
    newest: int = 0
    seen: int = 0
    since: int = 0
    longer: float = 0.0
    shorter: float = 0.0
    better: list[float] = field(default_factory=lambda: [0.0])


class Regimes:
    """Generations of all models.

    Attributes:
        changes: number of times that a new generation began.
        returns: number of times that an older one became the present one again.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[int, _Model] = OrderedDict()
        self.changes = 0
        self.returns = 0

    def present(self, model: int) -> int:
        """Return the number of the present generation of a model (its key, 0 for none)."""
        record = self._models.get(model)
        return record.kept[-1] if record else 0

    def older(self, model: int) -> list[int]:
        """Return the numbers of the other generations that are kept."""
        record = self._models.get(model)
        return record.kept[:-1] if record else []

    def watch(self, model: int, u: float, gains: list[float]) -> bool:
        """Compare a completion with its prediction, and switch the generation if needed.

        Args:
            model: key of the model.
            u: predicted probability of lengths up to the actual one.
            gains: log likelihood of the completion under each of :meth:`older`, less that under the
                present generation.

        Returns:
            True if the present generation is another one now.
        """
        record = self._models.get(model)
        if record is None:
            if len(self._models) >= _MOST_MODELS:
                del self._models[lightest_of(self._models, lambda record: record.seen)]
            record = self._models[model] = _Model()
        else:
            self._models.move_to_end(model)
        record.seen += 1
        record.since += 1
        # Below ``_MIDDLE`` a step is negative, so a sum of zero stays zero without a logarithm.
        # Sums are bounded, so that the errors of a new generation are soon forgotten.
        if record.longer or u > _MIDDLE:
            step = _STEP + _POWER * log(max(u, _LEAST))
            record.longer = min(max(0.0, record.longer + step), _ALARM + 1.0)
        if record.shorter or 1.0 - u > _MIDDLE:
            step = _STEP + _POWER * log(max(1.0 - u, _LEAST))
            record.shorter = min(max(0.0, record.shorter + step), _ALARM + 1.0)
        if not gains and record.longer <= _ALARM and record.shorter <= _ALARM:
            return False
        young = record.kept[-1] == record.newest and record.since < _YOUNG
        enough = 3.0 * _RETURN if young else _RETURN
        best = -1
        for i, gain in enumerate(gains):
            record.better[i] = max(0.0, record.better[i] + min(gain, _MOST_GAIN))
            if record.better[i] > enough and (best < 0 or record.better[i] > record.better[best]):
                best = i
        if best >= 0:
            record.kept.append(record.kept.pop(best))
            self.returns += 1
        elif record.since >= _SETTLED and max(record.longer, record.shorter) > _ALARM:
            record.newest += 1
            record.kept = [*record.kept[1 - KEPT :], record.newest]
            self.changes += 1
        else:
            return False
        record.since, record.longer, record.shorter = 0, 0.0, 0.0
        record.better = [0.0] * len(record.kept)
        return True

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the generations as arrays."""
        models = self._models.items()
        kept = np.full((len(models), KEPT), -1, dtype=np.int64)
        scores = np.zeros((len(models), 2 + KEPT))
        for i, (_, record) in enumerate(models):
            kept[i, : len(record.kept)] = record.kept
            scores[i, : 2 + len(record.kept)] = [record.longer, record.shorter, *record.better]
        counts = [
            (key, record.newest, min(record.seen, MOST), min(record.since, MOST))
            for key, record in models
        ]
        return {
            "models": np.array(counts, dtype=np.int64).reshape(len(models), 4),
            "kept": kept,
            "scores": scores,
            "changes": count_array(self.changes),
            "returns": count_array(self.returns),
        }

    def restore(self, state: Arrays) -> None:
        """Replace the generations with a :meth:`state`.

        Raises:
            ValueError: an array is missing, of another type or shape, or holds impossible values.
        """
        counts = checked(state, "models", np.int64, (None, 4), 0, LARGEST_KEY)
        if (counts[:, 1:] > MOST).any():
            raise ValueError("'models' holds counts that cannot be")
        size = len(counts)
        kept = checked(state, "kept", np.int64, (size, KEPT), -1, MOST)
        most = max(_ALARM, 3.0 * _RETURN) + 1.0
        scores = checked(state, "scores", np.float64, (size, 2 + KEPT), 0.0, most)
        models: OrderedDict[int, _Model] = OrderedDict()
        for (key, newest, seen, since), numbers, sums in zip(
            counts.tolist(), kept.tolist(), scores.tolist(), strict=True
        ):
            named = [number for number in numbers if number >= 0]
            if not named or numbers != named + [-1] * (KEPT - len(named)):
                raise ValueError("'kept' names no generation, or leaves a gap")
            if len(set(named)) < len(named) or max(named) > newest or since > seen:
                raise ValueError("'models' and 'kept' tell of generations that cannot be")
            better = sums[2 : 2 + len(named)]
            models[key] = _Model(named, newest, seen, since, sums[0], sums[1], better)
        if not len(models) == size <= _MOST_MODELS:
            raise ValueError("'models' names one twice, or too many")
        self.changes = checked_count(state, "changes")
        self.returns = checked_count(state, "returns")
        self._models = models
