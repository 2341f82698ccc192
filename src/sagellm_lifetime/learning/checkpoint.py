"""Reading and writing checkpoints. No pickle: arrays in safetensors, the rest in JSON.

A checkpoint is a directory with ``model.safetensors`` and ``manifest.json``; it is written under a
temporary name and renamed. Exported single files (``.safetensors``, ``.pt``) carry the manifest
inside and load the same way; a ``.pt`` is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.calibration import AGE_EDGES
from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError
from sagellm_lifetime.core.grid import BINS, MAX_LENGTH
from sagellm_lifetime.core.link import LEVELS
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS
from sagellm_lifetime.features.text import BUCKETS
from sagellm_lifetime.learning.arrays import DTYPES

FORMAT: Final = 1
EXPORTS: Final = (".pt", ".safetensors", ".onnx")
"""Suffixes of the files that ``export`` writes."""
MODEL, MANIFEST = "model.safetensors", "manifest.json"
_MAX_BYTES: Final = 1 << 30
SCHEMA: Final[dict[str, int]] = {
    "bins": BINS,
    "max_length": MAX_LENGTH,
    "levels": LEVELS,
    "age_bands": len(AGE_EDGES) + 1,
    "step_width": WIDTH,
    "token_buckets": BUCKETS,
    "name_buckets": NAME_BUCKETS,
}
"""Sizes both sides must agree on."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that makes a predictor what it is."""

    predictor: str
    options: dict[str, Any]
    arrays: dict[str, np.ndarray]
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def manifest(self, digest: str) -> dict[str, Any]:
        """The JSON part."""
        return {
            "format": FORMAT,
            "predictor": self.predictor,
            "options": self.options,
            "features": SCHEMA,
            "training_data": self.summary,
            "metrics": {k: _finite(v) for k, v in self.metrics.items()},
            "arrays": {
                k: {"shape": list(v.shape), "dtype": str(v.dtype)} for k, v in self.arrays.items()
            },
            "sha256": digest,
        }


def check_directory(path: Path) -> None:
    """Refuse a place where no checkpoint directory can be. Raises :class:`CheckpointError`."""
    if is_checkpoint(path):
        return
    if path.suffix in EXPORTS:
        raise CheckpointError(
            f"{path}: a checkpoint is a directory: name it without {path.suffix}; "
            f"'export' makes a {path.suffix} file of it"
        )
    if path.is_file():
        raise CheckpointError(f"{path}: a file, not a checkpoint directory; choose another name")
    if path.exists() and any(path.iterdir()):
        raise CheckpointError(f"{path}: exists and is not a checkpoint; choose another directory")


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint directory; an existing checkpoint is replaced in one rename.

    Raises:
        CheckpointError: the place cannot be written, holds something else, or is named like a file.
    """
    check_directory(path)
    data = _to_bytes(checkpoint.arrays)
    manifest = checkpoint.manifest(hashlib.sha256(data).hexdigest())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        _write(temporary / MODEL, data)
        _write(temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
        _put_in_place(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    if _exchange(temporary, path):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.rename(path, old / path.name)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(old / path.name, path)
            raise
    finally:
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step (Linux ``renameat2``); whether that worked.

    POSIX has no rename onto a directory that is not empty, and between two renames a killed
    process would leave nothing under the name.
    """
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2
    return bool(renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def is_checkpoint(path: Path) -> bool:
    """Whether the directory has the two files."""
    return (path / MODEL).is_file() and (path / MANIFEST).is_file()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory or an exported file.

    Raises:
        CheckpointError: one line that says what is wrong.
    """
    if path.is_file():
        return _read_file(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not is_checkpoint(path):
        raise CheckpointError(
            f"{path}: not a checkpoint ({MODEL} and {MANIFEST} are not both there)"
        )
    manifest = _parse(path, (path / MANIFEST).read_bytes())
    size = (path / MODEL).stat().st_size
    if size > _MAX_BYTES:
        raise CheckpointError(f"{path}: {MODEL} has {size} bytes, more than any predictor needs")
    data = (path / MODEL).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"{path}: {MODEL} is damaged or was exchanged (sha256 differs)")
    return _build(path, manifest, data)


def export_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write one ``.safetensors`` or ``.pt`` file that holds everything.

    Raises:
        CheckpointError: another suffix, or the place cannot be written.
    """
    data = _to_bytes(checkpoint.arrays)
    manifest = json.dumps(checkpoint.manifest(hashlib.sha256(data).hexdigest()), sort_keys=True)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        blob = save(_contiguous(checkpoint.arrays), metadata={"manifest": manifest})
    elif path.suffix == ".pt":
        torch = _torch()
        import io

        buffer = io.BytesIO()
        tensors = {k: torch.from_numpy(v) for k, v in _contiguous(checkpoint.arrays).items()}
        torch.save({"manifest": manifest, "arrays": tensors}, buffer)
        blob = buffer.getvalue()
    else:
        raise CheckpointError(f"{path}: export writes .pt, .safetensors or .onnx")
    write_atomically(path, blob)


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all (:func:`sagellm_lifetime.core.atomic.write_atomically`).

    Raises:
        CheckpointError: the place cannot be written.
    """
    atomic.write_atomically(path, data, private=private, error=CheckpointError)


def _read_file(path: Path) -> Checkpoint:
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path}: larger than any predictor")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                manifest = _parse(path, (file.metadata() or {}).get("manifest", "").encode())
                return _verified(path, manifest, _build(path, manifest, path.read_bytes()))
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error})") from error
    if path.suffix == ".pt":
        import pickle

        torch = _torch()
        try:
            with warnings.catch_warnings():
                # What is odd about the file is said in one line, by the error.
                warnings.simplefilter("ignore")
                held = torch.load(path, weights_only=True, map_location="cpu")
            text, tensors = held["manifest"], held["arrays"]
            # A tensor may claim a size that it does not have (strides of 0).
            if sum(v.numel() * v.element_size() for v in tensors.values()) > _MAX_BYTES:
                raise ValueError("its arrays are larger than any predictor needs")
            arrays = {k: v.numpy() for k, v in tensors.items()}
        except (
            pickle.UnpicklingError,
            RuntimeError,
            EOFError,
            OSError,
            LookupError,
            TypeError,
            AttributeError,
            ValueError,
        ) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path}: not an exported predictor ({reason})") from error
        manifest = _parse(path, str(text).encode())
        return _verified(path, manifest, _build(path, manifest, _to_bytes(arrays)))
    raise CheckpointError(f"{path}: a checkpoint is a directory, a .pt or a .safetensors file")


def _verified(path: Path, manifest: dict[str, Any], checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, if its arrays are those the manifest was written for."""
    if hashlib.sha256(_to_bytes(checkpoint.arrays)).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"{path}: damaged or exchanged (sha256 differs)")
    return checkpoint


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the manifest is not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise CheckpointError(f"{path}: format {found!r}, this version reads {FORMAT}")
    if manifest.get("features") != SCHEMA:
        raise CheckpointError(f"{path}: written for another feature schema; train again")
    if not isinstance(manifest.get("options"), dict) or not isinstance(
        manifest.get("arrays"), dict
    ):
        raise CheckpointError(f"{path}: the manifest lacks its options or arrays")
    return manifest


def _build(path: Path, manifest: dict[str, Any], data: bytes) -> Checkpoint:
    _check_header(path, manifest["arrays"], data)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    return Checkpoint(
        predictor=str(manifest.get("predictor")),
        options=manifest["options"],
        arrays=arrays,
        summary=_mapping(manifest.get("training_data")),
        metrics=_mapping(manifest.get("metrics")),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_header(path: Path, declared: dict[str, Any], data: bytes) -> None:
    """Names, shapes, dtypes and sizes, before anything is allocated."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        dtypes = {str(entry["dtype"]) for entry in header.values()}
        found = {
            name: (tuple(entry["shape"]), DTYPES.get(entry["dtype"]))
            for name, entry in header.items()
        }
        wanted = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in declared.items()}
        odd = sorted(name for name, _ in set(found.items()) ^ set(wanted.items()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {MODEL} has no readable header") from error
    if not dtypes <= set(DTYPES):
        raise CheckpointError(f"{path}: arrays of type {min(dtypes - set(DTYPES))} are not allowed")
    if odd:
        raise CheckpointError(f"{path}: array {odd[0]!r} is not as the manifest declares it")


def _to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(_contiguous(arrays)))


def _contiguous(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.array(v, order="C") for k, v in sorted(arrays.items())}


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("a .pt file", "train") from error
    return torch
