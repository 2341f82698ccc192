"""Errors of the command line: one line on stderr, no traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Final, ParamSpec

from sagellm_lifetime.core.errors import LifetimeError

USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141

P = ParamSpec("P")


class CommandError(LifetimeError):
    """Options that do not go together, or a place that cannot be written."""


def complain(text: str) -> None:
    """One line on stderr, whatever is in ``text``."""
    line = " ".join(text.split())
    print(f"error: {line}", file=sys.stderr, flush=True)


def silence() -> None:
    """Nobody reads stdout any more: let what is still buffered go nowhere, without a message."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file: nothing to do
        return


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose errors are told in one line, under whatever program it runs."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from typer import Exit

        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except LifetimeError as error:
            complain(str(error))
            raise Exit(USAGE) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise Exit(INTERRUPTED) from None
        except BrokenPipeError:
            silence()
            raise Exit(BROKEN_PIPE) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            complain(f"{place}{error.strerror or error}")
            raise Exit(USAGE) from None

    return run
