"""The history format as plain JSON: an array of objects in its own columns."""

from __future__ import annotations

from collections.abc import Iterable

from sagellm_lifetime.history.formats.base import Format, Row
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.schema import HISTORY_SCHEMA


class Native(Format):
    """Rows that are in history columns already."""

    name = "history"
    title = "a history"
    used = tuple(HISTORY_SCHEMA)

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True where the one required column is there."""
        return sample.has("actual_length")

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the record as it is."""
        return [record]
