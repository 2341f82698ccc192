"""What a request says at admission, reduced to numbers and hashed keys.

Nothing of the content survives this step: token ids and text become bucket numbers and counts.

Recognised ``prompt_features`` keys, all optional: prompt_length, prompt_text, output_text, model,
client_id, session_id, turn, arrival_time, prefix_hashes, temperature, has_tools, response_format,
enable_thinking, eos_logprob, entropy, hidden_state. Unknown keys are ignored. The two signals are
numbers (as of now), or lists with an entry for the generated tokens 1–16, 17–32, … (signals.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from operator import index
from typing import Any, Final
from zlib import crc32

from sagellm_lifetime.core.errors import RequestError
from sagellm_lifetime.core.protocol import PredictionRequest

_ID_TYPES = (int, str)
PREFIX_HEAD = 8
"""Leading prefix blocks kept: enough to tell a system prompt from a conversation."""
_LARGEST_AGE: Final = 2**53
_LARGEST_CAP: Final = 2**63 - 1
"""``sys.maxsize`` is how some engines say "no cap"."""
_BLOCK_BITS: Final = 2**63 - 1
_HOTTEST: Final = 10.0


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


@lru_cache(maxsize=256)
def _model_key(model: str) -> int:
    """Of few models there are many requests."""
    return key_of("model", model)


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
    format_, blocks = get("response_format"), get("prefix_hashes")
    try:
        model = None if model is None else str(model)
        length = get("prompt_length")
        turn, arrival, temperature = get("turn"), get("arrival_time"), get("temperature")
        features = RequestFeatures(
            _count(length) if length is not None else (tokens if tokens > 0 else None),
            request.max_length,
            model,
            0 if model is None else _model_key(model),
            0 if client is None else key_of("client", client),
            0 if session is None else key_of("session", session),
            None if turn is None else _count(turn),
            None if arrival is None else _finite(float(arrival)),
            None if temperature is None else _temperature(float(temperature)),
            _flag(get("has_tools")),
            None if format_ is None else format_ != "text",
            _flag(get("enable_thinking")),
            # Hashes may be negative or have more than 64 bits; what is kept is an int64 >= 0.
            tuple([int(h) & _BLOCK_BITS for h in blocks[:PREFIX_HEAD]]) if blocks else (),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"prompt_features of {request.sequence_id!r}: {error}") from error
    if features.prompt_length is not None and features.prompt_length < 0:
        raise RequestError(
            f"prompt_length of {request.sequence_id!r} is negative: {features.prompt_length}"
        )
    return features


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _temperature(value: float) -> float:
    """Bounded, for it enters as it is: one of 1e19 would outweigh all others together."""
    return min(max(_finite(value), -_HOTTEST), _HOTTEST)


def _count(value: Any) -> int:
    count = int(value)
    if abs(count) > _LARGEST_AGE:
        raise ValueError("a count over 2^53")
    return count


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def check_request(request: PredictionRequest) -> PredictionRequest:
    """The request with plain ints, itself where they are; impossible numbers are refused.

    NumPy integers become ints here, since theirs overflow where ints do not.

    Raises:
        RequestError: negative, non-integer or absurd lengths, or an id that is no int or str.
    """
    name, age, cap = request.sequence_id, request.current_length, request.max_length
    said_age, said_cap = age, cap
    if type(age) is not int or (cap is not None and type(cap) is not int):
        age = _as_int(age)
        cap = None if cap is None else _as_int(cap)
        request = replace(request, current_length=age, max_length=cap)
    if not 0 <= age <= _LARGEST_AGE:
        raise RequestError(
            f"current_length of {name!r} must be an int from 0 to {_LARGEST_AGE}: {said_age}"
        )
    if cap is not None and not 0 <= cap <= _LARGEST_CAP:
        raise RequestError(
            f"max_length of {name!r} must be None or an int from 0 to {_LARGEST_CAP}: {said_cap}"
        )
    if not isinstance(name, (int, str)):
        try:
            request = replace(request, sequence_id=index(name))
        except TypeError:
            raise RequestError(f"sequence_id must be an int or a str: {name!r}") from None
    return request


def _as_int(value: Any) -> int:
    """An integer of any kind; -1, which is refused, for what is none (floats and booleans)."""
    try:
        return -1 if isinstance(value, bool) else index(value)
    except TypeError:
        return -1
