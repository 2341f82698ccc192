"""Events of the sequences in an engine, as an :class:`~sagellm_lifetime.Advisor` receives them.

>>> from sagellm_lifetime.policies.events import Admitted, Finished
>>> [type(event).__name__ for event in (Admitted("a", at=1.5), Finished("a", 40, 2.0, "stop", 3.5))]
['Admitted', 'Finished']
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from sagellm_lifetime.policies.sequence_view import SequenceView


@dataclass(frozen=True, slots=True)
class Arrived:
    """A sequence joined the queue for the first time.

    Attributes:
        sequence: view of it, valid until it ends.
        at: seconds on the engine's clock.
        is_predicted: False for a step of a beam search, which is scheduled but not predicted.
    """

    sequence: SequenceView
    at: float
    is_predicted: bool = True


@dataclass(frozen=True, slots=True)
class Admitted:
    """A sequence left the queue and runs, for the first time or again.

    Attributes:
        sequence_id: id of the sequence.
        at: seconds on the engine's clock.
    """

    sequence_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Progressed:
    """A step of the engine begins; running sequences may have grown since the last one.

    Attributes:
        seconds: duration of the previous step; ``None`` if there was none.
        at: seconds on the engine's clock.
        grown: sequences whose generated tokens are new evidence to the predictor.
    """

    seconds: float | None
    at: float
    grown: tuple[SequenceView, ...] = ()


@dataclass(frozen=True, slots=True)
class Preempted:
    """A running sequence lost its memory and waits again.

    Attributes:
        sequence_id: id of the sequence.
        at: seconds on the engine's clock.
    """

    sequence_id: str
    at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence ended, running or waiting.

    Attributes:
        sequence_id: id of the sequence.
        length: tokens generated.
        seconds: since it arrived.
        reason: ``stop``, ``length``, ``abort`` or ``error``.
        at: seconds on the engine's clock.
        is_predicted: False for a step of a beam search.
    """

    sequence_id: str
    length: int
    seconds: float
    reason: str
    at: float
    is_predicted: bool = True


Event: TypeAlias = Arrived | Admitted | Progressed | Preempted | Finished
