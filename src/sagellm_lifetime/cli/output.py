"""What the commands print: tables and lines on stdout, notes and progress on stderr."""

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
"""What the running command said on stderr of the logs that it read."""
Step = Callable[[str, float], None]


def say(text: str = "") -> None:
    """One line on stdout."""
    print(text)


def note(text: str, *, keep: bool = False) -> None:
    """One line on stderr: what a script that reads stdout need not see.

    With ``keep``, the JSON of the command says it as well, under ``notes``.
    """
    if keep:
        _notes.append(text)
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str] | None]) -> None:
    """A table on stdout, the first column on the left and the others on the right.

    ``None`` among the rows draws a line.
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
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(drawn)
    lines = captured.get().splitlines()
    print("\n".join(line.rstrip() for line in lines))


def forget_notes() -> None:
    """Begin a command: nothing has been said yet."""
    _notes.clear()


def write_json(value: dict[str, Any], target: str) -> None:
    """JSON to a file, whole or not at all, or to stdout (``-``). What is not finite is null.

    Notes of the command are added as ``notes``, if there are any.
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
    """A bar on stderr, gone when the work is done; silent where stderr is no terminal.

    Yields a function of what is being done and the share of it that is done.
    """
    if not sys.stderr.isatty():
        yield lambda _what, _share: None
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

        def step(what: str, share: float) -> None:
            bars.update(bar, description=f"{label}: {what}" if what else label, completed=share)

        yield step


def listed(names: Sequence[str], last: str) -> str:
    """Names as a sentence has them: ``a, b or c`` with ``or`` before the last."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def number(value: float | None, form: str = ",.1f") -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)
