"""What all clients have in common is learned from clients, not from requests."""

from __future__ import annotations

import numpy as np
import pytest

from sagellm_lifetime.core.grid import EDGES
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models.fair_share import LEAST_SHARE, LOUD_SHARE, FairShares
from sagellm_lifetime.models.residual_life import ResidualLife


def accepted(shares: FairShares, clients) -> dict[int, int]:
    found: dict[int, int] = {}
    for client in clients:
        found[client] = found.get(client, 0) + shares.count(client)
    return found


def loud(rounds: int, quiet: int, times: int, name=lambda i: 99):
    """Each round every quiet client comes once, and the loud one ``times`` as often as all."""
    for i in range(rounds):
        for client in range(1, quiet + 1):
            yield client
            for k in range(times):
                yield name((i * quiet + client) * times + k)


def test_one_alone_counts_with_all_there_is():
    for client in (0, 7):
        assert accepted(FairShares(), [client] * 500) == {client: 500}


def test_even_clients_count_with_nearly_everything():
    rng = np.random.default_rng(0)
    for clients in (2, 3, 8, 40):
        found = accepted(FairShares(), rng.integers(1, clients + 1, 4000).tolist())
        assert sum(found.values()) > 0.95 * 4000, clients


def test_a_loud_client_counts_for_no_more_than_a_quarter():
    found = accepted(FairShares(), loud(200, 20, 10))
    assert all(found[client] > 195 for client in range(1, 21))
    assert found[99] == pytest.approx(LEAST_SHARE * sum(found.values()), rel=0.1)


@pytest.mark.parametrize("names", [2, 4, 8])
def test_several_loud_names_share_one_bound(names):
    shares = FairShares()
    accepted(shares, list(range(1, 21)) * 20)
    found = accepted(shares, loud(400, 20, 10, lambda i: 1000 + i % names))
    assert all(found[client] > 390 for client in range(1, 21)), "the quiet lose nothing"
    # A tenth more, since names are not loud from their first completion on.
    strangers = sum(n for client, n in found.items() if client >= 1000)
    assert strangers <= 1.1 * LOUD_SHARE * sum(found.values())


def test_a_name_for_every_request_buys_nothing():
    shares = FairShares()
    for client in list(range(1, 21)) * 20:
        shares.count(client)
    found = accepted(shares, loud(200, 20, 10, lambda i: 1000 + i))
    strangers = sum(n for client, n in found.items() if client >= 1000)
    assert strangers <= 1.25 * LEAST_SHARE * sum(found.values())


def test_who_comes_late_or_was_quiet_has_saved_nothing_up():
    shares = FairShares()
    for client in list(range(1, 21)) * 300:
        shares.count(client)
    burst = accepted(shares, [99] * 200)
    assert burst[99] <= 10, "of the account of the new, while it was new itself"
    for client in list(range(1, 21)) * 3000:
        shares.count(client)
    assert accepted(shares, [99] * 200)[99] <= 0.25 * 256 + 3


def test_what_is_common_is_never_frozen():
    shares = FairShares()
    for client in list(range(1, 21)) * 300:
        shares.count(client)
    strangers = accepted(shares, range(1000, 101_000))
    assert 100_000 / 300 < sum(strangers.values()) < 100_000 / 200


def test_a_million_names_take_nobodys_account():
    shares = FairShares()
    for client in list(range(1, 51)) * 40:
        shares.count(client)
    for client in range(1000, 201_000):
        shares.count(client)
    assert all(shares.is_established(client) for client in range(1, 51))
    # Names that come ten times each take a few, at ten times the price.
    for client in range(300_000, 303_000):
        for _ in range(10):
            shares.count(client)
    assert sum(shares.is_established(client) for client in range(1, 51)) >= 40
    sizes = {name: len(array) for name, array in shares.state().items()}
    assert sizes["accounts"] <= 1025
    assert sizes["new"] <= 4096


def test_a_restored_account_goes_on_like_the_one_it_came_from():
    rng = np.random.default_rng(2)
    clients = rng.zipf(1.5, 6000).clip(0, 3000).tolist()
    shares, twin = FairShares(), FairShares()
    for client in clients[:3000]:
        shares.count(client)
    twin.restore(shares.state())
    for client in clients[3000:]:
        assert shares.count(client) == twin.count(client)
    for name, array in shares.state().items():
        assert np.array_equal(array, twin.state()[name])


@pytest.mark.parametrize(
    "damage",
    [
        {"accounts": np.array([[5, 1, 1, 1, 0]])},
        {"accounts": np.array([[0, 1, 1, 1, 0], [0, 1, 1, 1, 0]])},
        {"accounts": np.array([[0, 1, 2, 2, 0]])},
        {"accounts": np.array([[0, 5, 3, 2, 0]])},
        {"accounts": np.array([[0, 5, 3, 4, 1]])},
        {"accounts": np.array([[0, 2**60, 3, 4, 0]])},
        {"accounts": np.array([[i, 1, 0, 0, 0] for i in range(1026)])},
        {"loud": np.array([3, 2, 0])},
        {"loud": np.array([0, 0, 1025])},
        {"new": np.array([[4, 0]])},
        {"new": np.array([[4, 8]])},
        {"new": np.array([[4, 1], [4, 1]])},
        {"new": np.array([[0, 1]])},
        {"refused": np.array([256])},
    ],
)
def test_accounts_that_nobody_can_have_are_refused(damage):
    with pytest.raises(ValueError, match=r"accounts|new|refused|loud"):
        FairShares().restore({**FairShares().state(), **damage})


def median(tables: ResidualLife, features: RequestFeatures) -> int:
    hazards = tables.hazards(features, 0)
    return int(EDGES[1 + int(np.argmax(np.cumprod(1.0 - hazards) <= 0.5))])


def test_a_loud_client_does_not_speak_for_who_is_new():
    """The fourth of five lengths is his at most, so he moves the median of all only a little."""
    rng = np.random.default_rng(3)
    tables = ResidualLife()
    for client in loud(60, 20, 10):
        length = 8191 if client == 99 else int(rng.lognormal(5.0, 0.5)) + 1
        tables.learn(
            RequestFeatures(client_key=client, prompt_length=50), 0, length, censored=False
        )
    new = RequestFeatures(client_key=1234, prompt_length=50)
    assert median(tables, new) == pytest.approx(np.exp(5.0), rel=0.45)
    assert median(tables, RequestFeatures(client_key=99, prompt_length=50)) > 7500, "his own"


def test_names_that_come_once_evict_nobody_with_a_history():
    tables = ResidualLife(max_nodes=1000)
    known = [RequestFeatures(client_key=i, prompt_length=100) for i in range(1, 41)]
    for _ in range(30):
        for i, each in enumerate(known):
            tables.learn(each, 0, 20 * (i + 1), censored=False)
    before = [median(tables, each) for each in known]
    for i in range(4000):
        once = RequestFeatures(client_key=10_000 + i, prompt_length=i % 500)
        tables.learn(once, 0, 5000, censored=False)
    assert len(tables._nodes) == 1000
    assert [median(tables, each) for each in known] == pytest.approx(before, rel=0.1)
