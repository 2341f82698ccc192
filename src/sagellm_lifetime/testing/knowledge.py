"""Checks of what is learned: reproducible, copied and saved without loss, private."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from sagellm_lifetime.predictor.base import Predictor
from sagellm_lifetime.predictor.checkpoint import load_predictor
from sagellm_lifetime.predictor.registry import is_registered
from sagellm_lifetime.testing.common import (
    Make,
    make_request,
    outlook,
    outlooks,
    questions,
    teach,
    trained,
    variant,
    what_is_known,
)


def _through_file(predictor: Predictor) -> Predictor:
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(Path(folder) / "checkpoint")
        # A registered predictor is loaded by its name, another one by its classes.
        like = None if is_registered(predictor) else predictor
        return load_predictor(Path(folder) / "checkpoint", like=like)


def check_seeded(make: Make) -> None:
    """Check that equal seeds and calls give equal answers and equal checkpoints."""
    one, other = make(), make()
    teach(one)
    teach(other)
    assert outlooks(one, questions()) == outlooks(other, questions())
    assert what_is_known(one) == what_is_known(other)


def check_clone(make: Make) -> None:
    """Check that a clone has learned the same, shares nothing and tracks nothing."""
    predictor = make()
    teach(predictor)
    predictor.predict(make_request("running"))
    twin = predictor.clone()
    assert type(twin) is type(predictor)
    assert twin.get_metrics()["running"] == 0, "a clone tracks nothing"
    known = what_is_known(predictor)
    assert what_is_known(twin) == known, "a clone has learned something else"
    answers = outlooks(predictor, questions())
    assert outlooks(twin, questions()) == answers
    teach(twin, 30, seed=5, name="of the twin")
    assert what_is_known(twin) != known, "a clone does not learn"
    assert what_is_known(predictor) == known, "a completion of a clone was learned by the original"
    assert outlooks(predictor, questions("again")) == outlooks(predictor, questions("once more"))
    assert outlooks(predictor, questions()) == answers
    known_by_twin = what_is_known(twin)
    teach(predictor, 30, seed=6, name="of the original")
    assert what_is_known(twin) == known_by_twin, (
        "a completion of the original was learned by its clone"
    )


def check_save_and_load(make: Make) -> None:
    """Check that a file keeps bytes and answers; untrained, trained, with odd prefix hashes."""
    for count in (0, 1, 24):
        predictor = trained(make, count)
        for i in range(count):
            hashes = [-7, 2**64 - 1 - i % 3, -(2**40) - i, i]
            predictor.predict(make_request(f"h{i}", prefix_hashes=hashes, model="modèle \ud800"))
            predictor.update(f"h{i}", 90 + i, 1.0)
        loaded = _through_file(predictor)
        assert type(loaded) is type(predictor)
        assert what_is_known(loaded) == what_is_known(predictor), "saving again differs"
        assert outlooks(loaded, questions()) == outlooks(predictor, questions())
        request = make_request("h", prefix_hashes=[-7, 2**64 - 1, 5])
        assert outlook(loaded.predict(request)) == outlook(predictor.predict(request))


def check_learning_after_load(make: Make) -> None:
    """Check that a loaded predictor learns on like the one that was saved."""
    predictor, twin = (variant(make, online="off") for _ in range(2))
    for learner in (predictor, twin):
        teach(learner, 40)
    # Saving learns what is still queued, so the twin is saved as well.
    what_is_known(twin)
    loaded = _through_file(predictor)
    for learner in (loaded, twin):
        teach(learner, 40, seed=9, name="later")
    assert outlooks(loaded, questions()) == outlooks(twin, questions())
    assert what_is_known(loaded) == what_is_known(twin)


def check_arrays_that_do_not_fit_are_refused(make: Make) -> None:
    """Check that an array of another shape or with NaN is refused and nothing is changed."""
    predictor = trained(make)
    known, before = predictor.state(), what_is_known(predictor)
    for name, value in known.items():
        wrong = {"another shape": value[None]}
        if value.size and np.issubdtype(value.dtype, np.floating):
            wrong["NaN"] = np.full_like(value, np.nan)
        for fault, array in wrong.items():
            try:
                predictor.restore({**known, name: array})
            except ValueError:
                continue
            raise AssertionError(f"{name} was restored from {fault}")
    assert what_is_known(predictor) == before, "a refused array changed what was learned"


def check_checkpoints_are_private(make: Make) -> None:
    """Check that a checkpoint holds no content, token ids, or ids of sessions and clients."""
    predictor = make()
    marker = "S3CRET-marker"
    token = 190_887_135
    for i in range(24):
        features = {
            "prompt_text": f"{marker} please {i}",
            "output_text": f"well, {marker} " * 20,
            "session_id": f"{marker}-session",
            "client_id": f"{marker}-client",
        }
        predictor.predict(make_request(f"{marker}{i}", 0, 512, [token] * 60, **features))
        predictor.predict(make_request(f"{marker}{i}", 40, 512, [token] * 100, **features))
        predictor.update(f"{marker}{i}", 50, 1.0)
    predictor.predict(make_request(f"{marker}-running", 0, 512, [token] * 60))
    with tempfile.TemporaryDirectory() as folder:
        predictor.save(Path(folder) / "checkpoint")
        files = [p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()]
    assert files
    for data in files:
        assert marker.encode() not in data, "content or ids are in the checkpoint"
        assert str(token).encode() not in data, "token ids are in the checkpoint"
        for dtype in (np.int64, np.int32, np.float32, np.float64):
            assert dtype(token).tobytes() not in data, "token ids are in the checkpoint"


CHECKS = [
    check_seeded,
    check_clone,
    check_save_and_load,
    check_learning_after_load,
    check_arrays_that_do_not_fit_are_refused,
    check_checkpoints_are_private,
]
