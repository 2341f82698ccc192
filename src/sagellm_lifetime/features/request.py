"""The features of a request at admission, reduced to numbers and hashed keys.

No content is kept: token ids and text become bucket numbers and counts.

Recognised ``prompt_features`` keys, all optional: prompt_length, prompt_text, output_text, model,
client_id, session_id, turn, arrival_time, prefix_hashes, temperature, has_tools, response_format,
enable_thinking, eos_logprob, entropy, hidden_state, hidden_source. Unknown keys are ignored. The
signals eos_logprob and entropy are numbers (as of now), or lists with an entry for the generated
tokens 1–16, 17–32, … (``core/logit_signals.py``); ``features/hidden_state.py`` reads the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import Any, Final

from sagellm_lifetime.core.errors import RequestError, shown
from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.core.values import (
    LARGEST_AGE,
    as_list,
    as_sequence_id,
    number,
    whole,
    whole_or_exact,
)
from sagellm_lifetime.features.name_keys import NameKeys

PREFIX_HEAD = 8
"""Leading prefix blocks kept: enough to distinguish a system prompt from a conversation."""
_LARGEST_CAP: Final = 2**63 - 1
"""Largest ``max_length``: some engines write "no cap" as ``sys.maxsize``."""
_BLOCK_BITS: Final = 2**63 - 1
_HOTTEST: Final = 10.0
_LONGEST_NAME: Final = 128
"""Characters of a model's name that are kept: it is stored with the seconds per token."""


@dataclass(slots=True)
class RequestFeatures:
    """Numbers and keys of one request.

    ``None`` means unknown, which is not zero. Keys are keyed hashes
    (:class:`~sagellm_lifetime.features.name_keys.NameKeys`), 0 for unknown; that of a session is of
    the pair of client and session. Lengths are in tokens.
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
    prompt_score: float | None = None
    """Logarithm of the length that the prompt suggests; set by ``models.prompt_score``."""
    prompt_key: int = 0
    """Checksum of the terms of the prompt, 0 for unknown; set by ``models.prompt_score``."""
    hidden_score: float | None = None
    """Score of the model's hidden state, a log length; set by ``models.hidden_score``."""


def client_key(name: Any, keys: NameKeys) -> int:
    """Return the key of a client, 0 for ``None``.

    Raises:
        ValueError: it is no name.
    """
    return 0 if name is None else keys.key("client", _name(name))


def read_request(request: PredictionRequest, keys: NameKeys) -> RequestFeatures:
    """Return the features of one request.

    Args:
        request: the request.
        keys: keys of its names.

    Raises:
        RequestError: a recognised key has an impossible value.
    """
    given = request.prompt_features
    tokens = len(request.token_ids) - request.current_length
    if not given:
        return RequestFeatures(tokens if tokens > 0 else None, request.max_length)
    get = given.get
    model, client, session = get("model"), get("client_id"), get("session_id")
    length, turn, arrival = get("prompt_length"), get("turn"), get("arrival_time")
    temperature, format_, blocks = get("temperature"), get("response_format"), get("prefix_hashes")
    try:
        _text(get("prompt_text"))
        _text(get("output_text"))
        model = None if model is None else _model(model)
        owner = client_key(client, keys)
        return RequestFeatures(
            _length(length) if length is not None else (tokens if tokens > 0 else None),
            request.max_length,
            model,
            0 if model is None else keys.key("model", model),
            owner,
            # The client is part of the key, so that no client can name the session of another one.
            0 if session is None else keys.key("session", _name(session), owner),
            None if turn is None else _count(turn),
            None if arrival is None else _real(arrival),
            None if temperature is None else _temperature(temperature),
            _flag(get("has_tools")),
            None if format_ is None else _flag(format_ != "text"),
            _flag(get("enable_thinking")),
            () if blocks is None else _prefix(blocks),
        )
    except Exception as error:  # a value may be an object whose own code fails
        raise _refusal(request) from error


def _name(value: Any) -> str:
    """Return a name or a number as text. Raise :class:`ValueError` for other collections."""
    if type(value) is str:
        return value
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        raise ValueError
    return str(value)


def _model(value: Any) -> str:
    """Return the name of a model, a long one as its beginning and its hash."""
    name = _name(value)
    if len(name) > _LONGEST_NAME:
        rest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        name = f"{name[: _LONGEST_NAME - len(rest) - 1]} {rest}"
    return name


def _text(value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError


def _real(value: Any) -> float:
    """Return a finite number, also from text, as in a history."""
    if type(value) is float and isfinite(value):
        return value
    real = number(float(value) if isinstance(value, str) else value)
    if real is None:
        raise ValueError
    return real


def _temperature(value: Any) -> float:
    """Return a temperature within bounds: it is not scaled, and 1e19 would outweigh all others."""
    return min(max(_real(value), -_HOTTEST), _HOTTEST)


def _count(value: Any) -> int:
    count = value if type(value) is int else whole_or_exact(_real(value))
    if count is None or abs(count) > LARGEST_AGE:
        raise ValueError
    return count


def _length(value: Any) -> int:
    if type(value) is int and 0 <= value <= LARGEST_AGE:
        return value
    length = _count(value)
    if length < 0:
        raise ValueError
    return length


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _prefix(values: Any) -> tuple[int, ...]:
    """Return the leading hashes, of any sign and size, as int64 of 0 or more."""
    head = (values if type(values) is list else as_list("prefix_hashes", values))[:PREFIX_HEAD]
    hashes = [block if type(block) is int else whole(block) for block in head]
    if None in hashes:
        raise ValueError
    return tuple([block & _BLOCK_BITS for block in hashes if block is not None])


_READERS: Final[dict[str, tuple[Callable[[Any], object], str]]] = {
    "prompt_text": (_text, "text"),
    "output_text": (_text, "text"),
    "model": (_model, "a name"),
    "client_id": (_name, "a name"),
    "session_id": (_name, "a name"),
    "prompt_length": (_length, f"a whole number from 0 to {LARGEST_AGE}"),
    "turn": (_count, f"a whole number up to {LARGEST_AGE}"),
    "arrival_time": (_real, "a finite number"),
    "temperature": (_real, "a finite number"),
    "has_tools": (bool, "true or false"),
    "response_format": (lambda value: bool(value != "text"), "a name or an object"),
    "enable_thinking": (bool, "true or false"),
    "prefix_hashes": (_prefix, "a list of whole numbers"),
}
"""The reader of each key and what it must be, used to name the key that was refused."""


def _refusal(request: PredictionRequest) -> RequestError:
    given = request.prompt_features or {}
    place = f"prompt_features of {shown(request.sequence_id)}"
    for key, (read, wanted) in _READERS.items():
        value = given.get(key)
        try:
            if value is not None:
                read(value)
        except Exception:  # noqa: BLE001 - the value's own code failed
            # Text may be a piece of a prompt, so only its type is shown.
            shown_value = f"not {type(value).__name__}" if read is _text else shown(value)
            return RequestError(f"{place}: {key} must be {wanted}: {shown_value}")
    return RequestError(f"{place}: they cannot be read")


def check_request(request: PredictionRequest) -> PredictionRequest:
    """Return the request with plain ints, lists and dicts, itself where they are.

    NumPy's integers and arrays become Python's here, since their integers overflow where ints do
    not. Of the tokens only the newest is checked, for every predictor and at every age: a prompt
    may be long, and few tokens are read (see :mod:`.evidence`).

    Raises:
        RequestError: negative, non-integer or absurd lengths, an id that is no int or str, tokens
            that are no list, a newest token that is no integer of 64 bits, features that are no
            mapping.
    """
    try:
        name, age, cap = request.sequence_id, request.current_length, request.max_length
        tokens, given = request.token_ids, request.prompt_features
    except AttributeError:
        raise RequestError(f"a request must be a PredictionRequest: {shown(request)}") from None
    if (
        (type(name) is str or type(name) is int)
        and type(age) is int
        and 0 <= age <= LARGEST_AGE
        and (cap is None or (type(cap) is int and 0 <= cap <= _LARGEST_CAP))
        and type(tokens) is list
        and (not tokens or (type(tokens[-1]) is int and -(2**63) <= tokens[-1] < 2**63))
        and (given is None or type(given) is dict)
    ):
        return request
    return _plain_request(name, tokens, age, cap, given)


def _plain_request(name: Any, tokens: Any, age: Any, cap: Any, given: Any) -> PredictionRequest:
    """Return the request of values of any type as plain Python values."""
    name, length, limit = as_sequence_id(name), whole(age), whole(cap)
    if length is None or not 0 <= length <= LARGEST_AGE:
        raise RequestError(
            f"current_length of {shown(name)} must be an int from 0 to {LARGEST_AGE}: {shown(age)}"
        )
    if cap is not None and (limit is None or not 0 <= limit <= _LARGEST_CAP):
        raise RequestError(
            f"max_length of {shown(name)} must be None or an int from 0 to {_LARGEST_CAP}: "
            f"{shown(cap)}"
        )
    if given is not None and not isinstance(given, Mapping):
        raise RequestError(f"prompt_features of {shown(name)} must be a dict: {shown(given)}")
    ids = [] if tokens is None else as_list("token_ids", tokens)
    newest = whole(ids[-1]) if ids else 0
    if newest is None or not -(2**63) <= newest < 2**63:
        raise RequestError(f"token_ids of {shown(name)} must be a list of integers of 64 bits")
    return PredictionRequest(name, ids, length, limit, None if given is None else dict(given))
