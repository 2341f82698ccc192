"""Predictors of this package, each around its own model.

``options`` are those of :class:`~sagellm_lifetime.predictor.base.Predictor` (``capacity``,
``expire_after``) and of the model.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sagellm_lifetime.models.base import LengthModel
from sagellm_lifetime.models.baseline import BaselineModel
from sagellm_lifetime.models.linear import LinearModel
from sagellm_lifetime.models.orca import OrcaModel
from sagellm_lifetime.models.survival import SurvivalModel
from sagellm_lifetime.networks.auto import AutoModel
from sagellm_lifetime.networks.lstm import LSTMModel
from sagellm_lifetime.networks.transformer import TransformerModel
from sagellm_lifetime.predictor.base import Predictor

_PREDICTOR_OPTIONS = ("capacity", "expire_after")


def around(model_class: type[LengthModel], options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a predictor around a new model.

    Args:
        model_class: class of the model.
        options: options of the predictor and of the model.

    Raises:
        RequestError: an option of another type, or out of its range.
        TypeError: an option that the model does not have.
    """
    limits = {key: options[key] for key in _PREDICTOR_OPTIONS if key in options}
    model = model_class(**{key: value for key, value in options.items() if key not in limits})
    return {"model": model, **limits}


class AutoLifetimePredictor(Predictor):
    """Table, network and prompt score, pooled by what predicts better: the default.

    See :class:`~sagellm_lifetime.networks.auto.AutoModel`. Untrained, it is ``survival``.

    Args:
        hidden_size: width of each layer of the network.
        num_layers: stacked layers.

    Example:
        >>> from sagellm_lifetime import AutoLifetimePredictor
        >>> AutoLifetimePredictor().options["online"]
        'off'
    """

    model_class: ClassVar = AutoModel

    def __init__(self, hidden_size: int = 128, num_layers: int = 2, **options: Any) -> None:
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers}
        super().__init__(**around(AutoModel, {**sizes, **options}))


class BaselineLifetimePredictor(Predictor):
    """Moving average of the lengths seen for the same ``max_length``.

    Args:
        window_size: completions averaged per bucket; see
            :class:`~sagellm_lifetime.models.baseline.BaselineModel`.

    Example:
        >>> from sagellm_lifetime import BaselineLifetimePredictor, PredictionRequest
        >>> predictor = BaselineLifetimePredictor(window_size=50)
        >>> predictor.predict(PredictionRequest(1, [], 0, 1000)).estimated_remaining_tokens
        801
    """

    model_class: ClassVar = BaselineModel

    def __init__(self, window_size: int = 100, **options: Any) -> None:
        super().__init__(**around(BaselineModel, {"window_size": window_size, **options}))


class OrcaLifetimePredictor(Predictor):
    """Mean and variance of past lengths, per model and over all; see
    :class:`~sagellm_lifetime.models.orca.OrcaModel`.

    Example:
        >>> from sagellm_lifetime import OrcaLifetimePredictor
        >>> OrcaLifetimePredictor(seed=1).name
        'orca'
    """

    model_class: ClassVar = OrcaModel

    def __init__(self, **options: Any) -> None:
        super().__init__(**around(OrcaModel, options))


class LinearLifetimePredictor(Predictor):
    """Ridge regression on features of the request; see
    :class:`~sagellm_lifetime.models.linear.LinearModel`.

    Example:
        >>> from sagellm_lifetime import LinearLifetimePredictor
        >>> LinearLifetimePredictor(capacity=1000).options["capacity"]
        1000
    """

    model_class: ClassVar = LinearModel

    def __init__(self, **options: Any) -> None:
        super().__init__(**around(LinearModel, options))


class SurvivalLifetimePredictor(Predictor):
    """Residual life of groups of requests, learned at once: the best default without training.

    See :class:`~sagellm_lifetime.models.survival.SurvivalModel`.

    Args:
        max_nodes: maximum number of groups kept.

    Example:
        >>> from sagellm_lifetime import SurvivalLifetimePredictor
        >>> SurvivalLifetimePredictor(max_nodes=1000).options["max_nodes"]
        1000
    """

    model_class: ClassVar = SurvivalModel

    def __init__(self, *, max_nodes: int = 20_000, **options: Any) -> None:
        super().__init__(**around(SurvivalModel, {"max_nodes": max_nodes, **options}))


class LSTMLifetimePredictor(Predictor):
    """Stacked LSTM over recent completions, the request and the content generated so far.

    See :class:`~sagellm_lifetime.networks.lstm.LSTMModel`, and for ``online`` and ``epochs``
    :class:`~sagellm_lifetime.networks.model.NetworkModel`.

    Args:
        hidden_size: width of each layer.
        num_layers: stacked layers.

    Example:
        >>> from sagellm_lifetime import LSTMLifetimePredictor
        >>> LSTMLifetimePredictor(hidden_size=32, online="off").options["hidden_size"]
        32
    """

    model_class: ClassVar = LSTMModel

    def __init__(self, hidden_size: int = 128, num_layers: int = 2, **options: Any) -> None:
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers}
        super().__init__(**around(LSTMModel, {**sizes, **options}))


class TransformerLifetimePredictor(Predictor):
    """Transformer encoder over the same evidence as the LSTM's.

    See :class:`~sagellm_lifetime.networks.transformer.TransformerModel`, and for ``online`` and
    ``epochs`` :class:`~sagellm_lifetime.networks.model.NetworkModel`.

    Args:
        d_model: width; a multiple of ``nhead``.
        nhead: attention heads.
        num_layers: encoder blocks.

    Example:
        >>> from sagellm_lifetime import TransformerLifetimePredictor
        >>> TransformerLifetimePredictor(d_model=32, nhead=2).options["nhead"]
        2
    """

    model_class: ClassVar = TransformerModel

    def __init__(
        self, d_model: int = 128, nhead: int = 4, num_layers: int = 2, **options: Any
    ) -> None:
        sizes = {"d_model": d_model, "nhead": nhead, "num_layers": num_layers}
        super().__init__(**around(TransformerModel, {**sizes, **options}))
