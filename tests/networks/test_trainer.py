"""Training: seeded, kept at its best, one thread, and honest about a missing PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from network_samples import NETWORKS, sample, steps  # noqa: E402

from sagellm_lifetime.core.grid import BINS  # noqa: E402
from sagellm_lifetime.networks.samples import Sample  # noqa: E402
from sagellm_lifetime.networks.trainer import Trainer, one_thread  # noqa: E402

BUILD = NETWORKS["lstm-1"][0]


def samples(count: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [
        sample(rng, int(rng.integers(20, 200)), censored=rng.random() < 0.2) for _ in range(count)
    ]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a)


def test_training_lowers_the_loss_and_says_by_how_much():
    trainer = Trainer(BUILD, None, seed=1, learning_rate=1e-2)
    train, held_out = samples(300), samples(80, seed=1)
    said = []
    result = trainer.fit(
        train, held_out, epochs=12, log=lambda name, value, step: said.append(name)
    )
    assert result["loss"] < result["loss_before"] - 0.05
    assert trainer.evaluate(held_out) == pytest.approx(result["loss"], abs=1e-5)
    assert {"loss/train", "loss/held_out"} == set(said)


def test_equal_seeds_equal_weights():
    found = []
    for seed in (1, 1, 2):
        trainer = Trainer(BUILD, None, seed=seed)
        trainer.fit(samples(40), samples(10, seed=1), epochs=2)
        found.append(trainer.weights())
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_the_global_generator_of_torch_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trainer = Trainer(BUILD, None, seed=1)
    trainer.step(samples(8))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_worse_than_without_training():
    rng = np.random.default_rng(0)
    noise = [sample(rng, int(rng.integers(1, 5000))) for _ in range(30)]
    # Held out, the opposite of what was trained on: training must not be kept.
    opposite = [s._replace(length=3 if s.length > 1000 else 100_000) for s in noise]
    trainer = Trainer(BUILD, None, seed=0, learning_rate=0.05)
    result = trainer.fit(noise, opposite, epochs=4)
    assert result["loss"] <= result["loss_before"] + 1e-6
    assert trainer.evaluate(opposite) == pytest.approx(result["loss"], abs=1e-4)


def test_continuing_starts_from_the_weights_given():
    first = Trainer(BUILD, None, seed=1)
    first.step(samples(20))
    weights = first.weights()
    second = Trainer(BUILD, weights, seed=9)
    assert same(second.weights(), weights)
    second.step(samples(20, seed=3))
    assert same(first.weights(), weights), "the given weights were trained in place"


def test_weights_are_copies():
    trainer = Trainer(BUILD, None)
    held = trainer.weights()
    before = {k: v.copy() for k, v in held.items()}
    trainer.step(samples(20))
    assert same(held, before)


def test_nothing_held_out_and_nothing_but_aborts():
    trainer = Trainer(BUILD, None)
    result = trainer.fit(samples(5), [], epochs=2)
    assert np.isfinite(result["loss"])
    aborted = [s._replace(censored=True, length=4) for s in samples(5)]
    assert np.isfinite(Trainer(BUILD, None).fit(aborted, aborted, epochs=1)["loss"])


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == before


def test_a_network_learns_what_the_table_does_not_know():
    # The name of the client says the length; the base says nothing.
    rng = np.random.default_rng(4)
    known = []
    for _ in range(400):
        client = int(rng.integers(2))
        step = steps(rng, 1)[0]._replace(
            numbers=np.zeros_like(steps(rng, 1)[0].numbers), names=np.array([5 + client])
        )
        known.append(Sample([step], np.full(BINS, -3.0, np.float32), 0, (20, 400)[client], False))
    trainer = Trainer(BUILD, None, learning_rate=2e-2)
    result = trainer.fit(known[:300], known[300:], epochs=12)
    assert result["loss"] < result["loss_before"] - 0.5
