"""Named arrays: parts of them, and reading a file of them without holding anybody up."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import numpy as np

Arrays = dict[str, np.ndarray]
DTYPES: Final = {
    "F64": "float64",
    "F32": "float32",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
}
"""Types of safetensors that a predictor has."""
_LENGTH_BYTES: Final = 8


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Those arrays whose name starts so, without the prefix."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def read_arrays(path: Path) -> Arrays:
    """The arrays of a ``.safetensors`` file that this package wrote, as views of one buffer.

    Other threads run on meanwhile: all that takes long is one read, which needs no GIL, whereas
    safetensors copies under it (10 ms for a large table). A file from elsewhere is read with
    ``learning.checkpoint``, which trusts nothing.

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
