"""Print for the commands: tables and lines on stdout, notes and progress on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

STDOUT: Final = "-"
_WIDTH: Final = 160
_notes: list[str] = []
"""Notes of the running command that its JSON repeats."""
Step = Callable[[str, float], None]


def say(text: str = "") -> None:
    """Print one line on stdout."""
    print(text)


def note(text: str, *, keep: bool = False) -> None:
    """Print one line on stderr.

    Args:
        keep: also put it into the JSON of the command, under ``notes``.
    """
    if keep:
        keep_note(text)
    print(text, file=sys.stderr, flush=True)


def keep_note(text: str) -> None:
    """Put one line into the JSON of the command, under ``notes``, without printing it."""
    _notes.append(text)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str] | None], *, width: int = _WIDTH
) -> None:
    """Print a table on stdout, the first column aligned left and the others right.

    Args:
        columns: headings.
        rows: cells; None draws a line.
        width: largest width where stdout is no terminal, in characters.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(columns):
        drawn.add_column(name, justify="right" if i else "left", overflow="fold")
    for row in rows:
        if row is None:
            drawn.add_section()
        else:
            drawn.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else width, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(drawn)
    lines = captured.get().splitlines()
    print("\n".join(line.rstrip() for line in lines))


def forget_notes() -> None:
    """Forget the notes of the command before."""
    _notes.clear()


def write_json(value: dict[str, Any], target: str) -> None:
    """Write JSON to a file, whole or not at all, or to stdout.

    Args:
        value: numbers that are not finite become null; kept notes are added as ``notes``.
        target: path of the file, or ``-`` for stdout.
    """
    if _notes and "notes" not in value:
        value = {**value, "notes": list(_notes)}
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    if target == STDOUT:
        sys.stdout.write(text)
        return
    from sagellm_lifetime.core.atomic import write_atomically

    write_atomically(Path(target), text.encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(label: str) -> Iterator[Step]:
    """Show a bar on stderr until the work is done; nothing where stderr is no terminal.

    Yields:
        A function of the name of the current step and the share done, 0 to 1.
    """
    if not sys.stderr.isatty():
        yield lambda _name, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(label, total=1.0)

        def step(name: str, share: float) -> None:
            bars.update(bar, description=f"{label}: {name}" if name else label, completed=share)

        yield step


def listed(names: Sequence[str], last: str) -> str:
    """Return names as in a sentence.

    >>> listed(["a", "b", "c"], "or")
    'a, b or c'
    """
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def number(value: float | None, form: str = ",.1f") -> str:
    """Return a number for people; a dash for None, NaN and infinity.

    >>> number(1234.56), number(None)
    ('1,234.6', '–')
    """
    return "–" if value is None or not math.isfinite(value) else format(value, form)
