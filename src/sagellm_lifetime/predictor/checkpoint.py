"""Checkpoints of predictors: a directory with ``model.safetensors`` and ``manifest.json``."""

from __future__ import annotations

import os
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.errors import CheckpointError, MissingExtraError, shown
from sagellm_lifetime.core.protocol import FINISH_REASONS, PredictionRequest, PredictionResult
from sagellm_lifetime.core.values import is_path
from sagellm_lifetime.predictor.checkpoint_file import Checkpoint, read_checkpoint, write_checkpoint
from sagellm_lifetime.predictor.knowledge import knowledge, set_knowledge
from sagellm_lifetime.predictor.registry import create_predictor

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor


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
        predictor, trial = (
            create_predictor(checkpoint.predictor, **checkpoint.options) for _ in range(2)
        )
        set_knowledge(predictor, checkpoint.arrays)
        set_knowledge(trial, checkpoint.arrays)
        # So that what is wrong with it is found here and not while serving.
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
    """Ask a predictor all kinds of questions, and teach it the answers.

    Raises:
        ValueError: an answer that is none. What else is wrong raises an error of any class.
    """
    # As during a fit, a network takes no gradient steps: an engine that loads one needs no PyTorch.
    predictor._fitting = True
    for each in _QUESTIONS:
        _check_answer(predictor.predict(each))
    for answer in predictor.predict_batch(_QUESTIONS):
        _check_answer(answer)
    for i, each in enumerate(_QUESTIONS):
        reason = FINISH_REASONS[i % len(FINISH_REASONS)]
        predictor.update(each.sequence_id, each.current_length + 50, 1.0, finish_reason=reason)
    predictor._calibrate_pending()
    for each in _QUESTIONS:
        _check_answer(predictor.predict(each))


def _check_answer(answer: PredictionResult) -> None:
    numbers = (answer.estimated_remaining_tokens, answer.confidence, answer.estimated_time)
    if (
        not all(isfinite(number) for number in numbers)
        or min(numbers) < 0
        or answer.confidence > 1.0
        or answer.distribution is None
        or not 0.0 <= answer.distribution.survival(100) <= 1.0
        or not 0.0 <= answer.distribution.mean() < inf
    ):
        raise ValueError("it answers with numbers that cannot be")


def _questions() -> list[PredictionRequest]:
    everything: dict[str, Any] = {
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
    so_far = {"output_text": "First, " * 40, "eos_logprob": [-3.0] * 8, "entropy": [1.0] * 8}
    features: list[dict[str, Any]] = [
        {},
        everything,
        everything | so_far,
        {"model": "trial", "prefix_hashes": [1, 2]},
    ]
    return [
        # Where text is given it is read, and not the tokens.
        PredictionRequest(
            f"trial-{i}-{age}",
            [] if "output_text" in said else list(range(20 + age)),
            age,
            cap,
            said,
        )
        for i, said in enumerate(features)
        for age, cap in ((0, None), (100, 4096))
    ]


_QUESTIONS: Final = _questions()
