"""Lines given to ``predict``: every line has an answer, and no line ends the stream."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from fuzzing import LONGEST, need
from fuzzing.values import as_json, damaged
from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.cli.predict import predict

LINES = 20
"""In one stream."""


def setup(folder: Path) -> Path:
    """Return a checkpoint."""
    predictor = create_predictor("survival", seed=0)
    for i in range(40):
        predictor.predict(PredictionRequest(i, [], 0, 500, {"client_id": "c"}))
        predictor.update(i, 50 + i, 1.0)
    predictor.save(folder / "checkpoint")
    return folder / "checkpoint"


def _line(rng: Random) -> bytes:
    identity = rng.choice(["a", "b", 7, "é"])
    said: dict[str, Any] = {"sequence_id": identity}
    if rng.random() < 0.4:
        said |= {
            "actual_length": rng.randrange(300),
            "actual_time": rng.choice([1.0, 1e308, 1e-320]),
        }
        said["finish_reason"] = rng.choice(["stop", "length", "abort"])
    else:
        said |= {"current_length": rng.randrange(50), "max_length": rng.choice([None, 500])}
        said["prompt_features"] = {"client_id": "c", "prompt_length": rng.randrange(900)}
    if rng.random() < 0.5:
        said[rng.choice(list(said))] = as_json(rng)
    text = json.dumps(said, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    text = damaged(rng, text) if rng.random() < 0.4 else text
    return text.replace(b"\n", b" ")


def attempt(checkpoint: Path, rng: Random) -> str:
    """Answer a stream of lines, the last of which is sound."""
    lines = [*(_line(rng) for _ in range(LINES)), b'{"sequence_id": "last"}']
    given = [line for line in lines if line.strip()]
    out = io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n"))
    with patch.object(sys, "stdin", stdin), patch.object(sys, "stdout", out):
        try:
            predict(checkpoint=checkpoint)
        except CommandError as error:
            need(len(str(error)) <= LONGEST, f"a message of {len(str(error))} characters")
    answers = [json.loads(line) for line in out.getvalue().splitlines()]
    need(len(answers) == len(given), f"{len(answers)} answers to {len(given)} lines")
    need("estimated_remaining_tokens" in answers[-1], f"the last one: {answers[-1]}")
    bad = sum("error" in answer for answer in answers)
    return "refused" if bad > len(answers) / 2 else "taken"
