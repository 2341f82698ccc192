"""Run the commands: every error is one line on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sagellm_lifetime.cli.command_errors import (
    BROKEN_PIPE,
    INTERRUPTED,
    USAGE,
    discard_stdout,
    prepare_streams,
    print_error,
)

PROGRAM = "sagellm-lifetime"


def main() -> None:
    """Run the console script ``sagellm-lifetime``."""
    sys.exit(run(sys.argv[1:], PROGRAM))


def run(args: Sequence[str], program: str) -> int:
    """Run one command line.

    Args:
        args: arguments after the name of the program.
        program: that name, as help and errors show it.

    Returns:
        The exit code: 0 done, 2 an error (one line on stderr), 130 interrupted, 141 if the output
        was closed, 143 terminated.
    """
    prepare_streams()
    try:
        return _run(list(args) or ["--help"], program)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        return BROKEN_PIPE


def _run(args: list[str], program: str) -> int:
    from typer import Abort
    from typer.main import get_command

    from sagellm_lifetime.cli.app import app

    try:
        code = get_command(app).main(args=args, prog_name=program, standalone_mode=False)
        sys.stdout.flush()
    except Abort:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:  # the output itself: a full disk behind stdout
        print_error(f"the output cannot be written: {error.strerror or error}")
        return USAGE
    except Exception as error:  # errors that are not Typer's are raised again below
        # Typer's usage errors are recognised by a method: their class differs between versions.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        text = message()
        if not text:  # a group without a command has shown its help
            return 0
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else program
        print_error(f"{text} (see: {command} --help)")
        return USAGE
    return code if isinstance(code, int) else 0
