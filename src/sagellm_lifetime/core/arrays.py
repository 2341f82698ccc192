"""Named arrays: parts of them, and reading a file of them without holding anybody up."""

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
"""Types of safetensors that a predictor has."""
ORDER: Final = "order"
"""Name of the array of :func:`ranks`, beside arrays that are named by numbers."""
_LENGTH_BYTES: Final = 8


def ranks(names: Collection[str]) -> np.ndarray:
    """Return the place of each of ``names`` in alphabetical order, int64 of shape ``(N,)``.

    A file keeps its arrays sorted by name; with these :func:`in_order` undoes that.
    """
    place = {name: i for i, name in enumerate(sorted(names))}
    return np.array([place[name] for name in names], dtype=np.int64)


def in_order(arrays: Arrays, order: np.ndarray | None) -> Arrays:
    """Return the arrays in the order they had when :func:`ranks` was called.

    Sorted by name for ``None``, as in files of before there was an order.

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
    """Those arrays whose name starts so, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def read_arrays(path: Path) -> Arrays:
    """The arrays of a ``.safetensors`` file that this package wrote, as views of one buffer.

    Other threads run on meanwhile: all that takes long is one read, which needs no GIL, whereas
    safetensors copies under it (10 ms for a large table). A file from elsewhere is read with
    ``predictor.checkpoint_file``, which trusts nothing.

    Raises:
        OSError: it cannot be read.
        ValueError: it is shorter than it says.
    """
    with open(path, "rb", buffering=0) as file:
        # Of the open file: another may have its name by now.
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
