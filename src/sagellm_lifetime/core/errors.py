"""The tree of errors a caller can meet.

Every message is one line that says what was wrong and what to do. The command line prints it and
exits with 2; a library user catches :class:`LifetimeError` for all of them.

    LifetimeError
    ├── RequestError (ValueError)        a prediction request or a completion that cannot be
    │   └── UnknownSequenceError (KeyError)  … because its sequence is not tracked
    ├── HistoryError (ValueError)        a history file that cannot be read
    │   ├── HistoryHeaderError           … because of its columns
    │   └── HistoryRowError              … because of its rows
    ├── CheckpointError (ValueError)     a checkpoint that cannot be loaded or written
    ├── UnknownNameError (ValueError)    a predictor, policy or format nobody registered
    └── MissingExtraError (ImportError)  an optional part that is not installed
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 600
"""Characters of a message: it may name a path or a value of somebody else's, of any length."""
_SHOWN: Final = 80


def shown(value: object, most: int = _SHOWN) -> str:
    """Return a value as a message may repeat it: one line of about ``most`` characters.

    Numbers and names are shown as they are, cut where they are long; anything else by its type,
    since its own words may be of any length, or fail.
    """
    if isinstance(value, int) and value.bit_length() > 4 * most:
        # Python refuses to write whole numbers of more than 4,300 digits.
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, str | bytes):
        text = repr(value[:most])
        return text if len(value) <= most else f"{text}…"
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"a value of type {type(value).__name__[:most]}"


def one_line(text: str) -> str:
    """Return ``text`` without line breaks and control characters, the middle of a long one cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


class LifetimeError(Exception):
    """Base of every error this package raises on purpose; its message is one bounded line."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(each) if isinstance(each, str) else each for each in args))

    def __str__(self) -> str:
        # A KeyError would show the repr of its message.
        return str(self.args[0]) if self.args else ""


class RequestError(LifetimeError, ValueError):
    """A prediction request, a completion or a question with an impossible value."""


class UnknownSequenceError(RequestError, KeyError):
    """A sequence that is not tracked: never predicted, ended, forgotten, or replaced."""


class HistoryError(LifetimeError, ValueError):
    """A history file, glob or folder that cannot be used."""


class HistoryHeaderError(HistoryError):
    """The columns are not those of the history format; the message names the column."""


class HistoryRowError(HistoryError):
    """Rows that break the history format; the message counts them and names the first lines."""


class CheckpointError(LifetimeError, ValueError):
    """A checkpoint that is missing, damaged, of another kind, or cannot be written."""


class UnknownNameError(LifetimeError, ValueError):
    """A name that is not in the list of names; the message gives the list."""

    def __init__(self, kind: str, name: object, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {shown(name)}: choose one of {', '.join(known)}")


class MissingExtraError(LifetimeError, ImportError):
    """An optional dependency is not installed; the message gives the pip command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs: pip install 'isagellm-lifetime[{extra}]'")
