"""onnxruntime says what PyTorch says, at every sequence length."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from network_samples import NETWORKS, randomised, steps

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.learning.head import ABSOLUTE, BASIS, RELATIVE
from sagellm_lifetime.learning.networks import Batch


def weights_of(network) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_runner_equals_network(name):
    build, make_runner = NETWORKS[name]
    network = randomised(build)
    runner = make_runner(weights_of(network))
    rng = np.random.default_rng(1)
    sequences = [steps(rng, count) for count in (1, 2, 3, 5, 8, 14, 30)]
    with torch.no_grad():
        together = network(Batch(sequences)).numpy()
    for sequence, padded in zip(sequences, together, strict=True):
        with torch.no_grad():
            alone = network(Batch([sequence])).numpy()[0]
        assert np.allclose(alone, padded, atol=1e-5), "the padding leaks"
        wanted = np.concatenate([alone[:ABSOLUTE] @ BASIS, alone[ABSOLUTE:]])
        found = runner(sequence)
        assert found.shape == (BINS + RELATIVE,)
        assert np.abs(found - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_steps_matters_to_the_lstm_and_content_to_both(name):
    build, make_runner = NETWORKS[name]
    runner = make_runner(weights_of(randomised(build)))
    rng = np.random.default_rng(2)
    sequence = steps(rng, 6)
    swapped = [*sequence[:5][::-1], sequence[5]]
    if name.startswith("lstm"):
        assert np.abs(runner(sequence) - runner(swapped)).max() > 1e-3
    else:
        # No positional encoding: a step carries its own recency among its numbers.
        assert np.abs(runner(sequence) - runner(swapped)).max() < 1e-4
    assert np.abs(runner(sequence) - runner(sequence[1:])).max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_network_corrects_nothing(name):
    build, make_runner = NETWORKS[name]
    assert not make_runner(weights_of(build()))(steps(np.random.default_rng(0), 4)).any()


def test_a_runner_keeps_no_hold_of_its_weights():
    build, make_runner = NETWORKS["lstm-1"]
    weights = weights_of(randomised(build))
    runner = make_runner({k: v.copy() for k, v in weights.items()})
    sequence = steps(np.random.default_rng(3), 4)
    before = runner(sequence)
    assert np.array_equal(runner(sequence), before)
