"""The replay store: the newest in full, older ones uniformly, by fair shares, drawn by seed."""

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
        older += [s.length for _, s in filled(1000, 60, seed)._older]
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


def held(store: ReplayStore, client: int) -> int:
    owners = [owner for owner, _ in [*store._older, *store._recent]]
    assert owners.count(client) == store._held[client]
    assert len(owners) == len(store) == sum(store._held.values())
    return owners.count(client)


def test_one_client_alone_may_fill_it():
    store = ReplayStore(100)
    for i in range(300):
        store.add(sample(i), 7)
    assert held(store, 7) == 100


def test_a_loud_client_holds_no_more_than_its_share():
    """Fifty answers of one client to each of ten others, and it keeps its newest."""
    store = ReplayStore(400, seed=3)
    for i in range(4000):
        for k in range(50):
            store.add(sample(100_000 + 50 * i + k), 99) if i % 10 == 0 else None
        store.add(sample(i), 1 + i % 10)
    assert len(store) == 400
    assert held(store, 99) == store.most_of_one() == 100
    drawn = [s.length for s in store.draw(4000)]
    assert np.mean(np.array(drawn) >= 100_000) < 0.3
    assert 100_000 + 50 * 3990 + 49 in {s.length for _, s in store._recent}


def test_the_share_shrinks_when_others_come():
    store = ReplayStore(100)
    for i in range(200):
        store.add(sample(i), 99)
    for i in range(200):
        store.add(sample(1000 + i), 1 + i % 20)
    store.add(sample(5), 99)
    assert held(store, 99) <= store.most_of_one() == 25


def test_new_clients_share_one_account():
    """Another name for every request gives no larger share: see the model, which says 0."""
    store = ReplayStore(100)
    for i in range(1000):
        store.add(sample(i), 0)
        if i % 5 == 0:
            for client in range(1, 10):
                store.add(sample(i), client)
    assert 20 <= held(store, 0) <= 25
