"""Checkpoints of predictors: a directory with ``model.safetensors`` and ``manifest.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError, shown
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.learning.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sagellm_lifetime.predictors.knowledge import knowledge, set_knowledge
from sagellm_lifetime.predictors.registry import create_predictor

if TYPE_CHECKING:
    from sagellm_lifetime.predictors.base import Predictor


def as_path(path: Any) -> Path:
    """Return the path of a checkpoint.

    Raises:
        CheckpointError: something that is no path, an empty one, or one that no file can have.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(found := os.fspath(path), bytes):
        raise CheckpointError(f"a checkpoint is named by a path: {shown(path)}")
    if not found or "\0" in found:
        raise CheckpointError(f"{shown(found)} names no checkpoint: give a folder")
    return Path(found)


def save_predictor(predictor: Predictor, path: Path) -> None:
    """Write a checkpoint directory, atomically. Raises :class:`CheckpointError`."""
    checkpoint = Checkpoint(
        predictor=predictor.name,
        options=dict(predictor._options),
        arrays=knowledge(predictor),
        summary=dict(predictor.summary),
        metrics=predictor.get_metrics(),
    )
    try:
        write_checkpoint(checkpoint, path)
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def load_predictor(path: str | os.PathLike[str]) -> Predictor:
    """Return a predictor from a checkpoint directory or an exported ``.safetensors`` or ``.pt``.

    Raises:
        CheckpointError: missing, damaged, of another format version, or of unknown contents; or
            no path at all.
    """
    path = as_path(path)
    try:
        checkpoint = read_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        predictor = create_predictor(checkpoint.predictor, **checkpoint.options)
        set_knowledge(predictor, checkpoint.arrays)
        # One answer, so that arrays of the wrong shape are found here and not while serving.
        predictor.clone().predict(PredictionRequest(0, [], 0, None))
    except MissingExtraError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: the contents do not fit predictor {checkpoint.predictor!r} ({reason})"
        ) from error
    predictor.summary = dict(checkpoint.summary)
    return predictor
