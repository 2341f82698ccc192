"""The prompts, composed from the material beside this script.

    python benchmarks/answers/compose.py

Every prompt was written for this project, as it stands or as a form with fillings; nothing comes
from a data set. The same material gives the same ``prompts.jsonl``, which is what the rest reads.
A line is one thing a user says: ``id``, ``kind``, ``messages`` (the new ones: perhaps a system
message, and the user's), ``samples`` (how many answers are recorded), and for the turns of a
conversation ``session`` and ``turn`` (from 1).
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPTS = HERE / "prompts.jsonl"
REPEATED, OFTEN = 200, 5
"""So many prompts get so many answers, which shows how much one prompt's lengths differ."""
CONVERSED = 2
"""Times a conversation is held."""

Row = dict[str, Any]


class Fillings:
    """Goes through the values of each slot in a shuffled order, all of them before any twice."""

    def __init__(self, values: dict[str, list[str]], ranges: dict[str, list[int]], seed: str):
        self._random = random.Random(seed)
        self._values, self._ranges = values, ranges
        self._left: dict[str, list[str]] = {}

    def fill(self, form: str) -> str:
        """A form with all its slots filled."""
        slots = sorted({name for _, name, _, _ in Formatter().parse(form) if name})
        return form.format(**{slot: self._next(slot) for slot in slots})

    def pick(self, some: list[Any]) -> Any:
        """One of several."""
        return self._random.choice(some)

    def chance(self, share: float) -> bool:
        """Yes with this probability."""
        return self._random.random() < share

    def _next(self, slot: str) -> str:
        if slot in self._ranges:
            return str(self._random.randint(*self._ranges[slot]))
        if not self._left.get(slot):
            self._left[slot] = self._random.sample(self._values[slot], len(self._values[slot]))
        return self._left[slot].pop()


def compose() -> list[Row]:
    """All prompts, in the order of the file."""
    shared = _read("shared")["fill"]
    rows: list[Row] = []
    for path in sorted((HERE / "material").glob("*.toml")):
        if path.stem == "shared":
            continue
        material = _read(path.stem)
        values = shared | material.get("fill", {})
        fillings = Fillings(values, material.get("range", {}), material["kind"])
        make = _conversations if "scene" in material else _single
        rows += make(material, fillings)
    single = [row for row in rows if "session" not in row]
    for row in random.Random("repeated").sample(single, REPEATED):
        row["samples"] = OFTEN
    return rows


def _read(name: str) -> dict[str, Any]:
    with (HERE / "material" / f"{name}.toml").open("rb") as stream:
        return tomllib.load(stream)


def _single(material: dict[str, Any], fillings: Fillings) -> Iterator[Row]:
    kind, forms = material["kind"], material["forms"]
    said = list(dict.fromkeys(material.get("written", [])))
    turn = 0
    while len(said) < material["take"]:
        text = fillings.fill(forms[turn % len(forms)])
        turn += 1
        if text not in said:
            said.append(text)
        if turn > 50 * material["take"]:
            raise SystemExit(f"{kind}: no more than {len(said)} distinct prompts; add material")
    for i, text in enumerate(said, 1):
        messages = _messages(material, fillings, text)
        yield {"id": f"{kind}-{i:03}", "kind": kind, "messages": messages, "samples": 1}


def _conversations(material: dict[str, Any], fillings: Fillings) -> Iterator[Row]:
    kind, scenes = material["kind"], material["scene"]
    for i in range(material["take"]):
        scene = scenes[i % len(scenes)]
        chains = scene["next"]
        opening = scene["forms"][i // len(scenes) % len(scene["forms"])]
        chain = [opening, *chains[i // len(scenes) % len(chains)]]
        session = f"{kind}-{i + 1:03}"
        for turn, form in enumerate(chain, 1):
            text = fillings.fill(form)
            messages = (
                _messages(material, fillings, text)
                if turn == 1
                else [{"role": "user", "content": text}]
            )
            yield {
                "id": f"{session}-{turn}",
                "kind": kind,
                "session": session,
                "turn": turn,
                "messages": messages,
                "samples": CONVERSED,
            }


def _messages(material: dict[str, Any], fillings: Fillings, text: str) -> list[dict[str, str]]:
    said = [{"role": "user", "content": text}]
    if fillings.chance(material.get("system_share", 0)):
        return [{"role": "system", "content": fillings.pick(material["systems"])}, *said]
    return said


def main() -> None:
    """Write the file."""
    rows = compose()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    PROMPTS.write_text(lines, encoding="utf-8")
    answers = sum(row["samples"] for row in rows)
    print(f"{len(rows):,} prompts, {answers:,} answers to record: {PROMPTS.name}")


if __name__ == "__main__":
    main()
