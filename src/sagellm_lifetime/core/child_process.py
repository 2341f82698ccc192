"""Work that is done in a process of its own, so that an engine's neither waits nor grows."""

from __future__ import annotations

import json
import sys
from typing import Final

_CODE: Final = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).main()"
)


def command(module: str, argument: str) -> list[str]:
    """Command line of a Python like this one that calls ``main()`` of a module of ours.

    Not multiprocessing: its children import the main module of the program anew, and the processes
    of an engine, being daemons, may have none.

    Args:
        module: dotted name.
        argument: found there as ``sys.argv[-1]``.
    """
    path = json.dumps([str(each) for each in sys.path])
    return [sys.executable, "-c", _CODE, path, module, argument]
