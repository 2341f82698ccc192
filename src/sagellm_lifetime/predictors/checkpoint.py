"""Checkpoints of predictors: a directory with ``model.safetensors`` and ``manifest.json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.learning.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sagellm_lifetime.predictors.knowledge import knowledge, set_knowledge
from sagellm_lifetime.predictors.registry import create_predictor

if TYPE_CHECKING:
    from sagellm_lifetime.predictors.base import Predictor


def save_predictor(predictor: Predictor, path: Path) -> None:
    """Write a checkpoint directory, atomically."""
    write_checkpoint(
        Checkpoint(
            predictor=predictor.name,
            options=dict(predictor._options),
            arrays=knowledge(predictor),
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
