"""Command ``predict``: JSON lines in, JSON lines out, one answer per line, as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sagellm_lifetime.cli.command_errors import CommandError
from sagellm_lifetime.core.errors import LifetimeError
from sagellm_lifetime.core.wording import counted

if TYPE_CHECKING:
    from sagellm_lifetime.predictor.base import Predictor

LONGEST: Final = 400
"""Maximum characters of a message, which may repeat a part of the line."""
LONGEST_LINE: Final = 1 << 26
"""Maximum bytes of a line; a prompt of a million tokens takes a tenth of it."""
LEVELS: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_REQUEST: Final = ("sequence_id", "token_ids", "current_length", "max_length", "prompt_features")
_COMPLETION: Final = ("sequence_id", "actual_length", "actual_time", "finish_reason")


_UNKNOWN: Final = (
    "no prediction of this sequence_id since it was last completed or discarded: predict it first"
)


class LineError(ValueError):
    """Raised for a line that cannot be answered."""


def predict(
    *,
    checkpoint: Annotated[
        Path,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="A trained predictor: a checkpoint folder, or an exported file.",
        ),
    ],
) -> None:
    """Answer requests from stdin on stdout: one JSON object per line, in and out.

    In: sequence_id, and as far as known token_ids, current_length, max_length, prompt_features.
    Out: the prediction with its quantiles and mean, in tokens that are still to come.

    A line with actual_length is a completion (sequence_id, actual_length, actual_time,
    finish_reason): it is learned from until the end of the stream.
    """
    from sagellm_lifetime.predictor.checkpoint import load_predictor

    predictor = load_predictor(checkpoint)
    lines, bad, first = 0, 0, ""
    for number, text in _lines():
        lines += 1
        try:
            answer = json.dumps(_answer(predictor, _parse(text)), allow_nan=False)
        except Exception as error:  # noqa: BLE001 - no line may end the stream
            bad += 1
            message = _message(error)
            first = first or f"line {number}: {message}"
            answer = json.dumps({"line": number, "error": message})
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
    if bad:
        raise CommandError(
            f"{bad:,} of {counted(lines, 'line')} could not be used, the first: {first}"
        )


def _message(error: Exception) -> str:
    """Return a bounded one-line message; it begins with the type of an unexpected error."""
    message = " ".join(str(error).split())
    if not isinstance(error, LineError | LifetimeError):
        message = f"{type(error).__name__}: {message}"
    return message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"


def _lines() -> Iterator[tuple[int, bytes]]:
    """Yield the lines of stdin with their numbers as they come, without blank ones.

    Only the beginning of a line that is too long is kept.
    """
    stream = sys.stdin.buffer
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        if line.strip():
            yield number, line


def _parse(text: bytes) -> dict[str, Any]:
    if len(text) > LONGEST_LINE:
        raise LineError(f"longer than {LONGEST_LINE} bytes")
    try:
        line = json.loads(text, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise LineError("not UTF-8 text") from None
    except LineError:
        raise
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise LineError("not JSON: nested too deep") from None
    except ValueError:  # Python reads no whole number of more than 4300 digits
        raise LineError("not JSON: a number of too many digits") from None
    if not isinstance(line, dict):
        raise LineError("not a JSON object")
    known = _COMPLETION if "actual_length" in line else _REQUEST
    for name in line:
        if name not in known:
            hint = "" if known is _COMPLETION else "; what else is known goes into prompt_features"
            raise LineError(f"unknown field {name!r}: known are {', '.join(known)}{hint}")
    if "sequence_id" not in line:
        raise LineError("no field 'sequence_id'")
    return line


def _no_number(name: str) -> float:
    raise LineError(f"not JSON: {name}")


def _answer(predictor: Predictor, line: dict[str, Any]) -> dict[str, Any]:
    if "actual_length" in line:
        return _learn(predictor, line)
    from sagellm_lifetime.core.protocol import PredictionRequest

    tokens, features = line.get("token_ids"), line.get("prompt_features")
    if tokens is not None and not (isinstance(tokens, list) and all(map(_is_int, tokens))):
        raise LineError("token_ids must be a list of whole numbers")
    if features is not None and not isinstance(features, dict):
        raise LineError("prompt_features must be an object")
    age, cap = line.get("current_length", 0), line.get("max_length")
    if not _is_int(age) or not (cap is None or _is_int(cap)):
        raise LineError("current_length and max_length must be whole numbers")
    request = PredictionRequest(_identity(line), tokens or [], age, cap, features)
    result = predictor.predict(request)
    answer: dict[str, Any] = {
        "sequence_id": line["sequence_id"],
        "estimated_remaining_tokens": result.estimated_remaining_tokens,
        "confidence": result.confidence,
        "estimated_time": result.estimated_time,
        "source": result.source,
    }
    if result.distribution is not None:
        answer["mean"] = result.distribution.mean()
        answer["quantiles"] = {str(q): result.distribution.quantile(q) for q in LEVELS}
    return answer


def _learn(predictor: Predictor, line: dict[str, Any]) -> dict[str, Any]:
    seconds = line.get("actual_time", 0.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise LineError("actual_time must be a number of seconds")
    if not _is_int(line["actual_length"]):
        raise LineError("actual_length must be a whole number")
    before = predictor.get_metrics()
    predictor.update(
        _identity(line),
        line["actual_length"],
        seconds,
        finish_reason=line.get("finish_reason", "stop"),
    )
    after = predictor.get_metrics()
    answer: dict[str, Any] = {"sequence_id": line["sequence_id"], "learned": True}
    if after["unknown_updates"] > before["unknown_updates"]:
        answer |= {"learned": False, "reason": _UNKNOWN}
    return answer


def _identity(line: dict[str, Any]) -> int | str:
    identity = line["sequence_id"]
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise LineError("sequence_id must be a whole number or a string")
    return identity


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
