"""Several replicas share what they learn: nothing counts twice, and nothing is lost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sagellm_lifetime import (
    BackgroundLearner,
    CheckpointError,
    MergeError,
    MissingExtraError,
    PredictionRequest,
    Predictor,
    create_predictor,
)
from sagellm_lifetime import workloads as profiles
from sagellm_lifetime.features.name_keys import NameKeys
from sagellm_lifetime.predictor.background_learner import Fleet
from sagellm_lifetime.predictor.fleet import entries
from sagellm_lifetime.predictor.fleet.connect import open_store
from sagellm_lifetime.predictor.fleet.entries import entry_of, predictor_of_entry
from sagellm_lifetime.predictor.fleet.replica import Replica, fleet_keys
from sagellm_lifetime.predictor.fleet.store import StoreError

ANY = "0123456789abcdef"


class Server:
    """A replica with the predictor that it answers with, learning in this process."""

    def __init__(self, place: str, base: Predictor | None = None, own: Path | None = None) -> None:
        base = create_predictor("survival", seed=3) if base is None else base
        self.in_use = base.clone()
        self.replica = Replica(place, base, own, every=0.01)
        self._next = 0

    @property
    def counts(self):
        return self.replica.counts

    def serve(self, count: int, length: int = 100) -> None:
        for _ in range(count):
            self._next += 1
            queue: list = []
            features = {"client_id": f"c{self._next % 2}"}
            twin = self.in_use.clone()
            twin.hand_over_to(Queue(queue))
            twin.predict(PredictionRequest(self._next, [], 0, None, features))
            twin.update(self._next, length, 1.0)
            for completion in queue:
                self.in_use.learn(completion)
                self.replica.learn(completion)

    def round(self) -> bool:
        return self.replica.exchange(self.in_use)


class Queue:
    def __init__(self, completions: list) -> None:
        self._completions = completions

    def take(self, completion) -> None:
        self._completions.append(completion)

    def counts(self):
        return {}


def counted(predictor: Predictor) -> int:
    return predictor.model.tables.count


def test_every_completion_counts_once_at_every_replica(place: str) -> None:
    servers = [Server(place) for _ in range(3)]
    for i, server in enumerate(servers):
        server.serve(5 + i)
    for _ in range(4):  # to write and read again adds nothing
        for server in servers:
            server.round()
    for server in servers:
        assert server.in_use.lessons == 5 + 6 + 7
        assert counted(server.in_use) == 5 + 6 + 7
        assert server.counts.replicas == 2
        assert server.counts.lessons + server.replica._own.lessons == 18
        assert server.counts.connected
        assert server.counts.trouble is None
    written = servers[0].counts.published
    servers[0].round()
    assert servers[0].counts.published == written  # nothing new was learned


def test_what_is_learned_while_the_store_is_away_survives_a_restart(tmp_path: Path) -> None:
    store, own = tmp_path / "store", tmp_path / "own"
    store.touch()  # in the way of the folder
    first = Server(os.fspath(store), own=own)
    first.serve(5)
    first.round()
    first.serve(2)
    first.replica.leave()
    assert first.counts.failures == 1
    second = Server(os.fspath(store), own=own)  # the store is away still
    second.serve(1)
    second.replica.leave()
    store.unlink()
    third = Server(os.fspath(store), own=own)
    third.round()
    other = Server(os.fspath(store))
    other.serve(10)
    for server in (other, third, other, third):
        server.round()
    assert third.in_use.lessons == other.in_use.lessons == 18
    third.replica.leave()
    fourth = Server(os.fspath(store), own=own)  # continues its entry
    fourth.round()
    assert fourth.in_use.lessons == 18


def test_a_new_replica_starts_with_what_the_others_know(place: str) -> None:
    old = Server(place)
    old.serve(30, length=40)
    old.round()
    new = Server(place)
    assert new.round()
    answer = new.in_use.predict(PredictionRequest("a", [], 0, None, {"client_id": "c0"}))
    assert answer.source == "model"
    assert abs(answer.estimated_remaining_tokens - 40) < 10
    assert new.replica._own.lessons == 0  # and sends nothing of it back
    new.round()
    old.round()
    assert old.in_use.lessons == 30


def test_what_all_started_from_counts_once(place: str) -> None:
    base = create_predictor("survival", seed=3).fit(profiles.generate("chat", 200, seed=1))
    servers = [Server(place, base) for _ in range(2)]
    for server in servers:
        server.serve(4)
    for server in servers * 2:
        server.round()
    assert [server.in_use.lessons for server in servers] == [base.lessons + 8] * 2


def test_the_entry_of_a_replica_that_left_is_continued(place: str) -> None:
    first = Server(place)
    first.serve(6)
    first.round()
    first.serve(2)
    first.replica.leave()  # writes the last two
    second = Server(place)
    assert second.round()
    assert second.replica._name == first.replica._name
    assert second.in_use.lessons == 8
    second.serve(3)
    second.round()
    third = Server(place)
    third.round()
    assert third.replica._name != second.replica._name
    assert third.in_use.lessons == 11
    assert third.counts.replicas == 1


def test_a_restart_goes_on_with_its_own_entry(place: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    first = Server(place, own=own)
    first.serve(6)
    first.round()  # killed here: its lease still runs
    again = Server(place, own=own)
    again.round()
    assert again.replica._name == first.replica._name
    assert again.in_use.lessons == 6
    # The one that was thought dead, and another that has its entry: no completion counts twice.
    again.replica.leave()
    other = Server(place)
    other.round()
    assert other.replica._name == first.replica._name
    again.serve(2)
    again.round()
    assert again.replica._name != other.replica._name
    assert again.in_use.lessons == 6
    assert again.counts.connected


def test_a_store_that_is_away_changes_nothing_and_comes_back(redis_server) -> None:
    servers = [Server(redis_server.address) for _ in range(2)]
    for server in servers:
        server.serve(5)
        server.round()
    servers[0].round()
    assert servers[0].in_use.lessons == 10
    redis_server.stop()
    servers[0].serve(1)
    started = time.monotonic()
    assert not servers[0].round()
    assert time.monotonic() - started < 10
    assert servers[0].in_use.lessons == 11
    assert servers[0].counts.failures == 1
    assert not servers[0].counts.connected
    assert "127.0.0.1" in servers[0].counts.trouble
    assert redis_server.password not in servers[0].counts.trouble
    redis_server.start()  # empty: it had no disk
    for server in servers * 2:
        server.round()
    assert [server.in_use.lessons for server in servers] == [11, 11]
    assert servers[0].counts.connected
    assert servers[0].counts.trouble is None


def test_a_folder_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("no folder")
    server = Server(os.fspath(tmp_path / "store"))
    server.serve(3)
    assert not server.round()
    assert server.counts.failures == 1
    assert server.in_use.lessons == 3


def test_replicas_started_from_other_secrets_say_so(place: str) -> None:
    Server(place).round()
    other = Server(place, create_predictor("survival", seed=4))
    other.serve(2)
    assert not other.round()
    assert "another secret" in other.counts.trouble
    assert "\n" not in other.counts.trouble
    assert other.in_use.lessons == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda: create_predictor("orca", seed=3),
        lambda: create_predictor("survival", seed=3, max_nodes=99),
    ],
)
def test_what_does_not_fit_is_refused_and_counted(place: str, other) -> None:
    stranger = Server(place, other())
    stranger.round()
    mine = Server(place)
    mine.serve(3)
    mine.round()
    assert mine.counts.refused == 1
    assert mine.counts.replicas == 0
    assert mine.counts.trouble
    mine.round()
    assert mine.counts.refused == 1  # of one version once


def damaged(data: bytes) -> list[bytes]:
    import zlib

    inflated = zlib.decompress(data)
    return [
        b"",
        b"not an entry",
        data[: len(data) // 2],
        zlib.compress(b"\x00" * 100),
        zlib.compress(inflated[:-8] + b"\xff" * 8),
        zlib.compress(inflated[:200]),
        b"\x80\x04\x95" + data,  # what a pickle begins with
    ]


def test_damaged_entries_are_refused(place: str) -> None:
    good = Server(place)
    good.serve(4)
    data = entry_of(good.replica._own, "entry")
    store = open_store(place)
    for i, bad in enumerate(damaged(data)):
        name = f"{i:016x}"
        assert store.write(name, "someone", 60.0, bad)
        with pytest.raises((CheckpointError, MergeError)):
            predictor_of_entry(bad, name, good.in_use)
    good.round()
    assert good.counts.refused == 7
    assert good.counts.replicas == 0
    assert good.in_use.lessons == 4


def test_an_entry_is_bounded_when_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = create_predictor("survival", seed=3)
    data = entry_of(predictor, "entry")
    monkeypatch.setattr(entries, "_MOST_INFLATED", 1000)
    with pytest.raises(CheckpointError, match="larger than"):
        predictor_of_entry(data, "entry", predictor)
    monkeypatch.setattr(entries, "MOST_BYTES", 10)
    with pytest.raises(CheckpointError, match="more than an entry"):
        entry_of(predictor, "entry")


def test_impossible_counts_are_refused(place: str) -> None:
    bad = create_predictor("survival", seed=3)
    bad.predict(PredictionRequest(1, [], 0, None))
    bad.update(1, 50, 1.0)
    bad.model.tables._existing(0).ended[:] = np.nan
    mine = create_predictor("survival", seed=3)
    with pytest.raises(CheckpointError, match="do not fit"):
        predictor_of_entry(entry_of(bad, "entry"), "entry", mine)


def test_an_entry_holds_no_recent_traffic_and_is_small() -> None:
    predictor = create_predictor("lstm", seed=3, hidden_size=8)
    predictor.fit  # noqa: B018
    for i in range(60):
        features = {"client_id": f"c{i}", "prefix_hashes": [i, i + 1], "session_id": f"s{i}"}
        predictor.predict(PredictionRequest(i, [1, 2], 0, None, features))
        predictor.update(i, 50 + i, 1.0)
    found = predictor_of_entry(entry_of(predictor, "entry"), "entry", predictor)
    assert found.lessons == 60
    state = found.state()
    assert len(state["predictor.recent.keys"]) == 0
    assert not any(len(v) for k, v in state.items() if k.startswith("predictor.conversations."))
    size = sum(array.nbytes for array in predictor.state().values())
    assert len(entry_of(predictor, "entry")) < size / 20


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("http://cache:80", "is no store of a fleet"),
        ("redis://", "is no address"),
        ("redis://cache:99999999", "is no address"),
        ("", "a fleet has a store"),
    ],
)
def test_a_place_that_is_none_is_one_line(place: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        open_store(place)


def test_without_the_client_of_redis_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagellm_lifetime.core.extras.is_installed", lambda module: False)
    with pytest.raises(MissingExtraError, match="fleet"):
        open_store("redis://cache:6379/0")


def test_leases(place: str) -> None:
    store = open_store(place)
    assert store.claim(ANY, "a", 0.3)
    assert not store.claim(ANY, "b", 60.0)
    assert not store.write(ANY, "b", 60.0, b"x")
    assert store.read(ANY) is None
    assert store.write(ANY, "a", 0.3, b"mine")
    time.sleep(0.5)
    assert store.claim(ANY, "b", 60.0)  # it ran out
    assert not store.write(ANY, "a", 60.0, b"late")
    assert store.read(ANY) == b"mine"
    store.release(ANY, "a")  # not theirs to give
    assert not store.claim(ANY, "c", 60.0)
    store.release(ANY, "b")
    assert store.claim(ANY, "c", 60.0)
    assert list(store.versions()) == [ANY]
    before = store.versions()
    assert store.write(ANY, "c", 60.0, b"other")
    assert store.versions() != before
    store.close()


def test_the_first_secret_is_that_of_the_fleet(place: str) -> None:
    store = open_store(place)
    assert store.secret(b"a" * 16) == b"a" * 16
    assert open_store(place).secret(b"b" * 16) == b"a" * 16
    assert fleet_keys(place, []) == NameKeys(b"a" * 16)


def test_a_fleet_has_a_name_and_a_password(redis_server, monkeypatch) -> None:
    plain = f"redis://127.0.0.1:{redis_server.port}/0"
    with pytest.raises(StoreError, match="Auth"):
        open_store(plain).versions()
    monkeypatch.setenv("LIFETIME_FLEET_PASSWORD", redis_server.password)
    one, other = open_store(f"{plain}#chat"), open_store(f"{plain}#code")
    one.write(ANY, "a", 60.0, b"x")
    assert one.versions()
    assert not other.versions()


@pytest.mark.slow
def test_background_learners_share(place: str, tmp_path: Path) -> None:
    predictors = [create_predictor("survival") for _ in range(2)]
    fleet = Fleet(place, every=0.2)
    learners = [
        BackgroundLearner(predictor, tmp_path / f"state{i}", every=0.1, fleet=fleet)
        for i, predictor in enumerate(predictors)
    ]
    try:
        assert predictors[0].keys == predictors[1].keys  # the fleet's, nobody chose them
        for i in range(10):
            predictors[0].predict(PredictionRequest(i, [], 0, None, {"client_id": "a"}))
            predictors[0].update(i, 70, 1.0)
        until = time.monotonic() + 60.0
        while time.monotonic() < until and predictors[1].lessons < 10:
            time.sleep(0.1)
        assert [predictor.lessons for predictor in predictors] == [10, 10]
        answer = predictors[1].predict(PredictionRequest("q", [], 0, None, {"client_id": "a"}))
        assert answer.source == "model"
        counts = learners[1].counts()
        assert counts["fleet_connected"]
        assert counts["fleet_replicas"] == 1
        assert counts["fleet_lessons"] == 10
    finally:
        for learner in learners:
            learner.stop(20.0)
    # A new one, with a folder of its own, starts with all of it.
    new = create_predictor("survival")
    with BackgroundLearner(new, tmp_path / "new", every=0.1, fleet=fleet):
        until = time.monotonic() + 60.0
        while time.monotonic() < until and new.lessons < 10:
            time.sleep(0.1)
        assert new.lessons == 10


def test_networks_are_shared_and_go_on_training(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    place = os.fspath(tmp_path / "store")
    base = create_predictor("lstm", seed=3, hidden_size=8, num_layers=1)
    one, other = Server(place, base), Server(place, base)
    one.serve(3)
    weights = one.in_use.model._make_trainer(None).weights()
    one.in_use.model.use(weights)
    one.in_use.model.share.losses = np.array([0.6, 0.7, 0.8, 0.9, 1.0])
    one.in_use.model._store.add("a sample", 0)
    one.round()
    other.serve(2)
    other.round()
    # The other takes the network that helps, and what it learned itself is in the tables of both.
    used = other.in_use.model
    assert all(np.array_equal(used.weights[key], weights[key]) for key in weights)
    assert used.share.losses[0] == pytest.approx(0.6)
    samples = len(one.in_use.model._store)
    assert one.round()
    assert len(one.in_use.model._store) == samples  # the samples of its own training stay
    assert one.in_use.lessons == other.in_use.lessons == 5
    assert one.replica._own.options["online"] == "off"
