"""Checkpoints that agree with their own checksum and hold what no predictor learned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from sagellm_lifetime import CheckpointError, PredictionRequest, create_predictor, load_predictor
from sagellm_lifetime.core.distribution import LengthDistribution
from sagellm_lifetime.networks.graphs import lstm, transformer
from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint_file import MANIFEST, MODEL, Checkpoint
from sagellm_lifetime.testing.common import teach

SMALL: dict[str, dict[str, Any]] = {
    "baseline": {"window_size": 40},
    "orca": {},
    "linear": {},
    "survival": {},
    "lstm": {"hidden_size": 8},
    "transformer": {"d_model": 8, "nhead": 2},
}
OPTIONAL = ("above", "main", "prior_share")
"""Arrays that merges need, and that checkpoints of before them lack."""
_ANY_SIGN = ("products", "losses", "weights")
"""Parts that may hold numbers below zero."""


@pytest.fixture(scope="module")
def learned() -> dict[str, tuple[Predictor, dict[str, np.ndarray]]]:
    found = {}
    for name, options in SMALL.items():
        predictor = create_predictor(name, **options)
        teach(predictor, 90, seed=3)
        for i in range(4):
            said = {"prefix_hashes": [i, 5, 7], "session_id": "s", "client_id": "c"}
            predictor.predict(PredictionRequest(i, [], 0, 640, said))
            predictor.update(i, 100 + i, 2.0)
        if name in ("lstm", "transformer") and predictor.model._trainer is not None:
            # So few completions accept no challenger.
            predictor.model.use(predictor.model._trainer.weights())
        found[name] = predictor, predictor.state()
    return found


def write(path: Path, name: str, arrays: dict[str, np.ndarray], **options: Any) -> Path:
    """Write a checkpoint of any arrays, with the checksum that belongs to them."""
    path.mkdir(exist_ok=True)
    data = save({key: np.ascontiguousarray(value) for key, value in arrays.items()})
    (path / MODEL).write_bytes(data)
    manifest = Checkpoint(name, {**SMALL[name], **options}, load(data)).manifest("")
    manifest["sha256"] = hashlib.sha256(data).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def lies(key: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays that may not stand in the place of ``value``."""
    found = {
        "another shape": np.zeros((3, *value.shape), dtype=value.dtype),
        "a number": np.array(value.flat[0] if value.size else 0, dtype=value.dtype),
        "another type": value.astype(np.float32 if value.dtype == np.float64 else np.float64),
    }
    if value.dtype.kind == "f":
        bad = [np.nan, np.inf, -np.inf, 1e30]
    elif key == "secret":  # any bits are one
        bad = []
    else:
        bad = [np.iinfo(value.dtype).min, -7]
    if value.dtype.kind == "f" and not any(part in key for part in _ANY_SIGN):
        bad.append(-1.0)
    for number in bad if value.size else []:
        for at in (0, -1):
            one = value.copy()
            one.flat[at] = number
            found[f"{number} at {at}"] = one
    return found


@pytest.mark.parametrize("name", SMALL)
def test_no_array_of_a_checkpoint_is_taken_at_its_word(
    name: str, learned: Any, tmp_path: Path
) -> None:
    if name in ("lstm", "transformer"):
        pytest.importorskip("torch")
    arrays = learned[name][1]
    load_predictor(write(tmp_path / "good", name, arrays))
    assert load_predictor(tmp_path / "good").get_metrics()["lessons"] == 94
    believed = []
    for key, value in arrays.items():
        for what, lie in lies(key, value).items():
            twin = create_predictor(name, **SMALL[name])
            try:
                twin.restore({**arrays, key: lie})
            except ValueError:
                pass
            else:
                believed.append(f"{key}: {what}")
        # What is named by a model or a bucket need not be there.
        if key.rpartition(".")[2] in OPTIONAL:
            continue
        named = ("timing", "predictor.") if name in ("baseline", "orca") else ("timing",)
        if not key.startswith(named):
            twin = create_predictor(name, **SMALL[name])
            with pytest.raises(ValueError, match=r"missing|another network"):
                twin.restore({each: arrays[each] for each in arrays if each != key})
    assert believed == []


def put(**changed: np.ndarray) -> Any:
    return lambda arrays: arrays.update({k.replace("__", "."): v for k, v in changed.items()})


def change(key: str, make: Any) -> Any:
    def apply(arrays: dict[str, np.ndarray]) -> None:
        arrays[key] = make(arrays[key].copy())

    return apply


def filled(value: float) -> Any:
    return lambda array: np.full_like(array, value)


def first(value: float) -> Any:
    def make(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return make


def widened(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, array])


LIES: dict[str, tuple[str, Any]] = {
    "seconds per token that are none": ("survival", change("timing.", filled(np.nan))),
    "no seconds per token": ("survival", change("timing.", lambda a: a[:0])),
    "seconds per token in a table": ("survival", change("timing.", lambda a: a.reshape(-1, 1))),
    "an empty window": ("baseline", change("predictor.-2", lambda a: a[:0])),
    "a window longer than it is": ("baseline", change("predictor.-2", lambda a: np.tile(a, 99))),
    "lengths below zero": ("baseline", change("predictor.-2", filled(-5))),
    "lengths that are fractions": ("baseline", change("predictor.-2", lambda a: a / 3)),
    "a bucket that is none": ("baseline", put(**{"predictor__ten": np.array([3])})),
    "a bucket below all": ("baseline", put(**{"predictor__-3": np.array([3])})),
    "a spread below zero": ("orca", change("predictor.0", lambda a: a * [1, 1, -1])),
    "a mean that is none": ("orca", change("predictor.0", lambda a: a * [1, np.nan, 1])),
    "moments of a model that is none": ("orca", put(**{"predictor__x": np.ones(3)})),
    "sums that are none": ("linear", change("predictor.moments", filled(np.nan))),
    "sums of squares below zero": ("linear", change("predictor.moments", lambda a: -a)),
    "products that do not commute": (
        "linear",
        change("predictor.moments", lambda a: a + np.triu(np.ones(a.shape), 1)),
    ),
    "noise of nothing": ("linear", change("predictor.noise", filled(0.0))),
    "one node twice": ("survival", change("predictor.tables.keys", lambda a: a * 0)),
    "a node of a level that is none": ("survival", change("predictor.tables.keys", first(15))),
    "a hazard above one": ("survival", change("predictor.tables.cached", first(1.5))),
    "counts below zero": ("survival", change("predictor.tables.ended", filled(-1.0))),
    "a choice that is none": ("survival", change("predictor.tables.choice", first(12))),
    "lessons beyond all": ("survival", change("lessons", filled(2**62))),
    "blocks that are padding": ("survival", change("predictor.conversations.blocks", filled(-1))),
    "blocks beyond any memory": (
        "survival",
        change("predictor.conversations.blocks", lambda a: np.zeros((50_001, 10), dtype=np.int64)),
    ),
    "a completion of nobody": ("lstm", change("predictor.recent.finished", first(10_000))),
    "a memory of a kind that is none": ("lstm", change("predictor.recent.keys", first(2))),
    "weights that are none": ("lstm", change("predictor.weights.head.bias", first(np.nan))),
    "weights without end": ("lstm", change("predictor.weights.lstm.weight_hh_l0", first(np.inf))),
    "weights beyond training": ("transformer", change("predictor.weights.norm.bias", filled(1e9))),
    "a smaller vocabulary": (
        "lstm",
        change("predictor.weights.evidence.tokens.weight", lambda a: a[:9]),
    ),
    "a larger vocabulary": ("lstm", change("predictor.weights.evidence.names.weight", widened)),
    "weights of nothing": (
        "lstm",
        put(**{"predictor__weights__more": np.zeros(1, dtype=np.float32)}),
    ),
    "losses that are none": ("lstm", change("predictor.online.losses", filled(np.nan))),
    "steps below zero": ("lstm", change("predictor.online.steps", filled(-1))),
}


@pytest.mark.parametrize("what", LIES)
def test_what_cannot_have_been_learned_is_refused_in_one_line(
    what: str, learned: Any, tmp_path: Path
) -> None:
    name, lie = LIES[what]
    if name in ("lstm", "transformer"):
        pytest.importorskip("torch")
    arrays = dict(learned[name][1])
    lie(arrays)
    path = write(tmp_path / "model", name, arrays)
    with pytest.raises(CheckpointError, match="do not fit predictor") as error:
        load_predictor(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_the_shapes_of_weights_are_those_of_the_network(name: str, learned: Any) -> None:
    pytest.importorskip("torch")
    network = lstm(8, 2) if name == "lstm" else transformer(8, 2, 2)
    predictor = learned[name][0]
    built = predictor.model.build()()
    assert network.shapes == {key: tuple(v.shape) for key, v in built.state_dict().items()}
    assert predictor.model.weights is not None


def test_a_width_that_only_the_options_have_allocates_nothing(
    learned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("sagellm_lifetime.networks.serving.Session", None)
    path = write(tmp_path / "model", "lstm", learned["lstm"][1], hidden_size=4096)
    with pytest.raises(CheckpointError, match="has the shape"):
        load_predictor(path)


def test_a_fault_that_only_learning_meets_is_met_by_the_loader(
    learned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "model", "survival", learned["survival"][1])

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    for where in (
        "models.residual_life.ResidualLife.learn",
        "core.timing.TokenTiming.update",
        "core.calibration.Calibration.learn",
        "features.conversations.Conversations.key",
        "predictor.predicting.Predicting.predict_batch",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"sagellm_lifetime.{where}", fail)
            with pytest.raises(CheckpointError, match="by nothing"):
                load_predictor(path)


def test_trying_out_takes_no_gradient_steps(
    learned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    path = write(tmp_path / "model", "lstm", learned["lstm"][1])
    monkeypatch.setattr("sagellm_lifetime.networks.trainer.Trainer.step", None)
    monkeypatch.setattr("sagellm_lifetime.networks.model._ONLINE_EVERY", 1)
    monkeypatch.setattr("sagellm_lifetime.networks.model._ONLINE_START", 1)
    load_predictor(path)


def test_trying_out_teaches_nothing(learned: Any, tmp_path: Path) -> None:
    for name, (predictor, arrays) in learned.items():
        loaded = load_predictor(write(tmp_path / name, name, arrays))
        assert loaded.get_metrics()["predict_calls"] == 0
        found = loaded.state()
        assert found.keys() == arrays.keys() == predictor.state().keys()
        for key, value in found.items():
            np.testing.assert_array_equal(value, arrays[key], err_msg=key)


def test_a_network_that_says_nan_does_not_break_an_answer(learned: Any) -> None:
    pytest.importorskip("torch")
    predictor = learned["lstm"][0].clone()
    predictor.model.runner = lambda steps: np.full(2000, np.nan, dtype=np.float32)
    answer = predictor.predict(PredictionRequest("x", [], 0, None))
    assert 0.0 <= answer.distribution.survival(10) <= 1.0
    assert answer.estimated_remaining_tokens > 0


@pytest.mark.parametrize("segment", [32, 33, 34, 38])
def test_a_calibration_at_its_bound_answers_with_a_mean(
    learned: Any, tmp_path: Path, segment: int
) -> None:
    arrays = {key: value.copy() for key, value in learned["survival"][1].items()}
    arrays["calibration.pit"][0, segment] = 1e15
    loaded = load_predictor(write(tmp_path / "c", "survival", arrays))
    for cap in (None, 50, 10**6):
        answer = loaded.predict(PredictionRequest(f"{cap}", [], 0, cap, {})).distribution
        assert answer is not None
        for later in (0, 7, 10**6):
            assert 0.0 <= answer.given(later).mean() < float("inf")


def test_a_mean_that_cannot_be_is_met_by_the_loader(
    learned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "c", "survival", learned["survival"][1])
    monkeypatch.setattr(LengthDistribution, "mean", lambda self: float("inf"))
    with pytest.raises(CheckpointError, match="impossible numbers"):
        load_predictor(path)


@pytest.mark.parametrize("key", ["lessons", "predictor.tables.count", "calibration.pit"])
@pytest.mark.parametrize("name", ["survival", "lstm"])
def test_what_was_learned_from_a_bound_on_is_saved_and_loaded(
    learned: Any, tmp_path: Path, name: str, key: str
) -> None:
    arrays = {key: value.copy() for key, value in learned[name][1].items()}
    most = 1e15 if key == "calibration.pit" else 2**53
    arrays[key].flat[0] = most
    if key == "calibration.pit":
        arrays[key][:] = most
        arrays["calibration.counts"][:] = 0.0
    if key == "predictor.tables.count":
        arrays["predictor.tables.scored"][:] = most
        arrays["predictor.tables.counted"][:] = most
    first = load_predictor(write(tmp_path / "first", name, arrays))
    teach(first, 3, seed=5)
    first.save(tmp_path / "second")
    second = load_predictor(tmp_path / "second")
    teach(second, 70, seed=6)
    second.save(tmp_path / "third")
    load_predictor(tmp_path / "third")
