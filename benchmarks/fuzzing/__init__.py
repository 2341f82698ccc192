"""Inputs that nobody should send, and what must hold whatever is sent.

Each target is one file with ``setup(folder)``, which returns what all inputs share, and
``attempt(shared, rng)``, which makes one input, gives it to the product and returns a word for what
came of it; ``close(shared)``, where something is held, ends it. An answer that must not be raises
:class:`Violation`; any other exception is one, too.
"""

from __future__ import annotations

from sagellm_lifetime.core.errors import LifetimeError

LONGEST = 1000
"""Characters of a message, at most: it may not repeat a whole input."""


class Violation(AssertionError):  # noqa: N818 - what an attempt found, not an error of ours
    """What came of an input may not be."""


def need(holds: bool, what: str) -> None:
    """Raise :class:`Violation` unless ``holds``."""
    if not holds:
        raise Violation(what)


def refused(error: LifetimeError) -> str:
    """Return ``"refused"`` for an error that is one bounded line."""
    text = str(error)
    need(0 < len(text) <= LONGEST, f"a message of {len(text)} characters: {text[:80]!r}")
    need("\n" not in text.strip(), f"a message of several lines: {text[:200]!r}")
    return "refused"
