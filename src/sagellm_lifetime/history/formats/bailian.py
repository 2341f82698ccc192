"""Usage traces of Alibaba's Bailian (Qwen): JSON lines with ``chat_id`` and ``parent_chat_id``.

``timestamp`` counts seconds, ``turn`` counts from 1, and ``hash_ids`` name blocks of 16 tokens of
the whole prompt, history included. A turn names the turn before as its parent (-1 for none); the
first one's ``chat_id`` becomes the session.
"""

from __future__ import annotations

from collections.abc import Iterable

from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats.base import Format, Row, number, words
from sagellm_lifetime.history.records import Record, Sample


class Bailian(Format):
    """Bailian's usage traces."""

    name = "bailian"
    title = "a Qwen-Bailian usage trace"
    used = (
        "chat_id",
        "parent_chat_id",
        "timestamp",
        "input_length",
        "output_length",
        "turn",
        "hash_ids",
        "type",
    )

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._root: dict[str, str] = {}

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for turns that name their parent."""
        return sample.has("chat_id", "parent_chat_id", "output_length")

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a line."""
        chat, parent = words(record.get("chat_id")), words(record.get("parent_chat_id"))
        if chat is None:
            raise ValueError("chat_id is missing")
        root = chat if parent in (None, "-1") else self._root.get(parent, parent)
        self._root[chat] = root
        turn = number(record.get("turn"), "turn")
        self.findings.add_note("hash_ids name blocks of 16 tokens; timestamp is read as seconds")
        return [
            {
                "request_id": chat,
                "session_id": root,
                "client_id": words(record.get("type")),
                "turn": None if turn is None else turn - 1,
                "arrival_time": record.get("timestamp"),
                "prompt_length": record.get("input_length"),
                "actual_length": record.get("output_length"),
                "prefix_hashes": record.get("hash_ids"),
            }
        ]
