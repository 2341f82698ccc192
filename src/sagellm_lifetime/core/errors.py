"""The tree of errors a caller can meet.

Every message is one line that says what was wrong and what to do. The command line prints it and
exits with 2; a library user catches :class:`LifetimeError` for all of them.

    LifetimeError
    ├── RequestError (ValueError)        a prediction request or a completion that cannot be
    ├── HistoryError (ValueError)        a history file that cannot be read
    │   ├── HistoryHeaderError           … because of its columns
    │   └── HistoryRowError              … because of its rows
    ├── CheckpointError (ValueError)     a checkpoint that cannot be loaded or written
    ├── ModelError (ValueError)          a model that cannot be fetched or laid out
    ├── UnknownNameError (ValueError)    a predictor, policy or format nobody registered
    └── MissingExtraError (ImportError)  an optional part that is not installed
"""

from __future__ import annotations


class LifetimeError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(LifetimeError, ValueError):
    """A prediction request or a completion with an impossible value."""


class HistoryError(LifetimeError, ValueError):
    """A history file, glob or folder that cannot be used."""


class HistoryHeaderError(HistoryError):
    """The columns are not those of the history format; the message names the column."""


class HistoryRowError(HistoryError):
    """Rows that break the history format; the message counts them and names the first lines."""


class CheckpointError(LifetimeError, ValueError):
    """A checkpoint that is missing, damaged, of another kind, or cannot be written."""


class ModelError(LifetimeError, ValueError):
    """A model that cannot be fetched, is not what it should be, or cannot be laid out."""


class UnknownNameError(LifetimeError, ValueError):
    """A name that is not in the list of names; the message gives the list."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}: choose one of {', '.join(known)}")


class MissingExtraError(LifetimeError, ImportError):
    """An optional dependency is not installed; the message gives the pip command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs: pip install 'isagellm-lifetime[{extra}]'")
