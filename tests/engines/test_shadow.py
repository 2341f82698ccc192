"""Comparisons in shadow mode cost time: there are only so many of them, and they stand for all."""

from sagellm_lifetime.engines.vllm.shadow import Compared


def test_all_are_compared_while_there_are_few():
    made = Compared()
    for step in range(0, 32_000, 32):
        assert made.due(3, step)
        made.would(1, 3)
    assert (made.made, made.differing) == (3000, 1000)


def test_when_there_are_many_some_stand_for_all():
    made = Compared()
    compared = 0
    for step in range(64_000):
        if made.due(1, step):
            compared += 1
            made.would(compared % 4 == 0, 1)
    assert compared == 32 + 64_000 // 32 - 1
    assert made.made == 64_000
    assert 0.245 < made.differing / made.made < 0.255


def test_what_was_saved_up_is_spent_in_a_row():
    made = Compared()
    assert sum(made.due(1, 1_000_000) for _ in range(100)) == 32
    assert not made.due(1, 1_000_031)
    assert made.due(1, 1_000_064)


def test_no_more_than_all_can_differ():
    made = Compared()
    assert made.due(2, 0)
    made.would(3, 2)  # another in place of each, and one of them none at all
    assert made.differing == 2
