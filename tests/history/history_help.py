"""What the tests of history files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sagellm_lifetime.core.errors import HistoryError
from sagellm_lifetime.history import read_history

TEXT = "a prompt, with a comma\nand a line break that nobody may read in a message"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(source: Any, kind: type[HistoryError] = HistoryError, **options: Any) -> str:
    """Return the message of the refusal: one line, without a traceback of polars."""
    with pytest.raises(kind) as caught:
        read_history(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message
