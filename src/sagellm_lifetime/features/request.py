"""What a request says at admission, reduced to numbers and hashed keys.

Nothing of the content survives this step: token ids and text become bucket numbers and counts.

Recognised ``prompt_features`` keys, all optional: prompt_length, prompt_text, output_text, model,
client_id, session_id, turn, arrival_time, prefix_hashes, temperature, has_tools, response_format,
enable_thinking, eos_logprob, entropy, hidden_state. Unknown keys are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest

PREFIX_HEAD = 8
"""Leading prefix blocks kept: enough to tell a system prompt from a conversation."""


@dataclass(slots=True)
class RequestFeatures:
    """Numbers and keys of one request; ``None`` is "not said", which is not zero.

    Keys are 32-bit hashes, 0 for "not said".
    """

    prompt_length: int | None = None
    max_length: int | None = None
    model: str | None = None
    model_key: int = 0
    client_key: int = 0
    session_key: int = 0
    turn: int | None = None
    arrival_time: float | None = None
    temperature: float | None = None
    has_tools: bool | None = None
    json_format: bool | None = None
    thinking: bool | None = None
    prefix_head: tuple[int, ...] = ()


def key_of(kind: str, value: Any) -> int:
    """Stable 32-bit hash of a name (never 0), the same in every process."""
    return crc32(f"{kind}={value}".encode("utf-8", "surrogatepass")) or 1


def read_request(request: PredictionRequest) -> RequestFeatures:
    """Features of one request.

    Raises:
        RequestError: when a recognised key has a value that cannot be.
    """
    said = request.prompt_features
    tokens = len(request.token_ids) - request.current_length
    if not said:
        return RequestFeatures(tokens if tokens > 0 else None, request.max_length)
    get = said.get
    model, client, session = get("model"), get("client_id"), get("session_id")
    try:
        length = get("prompt_length")
        turn, arrival, temperature = get("turn"), get("arrival_time"), get("temperature")
        features = RequestFeatures(
            int(length) if length is not None else (tokens if tokens > 0 else None),
            request.max_length,
            None if model is None else str(model),
            0 if model is None else key_of("model", model),
            0 if client is None else key_of("client", client),
            0 if session is None else key_of("session", session),
            None if turn is None else int(turn),
            None if arrival is None else float(arrival),
            None if temperature is None else float(temperature),
            _flag(get("has_tools")),
            None if get("response_format") is None else get("response_format") != "text",
            _flag(get("enable_thinking")),
            tuple(map(int, (get("prefix_hashes") or ())[:PREFIX_HEAD])),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"prompt_features of {request.sequence_id!r}: {error}") from error
    if features.prompt_length is not None and features.prompt_length < 0:
        raise RequestError(
            f"prompt_length of {request.sequence_id!r} is negative: {features.prompt_length}"
        )
    return features


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def check_request(request: PredictionRequest) -> None:
    """Refuse impossible numbers with one line.

    Raises:
        RequestError: negative or non-integer lengths, or an unhashable id.
    """
    age, cap = request.current_length, request.max_length
    if not _is_count(age):
        raise RequestError(f"current_length of {request.sequence_id!r} must be an int >= 0: {age}")
    if cap is not None and not _is_count(cap):
        raise RequestError(
            f"max_length of {request.sequence_id!r} must be None or an int >= 0: {cap}"
        )
    if not isinstance(request.sequence_id, (int, str)):
        raise RequestError(f"sequence_id must be an int or a str: {request.sequence_id!r}")


def _is_count(value: Any) -> bool:
    if type(value) is int:
        return value >= 0
    # NumPy integers count as integers; floats and booleans do not.
    return hasattr(value, "__index__") and not isinstance(value, bool) and value >= 0
