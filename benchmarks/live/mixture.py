"""What clients do to a server in a day: ask well, ask badly, and hang up."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

KINDS = {
    "plain": 6,
    "streamed": 6,
    "disconnect": 3,
    "stop-string": 3,
    "two": 2,
    "oversized": 1,
    "bad-json": 1,
    "wrong-type": 1,
}
"""What is asked, and how often beside the others."""
REFUSED = frozenset({"oversized", "bad-json", "wrong-type"})
ABOUT = ("the sea", "bread", "a lost key", "trains", "the moon", "rain", "an old house", "bees")
FORMS = ("Tell me about {}.", "Write a story about {}.", "Is {} dangerous?", "List facts on {}:")
WRONG = (
    {"max_tokens": "many"},
    {"temperature": [1]},
    {"prompt": {"text": "hello"}},
    {"n": 0},
    {"vllm_xargs": {"client_id": {"a": 1}}},
)


@dataclass
class Asked:
    """One request and what came of it.

    Attributes:
        kind: of :data:`KINDS`.
        name: in the server's request id.
        sent: when, by ``time.time``.
        ended: when the answer was whole, or refused, or the client had gone.
        status: of HTTP; 0 where none came.
        reasons: why its samples ended.
        tokens: generated, as the server says.
        error: what broke the connection.
    """

    kind: str
    name: str
    sent: float
    ended: float = 0.0
    status: int = 0
    reasons: tuple[str, ...] = ()
    tokens: int = 0
    error: str = ""

    @property
    def answered(self) -> bool:
        """Whether the client got all that it was to get."""
        if self.kind in REFUSED:
            return 400 <= self.status < 500
        if self.kind == "disconnect":
            return self.status == 200
        wanted = 2 if self.kind == "two" else 1
        return self.status == 200 and len(self.reasons) == wanted and self.tokens > 0


def body(kind: str, model: str, longest: int, draw: random.Random) -> bytes:
    """A request's body."""
    said: dict[str, Any] = {
        "model": model,
        "prompt": draw.choice(FORMS).format(draw.choice(ABOUT)),
        "max_tokens": min(1 + int(draw.expovariate(1 / 60)), longest // 2),
        "temperature": 1.0,
        "vllm_xargs": {"client_id": f"client-{draw.randrange(20)}"},
    }
    if kind in ("streamed", "disconnect"):
        said |= {"stream": True, "stream_options": {"include_usage": True}}
    if kind == "disconnect":
        said |= {"max_tokens": longest // 2, "ignore_eos": True}
    elif kind == "stop-string":
        said["stop"] = draw.choice([["e"], [".", "\n"], ["the"]])
    elif kind == "two":
        said["n"] = 2
    elif kind == "oversized":
        said["prompt"] = [5] * (longest + draw.randrange(1, 1000))
    elif kind == "wrong-type":
        said |= draw.choice(WRONG)
    text = json.dumps(said)
    return (text[: len(text) // 2] if kind == "bad-json" else text).encode()


async def ask(session: Any, url: str, asked: Asked, content: bytes, patience: float) -> Asked:
    """Send it; a client that hangs up does so ``patience`` seconds after the first token."""
    headers = {"content-type": "application/json", "x-request-id": asked.name}
    try:
        async with session.post(url + "/v1/completions", data=content, headers=headers) as answer:
            asked.status = answer.status
            if asked.kind == "disconnect" and answer.status == 200:
                await answer.content.readline()
                await asyncio.sleep(patience)
                answer.close()
            elif asked.kind == "streamed" and answer.status == 200:
                await _stream(answer, asked)
            else:
                _take(json.loads(await answer.read()), asked)
    except Exception as error:  # noqa: BLE001  # whatever breaks is looked at in the end
        asked.error = f"{type(error).__name__}: {error}"
        asked.status = 0
    asked.ended = time.time()
    return asked


async def _stream(answer: Any, asked: Asked) -> None:
    reasons: list[str] = []
    async for line in answer.content:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            reasons += [c["finish_reason"] for c in event["choices"] if c["finish_reason"]]
            if event.get("usage"):
                asked.tokens = event["usage"]["completion_tokens"]
    asked.reasons = tuple(reasons)


def _take(found: dict[str, Any], asked: Asked) -> None:
    if asked.status == 200:
        asked.reasons = tuple(choice["finish_reason"] for choice in found["choices"])
        asked.tokens = found["usage"]["completion_tokens"]
