"""Conversations told from shared prompt blocks."""

from sagellm_lifetime.features.conversations import Conversations
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.features.request import RequestFeatures

KEYS = NameKeys.seeded(0)


def blocks(*head: int) -> RequestFeatures:
    return RequestFeatures(prefix_head=head)


def test_follow_ups_share_a_key_and_strangers_do_not():
    found = Conversations(KEYS)
    system = 1
    for user in range(30):
        found.learn(blocks(system, 100 + user, 200 + user))
    first = found.key(blocks(system, 100, 200))
    assert found.key(blocks(system, 100, 200, 300)) == first != 0
    assert found.key(blocks(system, 101, 201)) != first


def test_own_session_id_wins_and_nothing_is_nothing():
    found = Conversations(KEYS)
    assert found.key(RequestFeatures(session_key=9, prefix_head=(1, 2))) == 9
    assert found.key(RequestFeatures()) == 0


def test_common_prefixes_alone_name_no_conversation():
    found = Conversations(KEYS)
    for user in range(30):
        found.learn(blocks(1, 100 + user))
    assert found.key(blocks(1)) == 0


def test_bounded_and_round_trip():
    found = Conversations(KEYS, capacity=20)
    for i in range(200):
        found.learn(blocks(i, i + 1, i + 2))
    assert len(found.state()["blocks"]) == 20
    twin = Conversations(KEYS, capacity=20)
    twin.restore(found.state())
    for each in (found, twin):
        each.learn(blocks(5000, 5001))
    assert twin._next == found._next


def test_a_prefix_in_use_is_not_forgotten():
    found = Conversations(KEYS, capacity=20)
    for user in range(300):
        found.learn(blocks(1, 1000 + user, 5000 + user))
    assert found.key(blocks(1)) == 0, "1 is known to be a common prefix"
