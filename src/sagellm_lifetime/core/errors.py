"""Error classes of the package.

Every message is one line with the problem and the remedy. The command line prints it and exits
with 2; a library user catches :class:`LifetimeError` for all of them.

    LifetimeError
    ├── RequestError (ValueError)        a prediction request or a completion that cannot be
    │   └── UnknownSequenceError (KeyError)  … because its sequence is not tracked
    ├── HistoryError (ValueError)        a history file that cannot be read
    │   ├── HistoryHeaderError           … because of its columns
    │   └── HistoryRowError              … because of its rows
    ├── CheckpointError (ValueError)     a checkpoint that cannot be loaded or written
    ├── MergeError (ValueError)          learned states that cannot be merged
    ├── UnknownNameError (ValueError)    a predictor, policy or format that is not registered
    └── MissingExtraError (ImportError)  an optional dependency that is not installed
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 600
"""Most characters of a message, which may repeat a path or a value of any length."""
_SHOWN: Final = 80


def shown(value: object, most: int = _SHOWN) -> str:
    """Return a value as a message may repeat it: one line of about ``most`` characters.

    Numbers and names are shown as they are, cut where they are long; anything else by its type,
    since its ``repr`` may be of any length, or fail.
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


def reason_of(error: BaseException) -> str:
    """Return the class of an error and the first line of its message that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def one_line(text: str) -> str:
    """Return ``text`` without line breaks and control characters, the middle of a long one cut."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


class LifetimeError(Exception):
    """Base of every error this package raises on purpose; its message is one bounded line.

    >>> from sagellm_lifetime import LifetimeError, create_predictor
    >>> try:
    ...     create_predictor("crystal-ball")
    ... except LifetimeError as error:
    ...     print(str(error)[:32])
    unknown predictor 'crystal-ball'
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))

    def __str__(self) -> str:
        # A KeyError would show the repr of its message.
        return str(self.args[0]) if self.args else ""


class RequestError(LifetimeError, ValueError):
    """A prediction request, a completion or a query with an impossible value.

    >>> from sagellm_lifetime import PredictionRequest, create_predictor
    >>> request = PredictionRequest(1, [], -1, None)
    >>> create_predictor("baseline").predict(request)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.RequestError: current_length of 1 must be an int from 0 to ...
    """


class UnknownSequenceError(RequestError, KeyError):
    """A sequence that is not tracked: never predicted, ended, discarded, expired or replaced.

    >>> import numpy as np
    >>> from sagellm_lifetime import create_predictor
    >>> predictor = create_predictor("baseline")
    >>> predictor.quantiles(["never seen"], np.array([0]), 0.5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.UnknownSequenceError: ...
    """


class HistoryError(LifetimeError, ValueError):
    """A history file, glob, folder or frame that cannot be used.

    >>> from sagellm_lifetime import read_history
    >>> read_history("no-such-file.csv")
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.HistoryError: no-such-file.csv: no such file or folder
    """


class HistoryHeaderError(HistoryError):
    """A history whose columns are not those of the format; the message names the column.

    >>> import polars
    >>> from sagellm_lifetime import read_history
    >>> read_history(polars.DataFrame({"length": [5]}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.HistoryHeaderError: history: no column 'actual_length': ...
    """


class HistoryRowError(HistoryError):
    """A history with bad rows; the message counts them and names the first lines.

    >>> import polars
    >>> from sagellm_lifetime import read_history
    >>> read_history(polars.DataFrame({"actual_length": [5, -1]}))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.HistoryRowError: history: 1 bad row (row 2: actual_length -1 ...
    """


class CheckpointError(LifetimeError, ValueError):
    """A checkpoint that is missing, damaged, of another kind, or cannot be written.

    >>> from sagellm_lifetime import load_predictor
    >>> load_predictor("no-such-folder")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.CheckpointError: no-such-folder: ...
    """


class MergeError(LifetimeError, ValueError):
    """Learned states that cannot be merged: of different predictors, options or secrets.

    >>> from sagellm_lifetime import create_predictor, merge_predictors
    >>> merge_predictors([create_predictor("orca"), create_predictor("linear")])
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.MergeError: second state: holds a 'linear' predictor, not 'orca'
    """


class UnknownNameError(LifetimeError, ValueError):
    """A name that is not registered; the message lists those that are.

    >>> from sagellm_lifetime import create_predictor
    >>> create_predictor("crystal-ball")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.UnknownNameError: unknown predictor 'crystal-ball': choose ...
    """

    def __init__(self, kind: str, name: object, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {shown(name)}: choose one of {', '.join(known)}")


class MissingExtraError(LifetimeError, ImportError):
    """An optional dependency that is not installed; the message gives the pip command.

    >>> raise MissingExtraError("training 'lstm'", "train")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sagellm_lifetime.core.errors.MissingExtraError: training 'lstm' needs: pip install 'isage...
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs: pip install 'isagellm-lifetime[{extra}]'")
