"""The public surface: names, and what importing them costs."""

import subprocess
import sys
import time

import pytest

import sagellm_lifetime

PUBLIC = {
    "Advisor",
    "AutoLifetimePredictor",
    "PREDICTORS",
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
    "merge_predictors",
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
    "read_history",
    "scan_history",
    "write_history",
}
OF_THE_SPECIFICATION = {
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
}
HEAVY = ("torch", "polars", "onnxruntime", "onnx", "lightgbm", "matplotlib", "typer", "rich")


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_names():
    assert set(sagellm_lifetime.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(sagellm_lifetime, name) is not None
    assert set(dir(sagellm_lifetime)) >= PUBLIC


def test_an_old_name_is_kept_with_a_warning():
    with pytest.warns(DeprecationWarning, match="is now BackgroundLearner"):
        old = sagellm_lifetime.LearningElsewhere
    assert old is sagellm_lifetime.BackgroundLearner


def test_names_of_the_specification():
    from sage.llm.sagellm.kv_policy import lifetime

    assert set(lifetime.__all__) == OF_THE_SPECIFICATION
    for name in OF_THE_SPECIFICATION:
        assert getattr(lifetime, name) is getattr(sagellm_lifetime, name)


def test_nothing_above_the_import_path_of_the_specification():
    code = (
        "import sage, sage.llm, sage.llm.sagellm, sage.llm.sagellm.kv_policy as k\n"
        "print([m.__file__ for m in (sage, sage.llm, sage.llm.sagellm, k) "
        "if getattr(m, '__file__', None)])"
    )
    assert python(code) == "[]"


def test_importing_is_light():
    loaded = f"import sagellm_lifetime, sys; print([m for m in {HEAVY} if m in sys.modules])"
    assert python(loaded) == "[]"


def test_predicting_loads_no_torch():
    code = (
        "import sys\n"
        "from sagellm_lifetime import PredictionRequest, create_predictor\n"
        "for name in ('survival', 'lstm', 'transformer'):\n"
        "    create_predictor(name).predict(PredictionRequest(1, [1, 2], 0, 100))\n"
        "print('torch' in sys.modules)"
    )
    assert python(code) == "False"


def test_importing_takes_less_than_300_ms():
    code = (
        "import time; t = time.perf_counter(); import sagellm_lifetime\n"
        "from sagellm_lifetime import PredictionRequest, PredictionResult\n"
        "print(time.perf_counter() - t)"
    )
    best = float("inf")
    for _ in range(5):
        best = min(best, float(python(code)))
        if best < 0.3:
            return
        time.sleep(0.5)
    raise AssertionError(f"importing sagellm_lifetime takes {best:.2f} s")
