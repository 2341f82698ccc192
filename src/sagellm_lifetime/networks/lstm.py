"""Recurrent model: a stacked LSTM over the evidence, with discrete-time hazards as output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.networks.graphs import lstm
from sagellm_lifetime.networks.model import DEEPEST, WIDEST, NetworkModel
from sagellm_lifetime.networks.serving import Runners


class LSTMModel(NetworkModel):
    """LSTM (Hochreiter & Schmidhuber 1997) over recent completions, admission and generation.

    Args:
        hidden_size: width of each layer.
        num_layers: stacked layers.
        options: options of :class:`~sagellm_lifetime.networks.model.NetworkModel`.
    """

    name = "lstm"

    def __init__(self, hidden_size: int = 128, num_layers: int = 2, **options: Any) -> None:
        super().__init__(**options)
        hidden_size = as_option("hidden_size", hidden_size, 1, WIDEST)
        num_layers = as_option("num_layers", num_layers, 1, DEEPEST)
        self.options.update(hidden_size=hidden_size, num_layers=num_layers)
        self.runners = Runners(lstm(hidden_size, num_layers))

    def build(self) -> Callable[[], Any]:
        """Return a function that makes the PyTorch network."""
        from sagellm_lifetime.networks.modules import LSTMNetwork

        return lambda: LSTMNetwork(self.options["hidden_size"], self.options["num_layers"])
