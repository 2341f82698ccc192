"""Remaining-lifetime prediction for LLM serving: calibrated, online, in microseconds.

>>> from sagellm_lifetime import PredictionRequest, create_predictor
>>> predictor = create_predictor("survival")
>>> result = predictor.predict(PredictionRequest(1, [], 0, 512, {"client_id": "batch"}))
>>> result.source
'prior'

Names load on first use, so that importing the package stays cheap and never loads PyTorch.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sagellm_lifetime import _moved

if TYPE_CHECKING:
    from sagellm_lifetime.core.batch import LengthDistributionBatch
    from sagellm_lifetime.core.distribution import LengthDistribution
    from sagellm_lifetime.core.errors import (
        CheckpointError,
        HistoryError,
        HistoryHeaderError,
        HistoryRowError,
        LifetimeError,
        MergeError,
        MissingExtraError,
        RequestError,
        UnknownNameError,
        UnknownSequenceError,
    )
    from sagellm_lifetime.core.protocol import (
        LifetimePredictorProtocol,
        PredictionMetrics,
        PredictionRequest,
        PredictionResult,
    )
    from sagellm_lifetime.history import read_history, scan_history, write_history
    from sagellm_lifetime.models.base import LengthModel
    from sagellm_lifetime.policies.advisor import Advisor
    from sagellm_lifetime.predictor.background_learner import BackgroundLearner
    from sagellm_lifetime.predictor.base import Predictor
    from sagellm_lifetime.predictor.builtin import (
        AutoLifetimePredictor,
        BaselineLifetimePredictor,
        LinearLifetimePredictor,
        LSTMLifetimePredictor,
        OrcaLifetimePredictor,
        SurvivalLifetimePredictor,
        TransformerLifetimePredictor,
    )
    from sagellm_lifetime.predictor.checkpoint import load_predictor
    from sagellm_lifetime.predictor.merging import merge_predictors
    from sagellm_lifetime.predictor.registry import PREDICTORS, create_predictor

_moved.install()

__version__ = "0.1.0"

_WHERE = {
    "LengthDistribution": "core.distribution",
    "LengthDistributionBatch": "core.batch",
    "CheckpointError": "core.errors",
    "HistoryError": "core.errors",
    "HistoryHeaderError": "core.errors",
    "HistoryRowError": "core.errors",
    "LifetimeError": "core.errors",
    "MergeError": "core.errors",
    "MissingExtraError": "core.errors",
    "RequestError": "core.errors",
    "UnknownNameError": "core.errors",
    "UnknownSequenceError": "core.errors",
    "read_history": "history",
    "scan_history": "history",
    "write_history": "history",
    "LifetimePredictorProtocol": "core.protocol",
    "PredictionMetrics": "core.protocol",
    "PredictionRequest": "core.protocol",
    "PredictionResult": "core.protocol",
    "LengthModel": "models.base",
    "Advisor": "policies.advisor",
    "Predictor": "predictor.base",
    "BaselineLifetimePredictor": "predictor.builtin",
    "load_predictor": "predictor.checkpoint",
    "BackgroundLearner": "predictor.background_learner",
    "LinearLifetimePredictor": "predictor.builtin",
    "AutoLifetimePredictor": "predictor.builtin",
    "LSTMLifetimePredictor": "predictor.builtin",
    "OrcaLifetimePredictor": "predictor.builtin",
    "merge_predictors": "predictor.merging",
    "PREDICTORS": "predictor.registry",
    "create_predictor": "predictor.registry",
    "SurvivalLifetimePredictor": "predictor.builtin",
    "TransformerLifetimePredictor": "predictor.builtin",
}

_RENAMED = {"LearningElsewhere": "BackgroundLearner"}
"""Names of version 0.1.0 that are kept for one version, with a warning: old name, name of now."""

__all__ = [
    "PREDICTORS",
    "Advisor",
    "AutoLifetimePredictor",
    "BackgroundLearner",
    "BaselineLifetimePredictor",
    "CheckpointError",
    "HistoryError",
    "HistoryHeaderError",
    "HistoryRowError",
    "LSTMLifetimePredictor",
    "LengthDistribution",
    "LengthDistributionBatch",
    "LengthModel",
    "LifetimeError",
    "LifetimePredictorProtocol",
    "LinearLifetimePredictor",
    "MergeError",
    "MissingExtraError",
    "OrcaLifetimePredictor",
    "PredictionMetrics",
    "PredictionRequest",
    "PredictionResult",
    "Predictor",
    "RequestError",
    "SurvivalLifetimePredictor",
    "TransformerLifetimePredictor",
    "UnknownNameError",
    "UnknownSequenceError",
    "create_predictor",
    "load_predictor",
    "merge_predictors",
    "read_history",
    "scan_history",
    "write_history",
]


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        now = _RENAMED[name]
        value = __getattr__(now)  # before the warning, as an import may let it be shown again
        text = f"{name} is now {now}; the old name goes in the next version"
        warnings.warn(text, DeprecationWarning, stacklevel=2)  # shown at the caller's line
        return value
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
