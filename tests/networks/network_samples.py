"""Small networks, their weights, and random sequences of evidence."""

import numpy as np

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.features.encode import WIDTH
from sagellm_lifetime.features.evidence import NAME_BUCKETS, Step
from sagellm_lifetime.features.text import BUCKETS
from sagellm_lifetime.networks.graphs import lstm, transformer
from sagellm_lifetime.networks.modules import LSTMNetwork, TransformerNetwork
from sagellm_lifetime.networks.samples import Sample

NETWORKS = {
    "lstm-1": (lambda: LSTMNetwork(16, 1), lstm(16, 1)),
    "lstm-2": (lambda: LSTMNetwork(24, 2), lstm(24, 2)),
    "transformer-1": (lambda: TransformerNetwork(16, 2, 1), transformer(16, 2, 1)),
    "transformer-2": (lambda: TransformerNetwork(32, 4, 2), transformer(32, 4, 2)),
    "transformer-3": (lambda: TransformerNetwork(24, 1, 3), transformer(24, 1, 3)),
}


def steps(rng: np.random.Generator, count: int) -> list[Step]:
    """Random evidence; some steps without tokens or names."""
    return [
        Step(
            rng.normal(size=WIDTH).astype(np.float32),
            rng.integers(0, BUCKETS, int(rng.choice([0, 1, 40]))),
            rng.integers(0, NAME_BUCKETS, int(rng.choice([0, 1, 3]))),
        )
        for _ in range(count)
    ]


def sample(rng: np.random.Generator, length: int, age: int = 0, *, censored=False) -> Sample:
    base = np.full(BINS, -3.0, dtype=np.float32)
    return Sample(steps(rng, int(rng.integers(1, 6))), base, age, length, censored)


def randomised(build):
    """A network whose every weight is random: the head starts at zero, which would hide a lot."""
    import torch

    torch.manual_seed(0)
    network = build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()
