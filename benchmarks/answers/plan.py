"""What is recorded: every prompt, how often, at which temperature and with which seed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

PROMPTS = Path(__file__).resolve().parent / "prompts.jsonl"
TEMPERATURES = (0.5, 0.8, 1.0)
LOW_TEMPERATURES = (0.0, 0.2)

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to record.

    Attributes:
        key: its name, unique in the plan.
        prompt_id: the same for all samples of one prompt, and for conversations that begin alike.
            Later turns follow other answers each time one is held, so they are other prompts.
        sample: number of the sample, from 0.
        kind: of prompt.
        messages: what is new: a system message perhaps, and the user's.
        seed: of the sampling.
        temperature: of the sampling; one for all samples of a prompt, or all turns of a
            conversation.
        session: of a conversation, each time it is held another.
        turn: from 1; ``None`` for a prompt that stands alone.
        after: the key of the turn before.
    """

    key: str
    prompt_id: str
    sample: int
    kind: str
    messages: tuple[Message, ...]
    seed: int
    temperature: float
    session: str | None = None
    turn: int | None = None
    after: str | None = None

    @property
    def prompt_text(self) -> str:
        """What the user says."""
        return self.messages[-1]["content"]


def plan(prompts: Path = PROMPTS, *, low: bool = False) -> list[Ask]:
    """All answers, in a shuffled order that is always the same.

    The turns of a conversation come in their order; the kinds are mixed, as in real traffic.

    Args:
        prompts: file of the prompts.
        low: True for low temperatures. Every conversation is held once then, and a prompt at
            temperature 0 is asked once, since its answer is always the same.
    """
    temperatures = LOW_TEMPERATURES if low else TEMPERATURES
    lines = prompts.read_text(encoding="utf-8").splitlines()
    groups: dict[str, list[dict[str, Any]]] = {}
    same: dict[str, str] = {}
    for row in map(json.loads, lines):
        groups.setdefault(row.get("session", row["id"]), []).append(row)
        row["prompt_id"] = same.setdefault(json.dumps(row["messages"]), row["id"])
    held = []
    for name, rows in groups.items():
        temperature = temperatures[crc32(name.encode()) % len(temperatures)]
        session = rows[0].get("session")
        once = low and (session is not None or not temperature)
        samples = range(1 if once else rows[0]["samples"])
        held += [[_ask(row, session, one, temperature) for row in rows] for one in samples]
    random.Random("plan").shuffle(held)
    return [ask for asks in held for ask in asks]


def _ask(row: dict[str, Any], session: str | None, sample: int, temperature: float) -> Ask:
    key, turn = f"{row['id']}/{sample}", row.get("turn")
    repeated = turn is None or turn == 1
    return Ask(
        key=key,
        prompt_id=row["prompt_id"] if repeated else key,
        sample=sample,
        kind=row["kind"],
        messages=tuple(row["messages"]),
        seed=crc32(key.encode()),
        temperature=temperature,
        session=None if session is None else f"{session}/{sample}",
        turn=turn,
        after=None if repeated else f"{session}-{turn - 1}/{sample}",
    )


def check(asks: Sequence[Ask], done: set[str]) -> None:
    """Refuse a recording of another plan.

    Raises:
        SystemExit: an answer is there that nobody asked for.
    """
    strange = sorted(done - {ask.key for ask in asks})
    if strange:
        raise SystemExit(f"error: the recording has {strange[0]!r}, which is not planned: move it")
