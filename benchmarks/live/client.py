"""Who asks: an open loop over HTTP, every answer streamed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

from live import END_AT, KEY
from live.clocks import Clock, WallClock
from sagellm_lifetime.replay.trace import TraceRequest


def body_of(request: TraceRequest, model: str) -> dict[str, Any]:
    """What is sent for a request.

    Its length is in ``end_at``, where the benchmark's classes look for it and no scheduler does.
    """
    said = {
        "client_id": request.client_id,
        "session_id": request.session_id,
        "turn": request.turn,
    }
    return {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": request.max_length,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "vllm_xargs": {
            END_AT: request.output_length,
            KEY: request.id,
            **{name: value for name, value in said.items() if value is not None},
        },
    }


async def ask(session: Any, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask, read to the end; times in seconds of ``time.time``, ``None`` for what did not come."""
    seen: dict[str, Any] = {
        "sent": time.time(),
        "first": None,
        "last": None,
        "tokens": 0,
        "reason": None,
        "status": 0,
    }
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        seen["status"] = answer.status
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now, event = time.time(), json.loads(line[6:])
            if event.get("usage"):
                seen["tokens"] = event["usage"]["completion_tokens"]
            for choice in event.get("choices", ()):
                seen["first"] = seen["first"] or now
                seen["last"] = now
                seen["reason"] = choice.get("finish_reason") or seen["reason"]
    return seen


async def play(
    trace: Sequence[TraceRequest], url: str, model: str, clock: Clock | None = None
) -> dict[str, dict[str, Any]]:
    """Send every request at its time, whatever becomes of the others; what was seen of each.

    Args:
        trace: by arrival.
        url: of the server.
        model: as it is served.
        clock: when it is time; by default the wall's.
    """
    import aiohttp

    clock = clock or WallClock()
    # A connection each: the server may close an idle one just when the next request goes out.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    endless = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=endless) as session:
        asked: list[asyncio.Task[dict[str, Any]]] = []
        for request in trace:
            await clock.reach(request.arrival, lambda: all(task.done() for task in asked))
            asked.append(asyncio.create_task(ask(session, url, body_of(request, model))))
        seen = await asyncio.gather(*asked)
    return {request.id: each for request, each in zip(trace, seen, strict=True)}


async def warm_up(trace: Sequence[TraceRequest], url: str, model: str) -> None:
    """A few answers that nobody counts, so that the first steps are like all others."""
    few = [
        TraceRequest(
            f"warm-{i}",
            0.0,
            40,
            12,
            trace[0].max_length,
            row=i,
            given=tuple(range(40 * i, 40 * i + 40)),
        )
        for i in range(1, 6)
    ]
    for _ in range(2):
        await play(few, url, model)
