"""Checkpoints of predictors: a directory with ``model.safetensors`` and ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagellm_lifetime.core.errors import CheckpointError
from sagellm_lifetime.learning.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sagellm_lifetime.predictors.registry import create_predictor

if TYPE_CHECKING:
    from sagellm_lifetime.predictors.base import Predictor


def save_predictor(predictor: Predictor, path: Path) -> None:
    """Write a checkpoint directory, atomically."""
    write_checkpoint(
        Checkpoint(
            predictor=predictor.name,
            options=dict(predictor._options),
            arrays=predictor._knowledge(),
            summary=dict(predictor.summary),
            metrics=predictor.get_metrics(),
        ),
        path,
    )


def load_predictor(path: str | Path) -> Predictor:
    """A predictor from a checkpoint directory or an exported ``.safetensors`` or ``.pt`` file.

    Raises:
        CheckpointError: missing, damaged, of another format version, or of unknown contents.
    """
    checkpoint = read_checkpoint(Path(path))
    predictor = create_predictor(checkpoint.predictor, **checkpoint.options)
    try:
        predictor._set_knowledge(checkpoint.arrays)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{path}: the contents do not fit predictor {checkpoint.predictor!r} ({error})"
        ) from error
    predictor.summary = dict(checkpoint.summary)
    return predictor
