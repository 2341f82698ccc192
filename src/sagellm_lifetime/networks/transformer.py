"""Attention model: a Transformer encoder over the evidence, with hazards as output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.values import as_option
from sagellm_lifetime.networks.graphs import transformer
from sagellm_lifetime.networks.model import DEEPEST, WIDEST, NetworkModel
from sagellm_lifetime.networks.serving import Runners


class TransformerModel(NetworkModel):
    """Encoder (Vaswani et al. 2017) over recent completions, admission and generation.

    Args:
        d_model: width; a multiple of ``nhead``.
        nhead: attention heads.
        num_layers: encoder blocks.
        options: options of :class:`~sagellm_lifetime.networks.model.NetworkModel`.
    """

    name = "transformer"

    def __init__(
        self, d_model: int = 128, nhead: int = 4, num_layers: int = 2, **options: Any
    ) -> None:
        super().__init__(**options)
        d_model = as_option("d_model", d_model, 1, WIDEST)
        nhead = as_option("nhead", nhead, 1, d_model)
        num_layers = as_option("num_layers", num_layers, 1, DEEPEST)
        if d_model % nhead:
            raise RequestError(f"d_model {d_model} must be a multiple of nhead {nhead}")
        self.options.update(d_model=d_model, nhead=nhead, num_layers=num_layers)
        self.runners = Runners(transformer(d_model, nhead, num_layers))

    def build(self) -> Callable[[], Any]:
        """Return a function that makes the PyTorch network."""
        from sagellm_lifetime.networks.modules import TransformerNetwork

        options = self.options
        return lambda: TransformerNetwork(
            options["d_model"], options["nhead"], options["num_layers"]
        )
