"""Fitting a history on a Ray cluster: parts as Ray Data, counted by tasks, merged here.

Ray is the engine; what is computed is in :mod:`~.sharded`. Parquet is read by Ray Data itself, in
blocks, from wherever its file systems reach; other logs are read one file a task, by the same code
as on one machine.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sagellm_lifetime.core.errors import HistoryError, LifetimeError, reason_of
from sagellm_lifetime.core.extras import require
from sagellm_lifetime.predictor.registry import create_predictor
from sagellm_lifetime.predictor.sharded import Outline, Part, Plan, finish, fit_part, outline

if TYPE_CHECKING:
    import polars as pl

    from sagellm_lifetime.history.prequential import Clock
    from sagellm_lifetime.history.reasons import CapReached
    from sagellm_lifetime.models.base import Progress
    from sagellm_lifetime.predictor.base import Predictor

ROWS_OF_PART: Final = 200_000
"""Rows that one task fits."""
LOCAL: Final = "local"
"""Address that starts a cluster on this machine, and stops it at the end."""
_PARQUET: Final = (".parquet", ".pq")
_PATH: Final = "path"
_FRAMES: Final = ("newest", "sample", "registered")
"""Frames of a part, in the order of its arguments."""
_PROBLEM: Final = "problem"


@dataclass(frozen=True)
class RayFit:
    """A fit on a Ray cluster.

    Attributes:
        address: ``auto``, ``ray://HOST:PORT``, ``HOST:PORT``, or :data:`LOCAL`.
        predictor: name of the predictor.
        options: its options, the seed among them.
        cap_reached: as of ``Predictor.fit``.
        clock: as of ``Predictor.fit``.
        rows_of_part: rows that one task fits.
    """

    address: str
    predictor: str
    options: dict[str, Any]
    cap_reached: CapReached = "length"
    clock: Clock = "auto"
    rows_of_part: int = ROWS_OF_PART

    def run(self, source: str, progress: Progress | None = None) -> Predictor:
        """Return a predictor that is fitted on a history.

        Args:
            source: a file, a glob or a folder that all nodes see; or Parquet at an address that Ray
                Data reads, such as ``s3://…``.
            progress: called with the name of the step and the share done; ``None`` for no calls.

        Raises:
            LifetimeError: Ray is not installed or not reached, or the history cannot be used.
        """
        require("ray", "a fit on a cluster", "ray")
        import ray

        like = create_predictor(self.predictor, **self.options)
        try:
            ray.init(
                address=self.address,
                ignore_reinit_error=True,
                log_to_driver=False,
                logging_level="ERROR",
                include_dashboard=False if self.address == LOCAL else None,
            )
        except Exception as error:
            raise LifetimeError(f"--ray {self.address}: {reason_of(error)}") from error
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            # It logs several lines for every data set, on stderr.
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            return self._fit(ray, source, like, progress)
        except ray.exceptions.RayError as error:
            raise LifetimeError(f"a task of the cluster failed: {reason_of(error)}") from error
        finally:
            if self.address == LOCAL:
                ray.shutdown()

    def _fit(self, ray: Any, source: str, like: Predictor, progress: Progress | None) -> Predictor:
        blocks = _blocks(ray, source, self.rows_of_part)
        outlines = [
            _outline_of(row) for row in blocks.each(partial(_outlined, fit=self)).iter_rows()
        ]
        plan = Plan.of(outlines)
        results = blocks.each(partial(_fitted, fit=self, plan=plan))

        def parts() -> Iterator[Part]:
            for row in results.iter_rows():
                frames = [_frame(row[name]) for name in _FRAMES]
                yield Part(row["entry"], *frames)

        return finish(like, parts(), plan, clock=self.clock, progress=progress)

    def rows(self, batch: Any) -> pl.DataFrame:
        """Return the checked rows of a batch: Parquet rows, or the paths of files."""
        import polars as pl

        from sagellm_lifetime.history import HISTORY_SCHEMA, read_history

        if batch.column_names == [_PATH]:
            files = batch.column(_PATH).to_pylist()
            frames = [read_history(file, cap_reached=self.cap_reached).frame for file in files]
            frame = pl.concat(frames, how="diagonal_relaxed")
        else:
            given: Any = pl.from_arrow(batch)
            known = [name for name in given.columns if name in HISTORY_SCHEMA]
            frame = read_history(given.select(known), cap_reached=self.cap_reached).frame
        kept = [
            name
            for name in frame.columns
            if name not in ("request_id", "sample") and frame[name].null_count() < len(frame)
        ]
        return frame.select(kept)


@dataclass(frozen=True)
class _Blocks:
    """A Ray dataset, and how many of its rows are one part."""

    dataset: Any
    size: int

    def each(self, function: Any) -> Any:
        """Return the dataset of a function's results, one row for each part."""
        return self.dataset.map_batches(
            function, batch_size=self.size, batch_format="pyarrow", zero_copy_batch=True
        )


def _blocks(ray: Any, source: str, rows: int) -> _Blocks:
    """Return the history as a Ray dataset: the rows of Parquet, or the paths of other files."""
    from sagellm_lifetime.history.files import find_files

    if "://" in source:
        return _Blocks(ray.data.read_parquet(source), rows)
    files = [str(file.resolve()) for file in find_files(source)]
    if all(file.endswith(_PARQUET) for file in files):
        return _Blocks(ray.data.read_parquet(files), rows)
    items = ray.data.from_items([{_PATH: file} for file in files], override_num_blocks=len(files))
    return _Blocks(items, 1)


def _outlined(batch: Any, *, fit: RayFit) -> Any:
    """Return the outline of one part as an Arrow table of one row."""
    import pyarrow as pa

    try:
        each, problem = outline(fit.rows(batch), fit.clock), ""
    except LifetimeError as error:  # as a value, since Ray wraps exceptions in pages of its own
        each, problem = Outline(0, 0, [], np.zeros(0), np.zeros(0)), str(error)
    return pa.table(
        {
            _PROBLEM: [problem],
            "rows": [each.rows],
            "censored": [each.censored],
            "columns": pa.array([each.columns], pa.list_(pa.string())),
            "lengths": pa.array([each.lengths.tolist()], pa.list_(pa.float64())),
            "times": pa.array([each.times.tolist()], pa.list_(pa.float64())),
        }
    )


def _outline_of(row: dict[str, Any]) -> Outline:
    """Return an outline from its row. Raises :class:`HistoryError` for a part that has none."""
    if row[_PROBLEM]:
        raise HistoryError(row[_PROBLEM])
    lengths, times = np.asarray(row["lengths"]), np.asarray(row["times"], dtype=np.float64)
    return Outline(row["rows"], row["censored"], list(row["columns"]), lengths, times)


def _fitted(batch: Any, *, fit: RayFit, plan: Plan) -> Any:
    """Return the result of one part as an Arrow table of one row."""
    import pyarrow as pa

    like = create_predictor(fit.predictor, **fit.options)
    part = fit_part(fit.rows(batch), like, plan, fit.clock)
    return pa.table(
        {
            "entry": pa.array([part.entry], pa.large_binary()),
            **{
                name: pa.array([_packed(getattr(part, name))], pa.large_binary())
                for name in _FRAMES
            },
        }
    )


def _packed(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc(buffer, compression="lz4")
    return buffer.getvalue()


def _frame(data: bytes) -> pl.DataFrame:
    import polars as pl

    return pl.read_ipc(io.BytesIO(data))
