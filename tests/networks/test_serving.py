"""onnxruntime says what PyTorch says, at every sequence length."""

from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from network_samples import NETWORKS, randomised, steps

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.networks import serving
from sagellm_lifetime.networks.head import ABSOLUTE, BASIS, RELATIVE
from sagellm_lifetime.networks.modules import Batch
from sagellm_lifetime.networks.serving import Runners


def weights_of(network) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_runner_equals_network(name):
    build, served = NETWORKS[name]
    network = randomised(build)
    runner = Runners(served)(weights_of(network))
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
    build, served = NETWORKS[name]
    runner = Runners(served)(weights_of(randomised(build)))
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
    build, served = NETWORKS[name]
    assert not Runners(served)(weights_of(build()))(steps(np.random.default_rng(0), 4)).any()


def states(name: str, count: int) -> list[dict[str, np.ndarray]]:
    """So many state dicts of one network, each unlike the others in every number."""
    first, rng = weights_of(randomised(NETWORKS[name][0])), np.random.default_rng(4)
    return [first] + [
        {k: rng.normal(0.0, 0.2, v.shape).astype(np.float32) for k, v in first.items()}
        for _ in range(count - 1)
    ]


SEQUENCES = [steps(np.random.default_rng(count), count) for count in (*range(1, 18), 24, 33, 64)]


@pytest.mark.parametrize("name", NETWORKS)
def test_swapped_weights_answer_as_if_they_had_been_there_from_the_start(name, sessions):
    """Bit for bit, to and fro, in any company; and a runner in use answers as before."""
    served, weights = NETWORKS[name][1], states(name, 3)
    wanted = [[Runners(served)(each)(s) for s in SEQUENCES] for each in weights]
    assert not any(np.array_equal(a, b) for a, b in combinations([w[-1] for w in wanted], 2))
    sessions.clear()
    runners = Runners(served)
    runners.prepare(2)
    used, state = runners(weights[0]), 0
    for following in (1, 2, 0, 2, 2, 1, 0):
        for s, answer in zip(SEQUENCES, wanted[state], strict=True):
            assert np.array_equal(used(s), answer)
        fresh = runners(weights[following])
        for s, before, after in zip(SEQUENCES, wanted[state], wanted[following], strict=True):
            assert np.array_equal(fresh(s), after), "something was kept of the weights before"
            assert np.array_equal(used(s), before), "written to while in use"
        used, state = fresh, following
    assert len(sessions) == 2


def test_a_session_is_never_shared_by_two_runners_that_live(sessions):
    runners, weights = Runners(NETWORKS["lstm-1"][1]), states("lstm-1", 4)
    living = [runners(each) for each in weights]
    assert len(sessions) == len(living)
    answers = [each(SEQUENCES[5]) for each in living]
    assert not any(np.array_equal(a, b) for a, b in combinations(answers, 2))
    del living[1], living[2]
    kept = [answers[0], answers[2]]
    others = [runners(weights[k]) for k in (3, 1)]
    assert len(sessions) == 4
    assert all(np.array_equal(r(SEQUENCES[5]), a) for r, a in zip(living, kept, strict=True))
    assert all(
        np.array_equal(r(SEQUENCES[5]), answers[k]) for r, k in zip(others, (3, 1), strict=True)
    )


@pytest.fixture
def sessions(monkeypatch):
    """As long as the number of sessions that were built."""
    built = []
    init = serving.Session.__init__
    monkeypatch.setattr(
        serving.Session, "__init__", lambda self, graph: built.append(init(self, graph))
    )
    return built


def test_weights_of_another_network_are_refused_and_cost_no_session(sessions):
    runners = Runners(NETWORKS["lstm-2"][1])
    good = runners(states("lstm-2", 1)[0])
    for _ in range(3):
        with pytest.raises(ValueError, match="another network: B0, B1, R0"):
            runners(states("lstm-1", 1)[0])
    assert len(sessions) == 2
    assert np.array_equal(good(SEQUENCES[3]), runners(states("lstm-2", 1)[0])(SEQUENCES[3]))


def test_a_runner_keeps_no_hold_of_the_weights_of_its_network():
    served, weights = NETWORKS["lstm-1"][1], states("lstm-1", 1)[0]
    runner = Runners(served)(weights)
    before = runner(SEQUENCES[3])
    for key, value in weights.items():
        if not key.startswith("evidence."):
            value[:] = 7.0
    assert np.array_equal(runner(SEQUENCES[3]), before)
