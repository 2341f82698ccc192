"""Checkpoints of predictors: a directory with ``model.safetensors`` and ``manifest.json``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError, shown
from sagellm_lifetime.core.protocol import FINISH_REASONS, PredictionRequest, PredictionResult
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, as_path, read_checkpoint
from sagellm_lifetime.predictor.registry import GROUP, create_predictor, predictor_names

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor


def load_predictor(path: str | os.PathLike[str], *, like: Predictor | None = None) -> Predictor:
    """Return a predictor from a checkpoint directory or an exported ``.safetensors`` or ``.pt``.

    Args:
        path: path of the directory or the file.
        like: a predictor of the expected kind, for a model that no package registers; the loaded
            one has its class, around a model of its model's class.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, written by another version, made by a
            predictor that no package registers, or of unknown contents; or ``path`` is no path.

    Example:
        >>> from tempfile import mkdtemp
        >>> from sagellm_lifetime import create_predictor
        >>> folder = f"{mkdtemp()}/trained"
        >>> create_predictor("baseline").save(folder)
        >>> load_predictor(folder).name
        'baseline'
    """
    path = as_path(path)
    try:
        checkpoint = read_checkpoint(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return predictor_of(checkpoint, path, like=like)


def predictor_of(checkpoint: Checkpoint, path: Path, *, like: Predictor | None = None) -> Predictor:
    """Return the predictor of a checkpoint that was read, tried out.

    Args:
        checkpoint: contents of the checkpoint.
        path: what errors call it.
        like: as of :func:`load_predictor`.

    Raises:
        CheckpointError: the contents fit no predictor that is known here.
    """
    if like is None and checkpoint.predictor not in predictor_names():
        raise CheckpointError(
            f"{path}: made by predictor {shown(checkpoint.predictor)}, which no installed package "
            f"registers (entry points of the group {GROUP})"
        )
    try:
        make: Callable[..., Predictor]
        if like is None:
            make = partial(create_predictor, checkpoint.predictor)
        elif like.name == checkpoint.predictor:
            make = like.new
        else:
            raise ValueError(f"{like.name!r} was expected")
        predictor, trial = (make(**checkpoint.options) for _ in range(2))
        predictor.restore(checkpoint.arrays)
        trial.restore(checkpoint.arrays)
        # Faults of the contents are detected here and not while serving.
        _try_out(trial)
    except MissingExtraError:
        raise
    except Exception as error:  # onnxruntime's errors have no common base
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: the contents do not fit predictor {checkpoint.predictor!r} ({reason})"
        ) from error
    predictor.summary = dict(checkpoint.summary)
    return predictor


def _try_out(predictor: Predictor) -> None:
    """Predict requests of all kinds, and learn their completions.

    Raises:
        ValueError: an answer has impossible numbers. Other faults raise errors of any class.
    """
    for request in _REQUESTS:
        _check_answer(predictor.predict(request))
    for answer in predictor.predict_batch(_REQUESTS):
        _check_answer(answer)
    # The share of new names may be used up, and then the common state would not be tried.
    predictor.clear_shares()
    # As in a replay, a network takes no gradient steps: an engine that loads it needs no PyTorch.
    with predictor.replaying():
        for i, request in enumerate(_REQUESTS):
            reason = FINISH_REASONS[i % len(FINISH_REASONS)]
            length = request.current_length + 50
            predictor.update(request.sequence_id, length, 1.0, finish_reason=reason)
    predictor.settle()
    for request in _REQUESTS:
        _check_answer(predictor.predict(request))


def _check_answer(answer: PredictionResult) -> None:
    """Raise :class:`ValueError` if an answer has numbers that are impossible."""
    numbers = (answer.estimated_remaining_tokens, answer.confidence, answer.estimated_time)
    if (
        not all(isfinite(number) for number in numbers)
        or min(numbers) < 0
        or answer.confidence > 1.0
        or answer.distribution is None
        or not 0.0 <= answer.distribution.survival(100) <= 1.0
        or not 0.0 <= answer.distribution.mean() < inf
    ):
        raise ValueError("it answers with impossible numbers")


def _trial_requests() -> list[PredictionRequest]:
    admission: dict[str, Any] = {
        "prompt_length": 300,
        "prompt_text": "List three reasons.\n\n1. ",
        "model": "trial",
        "client_id": "trial",
        "session_id": "trial",
        "turn": 2,
        "arrival_time": 1.0,
        "prefix_hashes": [1, 2, 3],
        "temperature": 0.7,
        "has_tools": True,
        "response_format": "json",
        "enable_thinking": False,
    }
    generated = {"output_text": "First, " * 40, "eos_logprob": [-3.0] * 8, "entropy": [1.0] * 8}
    features: list[dict[str, Any]] = [
        {},
        admission,
        admission | generated,
        {"model": "trial", "prefix_hashes": [1, 2]},
    ]
    return [
        # Requests with generated text have no token ids, so that the text is read.
        PredictionRequest(
            f"trial-{i}-{age}",
            [] if "output_text" in prompt_features else list(range(20 + age)),
            age,
            cap,
            prompt_features,
        )
        for i, prompt_features in enumerate(features)
        for age, cap in ((0, None), (100, 4096))
    ]


_REQUESTS: Final = _trial_requests()
