"""Residual life: Kaplan–Meier by hand, unbiased under censoring, shrunk, bounded, exact state."""

import numpy as np
import pytest

from sagellm_lifetime.core import hazard
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.core.grid import BINS
from sagellm_lifetime.features.request import RequestFeatures
from sagellm_lifetime.models import residual_life
from sagellm_lifetime.models.fair_share import FairShares
from sagellm_lifetime.models.residual_life import (
    LEVELS,
    ResidualLife,
    node_path,
    prior_hazards,
)
from sagellm_lifetime.models.shrinkage import INSIDE, alive_of

NOBODY = RequestFeatures()
ROOT = 0


def survival(tables: ResidualLife, n: float, features=NOBODY, session=0) -> float:
    row = hazard.from_hazards(tables.hazards(features, session))
    return LengthDistribution(row).survival(n)


def median(tables: ResidualLife, features=NOBODY, session=0) -> int:
    return LengthDistribution(hazard.from_hazards(tables.hazards(features, session))).median()


def learn(tables, lengths, censored=None, features=NOBODY, session=0):
    cut = np.zeros(len(lengths), dtype=bool) if censored is None else censored
    for length, c in zip(lengths, cut, strict=True):
        tables.learn(features, session, int(length), censored=bool(c))


def test_counts_are_those_of_kaplan_and_meier():
    # Lengths 3, 5, 5+, 8, 8, 12+: at risk 6, 5, then 3 once the one seen alive at 5 has left.
    tables = ResidualLife()
    learn(tables, [3, 5, 5, 8, 8, 12], np.array([0, 0, 1, 0, 0, 1]))
    node = tables._nodes[ROOT]
    ended, alive = node.ended[INSIDE], alive_of(node.ended, node.left)
    found = {n: (float(ended[n - 1]), float(alive[n - 1])) for n in (3, 5, 8)}
    assert found == {3: (1.0, 6.0), 5: (1.0, 5.0), 8: (2.0, 3.0)}
    estimate = np.cumprod(1 - ended / np.maximum(alive, 1))
    assert estimate[2] == pytest.approx(5 / 6)
    assert estimate[4] == pytest.approx(5 / 6 * 4 / 5)
    assert estimate[7] == pytest.approx(5 / 6 * 4 / 5 * 1 / 3)
    assert estimate[-1] == pytest.approx(2 / 9)


def test_many_completions_recover_the_distribution():
    rng = np.random.default_rng(1)
    tables = ResidualLife()
    lengths = np.maximum(rng.lognormal(5.0, 0.6, 3000).astype(int), 1)
    learn(tables, lengths)
    for n in (30, 80, 150, 300, 600):
        assert survival(tables, n) == pytest.approx(np.mean(lengths > n), abs=0.03)


def test_random_censoring_does_not_bias():
    rng = np.random.default_rng(2)
    tables, naive = ResidualLife(), ResidualLife()
    lengths = np.maximum(rng.lognormal(5.0, 0.6, 4000).astype(int), 2)
    limits = rng.integers(1, 500, 4000)
    cut = limits < lengths
    assert 0.25 < cut.mean() < 0.5
    learn(tables, np.minimum(lengths, limits), cut)
    learn(naive, np.minimum(lengths, limits))
    for n in (30, 80, 150, 300):
        assert survival(tables, n) == pytest.approx(np.mean(lengths > n), abs=0.04)
    assert survival(naive, 150) < np.mean(lengths > 150) - 0.1


def test_caps_are_not_lengths():
    tables = ResidualLife()
    learn(tables, [256] * 300, np.ones(300, dtype=bool))
    assert survival(tables, 255) > 0.95
    assert median(tables) > 256
    before = tables.count
    tables.learn(NOBODY, 0, 0, censored=True)
    assert tables.count == before, "nothing seen, nothing said"


@pytest.mark.parametrize("key", ["model_key", "client_key"])
def test_kinds_are_separated_and_a_new_one_gets_the_mixture(key):
    tables = ResidualLife()
    rng = np.random.default_rng(3)
    kinds = [RequestFeatures(**{key: 11}), RequestFeatures(**{key: 22})]
    for _ in range(200):
        tables.learn(kinds[0], 0, int(rng.uniform(40, 60)), censored=False)
        tables.learn(kinds[1], 0, int(rng.uniform(900, 1100)), censored=False)
    assert 40 <= median(tables, kinds[0]) <= 65
    assert 850 <= median(tables, kinds[1]) <= 1150
    new = LengthDistribution(hazard.from_hazards(tables.hazards(RequestFeatures(**{key: 33}), 0)))
    assert new.survival(100) == pytest.approx(0.5, abs=0.1)


def test_one_completion_does_not_make_a_certainty():
    tables = ResidualLife()
    rng = np.random.default_rng(4)
    learn(tables, rng.lognormal(5, 1, 500).astype(int) + 1)
    client = RequestFeatures(client_key=5)
    before = survival(tables, 1000, client)
    tables.learn(client, 0, 20, censored=False)
    assert survival(tables, 20, client) > 0.4
    assert survival(tables, 1000, client) < before + 0.05


def test_sessions_lean_on_their_own_past():
    tables = ResidualLife()
    rng = np.random.default_rng(5)
    for i in range(150):
        size = float(rng.choice([60.0, 900.0]))
        for _ in range(5):
            tables.learn(NOBODY, 1000 + i, int(size * rng.uniform(0.9, 1.1)), censored=False)
    for session, size in ((1, 60), (2, 900)):
        learn(tables, [size] * 3, session=session)
    assert median(tables, session=1) < 200
    assert median(tables, session=2) > 500


def test_asking_changes_nothing():
    tables = ResidualLife()
    rng = np.random.default_rng(6)
    learn(tables, rng.integers(1, 500, 300), features=RequestFeatures(client_key=3, model_key=4))
    before = {k: v.copy() for k, v in tables.state().items()}
    for client in range(10):
        tables.hazards(RequestFeatures(client_key=client, model_key=4, prompt_length=9), client)
    for key, value in tables.state().items():
        assert np.array_equal(value, before[key]), key


def test_state_round_trip_then_learning(monkeypatch):
    # Past the warm-up, so that the sample goes on where it was.
    monkeypatch.setattr(residual_life, "_ALWAYS", 50)
    rng = np.random.default_rng(7)
    tables = ResidualLife(max_nodes=64)
    stream = [
        (
            RequestFeatures(
                client_key=int(rng.integers(1, 40)), prompt_length=int(rng.integers(99))
            ),
            int(rng.integers(0, 9)),
            int(rng.integers(0, 800)),
            bool(rng.random() < 0.3),
        )
        for _ in range(600)
    ]
    for features, session, length, cut in stream[:400]:
        tables.learn(features, session, length, censored=cut)
    twin = ResidualLife(max_nodes=64)
    twin.restore(tables.state())
    for features, session, length, cut in stream[400:]:
        hazards = tables.hazards(features, session)
        assert np.array_equal(hazards, twin.hazards(features, session))
        assert np.array_equal(tables.row(features, session), twin.row(features, session))
        assert np.array_equal(hazard.from_hazards(hazards), twin.row(features, session)[: BINS + 1])
        for each in (tables, twin):
            each.learn(features, session, length, censored=cut)
    for key, value in tables.state().items():
        assert np.array_equal(value, twin.state()[key]), key


def random_stream(n: int, seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        client, prompt = int(rng.integers(1, 6)), int(rng.integers(1, 99))
        features = RequestFeatures(client_key=client, prompt_length=prompt)
        yield features, int(rng.lognormal(4.0 + 0.3 * client, 0.5)) + 1, bool(rng.random() < 0.2)


def test_weights_are_scored_on_every_completion_at_first_and_on_a_sample_later(monkeypatch):
    monkeypatch.setattr(residual_life, "_ALWAYS", 100)
    tables, shares, scored = ResidualLife(), FairShares(), []

    def total() -> float:
        return sum(tables.state()[name].sum() for name in ("losses", "effect_losses"))

    for features, length, cut in random_stream(900, 10):
        if not shares.count(features.client_key):
            tables.learn(features, 0, length, censored=cut)
            continue
        before = total()
        tables.learn(features, 0, length, censored=cut)
        scored.append(before != total())
    assert not scored[0], "nothing was known that could have been right"
    assert all(scored[1:101])
    assert len(scored) > 850, "the clients take even turns"
    later = np.flatnonzero(scored[101:])
    assert len(later) == pytest.approx(100, abs=5)
    gaps = np.diff(later)
    assert gaps.max() <= 13, "evenly spread"
    assert len(set(gaps.tolist())) > 1, "in step with nothing"
    levels = [LEVELS.index(name) for name in ("all", "client main", "prompt main", "fine main")]
    crossed = [LEVELS.index(name) for name in ("prompt", "fine")]
    state = tables.state()
    assert (state["losses"][0, levels + crossed] > 0).all(), "every level has its turn"
    assert (state["effect_losses"][0, crossed] > 0).all(), "and every effect"


def test_weights_chosen_on_a_sample_are_those_chosen_on_all(monkeypatch):
    # Clients differ, prompt lengths say nothing: after the warm-up both still know.
    choices = []
    for sampled in (residual_life._SAMPLED, 1 << 32):
        monkeypatch.setattr(residual_life, "_ALWAYS", 200)
        monkeypatch.setattr(residual_life, "_SAMPLED", sampled)
        tables = ResidualLife()
        for features, length, _ in random_stream(6000, 11):
            tables.learn(features, 0, length, censored=False)
        choices.append(tables)
    for client in range(1, 6):
        features = RequestFeatures(client_key=client, prompt_length=50)
        a, b = (median(tables, features) for tables in choices)
        assert a == pytest.approx(b, rel=0.1)
        assert a == pytest.approx(np.exp(4.0 + 0.3 * client), rel=0.15)


def test_a_completion_is_seen_at_once():
    tables = ResidualLife()
    for i, (features, length, cut) in enumerate(random_stream(40, 12)):
        before = tables.hazards(features, i % 3)
        tables.learn(features, i % 3, length, censored=cut)
        assert not np.array_equal(before, tables.hazards(features, i % 3))


def test_a_completion_of_a_session_is_spread_but_stays_one():
    for length in (0, 1, 5, 300, 131_072, 10**7):
        tables = ResidualLife()
        tables.learn(NOBODY, 7, length, censored=False)
        spread = tables._nodes[next(key for key in tables._nodes if key != ROOT)].ended
        assert spread.sum() == pytest.approx(1.0)
        assert spread[INSIDE].sum() == pytest.approx(1.0), "nothing falls off the grid"
        assert (spread >= 0).all()
        assert 9 <= np.count_nonzero(spread) <= 17


def test_a_restored_tree_goes_on_like_the_one_it_came_from():
    """Nodes are made when asked for; asking leaves their order, by which they make room, as is."""
    tables = ResidualLife(max_nodes=64)
    rng = np.random.default_rng(3)

    def lesson(i):
        features = RequestFeatures(client_key=i % 40 + 1, prompt_length=i % 7)
        return features, i % 3, int(rng.integers(1, 900)), i % 5 == 0

    lessons = [lesson(i) for i in range(400)]
    for features, session, length, censored in lessons[:300]:
        tables.learn(features, session, length, censored=censored)
    twin = ResidualLife(max_nodes=64)
    twin.restore(tables.state())
    for features, session, *_ in lessons[::3]:
        twin.hazards(features, session)
    for each in (tables, twin):
        for features, session, length, censored in lessons[300:]:
            each.learn(features, session, length, censored=censored)
    wanted, found = tables.state(), twin.state()
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_large_tree_comes_and_goes_in_pieces(monkeypatch):
    """Restored whole and in order, whatever the pieces are; dissolved, nothing is left."""
    monkeypatch.setattr(residual_life, "_PIECE", 7)
    monkeypatch.setattr(residual_life, "_FREED", 5)
    tables, twin = ResidualLife(), ResidualLife()
    for i in range(30):
        tables.learn(RequestFeatures(client_key=1 + i), 0, 10 * i, censored=False)
    state = tables.state()
    twin.restore(state)
    assert len(state["keys"]) % 7, "the last piece is not a full one"
    for name, value in twin.state().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    twin.dissolve()
    assert twin.state()["keys"].size == 0


def test_a_damaged_state_is_refused():
    tables = ResidualLife()
    learn(tables, [5, 50, 500])
    for part, damaged in (
        ("keys", np.arange(3)),
        ("choice", np.full((1, len(LEVELS)), 99)),
        ("losses", np.ones(4)),
        ("trust", np.full((1, len(LEVELS)), -1)),
        ("effect_losses", np.ones(4)),
    ):
        with pytest.raises(ValueError, match=part if part != "keys" else "ended"):
            ResidualLife().restore(tables.state() | {part: damaged})


def test_the_state_of_another_version_is_refused_in_words():
    tables = ResidualLife()
    learn(tables, [5, 50, 500])
    older = ("keys", "ended", "left", "cached", "counted", "fresh", "losses", "choice")
    state = {part: array for part, array in tables.state().items() if part in older}
    with pytest.raises(ValueError, match="another version, train again"):
        ResidualLife().restore(state)


def test_the_state_of_before_there_were_shares_is_refused_in_words():
    tables = ResidualLife()
    learn(tables, [5, 9])
    state = {k: v for k, v in tables.state().items() if not k.startswith(("shares.", "regimes."))}
    with pytest.raises(ValueError, match="another version, train again"):
        ResidualLife().restore(state)


def test_nodes_are_bounded():
    tables = ResidualLife(max_nodes=100)
    features = [RequestFeatures(client_key=i + 1, prompt_length=i) for i in range(500)]
    for each in features:
        tables.learn(each, 0, 50, censored=False)
    assert len(tables._nodes) == 100
    assert tables._nodes[ROOT].ended.sum() == 500, "the root is used by all and stays"


def test_counting_in_bulk_is_counting_one_by_one():
    rng = np.random.default_rng(8)
    features = [
        RequestFeatures(client_key=int(c), prompt_length=int(p))
        for c, p in zip(rng.integers(1, 5, 300), rng.integers(0, 50, 300), strict=True)
    ]
    lengths, cut = rng.integers(0, 700, 300), rng.random(300) < 0.2
    sessions = rng.integers(0, 4, 300).tolist()
    for most in (20_000, 64):
        bulk, single = ResidualLife(most), ResidualLife(most)
        bulk.learn_many(features, sessions, lengths, cut)
        for each, session, length, c in zip(features, sessions, lengths, cut, strict=True):
            single.learn(each, session, int(length), censored=bool(c))
        a, b = bulk.state(), single.state()
        assert np.array_equal(a["keys"], b["keys"])
        assert np.allclose(a["ended"], b["ended"])
        assert np.allclose(a["left"], b["left"])
        assert np.isfinite(bulk.hazards(features[0], 1)).all()


def test_prior_is_wide_and_sound():
    h = prior_hazards()
    assert h.shape == (BINS,)
    assert ((h > 0) & (h < 1)).all()
    d = LengthDistribution(hazard.from_hazards(h))
    assert d.median() == pytest.approx(200, rel=0.02)
    assert d.quantile(0.95) > 2000


SAID = ("model_key", "client_key", "max_length")
SIZES = {60: 40.0, 900: 250.0, 7000: 1500.0}
"""Prompt lengths, and the lengths of their answers."""


def asked_about(prompt, **said):
    return RequestFeatures(prompt_length=prompt, **said)


def by_prompt(tables, count, rng, **said):
    """Teach answers that follow from the prompt length."""
    for _ in range(count):
        prompt = int(rng.choice(list(SIZES)))
        length = int(SIZES[prompt] * rng.lognormal(0.0, 0.2)) + 1
        tables.learn(asked_about(prompt, **said), 0, length, censored=False)


def assert_prompts_tell(tables, **said):
    for prompt, size in SIZES.items():
        assert median(tables, asked_about(prompt, **said)) == pytest.approx(size, rel=0.15)


@pytest.mark.parametrize("name", SAID)
def test_what_was_never_said_before_hides_nothing(name):
    tables = ResidualLife()
    by_prompt(tables, 600, np.random.default_rng(20))
    for prompt in SIZES:
        same = tables.hazards(asked_about(prompt), 0)
        assert np.array_equal(tables.hazards(asked_about(prompt, **{name: 5000}), 0), same)
    # Nor does the first completion that makes it known.
    tables.learn(asked_about(900, **{name: 5000}), 0, 260, censored=False)
    assert_prompts_tell(tables, **{name: 5000})


@pytest.mark.parametrize("name", SAID)
def test_what_is_not_said_any_more_hides_nothing(name):
    tables = ResidualLife()
    by_prompt(tables, 600, np.random.default_rng(21), **{name: 5000})
    assert_prompts_tell(tables)
    assert_prompts_tell(tables, **{name: 77_000})


def test_many_who_come_a_few_times_tell_of_each_other():
    tables, rng = ResidualLife(), np.random.default_rng(22)
    for client in range(1, 301):
        by_prompt(tables, 3, rng, client_key=client)
    assert_prompts_tell(tables, client_key=17)
    assert_prompts_tell(tables, client_key=9_999)


def test_a_client_is_known_under_every_model():
    tables, rng = ResidualLife(), np.random.default_rng(23)
    for _ in range(300):
        for client, size in ((1, 50), (2, 900)):
            features = RequestFeatures(model_key=3, client_key=client)
            tables.learn(features, 0, int(size * rng.lognormal(0, 0.2)) + 1, censored=False)
    for client, size in ((1, 50), (2, 900)):
        renamed = RequestFeatures(model_key=4, client_key=client)
        assert median(tables, renamed) == pytest.approx(size, rel=0.15)


def test_who_differs_from_the_others_is_believed_in_the_end():
    tables, rng = ResidualLife(), np.random.default_rng(24)
    by_prompt(tables, 900, rng, client_key=1)
    for _ in range(500):
        features = asked_about(int(rng.choice(list(SIZES))), client_key=2)
        tables.learn(features, 0, int(rng.lognormal(np.log(100), 0.2)), censored=False)
    for prompt in SIZES:
        found = median(tables, asked_about(prompt, client_key=2))
        assert found == pytest.approx(100, rel=0.2)
    assert_prompts_tell(tables, client_key=1)


def test_a_bulk_chooses_its_weights_by_its_newest(monkeypatch):
    monkeypatch.setattr(residual_life, "_ALWAYS", 200)
    tables = ResidualLife()
    stream = list(random_stream(600, 25))
    features, lengths, cut = (list(column) for column in zip(*stream, strict=True))
    tables.learn_many(features, [0] * 600, np.array(lengths), np.array(cut))
    assert tables._weights.scored == 6 * 200, "every level, for each of the newest"
    assert tables._weights.choice != list(residual_life.START)
    assert tables.count == 600
    fresh = ResidualLife()
    fresh.restore(tables.state())
    for each in features[:50]:
        assert np.array_equal(fresh.hazards(each, 0), tables.hazards(each, 0))


def test_each_step_of_a_path_comes_after_those_it_rests_on():
    for said in range(16):
        features = RequestFeatures(
            prompt_length=300 if said & 1 else None,
            model_key=7 if said & 2 else 0,
            client_key=8 if said & 4 else 0,
            max_length=4096 if said & 8 else None,
        )
        path = node_path(features, 5)
        seen = {-1}
        for step in path.every:
            assert step.above in seen
            assert {each.key for each in step.main} <= seen
            seen.add(step.key)
        assert len({step.key for step in path.every}) == len(path.every)
        assert set(path.crossed) <= set(path.every)
        assert path.crossed[-1].level == LEVELS.index("session")
