"""Checks of ``fit``: every form of a history, all or nothing, reproducible."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history import read_history
from sagellm_lifetime.testing.common import (
    Make,
    assert_refused,
    make_request,
    outlooks,
    questions,
    trained,
    what_is_known,
)


def history(rows: int = 120, *, seed: int = 0) -> pl.DataFrame:
    """Return a small history with two clients, sessions, aborts and missing values."""
    rng = np.random.default_rng(seed)
    client = rng.integers(0, 2, rows)
    lengths = np.clip(rng.lognormal(np.where(client, 6.0, 4.0), 0.3), 1, 2000).astype(int)
    reasons = rng.choice(["stop", "stop", "stop", "abort"], rows)
    prompts = [rng.integers(0, 9000, 8).tolist() if i % 5 else None for i in range(rows)]
    return pl.DataFrame(
        {
            "client_id": [f"c{c}" for c in client],
            "session_id": [f"s{i % 11}" if i % 4 else None for i in range(rows)],
            "arrival_time": np.cumsum(rng.exponential(0.5, rows)),
            "prompt_length": rng.integers(0, 500, rows),
            "max_length": [2048 if c else None for c in client],
            "actual_length": lengths,
            "actual_time": lengths * 0.01,
            "finish_reason": reasons,
            "prompt_token_ids": prompts,
        }
    )


def check_fit_takes_every_form(make: Make) -> None:
    """Check that a frame, a lazy frame, a validated history and a path give the same state."""
    frame = history()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.parquet"
        frame.write_parquet(path)
        forms = (frame, frame.lazy(), read_history(frame), path, str(path))
        known = [what_is_known(make().fit(form)) for form in forms]
    assert known[1:] == known[:-1], "the form of the history changes what is learned"


def check_fit_learns(make: Make) -> None:
    """Check that ``fit`` returns the predictor, and counts no row as a prediction."""
    predictor = make()
    fitted = predictor.fit(history())
    assert fitted is predictor, "fit() returns the predictor"
    result = predictor.predict(make_request("new", 0, None))
    assert result.source == "model"
    metrics = predictor.get_metrics()
    assert metrics["total_predictions"] == 1, "fit() counted its rows as predictions in service"
    assert metrics["lessons"] == 120
    assert abs(metrics["seconds_per_token"] - 0.01) < 1e-3


def check_fit_starts_from_scratch(make: Make) -> None:
    """Check that a fit discards everything that was learned before."""
    fresh, used = make().fit(history()), trained(make).fit(history())
    assert outlooks(fresh, questions()) == outlooks(used, questions())
    assert what_is_known(fresh) == what_is_known(used)


def check_fit_needs_only_lengths(make: Make) -> None:
    """Check histories with only lengths, one row, equal rows, zeros, only aborts, no times."""
    small: list[dict[str, Any]] = [
        {"actual_length": [300] * 80},
        {"actual_length": [7]},
        {"actual_length": [0] * 12},
        {"actual_length": [50] * 12, "finish_reason": ["abort"] * 12},
        {"actual_length": [50] * 60, "session_id": ["the only one"] * 60},
        {"actual_length": [50] * 60, "prompt_id": ["the only one"] * 60},
        {"actual_length": [5] * 12, "arrival_time": [3.0] * 12, "actual_time": [0.0] * 12},
    ]
    for columns in small:
        predictor = make().fit(pl.DataFrame(columns))
        result = predictor.predict(make_request("new", 0, None))
        assert result.estimated_remaining_tokens >= 1
        assert 0.0 <= result.confidence <= 1.0
        assert predictor.get_metrics()["unknown_updates"] == 0, "a finish was before its arrival"
    estimate = make().fit(pl.DataFrame(small[0])).predict(make_request("new", 0, None))
    assert 240 <= estimate.estimated_remaining_tokens <= 360, "80 rows of 300 tokens"


def check_bad_histories_are_refused(make: Make) -> None:
    """Check that a bad history raises one line of :class:`HistoryError` and changes nothing."""
    predictor = trained(make)
    predictor.predict(make_request("running"))
    known, answers = what_is_known(predictor), outlooks(predictor, questions())
    metrics = repr(predictor.get_metrics())
    bad: list[Any] = [
        pl.DataFrame({"length": [1, 2]}),
        pl.DataFrame({"actual_length": []}),
        pl.DataFrame({"actual_length": [5.0, float("nan")]}),
        pl.DataFrame({"actual_length": [5, -1]}),
        pl.DataFrame({"actual_length": [10**12]}),
        pl.DataFrame({"actual_length": [5], "finish_reason": ["done"]}),
        "/nowhere/history.csv",
    ]
    for history_ in bad:
        assert_refused(HistoryError, repr(history_), partial(predictor.fit, history_))
    assert repr(predictor.get_metrics()) == metrics, "a refused history changed the counts"
    assert what_is_known(predictor) == known, "a refused history changed what is learned"
    assert outlooks(predictor, questions()) == answers
    predictor.update("running", 10, 1.0)
    assert predictor.get_metrics()["unknown_updates"] == 0, "a refused history lost a sequence"


def check_interrupted_fit_changes_nothing(make: Make) -> None:
    """Check that Ctrl-C in the middle of a fit leaves the predictor as it was."""
    predictor = trained(make)
    known = what_is_known(predictor)
    steps = 0

    def interrupt(stage: str, share: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 2:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        predictor.fit(history(), progress=interrupt)
    assert steps < 2 or what_is_known(predictor) == known, "a part of the fit was kept"


def check_fit_is_deterministic(make: Make) -> None:
    """Check that the same history and seed give the same predictor."""
    one, other = make().fit(history()), make().fit(history())
    assert outlooks(one, questions()) == outlooks(other, questions())
    assert what_is_known(one) == what_is_known(other)


CHECKS = [
    check_fit_takes_every_form,
    check_fit_learns,
    check_fit_starts_from_scratch,
    check_fit_needs_only_lengths,
    check_bad_histories_are_refused,
    check_interrupted_fit_changes_nothing,
    check_fit_is_deterministic,
]
