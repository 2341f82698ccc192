"""States to be merged, taken apart so that no completion counts twice.

A state that is contained in another one (monday's checkpoint in a server that started from it) is
left out. Servers that started from one checkpoint are replaced by the checkpoint, once, and by what
each of them has learned since (:mod:`~sagellm_lifetime.predictor.increment`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagellm_lifetime.core.errors import MergeError
from sagellm_lifetime.core.wording import counted
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.increment import BASE, OWN, beside, increment_parts
from sagellm_lifetime.predictor.lineage import contains, joined, shared, state_digest


@dataclass(frozen=True)
class State:
    """A state to be merged.

    Attributes:
        name: what messages call it.
        predictor: the state.
        path: where it was loaded from, ``None`` for a part of another one.
        is_increment: True for what was learned after a checkpoint.
    """

    name: str
    predictor: Predictor
    path: Path | None = None
    is_increment: bool = False


def load_state(path: Path) -> State:
    """Return the state of a checkpoint. Raises :class:`CheckpointError`."""
    return State(str(path), load_predictor(path), path)


def distinct(states: Sequence[State]) -> tuple[list[State], list[str]]:
    """Return states with all completions of the given ones, each once; and notes on that.

    Raises:
        MergeError: two hold the same, all is in one of them, or some share completions and cannot
            be taken apart.
    """
    _refuse_copies(states)
    notes: list[str] = []
    whole = _without_contained(states, notes)
    if len(whole) < 2 <= len(states):
        (left,) = whole
        names = " and ".join(state.name for state in states if state is not left)
        raise MergeError(f"all that {names} learned is in {left.name} already: use {left.name}")
    apart = [part for state in whole for part in _apart(state, whole)]
    if len(apart) > len(whole):
        notes.append("the checkpoint that several of them started from counts once")
    kept = _without_contained(apart, [])
    for i, state in enumerate(kept):
        for other in kept[:i]:
            _refuse_shared(other, state)
    missing = _completions(whole) - _completions(kept)
    if missing > 0:
        notes.append(
            f"{counted(missing, 'completion')} that others had shared with them are left out: "
            "merge theirs, too"
        )
    # A merge has the options of the first, and an increment takes no gradient steps.
    return sorted(kept, key=lambda state: state.is_increment), notes


def _refuse_copies(states: Sequence[State]) -> None:
    seen: dict[str, str] = {}
    for state in states:
        predictor = state.predictor
        digest = state_digest(predictor.name, predictor.learned_state())
        if digest in seen and predictor.lessons:
            raise MergeError(
                f"{state.name}: holds the same as {seen[digest]}, and would count twice: "
                "leave one out"
            )
        seen[digest] = state.name


def _without_contained(states: Sequence[State], notes: list[str]) -> list[State]:
    """Return the states that are in no other one; of equal lineages the first."""
    kept = []
    for i, state in enumerate(states):
        mine = state.predictor.lineage
        holder = next(
            (
                other.name
                for j, other in enumerate(states)
                if j != i and contains(other.predictor.lineage, mine)
                if j < i or other.predictor.lineage != mine
            ),
            None,
        )
        if holder is None:
            kept.append(state)
        else:
            notes.append(f"{state.name} is in {holder} already, and counts once")
    return kept


def _apart(state: State, others: Sequence[State]) -> list[State]:
    """Return a state in two parts where it shares completions with another, if it has them."""
    mine = state.predictor.lineage
    overlaps = any(shared(mine, other.predictor.lineage) for other in others if other is not state)
    parts = increment_parts(state.path, state.predictor) if overlaps and state.path else None
    if parts is None:
        return [state]
    base, own = parts
    return [
        State(f"the start of {state.name}", base),
        State(f"what {state.name} learned since", own, is_increment=True),
    ]


def _refuse_shared(one: State, other: State) -> None:
    both = shared(one.predictor.lineage, other.predictor.lineage)
    if not both:
        return
    text = f"{one.name} and {other.name} share {counted(both, 'completion')}, to be counted once: "
    whole = [state.path for state in (one, other) if state.path is not None]
    if whole:
        lacking = " and ".join(
            f"{beside(path, suffix).name}" for path in whole for suffix in (BASE, OWN)
        )
        text += (
            f"a server that started from a checkpoint has {lacking} beside its state, which must "
            "be there; else merge what they were made of"
        )
    else:
        text += "merge what they were made of"
    raise MergeError(text)


def _completions(states: Sequence[State]) -> int:
    return sum(joined(state.predictor.lineage for state in states).values())
