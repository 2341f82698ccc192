"""Errors of the command line: one line on stderr, no traceback."""

from __future__ import annotations

import codecs
import functools
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, ParamSpec

from sagellm_lifetime.cli.output import forget_notes
from sagellm_lifetime.core.errors import LifetimeError

USAGE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143

P = ParamSpec("P")


class CommandError(LifetimeError):
    """Raised for options that contradict each other, and paths that cannot be written."""


class Terminated(SystemExit):
    """Raised where a signal ends the process, so that half-written files are removed."""


@contextmanager
def cleanup_on_signals() -> Iterator[None]:
    """Raise :class:`Terminated` in the block on SIGTERM and SIGHUP, unless they have a handler.

    Their default would leave temporary files behind. A second signal ends the process at once.
    """
    handled: list[signal.Signals] = []

    def end(_signal: int, _frame: FrameType | None) -> None:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        raise Terminated(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                handled.append(number)
                signal.signal(number, end)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def print_error(text: str) -> None:
    """Print an error on stderr, as one line."""
    line = " ".join(text.split())
    print(f"error: {line}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Discard the buffered output of a stdout that was closed."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file: nothing to do
        return


def prepare_streams() -> None:
    """Open closed streams on the null device; print ``?`` for characters a stream cannot encode."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for good
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            utf8 = codecs.lookup(stream.encoding).name == "utf-8"
            if not utf8 or stream.errors == "strict":
                stream.reconfigure(errors="replace")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Return a command whose errors are one line on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from typer import Exit

        forget_notes()
        try:
            with cleanup_on_signals():
                command(*args, **kwargs)
                sys.stdout.flush()
        except LifetimeError as error:
            print_error(str(error))
            raise Exit(USAGE) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise Exit(INTERRUPTED) from None
        except Terminated:
            print("terminated", file=sys.stderr)
            raise Exit(TERMINATED) from None
        except BrokenPipeError:
            discard_stdout()
            raise Exit(BROKEN_PIPE) from None
        except MemoryError:
            print_error("not enough memory for this: try fewer rows or a smaller network")
            raise Exit(USAGE) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            print_error(f"{place}{error.strerror or error}")
            raise Exit(USAGE) from None

    return run
