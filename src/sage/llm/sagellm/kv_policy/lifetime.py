"""The import path of the specification: everything here lives in :mod:`sagellm_lifetime`."""

from sagellm_lifetime import (
    PREDICTORS,
    BaselineLifetimePredictor,
    LengthDistribution,
    LifetimePredictorProtocol,
    LinearLifetimePredictor,
    LSTMLifetimePredictor,
    OrcaLifetimePredictor,
    PredictionMetrics,
    PredictionRequest,
    PredictionResult,
    SurvivalLifetimePredictor,
    TransformerLifetimePredictor,
    create_predictor,
    load_predictor,
)

__all__ = [
    "PREDICTORS",
    "BaselineLifetimePredictor",
    "LSTMLifetimePredictor",
    "LengthDistribution",
    "LifetimePredictorProtocol",
    "LinearLifetimePredictor",
    "OrcaLifetimePredictor",
    "PredictionMetrics",
    "PredictionRequest",
    "PredictionResult",
    "SurvivalLifetimePredictor",
    "TransformerLifetimePredictor",
    "create_predictor",
    "load_predictor",
]
