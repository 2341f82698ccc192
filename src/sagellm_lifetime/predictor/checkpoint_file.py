"""Reading and writing checkpoints. No pickle: arrays in safetensors, the rest in JSON.

A checkpoint is a directory with ``model.safetensors`` and ``manifest.json``; it is written under a
temporary name and renamed. Exported single files (``.safetensors``, ``.pt``) carry the manifest
inside and load the same way; a ``.pt`` is read with ``weights_only=True``.

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
from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError, shown
from sagellm_lifetime.core.grid import BINS, MAX_LENGTH
from sagellm_lifetime.core.link import LEVELS
from sagellm_lifetime.core.values import is_path
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS
from sagellm_lifetime.features.text import BUCKETS

FORMAT: Final = 1
EXPORTS: Final = (".pt", ".safetensors", ".onnx")
"""Suffixes of the files that ``export`` writes."""
MODEL, MANIFEST = "model.safetensors", "manifest.json"
_MAX_BYTES: Final = 1 << 30
"""Of the arrays, and of a file that holds them."""
_MAX_MANIFEST: Final = 8 << 20
"""Bytes of a manifest; one of 257 model names has some tens of thousands."""
_DEEPEST: Final = 32
"""Nesting of a manifest; that of a predictor has 4."""
_MAX_HEADER: Final = 2 * _MAX_MANIFEST
"""Bytes of the header of a ``.safetensors`` file, in which an export has the manifest too."""
_MAX_ENTRIES: Final = 100_000
"""Entries of the zip archive that a ``.pt`` file is."""
_TENSOR_NAMES: Final = re.compile(
    r"torch._utils _rebuild_tensor_v2|collections OrderedDict|torch(\.storage)? \w+Storage"
)
"""What a pickle of tensors names."""
_READS: Final = 20
"""Tries to read a checkpoint that is replaced again and again meanwhile."""
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
        """Return the JSON part."""
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
        CheckpointError: something that is no path, an empty one, or one that no file can have.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(found := os.fspath(path), bytes):
        raise CheckpointError(f"a checkpoint is named by a path: {shown(path)}")
    if not is_path(found):
        raise CheckpointError(f"{shown(found)} names no checkpoint: give a folder")
    return Path(found)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint directory, as :func:`write_checkpoint`, whatever the file system says.

    Raises:
        CheckpointError: as of :func:`write_checkpoint`, or the place cannot be looked into.
    """
    try:
        write_checkpoint(checkpoint, path)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


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

    Where ``path`` is a link, the directory that it names is replaced.

    Raises:
        CheckpointError: the place cannot be written, holds something else, or is named like a file.
    """
    if path.is_symlink():
        path = path.resolve()
    check_directory(path)
    data = _to_bytes(checkpoint.arrays)
    manifest = checkpoint.manifest(hashlib.sha256(data).hexdigest())
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
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


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of a checkpoint left; what a living one holds stays.

    A checkpoint that a killed writer had moved aside, and put nothing in its place, is put back.
    """
    atomic.remove_leftovers(path)
    pattern = re.compile(rf"\.{re.escape(path.name)}\.old\.[0-9a-f]{{16}}")
    try:
        asides = [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]
    except OSError:
        return
    for aside in asides:
        with atomic.held_alone(aside) as alone:
            if alone:
                _put_back(aside, path)
                shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Rename ``temporary`` to ``path``; under the temporary name is then what was there before."""
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
    with atomic.held_alone(aside):
        try:
            os.rename(path, aside / path.name)
            os.rename(temporary, path)
        finally:
            _put_back(aside, path)
            shutil.rmtree(aside, ignore_errors=True)


def _put_back(aside: Path, path: Path) -> None:
    """Rename the checkpoint that was moved into ``aside`` back, unless another is in its place."""
    old = aside / path.name
    if old.exists() and not os.path.lexists(path):
        os.rename(old, path)


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
    """Return whether the directory has the two files."""
    return (path / MODEL).is_file() and (path / MANIFEST).is_file()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint directory or an exported file.

    Raises:
        CheckpointError: one line that says what is wrong.
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
    """Return why a directory, in which a file was not found, is no checkpoint."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return "no such checkpoint"
    try:
        both = {MODEL, MANIFEST} <= set(os.listdir(folder))
        # A writer may have moved the directory away since it was opened.
        is_same = path.exists() and os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        both = is_same = False
    finally:
        os.close(folder)
    if both or not is_same:
        return "was replaced or removed while it was read"
    return f"not a checkpoint ({MODEL} and {MANIFEST} are not both there)"


def _read_directory(path: Path) -> tuple[bytes, bytes]:
    """Return the manifest and the arrays of one and the same checkpoint, as bytes.

    By way of the open directory: by its name the two could be of a checkpoint and of the one that
    took its place in between.

    Raises:
        FileNotFoundError: it was replaced meanwhile.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        text = _read(path / MANIFEST, _MAX_MANIFEST, folder)
        return text, _read(path / MODEL, _MAX_BYTES, folder)
    finally:
        os.close(folder)


def _read(path: Path, most: int, folder: int | None = None) -> bytes:
    """Return the bytes of a file, which are ``most`` at most.

    Args:
        path: the file.
        most: bytes.
        folder: descriptor of the directory it is in, where another may take the directory's name.
    """
    name = path if folder is None else path.name
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{path}: not a regular file")
        if found.st_size > most:
            raise CheckpointError(f"{path}: {found.st_size} bytes, more than any predictor needs")
        data = file.read(found.st_size)
        if len(data) != found.st_size or file.read(1):
            raise CheckpointError(f"{path}: changed while it was read")
    return data


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
    if path.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{path}: a checkpoint is a directory, a .pt or a .safetensors file")
    try:
        data = _read(path, _MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix == ".safetensors":
        manifest = _parse(path, _exported_manifest(path, data))
    else:
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
    """Return the manifest of an exported ``.pt`` and its arrays as those of a ``.safetensors``."""
    import pickle
    from zipfile import BadZipFile

    torch = _torch()
    try:
        archive = _inflated(data)
        with warnings.catch_warnings():
            # What is odd about the file is said in one line, by the error.
            warnings.simplefilter("ignore")
            held = torch.load(archive, weights_only=True, map_location="cpu")
        text, tensors = held["manifest"], held["arrays"]
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
    """Return the zip archive without compression, so that nothing in it can grow.

    PyTorch takes the sizes in a zip archive at their word: a file of 3 MB may ask for gigabytes.
    Written anew, the archive that is loaded is the very one whose sizes were added up.

    Raises:
        ValueError: inflated it is larger than any predictor, or has too many entries.
        BadZipFile: it is none.
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
    """Raise :class:`ValueError` where a pickle names anything but tensors.

    ``weights_only=True`` runs no code, but lets a file ask for a ``bytearray`` of any size.
    """
    import pickletools

    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STACK_GLOBAL" or (
            opcode.name in ("GLOBAL", "INST") and not _TENSOR_NAMES.fullmatch(str(argument))
        ):
            raise ValueError(f"it holds {argument or 'something'} and not tensors alone")


def _verified(path: Path, manifest: dict[str, Any], checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint, if its arrays are those the manifest was written for."""
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


def _depth(value: Any) -> int:
    """Return how deep objects and lists are nested."""
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
    """Names, shapes, dtypes and sizes, before anything is allocated."""
    try:
        header = _header(path, data)
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


def _header(path: Path, data: bytes) -> dict[str, Any]:
    """Return the JSON header of a ``.safetensors`` file."""
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
    """Write a file of a new checkpoint with the mode it has in the one that is replaced."""
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
