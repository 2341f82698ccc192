"""Fitting a predictor for a command: checked before the work, with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.cli.guard import CommandError
from sagellm_lifetime.cli.options import OnBadRows
from sagellm_lifetime.cli.output import note, progress

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.core.history import History
    from sagellm_lifetime.predictors.base import Predictor

_SHOWN: Final = 3
"""Bad rows named on stderr; ``--json`` has more of them."""


def has_torch() -> bool:
    """Whether networks can be trained here; does not load PyTorch."""
    return find_spec("torch") is not None


def check_names(given: Iterable[str]) -> list[str]:
    """Names of predictors, each once; a name may be several, with commas between.

    Raises:
        LifetimeError: nobody registered it, or it needs PyTorch and there is none.
    """
    from sagellm_lifetime.core.errors import MissingExtraError
    from sagellm_lifetime.predictors.registry import has_network

    names = [name.strip() for several in given for name in several.split(",") if name.strip()]
    if not names:
        raise CommandError("no predictor is named: choose one with --predictor-type")
    for name in names:
        if has_network(name) and not has_torch():
            raise MissingExtraError(f"training {name!r} (survival does without)", "train")
    return list(dict.fromkeys(names))


def read_rows(
    source: str, on_bad_rows: OnBadRows, columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Return the checked rows of a history; what was skipped or assumed is told on stderr."""
    from sagellm_lifetime.core.history import read_history

    history = read_history(source, on_bad_rows=on_bad_rows.value, columns=columns)
    tell(history)
    return history.frame


def tell(history: History) -> None:
    """Say on stderr what reading a history left out, skipped or assumed."""
    for line in history.notes:
        note(line, keep=True)
    if history.skipped:
        places = "; ".join(history.problems[:_SHOWN])
        note(f"skipped {history.skipped:,} bad rows, the first: {places}", keep=True)


def told(history: History) -> dict[str, Any]:
    """Return the same for ``--json``."""
    return {
        "skipped": history.skipped,
        "kinds": history.kinds,
        "problems": history.problems,
        "left_out": history.left_out,
        "ignored": history.ignored,
        "notes": history.notes,
    }


def read_training_rows(source: str, on_bad_rows: OnBadRows) -> pl.DataFrame:
    """The rows that a predictor will learn from, without the columns that none of them reads.

    Of a history that is longer than what is learned from, only that part is kept in memory.
    """
    from sagellm_lifetime.core.history import HISTORY_SCHEMA
    from sagellm_lifetime.core.prequential import in_time_order
    from sagellm_lifetime.predictors.fitting import MAX_ROWS

    columns = [name for name in HISTORY_SCHEMA if name not in ("request_id", "sample")]
    rows = read_rows(source, on_bad_rows, columns)
    unsaid = [name for name in columns if rows[name].null_count() == len(rows)]
    rows = rows.drop(unsaid) if len(rows) else rows
    if len(rows) > MAX_ROWS:
        note(f"training on the newest {MAX_ROWS:,} of {len(rows):,} rows")
        rows = in_time_order(rows).tail(MAX_ROWS).clone()
    return rows


def fit(
    name: str,
    rows: pl.DataFrame,
    *,
    seed: int,
    prepare: Callable[[Any], None] | None = None,
    label: str = "",
    **options: Any,
) -> Predictor:
    """A new predictor, fitted.

    Args:
        prepare: called with the predictor before it is fitted.
        label: what the progress bar calls it.
        options: of the predictor; those that are ``None`` are left to it.
    """
    from sagellm_lifetime.predictors.registry import create_predictor

    given = {key: value for key, value in options.items() if value is not None}
    predictor = create_predictor(name, seed=seed, **given)
    if prepare is not None:
        prepare(predictor)
    with progress(label or f"training {name}") as step:
        predictor.fit(rows, progress=step)
    return predictor
