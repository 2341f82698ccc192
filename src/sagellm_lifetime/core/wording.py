"""Words of messages that depend on a number."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless the number is 1.

    >>> counted(1, "bad row"), counted(0, "row"), counted(1234, "row")
    ('1 bad row', '0 rows', '1,234 rows')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
