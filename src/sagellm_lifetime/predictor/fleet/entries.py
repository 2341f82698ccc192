"""Entries of a store: what a replica has learned, as bytes, and back with every check.

An entry is an exported checkpoint (safetensors and JSON, no pickle), deflated. It holds no recent
traffic, and no hazards, which a merge computes anew. What is read is bounded before it is inflated,
checked as a checkpoint is, and tried out.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from sagellm_lifetime.core.errors import CheckpointError, MergeError, shown
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import predictor_of
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, exported, of_exported
from sagellm_lifetime.predictor.fleet.store import MOST_BYTES
from sagellm_lifetime.predictor.lineage import LINEAGE
from sagellm_lifetime.predictor.merging import RUN_OPTIONS, SECRETS_DIFFER

_FAST: Final = 1
"""Level of compression: most counts are 0, and higher levels take ten times as long."""
_MOST_INFLATED: Final = 256 << 20
"""Maximum size of an entry when inflated; one of 20,000 nodes has 55 MB."""


def entry_of(predictor: Predictor, name: str) -> bytes:
    """Return what a predictor has learned as an entry.

    Args:
        predictor: what one replica has learned by itself.
        name: what errors call the entry.

    Raises:
        CheckpointError: it cannot be written, or is larger than an entry may be.
    """
    checkpoint = Checkpoint(
        predictor=predictor.name,
        options=predictor.options,
        arrays=predictor.sums(),
        summary={LINEAGE: predictor.lineage},
    )
    data = zlib.compress(exported(checkpoint, Path(name)), _FAST)
    if len(data) > MOST_BYTES:
        raise CheckpointError(f"{name}: {len(data)} bytes, more than an entry of a fleet may have")
    return data


def predictor_of_entry(data: bytes, name: str, like: Predictor) -> Predictor:
    """Return the predictor in an entry.

    Args:
        data: the entry.
        name: what errors call it.
        like: predictor of this replica; the entry must fit it.

    Raises:
        CheckpointError: the entry is damaged or too large.
        MergeError: it is sound, but of another predictor, other options or another secret.
    """
    checkpoint = of_exported(Path(name), _inflated(data, name))
    if checkpoint.predictor != like.name:
        raise MergeError(f"{name}: holds a {checkpoint.predictor[:80]!r} predictor")
    try:
        keys = NameKeys.of_state(checkpoint.arrays)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    if keys != like.keys:
        raise MergeError(f"{name}: {SECRETS_DIFFER}")
    # Before anything is made of them: an option may ask for any amount of memory.
    for option, value in like.options.items():
        theirs = checkpoint.options.get(option)
        if option not in RUN_OPTIONS and theirs != value:
            raise MergeError(f"{name}: learned with {option}={shown(theirs)}, not {value!r}")
    own = replace(checkpoint, options=like.options)
    return predictor_of(own, Path(name), like=like)


def _inflated(data: bytes, name: str) -> bytes:
    """Return an inflated entry. Raises :class:`CheckpointError` if it is damaged or too large."""
    inflate = zlib.decompressobj()
    try:
        inflated = inflate.decompress(data, _MOST_INFLATED)
    except zlib.error as error:
        raise CheckpointError(f"{name}: damaged ({error})") from error
    if inflate.unconsumed_tail:
        raise CheckpointError(f"{name}: larger than an entry of a fleet may be")
    if not inflate.eof:
        raise CheckpointError(f"{name}: damaged (cut off)")
    return inflated
