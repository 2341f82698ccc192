"""Regimes: a workload that changes under an old name, and may come back.

Counts do not fade, so a model whose traffic changed from chat to reasoning would be predicted from
a mixture for as long as there was chat before. Instead of forgetting, a model has *generations*:
when what comes is not what was predicted, a new generation begins, with nodes of its own below the
root; the old one is kept, and taken up again when it explains what comes better than the present
one. Nothing is lost and nothing costs anything as long as nothing changes.

* A change is told by a CUSUM (Page 1954) on ``u``, the probability that had been given to lengths
  up to the one that came: uniform where predictions are right. Its steps are the logarithm of the
  ratio of the densities ``4 u^3`` and ``1.5 u^0.5``, and the mirror images for ``1 - u``:
  predictions that are only somewhat too short (``1.5 u^0.5``) hardly ever add up: once in some
  ``exp(_ALARM)`` completions, and less often where they are right. (With ``6 u^5`` and ``2 u``
  chat that became reasoning was not noticed.)
* A return is told by the summed logarithm of the ratio of the likelihoods of an older generation
  and the present one, from the last moment at which the present one was better.

Only completions within fair shares, of clients with a history, are watched; so one loud client
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
from sagellm_lifetime.models.fair_share import lightest_of

KEPT: Final = 4
"""Generations of a model that are kept, the present one included."""
_ALARM: Final = 12.0
_RETURN: Final = 5.0
"""Nats by which an older generation must have been better. Weighed against a late return, which
costs more than a wrong one: with 7 and 10 the first 100 of a phase were up to three times worse."""
_MOST_GAIN: Final = 3.0
"""Nats that one completion may add: one odd length is no return."""
_YOUNG: Final = 50
"""Completions for which a new generation has a start of three times that: an old one knows every
client, and would always be better at first."""
_SETTLED: Final = 150
"""Completions from which on a generation can be found wrong."""
_MOST_MODELS: Final = 256
_LEAST: Final = 1e-6
_POWER: Final = 2.5
_STEP: Final = log(8.0 / 3.0)
_MIDDLE: Final = (3.0 / 8.0) ** (1.0 / _POWER)


@dataclass(slots=True)
class _Model:
    """Generations of one model.

    Attributes:
        kept: numbers of the generations, the one in use longest ago first, the present one last.
        newest: largest number ever given.
        seen: completions watched.
        since: completions watched in the present generation.
        longer, shorter: the two sums of the CUSUM.
        better: by how much each of ``kept`` has lately been better than the present one.
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
        changes: how often a new generation began.
        returns: how often an older one was taken up again.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[int, _Model] = OrderedDict()
        self.changes = 0
        self.returns = 0

    def present(self, model: int) -> int:
        """Return the number of the present generation of a model (its key, 0 for none)."""
        found = self._models.get(model)
        return found.kept[-1] if found else 0

    def older(self, model: int) -> list[int]:
        """Return the numbers of the other generations that are kept."""
        found = self._models.get(model)
        return found.kept[:-1] if found else []

    def watch(self, model: int, u: float, gains: list[float]) -> bool:
        """Compare what came with what had been said.

        Args:
            model: its key.
            u: the probability that had been given to lengths up to the one that came.
            gains: log likelihood of what came by each of :meth:`older`, less that by the present.

        Returns:
            Whether another generation is the present one from now on.
        """
        found = self._models.get(model)
        if found is None:
            if len(self._models) >= _MOST_MODELS:
                del self._models[lightest_of(self._models, lambda each: each.seen)]
            found = self._models[model] = _Model()
        else:
            self._models.move_to_end(model)
        found.seen += 1
        found.since += 1
        # Below ``_MIDDLE`` a step is negative, and most sums are zero: no logarithm is needed then.
        # They are bounded, so that what a generation got wrong while it was new is soon forgotten.
        if found.longer or u > _MIDDLE:
            step = _STEP + _POWER * log(max(u, _LEAST))
            found.longer = min(max(0.0, found.longer + step), _ALARM + 1.0)
        if found.shorter or 1.0 - u > _MIDDLE:
            step = _STEP + _POWER * log(max(1.0 - u, _LEAST))
            found.shorter = min(max(0.0, found.shorter + step), _ALARM + 1.0)
        if not gains and found.longer <= _ALARM and found.shorter <= _ALARM:
            return False
        young = found.kept[-1] == found.newest and found.since < _YOUNG
        enough = 3.0 * _RETURN if young else _RETURN
        best = -1
        for i, gain in enumerate(gains):
            found.better[i] = max(0.0, found.better[i] + min(gain, _MOST_GAIN))
            if found.better[i] > enough and (best < 0 or found.better[i] > found.better[best]):
                best = i
        if best >= 0:
            found.kept.append(found.kept.pop(best))
            self.returns += 1
        elif found.since >= _SETTLED and max(found.longer, found.shorter) > _ALARM:
            found.newest += 1
            found.kept = [*found.kept[1 - KEPT :], found.newest]
            self.changes += 1
        else:
            return False
        found.since, found.longer, found.shorter = 0, 0.0, 0.0
        found.better = [0.0] * len(found.kept)
        return True

    # -- state -------------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the generations as arrays."""
        models = self._models.items()
        kept = np.full((len(models), KEPT), -1, dtype=np.int64)
        scores = np.zeros((len(models), 2 + KEPT))
        for i, (_, each) in enumerate(models):
            kept[i, : len(each.kept)] = each.kept
            scores[i, : 2 + len(each.kept)] = [each.longer, each.shorter, *each.better]
        counts = [
            (key, each.newest, min(each.seen, MOST), min(each.since, MOST)) for key, each in models
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
            ValueError: arrays that do not fit, or hold what cannot have been.
        """
        counts = checked(state, "models", np.int64, (None, 4), 0, MOST)
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
