"""Pieces of a request that are known alone, and a client that is most of a history."""

import numpy as np

from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.residual_life import LEVELS, ResidualLife


def taught() -> ResidualLife:
    """Return tables in which long prompts have long answers."""
    rng = np.random.default_rng(0)
    tables = ResidualLife()
    for i in range(600):
        prompt = (50, 2000)[i % 2]
        features = RequestFeatures(client_key=1 + i % 3, prompt_length=prompt)
        tables.learn(features, 0, int(rng.integers(1, 9)) * prompt // 10, censored=False)
    return tables


def test_a_piece_that_is_known_alone_counts_whatever_its_weight():
    tables = taught()
    asked = RequestFeatures(client_key=99, prompt_length=2000)
    before = tables.hazards(asked, 0)
    tables._weights.trust = [0] * len(LEVELS)  # leaves effects out beside other pieces
    assert np.array_equal(tables.hazards(asked, 0), before)
    short = RequestFeatures(client_key=99, prompt_length=50)
    assert not np.allclose(tables.hazards(short, 0), before)


def counted_of_all(clients: list[int]) -> int:
    """Return how many completions of a history the node of all requests has counted."""
    tables = ResidualLife()
    features = [RequestFeatures(client_key=client) for client in clients]
    lengths = np.arange(len(clients)) % 50 + 1
    tables.learn_many(features, [0] * len(clients), lengths, np.zeros(len(clients), dtype=bool))
    return tables._existing(0).counted


def test_a_client_that_is_most_of_a_history_throughout_counts_in_full():
    steady = [7, 7, 7, 7, 7, 7, 1, 2, 3, 4] * 300
    flood = steady[:1500] + [8] * 1500
    refused = [1, 2, 3, 4] * 375 + [7] * 1500
    assert counted_of_all(steady) > 0.8 * len(steady)
    assert counted_of_all(flood) < 0.9 * len(flood)
    assert counted_of_all(refused) < 0.9 * len(refused)
