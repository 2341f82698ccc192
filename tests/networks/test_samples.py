"""The replay store: the newest in full, the older ones in fair shares, drawn by seed."""

import numpy as np

from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.networks.samples import ReplayStore, Sample

BASE = np.zeros(BINS)


def sample(i: int) -> Sample:
    return Sample([], BASE, 0, i, False)


def filled(count: int, capacity: int, seed: int = 0) -> ReplayStore:
    store = ReplayStore(capacity, seed)
    for i in range(count):
        store.add(sample(i))
    return store


def test_everything_until_full():
    store = filled(10, 20)
    assert len(store) == 10
    assert {s.length for s in store.draw(400)} == set(range(10))


def test_bounded_and_the_newest_are_there():
    store = filled(5000, 100)
    assert len(store) == 100
    lengths = {s.length for s in store.draw(5000)}
    assert set(range(4950, 5000)) <= lengths
    assert len(lengths) == 100


def test_older_samples_are_a_fair_share():
    older = []
    for seed in range(60):
        older += [s.length for s in filled(1000, 60, seed)._older]
    share = np.histogram(older, bins=4, range=(0, 970))[0] / len(older)
    assert np.abs(share - 0.25).max() < 0.06


def test_seeded():
    a, b, c = filled(500, 50, 1), filled(500, 50, 1), filled(500, 50, 2)
    first = [s.length for s in a.draw(30)]
    assert [s.length for s in b.draw(30)] == first
    assert [s.length for s in c.draw(30)] != first


def test_tiny_capacity():
    store = filled(30, 1)
    assert len(store) == 2
    assert all(s.length <= 29 for s in store.draw(5))
