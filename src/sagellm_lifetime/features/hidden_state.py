"""Readings of the served model's hidden state that a request carries, reduced to a few numbers.

``prompt_features["hidden_state"]`` is a vector of any width, read when ``current_length`` tokens
were generated, or a mapping from such ages to vectors. A vector of more than :data:`COMPONENTS`
numbers is reduced by a seeded random projection, after its few huge entries were made small
(``core.hidden_states.compressed``); a narrower one is taken as it is. ``hidden_source`` says where
it was read (model, layer, precision); readings of different sources, or of different widths, are
learned apart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.hidden_states import READ_AT, compressed
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import LARGEST_AGE, whole_or_exact

KEY: Final = "hidden_state"
SOURCE: Final = "hidden_source"
COMPONENTS: Final = 256
"""Numbers of a reading that are kept at most."""
WIDEST: Final = 65_536
STAGES: Final = len(READ_AT)
_FROM: Final = (16, 48)
"""Ages from which on a vector is the second and the third reading: halfway in between."""
_LARGEST: Final = 1e4
_WANTED: Final = f"a list of 1 to {WIDEST:,} finite numbers, or a mapping of ages to such lists"


class Reading(NamedTuple):
    """Hidden state of a sequence at one stage.

    Attributes:
        stage: number of the reading, an index into ``READ_AT``.
        components: float32, shape ``(n,)`` with ``n`` up to :data:`COMPONENTS`.
    """

    stage: int
    components: np.ndarray


class HiddenReadings(NamedTuple):
    """Readings of one sequence.

    Attributes:
        source: key of what they were read from; another model or width has another key.
        readings: at most one for each stage, in the order of the stages.
        scores: scores that were made without this sequence, one for each reading; empty if they are
            to be computed. Set while a history is learned.
    """

    source: int
    readings: tuple[Reading, ...]
    scores: tuple[float, ...] = ()

    def first(self, count: int | None) -> HiddenReadings:
        """Return the first ``count`` readings, ``None`` for all."""
        return HiddenReadings(self.source, self.readings[:count], self.scores[:count])

    def at(self, age: int) -> HiddenReadings:
        """Return those that there are at an age, tokens."""
        return self.first(sum(READ_AT[reading.stage] <= age for reading in self.readings))


def stage_of(age: int) -> int:
    """Return which reading a vector is that was read at an age in tokens."""
    return bisect_right(_FROM, age)


def read_hidden(
    request: PredictionRequest, before: HiddenReadings | None = None
) -> HiddenReadings | None:
    """Return the readings of a request together with earlier ones; ``None`` if none is new.

    A stage that has a reading keeps it. A vector that is passed again with every request is new
    only once.

    Args:
        request: the request.
        before: earlier readings of the same sequence.

    Raises:
        RequestError: it is no vector of finite numbers.

    Example:
        >>> from sagellm_lifetime import PredictionRequest
        >>> given = {"hidden_state": [0.5, -1.0], "model": "mine"}
        >>> read_hidden(PredictionRequest(1, [], 0, None, given)).readings[0].stage
        0
    """
    features = request.prompt_features
    value = features.get(KEY) if features else None
    if features is None or value is None:
        return None
    vectors = value if isinstance(value, Mapping) else {request.current_length: value}
    found = {reading.stage: reading for reading in before.readings} if before else {}
    count, source = len(found), before.source if before else 0
    for age, given in vectors.items():
        stage = stage_of(_age(request, age))
        if stage in found:
            continue
        vector = _vector(request, given)
        components = reduced(vector)
        if not isinstance(value, Mapping) and any(
            np.array_equal(one.components, components) for one in found.values()
        ):
            continue
        key = _source_key(features, len(vector))
        if source and key != source:
            continue
        source = key
        found[stage] = Reading(stage, components)
    if len(found) == count:
        return None
    return HiddenReadings(source, tuple(found[stage] for stage in sorted(found)))


def reduced(vector: np.ndarray) -> np.ndarray:
    """Return at most :data:`COMPONENTS` numbers of a vector of any width, float32."""
    if len(vector) > COMPONENTS:
        vector = compressed(vector).astype(np.float32) @ _projection(len(vector))
    return np.clip(vector, -_LARGEST, _LARGEST).astype(np.float32)


@lru_cache(maxsize=8)
def _projection(width: int) -> np.ndarray:
    """Return random signs, scaled, shape ``(width, COMPONENTS)`` (Achlioptas 2003)."""
    rng = np.random.Generator(np.random.PCG64(width))
    signs = rng.integers(0, 2, (width, COMPONENTS), dtype=np.int8)
    scaled: np.ndarray = (2.0 * signs - 1.0).astype(np.float32) / np.float32(np.sqrt(width))
    return scaled


def _age(request: PredictionRequest, value: Any) -> int:
    """Return the age at which a vector was read. JSON has text for the keys of a mapping."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:20])
    age = value if type(value) is int else whole_or_exact(value)
    if age is None or not 0 <= age <= LARGEST_AGE:
        raise _refusal(request, f"an age of {shown(value)}")
    return age


def _vector(request: PredictionRequest, value: Any) -> np.ndarray:
    """Return a vector as float64; the shape is checked before the numbers are converted."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or array.ndim != 1:
            raise ValueError(f"{type(value).__name__} of another type or shape")
        if not 1 <= len(array) <= WIDEST:
            raise ValueError(f"{len(array):,} numbers")
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise ValueError("a number that is not finite")
    except ValueError as error:
        raise _refusal(request, str(error)) from None
    except Exception:  # noqa: BLE001 - a value may be an object whose own code fails
        raise _refusal(request, type(value).__name__) from None
    return array


def _refusal(request: PredictionRequest, why: str) -> RequestError:
    # Numbers of a hidden state may give the prompt away, so they are not shown.
    place = f"prompt_features of {shown(request.sequence_id)}"
    return RequestError(f"{place}: {KEY} must be {_WANTED}: {why[:80]}")


def _source_key(features: Mapping[str, Any], width: int) -> int:
    """Return the key of a source, above 0: of ``hidden_source``, else of the model."""
    name = features.get(SOURCE)
    if name is None:
        name = features.get("model")
    text = f"{width} {name}".encode("utf-8", "surrogatepass")
    return 1 + int.from_bytes(blake2b(text, digest_size=6).digest(), "little")
