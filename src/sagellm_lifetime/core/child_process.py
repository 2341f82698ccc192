"""Command lines for work in a separate Python process."""

from __future__ import annotations

import json
import sys
from typing import Final

_CODE: Final = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main()"
)


def command(module: str, argument: str) -> list[str]:
    """Return the command line of a Python that calls ``main()`` of a module of this package.

    Not multiprocessing: its children import the program's main module again, and an engine's
    processes, being daemons, may have no children.

    Args:
        module: dotted name.
        argument: passed on as ``sys.argv[-1]``.
    """
    path = json.dumps([str(entry) for entry in sys.path])
    return [sys.executable, "-c", _CODE, path, module, argument]
