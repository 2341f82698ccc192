"""Named arrays: their order, parts of them, and reading a file of them without the GIL."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np

from sagellm_lifetime.core.checked import checked

Arrays = dict[str, np.ndarray]
DTYPES: Final = {
    "F64": "float64",
    "F32": "float32",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
"""Types of safetensors that a checkpoint may have, as NumPy calls them."""
ORDER: Final = "order"
"""Name under which the array of :func:`ranks` is stored."""
_LENGTH_BYTES: Final = 8


def ranks(names: Collection[str]) -> np.ndarray:
    """Return the place of each of ``names`` in alphabetical order, int64 of shape ``(N,)``.

    A file keeps its arrays sorted by name; :func:`in_order` restores their order.
    """
    rank_of = {name: rank for rank, name in enumerate(sorted(names))}
    return np.array([rank_of[name] for name in names], dtype=np.int64)


def in_order(arrays: Arrays, order: np.ndarray | None) -> Arrays:
    """Return the arrays in the order they had when :func:`ranks` was called.

    ``None``, for files written before there was an order, means sorted by name.

    Raises:
        ValueError: ranks of other arrays.
    """
    names = sorted(arrays)
    if order is None:
        places = list(range(len(names)))
    else:
        places = checked({ORDER: order}, ORDER, np.int64, (len(names),), 0).tolist()
    if sorted(places) != list(range(len(names))):
        raise ValueError(f"an order of {len(places)} arrays for {len(names)}")
    return {names[i]: arrays[names[i]] for i in places}


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names start with ``prefix``, under names without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of a ``.safetensors`` file that this package wrote, as views of one buffer.

    Other threads run meanwhile: the one long operation is a read, which needs no GIL, whereas
    safetensors copies under it (10 ms for a large table). A file of unknown origin is read with
    ``predictor.checkpoint_file``, which checks everything.

    Raises:
        OSError: it cannot be read.
        ValueError: it is shorter than when it was opened.
    """
    with open(path, "rb", buffering=0) as file:
        # The size of the open file: another file may have its name by now.
        data = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8)
        if file.readinto(data.data) != len(data):
            raise ValueError(f"{path}: changed while it was read")
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES].tobytes(), "little")
    header = json.loads(data[_LENGTH_BYTES:start].tobytes())
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        arrays[name] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays
