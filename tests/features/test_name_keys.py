"""Keys of names: nobody lands on another's key by choice, and equal seeds give equal keys."""

import pickle
from zlib import crc32

import numpy as np
import pytest

from sagellm_lifetime import BackgroundLearner, PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.features.name_keys import LARGEST_KEY, NameKeys


def crc_key(kind, name):
    """The key of a name up to format 2."""
    return crc32(f"{kind}={name}".encode()) or 1


def two_names_with_one_crc():
    met = {}
    rng = np.random.default_rng(0)
    for bits in rng.integers(2**62, size=500_000).tolist():
        name = f"{bits:016x}"
        other = met.setdefault(crc_key("client", name), name)
        if other != name:
            return name, other
    raise AssertionError("no collision found")


def test_names_with_one_32_bit_key_have_two_keys_now():
    one, other = two_names_with_one_crc()
    assert crc_key("client", one) == crc_key("client", other)
    assert NameKeys.seeded(0).key("client", one) != NameKeys.seeded(0).key("client", other)
    predictor = create_predictor("survival")
    for i in range(60):
        for name, length in ((one, 20), (other, 2000)):
            predictor.predict(PredictionRequest(name, [], 0, None, {"client_id": name}))
            predictor.update(name, length + i % 3, 1.0)
    for name, length in ((one, 20), (other, 2000)):
        found = predictor.predict(PredictionRequest(name, [], 0, None, {"client_id": name}))
        assert found.estimated_remaining_tokens == pytest.approx(length, rel=0.2)


def test_keys_are_of_64_bits_and_never_zero():
    keys = NameKeys.seeded(3)
    found = [keys.key("client", i) for i in range(2000)]
    assert len(set(found)) == 2000
    assert min(found) > 0
    assert 2**62 < max(found) <= LARGEST_KEY
    assert keys.key("client", "x") != keys.key("session", "x") != keys.key("session", "x", 1)
    assert keys.key("model", "y" * 5000) == keys.key("model", "y" * 5000)
    assert keys.key("model", "\ud800")


def test_a_secret_survives_its_state_and_pickle():
    keys = NameKeys.random()
    assert keys != NameKeys.random()
    for twin in (NameKeys.of_state(keys.state()), pickle.loads(pickle.dumps(keys))):
        assert twin == keys
        assert twin.key("model", "m") == keys.key("model", "m")
    with pytest.raises(ValueError, match="secret"):
        NameKeys.of_state({})
    with pytest.raises(ValueError, match="16 bytes"):
        NameKeys(b"short")


def client_key(predictor, name="c"):
    request = PredictionRequest("x", [], 0, None, {"client_id": name})
    return predictor._context.observe(request).features.client_key


def test_the_secret_is_that_of_the_seed_until_one_is_drawn():
    assert client_key(create_predictor("survival")) == client_key(create_predictor("orca"))
    assert client_key(create_predictor("survival")) != client_key(
        create_predictor("survival", seed=1)
    )
    one, other = create_predictor("survival"), create_predictor("survival")
    one.draw_secret()
    other.draw_secret()
    keys = {client_key(predictor) for predictor in (one, other, create_predictor("survival"))}
    assert len(keys) == 3
    one.predict(PredictionRequest(1, [], 0, None))
    with pytest.raises(RequestError, match="before the first"):
        one.draw_secret()


def test_a_checkpoint_holds_its_secret(tmp_path):
    predictor = create_predictor("survival")
    predictor.draw_secret()
    predictor.predict(PredictionRequest(1, [], 0, None, {"client_id": "c"}))
    predictor.update(1, 10, 1.0)
    predictor.save(tmp_path / "kept")
    for twin in (load_predictor(tmp_path / "kept"), predictor.clone()):
        assert client_key(twin) == client_key(predictor)
    import polars as pl

    predictor.fit(pl.DataFrame({"actual_length": [3, 4], "client_id": ["c", "d"]}))
    assert client_key(predictor) == client_key(load_predictor(tmp_path / "kept"))


def test_a_background_learner_draws_a_secret_for_what_is_new(tmp_path):
    keys = []
    for _ in range(2):
        predictor = create_predictor("survival")
        with BackgroundLearner(predictor, tmp_path / "state"):
            keys.append(client_key(predictor))
    assert keys[0] == keys[1] != client_key(create_predictor("survival"))
