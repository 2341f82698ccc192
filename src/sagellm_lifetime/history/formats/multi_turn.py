"""Multi-turn traces of AIPerf and Dynamo: Mooncake's columns, ``session_id`` and ``delay``.

One line a turn. The first turn of a session has a ``timestamp`` (milliseconds); a later one has a
``delay`` instead: milliseconds after the answer before it had ended. When that was depends on the
engine that replays the trace, so a later turn has a session and a turn, and no arrival time.
Turns may hold ``messages`` instead of ``input_length``; with ``"message_mode": "delta"`` their
``output_length`` is a cap that AIPerf asks for, no length, and such turns are left out.
``input_length`` is taken as it stands. AIPerf sends the turns so far in front of a later turn,
whose ``input_length`` counts what is new; its ``hash_ids`` name the blocks of that part only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sagellm_lifetime.history.findings import Findings
from sagellm_lifetime.history.formats.base import Format, Row, number, words
from sagellm_lifetime.history.records import Record, Sample
from sagellm_lifetime.history.times import SCALES


class MultiTurn(Format):
    """Turns of sessions, the first with a time and the others with a delay."""

    name = "multi-turn"
    title = "a multi-turn trace (AIPerf, Dynamo)"
    used = (
        "session_id",
        "timestamp",
        "delay",
        "input_length",
        "output_length",
        "hash_ids",
        "model",
        "message_mode",
    )
    hidden: ClassVar[tuple[str, ...]] = ("messages", "tools", "extra", "text_input")

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._turns: dict[str, int] = {}

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for Mooncake's lengths with sessions and delays."""
        has_turns = sample.has("session_id", "output_length")
        return has_turns and bool({"delay", "messages"} & set(sample.keys))

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a line."""
        session = words(record.get("session_id"))
        if session is None:
            raise ValueError("session_id is missing")
        start = number(record.get("timestamp"), "timestamp")
        turn = self._turns.get(session, 0)
        if start is None and turn == 0 and record.get("delay") is None:
            raise ValueError("timestamp is missing, and so is a delay")
        self._turns[session] = turn + 1
        if record.get("message_mode") == "delta":
            return self.leave_out("turns with messages as deltas, whose output_length is a cap")
        if start is None:
            self.findings.add_note(
                "turns with a delay have no arrival time: the delay counts from the end of the "
                "answer before, which the trace does not say"
            )
        if turn:
            self.findings.add_note(
                "input_length of a later turn is taken as it stands; where the trace counts only "
                "what is new (AIPerf), the server's prompt is longer by the turns before"
            )
        return [
            {
                "session_id": session,
                "turn": turn,
                "model": words(record.get("model")),
                "arrival_time": None if start is None else start / SCALES["ms"],
                "prompt_length": record.get("input_length"),
                "actual_length": record.get("output_length"),
                "prefix_hashes": record.get("hash_ids"),
            }
        ]
