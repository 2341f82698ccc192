"""Files of kv-cache-tester: agent traces that its ``trace_replay_tester.py`` replays, and results.

A trace is one JSON file a conversation: ``id``, ``models``, ``block_size``, ``hash_id_scope`` and
``requests`` with ``t`` (seconds from the start of the conversation), ``in``, ``out``, ``hash_ids``,
``stop``, and in newer ones ``api_time`` (seconds). A request of the type ``subagent`` has requests
of its own, whose ``t`` counts from its start; they become a session of their own. So times restart
with every session. Block ids mean the same in all traces only where the scope is ``global``.

A result is ``detailed_results_*.csv`` of the cache and working-set testers: ``context_size``,
``output_tokens``, ``launch_time``, ``finish_time`` (seconds since 1970). These testers ask for a
fixed length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar
from zlib import crc32

from sagellm_lifetime.history.formats.base import Format, Row, number, words
from sagellm_lifetime.history.records import Broken, Record, Sample


class KVCacheTester(Format):
    """Agent traces of kv-cache-tester."""

    name = "kv-cache-tester"
    title = "an agent trace of kv-cache-tester"
    used = ("id", "requests", "hash_id_scope")
    hidden: ClassVar[tuple[str, ...]] = ("models", "block_size", "tool_tokens", "system_tokens")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for a conversation whose requests have ``t``, ``in`` and ``out``."""
        return sample.has("id", "requests", "block_size") and any(
            {"t", "in", "out"} <= set(request)
            for record in sample.records
            for request in _items(record)
        )

    def rows(self, record: Record) -> Iterable[Row | Broken]:
        """Return the requests of a conversation and of its sub-agents."""
        conversation = words(record.get("id"))
        if conversation is None:
            raise ValueError("id is missing")
        self.findings.add_note(
            "t counts from the start of each conversation or sub-agent; hash_ids name blocks of "
            f"{record.get('block_size', 64)} tokens"
        )
        is_global = record.get("hash_id_scope") == "global"
        return list(self._requests(_items(record), conversation, is_global=is_global))

    def _requests(
        self, requests: list[Record], session: str, *, is_global: bool
    ) -> Iterator[Row | Broken]:
        turn, agents = 0, 0
        for request in requests:
            try:
                if request.get("type") == "subagent":
                    agents += 1
                    inner = f"{session}/{words(request.get('agent_id')) or agents}"
                    yield from self._requests(_items(request), inner, is_global=is_global)
                    continue
                yield {
                    "model": words(request.get("model")),
                    "session_id": session,
                    "turn": turn,
                    "arrival_time": number(request.get("t"), "t"),
                    "prompt_length": request.get("in"),
                    "actual_length": request.get("out"),
                    "actual_time": request.get("api_time"),
                    "finish_reason": words(request.get("stop")),
                    "prefix_hashes": _blocks(request.get("hash_ids"), session, is_global=is_global),
                }
            except ValueError as error:
                yield Broken(str(error))
            turn += 1


def _items(record: Record) -> list[Record]:
    items = record.get("requests")
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _blocks(ids: Any, session: str, *, is_global: bool) -> Any:
    """Return block ids that differ between sessions where they count within one."""
    if not isinstance(ids, list) or is_global:
        return ids
    base = crc32(session.encode()) << 31
    return [base | i if isinstance(i, int) and 0 <= i < 2**31 else i for i in ids]


class KVCacheTesterResult(Format):
    """Results of kv-cache-tester, one row a request."""

    name = "kv-cache-tester-result"
    title = "a result of kv-cache-tester"
    used = (
        "request_id",
        "phase_id",
        "context_size",
        "output_tokens",
        "total_time",
        "launch_time",
        "finish_time",
    )
    hidden: ClassVar[tuple[str, ...]] = ("token_timestamps", "tokens_per_chunk")

    @classmethod
    def recognises(cls, sample: Sample) -> bool:
        """Return True for the columns that these testers write together."""
        return sample.has("context_size", "output_tokens", "launch_time", "finish_time", "ttft")

    def rows(self, record: Record) -> Iterable[Row]:
        """Return the request of a line."""
        self.findings.add_note(
            "kv-cache-tester asks for fixed lengths: they say nothing of the model"
        )
        start = number(record.get("launch_time"), "launch_time")
        end = number(record.get("finish_time"), "finish_time")
        return [
            {
                "request_id": words(record.get("request_id")),
                "client_id": words(record.get("phase_id")),
                "arrival_time": start,
                "prompt_length": record.get("context_size"),
                "actual_length": record.get("output_tokens"),
                "actual_time": None if start is None or end is None else end - start,
            }
        ]
