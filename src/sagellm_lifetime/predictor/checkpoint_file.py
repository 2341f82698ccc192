"""Checkpoint files: arrays in safetensors, the rest in JSON, and no pickle.

A checkpoint is a directory with ``model.safetensors`` and ``manifest.json``; it is written under a
temporary name and renamed. Exported single files (``.safetensors``, ``.pt``) contain the manifest
and load the same way; a ``.pt`` is read with ``weights_only=True``.

A new checkpoint directory and its files are readable by their owner only; one that replaces another
keeps its modes. An exported file follows the umask.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from sagellm_lifetime.core import atomic
from sagellm_lifetime.core.arrays import DTYPES
from sagellm_lifetime.core.calibration import AGE_EDGES
from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError, reason_of, shown
from sagellm_lifetime.core.grid import BINS, MAX_LENGTH
from sagellm_lifetime.core.link import LEVELS
from sagellm_lifetime.core.values import is_path
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS
from sagellm_lifetime.features.text import BUCKETS

FORMAT: Final = 4
"""Version of the format; raised where older checkpoints can no longer be restored."""
EXPORTS: Final = (".pt", ".safetensors", ".onnx")
"""Suffixes of the files that ``export`` writes."""
MODEL, MANIFEST = "model.safetensors", "manifest.json"
_MAX_BYTES: Final = 1 << 30
"""Maximum size of the arrays, and of a file that holds them."""
_MAX_MANIFEST: Final = 8 << 20
"""Maximum bytes of a manifest; one with 257 model names has some tens of thousands."""
_DEEPEST: Final = 32
"""Maximum nesting of a manifest; that of a predictor is 4 deep."""
_MAX_HEADER: Final = 2 * _MAX_MANIFEST
"""Maximum bytes of the header of a ``.safetensors`` file; in an export it has the manifest too."""
_MAX_ENTRIES: Final = 100_000
"""Maximum entries of the zip archive of a ``.pt`` file."""
_TENSOR_NAMES: Final = re.compile(
    r"torch._utils _rebuild_tensor_v2|collections OrderedDict|torch(\.storage)? \w+Storage"
)
"""Global names that a pickle of tensors uses."""
_READS: Final = 20
"""Maximum number of attempts to read a checkpoint that is replaced meanwhile."""
SCHEMA: Final[dict[str, int]] = {
    "bins": BINS,
    "max_length": MAX_LENGTH,
    "levels": LEVELS,
    "age_bands": len(AGE_EDGES) + 1,
    "step_width": WIDTH,
    "token_buckets": BUCKETS,
    "name_buckets": NAME_BUCKETS,
}
"""Sizes that must be equal where a checkpoint is written and where it is read."""


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint.

    Attributes:
        predictor: name of the predictor.
        options: its options.
        arrays: its learned state.
        summary: description of the history it was fitted on.
        metrics: its metrics when it was saved.
    """

    predictor: str
    options: dict[str, Any]
    arrays: dict[str, np.ndarray]
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def manifest(self, digest: str) -> dict[str, Any]:
        """Return the manifest as a JSON object; ``digest`` is the SHA-256 of the arrays."""
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


def as_path(path: Any) -> Path:
    """Return the path of a checkpoint.

    Raises:
        CheckpointError: ``path`` is no path, empty, or no possible name of a file.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(text := os.fspath(path), bytes):
        raise CheckpointError(f"a checkpoint is named by a path: {shown(path)}")
    if not is_path(text):
        raise CheckpointError(f"{shown(text)} names no checkpoint: give a folder")
    return Path(text)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint directory with :func:`write_checkpoint`; no :class:`OSError` is raised.

    Raises:
        CheckpointError: as of :func:`write_checkpoint`, or ``path`` cannot be examined.
    """
    try:
        write_checkpoint(checkpoint, path)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def check_directory(path: Path) -> None:
    """Raise :class:`CheckpointError` if no checkpoint directory can be written at ``path``."""
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

    If ``path`` is a link, its target is replaced.

    Raises:
        CheckpointError: ``path`` cannot be written, holds something else, or is named like a file;
            or the checkpoint has something that could not be loaded.
    """
    if path.is_symlink():
        path = path.resolve()
    check_directory(path)
    data, manifest = _contents(checkpoint, path, indent=1)
    text = manifest.encode()
    if len(data) > _MAX_BYTES or len(text) > _MAX_MANIFEST:
        raise CheckpointError(f"{path}: larger than any predictor, so it could not be loaded")
    try:
        atomic.make_folder(path.parent)
        remove_leftovers(path)
        with atomic.temporary_folder(path) as temporary:
            _write(temporary / MODEL, data, path)
            _write(temporary / MANIFEST, text, path)
            if path.is_dir():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            atomic.sync_folder(temporary)
            _put_in_place(temporary, path)
            atomic.sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error


def _contents(checkpoint: Checkpoint, path: Path, indent: int | None = None) -> tuple[bytes, str]:
    """Return the arrays of a checkpoint as bytes, and its manifest as text.

    Raises:
        CheckpointError: an array has a name or a type that could not be loaded, or the manifest
            cannot be written as JSON.
    """
    for name, array in checkpoint.arrays.items():
        if not _is_utf8(name):
            raise CheckpointError(f"{path}: the name of array {shown(name)} is no valid text")
        if str(array.dtype) not in DTYPES.values():
            raise CheckpointError(
                f"{path}: array {shown(name)} is of type {array.dtype}, and a checkpoint has "
                f"{', '.join(DTYPES.values())}"
            )
    data = _to_bytes(checkpoint.arrays)
    manifest = checkpoint.manifest(hashlib.sha256(data).hexdigest())
    try:
        return data, json.dumps(manifest, indent=indent, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: options, summary or metrics cannot be written as JSON ({reason_of(error)})"
        ) from error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of killed writers of a checkpoint; those of living ones stay.

    A checkpoint that a killed writer had moved aside is put back, unless there is another by now.
    """
    atomic.remove_leftovers(path)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.old\.[0-9a-f]{{16}}")
    try:
        asides = [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]
    except OSError:
        return
    for aside in asides:
        with atomic.held_exclusively(aside) as is_unheld:
            if is_unheld:
                _put_back(aside, path)
                shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; an old checkpoint is left under the temporary name."""
    try:
        os.rename(temporary, path)  # onto nothing, or onto an empty directory
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(temporary, path):
        return
    aside = path.with_name(f".{path.name}.old.{secrets.token_hex(8)}")
    aside.mkdir(atomic.PRIVATE_FOLDER)
    with atomic.held_exclusively(aside):
        try:
            os.rename(path, aside / path.name)
            os.rename(temporary, path)
        finally:
            _put_back(aside, path)
            shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path, path: Path) -> None:
    """Move a checkpoint back from ``aside`` to ``path``, unless there is another by now."""
    old = aside / path.name
    if old.exists() and not os.path.lexists(path):
        os.rename(old, path)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step (Linux ``renameat2``); return True if that worked.

    POSIX has no rename onto a directory that is not empty, and a process killed between two
    renames would leave no checkpoint at the path.
    """
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2
    return bool(renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0)


def is_checkpoint(path: Path) -> bool:
    """Return True if a directory has the two files of a checkpoint."""
    return (path / MODEL).is_file() and (path / MANIFEST).is_file()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory or an exported file.

    Raises:
        CheckpointError: it is missing, damaged, or of another version; the message is one line.
    """
    if path.is_file():
        return _read_file(path)
    for _ in range(_READS):
        try:
            text, data = _read_directory(path)
        except FileNotFoundError:
            continue  # replaced while it was read
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        manifest = _parse(path, text)
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
            raise CheckpointError(f"{path}: {MODEL} is damaged or was exchanged (sha256 differs)")
        return _build(path, manifest, data)
    raise CheckpointError(f"{path}: {_why_unreadable(path)}")


def _why_unreadable(path: Path) -> str:
    """Return the reason why a directory without one of the two files is no checkpoint."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "no such checkpoint"
    try:
        has_both = {MODEL, MANIFEST} <= set(os.listdir(folder))
        # A writer may have moved the directory away since it was opened.
        is_same = path.exists() and os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        has_both = is_same = False
    finally:
        os.close(folder)
    if has_both or not is_same:
        return "was replaced or removed while it was read"
    return f"not a checkpoint ({MODEL} and {MANIFEST} are not both there)"


def _read_directory(path: Path) -> tuple[bytes, bytes]:
    """Return the manifest and the arrays of one checkpoint, as bytes.

    Both are read through a descriptor of the directory: opened by path, they could be of two
    checkpoints, one of which replaced the other in between.

    Raises:
        FileNotFoundError: the checkpoint was replaced meanwhile.
        OSError: it cannot be read.
        CheckpointError: a file is not regular, too large, or changed while it was read.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        text = _read(path / MANIFEST, _MAX_MANIFEST, folder)
        return text, _read(path / MODEL, _MAX_BYTES, folder)
    finally:
        os.close(folder)


def _read(path: Path, most: int, folder: int | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        most: maximum size, bytes.
        folder: descriptor of its directory, for a directory that may be replaced; else ``None``.

    Raises:
        OSError: the file cannot be read.
        CheckpointError: it is not regular, too large, or changed while it was read.
    """
    name = path if folder is None else path.name
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if size > most:
            raise CheckpointError(f"{path}: {size} bytes, more than any predictor needs")
        data = file.read(size)
        if len(data) != size or file.read(1):
            raise CheckpointError(f"{path}: changed while it was read")
    return data


def export_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a whole checkpoint as one ``.safetensors`` or ``.pt`` file.

    Raises:
        CheckpointError: another suffix, the file cannot be written, or the checkpoint has
            something that could not be loaded.
        MissingExtraError: a ``.pt`` file needs PyTorch.
    """
    if path.suffix == ".safetensors":
        blob = exported(checkpoint, path)
    elif path.suffix == ".pt":
        _, manifest = _contents(checkpoint, path)
        torch = _torch()
        buffer = io.BytesIO()
        tensors = {k: torch.from_numpy(v) for k, v in _contiguous(checkpoint.arrays).items()}
        torch.save({"manifest": manifest, "arrays": tensors}, buffer)
        blob = buffer.getvalue()
    else:
        raise CheckpointError(f"{path}: export writes .pt, .safetensors or .onnx")
    write_atomically(path, blob)


def exported(checkpoint: Checkpoint, path: Path) -> bytes:
    """Return a whole checkpoint as the bytes of a ``.safetensors`` file.

    Args:
        checkpoint: the checkpoint.
        path: what errors call it.

    Raises:
        CheckpointError: it has something that could not be loaded.
    """
    from safetensors.numpy import save

    _, manifest = _contents(checkpoint, path)
    return bytes(save(_contiguous(checkpoint.arrays), metadata={"manifest": manifest}))


def of_exported(path: Path, data: bytes) -> Checkpoint:
    """Return the checkpoint in the bytes of an exported ``.safetensors`` file, checked.

    Args:
        path: what errors call it.
        data: content of the file.

    Raises:
        CheckpointError: damaged, or of another version; the message is one line.
    """
    manifest = _parse(path, _exported_manifest(path, data))
    return _verified(path, manifest, _build(path, manifest, data))


def write_atomically(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all (:func:`sagellm_lifetime.core.atomic.write_atomically`).

    Raises:
        CheckpointError: the file cannot be written.
    """
    atomic.write_atomically(path, data, private=private, error=CheckpointError)


def _read_file(path: Path) -> Checkpoint:
    if path.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{path}: a checkpoint is a directory, a .pt or a .safetensors file")
    try:
        data = _read(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".safetensors":
        return of_exported(path, data)
    text, arrays = _read_pt(path, data)
    manifest, data = _parse(path, text), arrays
    return _verified(path, manifest, _build(path, manifest, data))


def _exported_manifest(path: Path, data: bytes) -> str:
    metadata = _header(path, data).get("__metadata__")
    manifest = metadata.get("manifest") if isinstance(metadata, dict) else None
    if not isinstance(manifest, str):
        raise CheckpointError(f"{path}: no exported predictor: it has no manifest")
    return manifest


def _read_pt(path: Path, data: bytes) -> tuple[str, bytes]:
    """Return the manifest of an exported ``.pt``, and its arrays as ``.safetensors`` bytes."""
    import pickle
    from zipfile import BadZipFile

    torch = _torch()
    try:
        archive = _inflated(data)
        with warnings.catch_warnings():
            # Faults of the file are reported in one line, by the error.
            warnings.simplefilter("ignore")
            contents = torch.load(archive, weights_only=True, map_location="cpu")
        text, tensors = contents["manifest"], contents["arrays"]
        # A tensor may claim a size that it does not have (strides of 0).
        if sum(v.numel() * v.element_size() for v in tensors.values()) > _MAX_BYTES:
            raise ValueError("its arrays are larger than any predictor needs")
        return str(text), _to_bytes({k: v.numpy() for k, v in tensors.items()})
    except (
        BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not an exported predictor ({reason})") from error


def _inflated(data: bytes) -> io.BytesIO:
    """Return a zip archive without compression.

    PyTorch allocates the sizes that a zip archive declares: a file of 3 MB may declare gigabytes.
    So the archive is written anew, with entries whose sizes have been checked.

    Raises:
        ValueError: the inflated archive is too large, has too many entries, two of one name, or a
            pickle of anything but tensors.
        BadZipFile: ``data`` is no zip archive.
    """
    from zipfile import ZIP_STORED, ZipFile

    if data.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise ValueError("it has more entries than any predictor needs")
    inflated = io.BytesIO()
    with ZipFile(io.BytesIO(data)) as archive, ZipFile(inflated, "w", ZIP_STORED) as plain:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _MAX_BYTES:
            raise ValueError("inflated it is larger than any predictor needs")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("it has two entries of one name")
        for entry in entries:
            content = archive.read(entry)
            if entry.filename.endswith(".pkl"):
                _check_pickle(content)
            plain.writestr(entry.filename, content)
    inflated.seek(0)
    return inflated


def _check_pickle(content: bytes) -> None:
    """Raise :class:`ValueError` if a pickle names anything but tensors.

    ``weights_only=True`` runs no code, but it allows a ``bytearray`` of any size.
    """
    import pickletools

    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STACK_GLOBAL" or (
            opcode.name in ("GLOBAL", "INST") and not _TENSOR_NAMES.fullmatch(str(argument))
        ):
            raise ValueError(f"it holds {argument or 'something'} and not only tensors")


def _verified(path: Path, manifest: dict[str, Any], checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint if its arrays have the digest of the manifest.

    Raises:
        CheckpointError: they have another.
    """
    if hashlib.sha256(_to_bytes(checkpoint.arrays)).hexdigest() != manifest.get("sha256"):
        raise CheckpointError(f"{path}: damaged or exchanged (sha256 differs)")
    return checkpoint


def _parse(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        if len(text) > _MAX_MANIFEST:
            raise ValueError(f"{len(text)} bytes, more than any predictor needs")
        manifest = json.loads(text)
        if _depth(manifest) > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the manifest is not JSON ({error})") from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if type(version) is int and 0 < version < FORMAT:
        raise CheckpointError(f"{path}: written by an earlier version of this package; train again")
    if not isinstance(manifest, dict) or version != FORMAT:
        raise CheckpointError(f"{path}: format {shown(version)}, this version reads {FORMAT}")
    if manifest.get("features") != SCHEMA:
        raise CheckpointError(f"{path}: written for another feature schema; train again")
    if not isinstance(manifest.get("options"), dict) or not isinstance(
        manifest.get("arrays"), dict
    ):
        raise CheckpointError(f"{path}: the manifest lacks its options or arrays")
    return manifest


def _depth(value: Any) -> int:
    """Return the depth to which objects and lists are nested, 1 for a plain value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


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
    """Check names, shapes and dtypes of the arrays, before anything is allocated.

    Raises:
        CheckpointError: the header is damaged, has a type that is not allowed, or differs from the
            arrays that the manifest declares.
    """
    try:
        header = _header(path, data)
        header.pop("__metadata__", None)
        dtypes = {str(entry["dtype"]) for entry in header.values()}
        stored = {
            name: (tuple(entry["shape"]), DTYPES.get(entry["dtype"]))
            for name, entry in header.items()
        }
        named = {name: (tuple(entry["shape"]), entry["dtype"]) for name, entry in declared.items()}
        differing = sorted(name for name, _ in set(stored.items()) ^ set(named.items()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: {MODEL} has no readable header") from error
    if not dtypes <= set(DTYPES):
        raise CheckpointError(f"{path}: arrays of type {min(dtypes - set(DTYPES))} are not allowed")
    if differing:
        name = differing[0]
        raise CheckpointError(f"{path}: array {name!r} is not as the manifest declares it")


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """Return the JSON header of a ``.safetensors`` file.

    Raises:
        CheckpointError: the header is too long, or no JSON object.
    """
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER):
            raise ValueError("its header is longer than it may be")
        header = json.loads(data[8 : 8 + length])
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: no .safetensors file ({error})") from error
    return header


def _to_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(_contiguous(arrays)))


def _contiguous(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.array(v, order="C") for k, v in sorted(arrays.items())}


def _write(path: Path, data: bytes, replaced: Path) -> None:
    """Write a file of a new checkpoint, with the mode that it has in the replaced one."""
    mode, old = atomic.PRIVATE_FILE, replaced / path.name
    if old.is_file():
        mode = stat.S_IMODE(old.stat().st_mode) & 0o777
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
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
