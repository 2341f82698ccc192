"""Conversion of vLLM's requests to prediction requests and history rows.

A client's features (``vllm_xargs`` over HTTP, ``extra_args`` in Python) are used if they have the
right form and left out if not, so that a client cannot break predictions. Who the client is, is
taken from them only if nothing else was chosen (:mod:`~sagellm_lifetime.vllm.client_source`).
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from sagellm_lifetime.core.protocol import PredictionRequest
from sagellm_lifetime.features.hidden_state import SOURCE
from sagellm_lifetime.features.request import PREFIX_HEAD
from sagellm_lifetime.vllm.client_source import named_client

if TYPE_CHECKING:
    from sagellm_lifetime.vllm.model_signals import ModelSignals

_NUMBER: Final = (int, float)
_LONGEST_NAME: Final = 256
_MOST_TURNS: Final = 1_000_000
_PREFIX_TOKENS: Final = 512
"""Tokens between two of the kept block hashes, as in public traces (Mooncake)."""
_HASH_BITS: Final = 2**63 - 1


class RequestAdapter:
    """A converter of requests, with the settings that all requests of an engine share.

    Args:
        model: served name.
        max_model_len: tokens of prompt and output together.
        block_size: tokens per block hash.
        signals: what the model itself says; ``None`` if it is not watched.
        trusts_body: True to believe what a request itself says about its client.
    """

    def __init__(
        self,
        model: str,
        max_model_len: int,
        block_size: int,
        signals: ModelSignals | None = None,
        *,
        trusts_body: bool = True,
    ) -> None:
        self._model = model
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._stride = max(1, _PREFIX_TOKENS // block_size)
        self._signals = signals
        self._trusts_body = trusts_body

    def __call__(self, request: Any) -> PredictionRequest:
        """Return the prediction request with the prompt and all generated tokens."""
        return PredictionRequest(
            request.request_id,
            list(request._all_token_ids) if request.prompt_token_ids else [],
            request.num_output_tokens,
            self.cap(request),
            {**self.features(request), **self._seen(request)},
        )

    def at_arrival(self, request: Any) -> PredictionRequest:
        """Return the prediction request as it was on arrival, without generated tokens."""
        prompt = request._all_token_ids[: request.num_prompt_tokens]
        return PredictionRequest(
            request.request_id,
            prompt if request.prompt_token_ids else [],
            0,
            self.cap(request),
            self.features(request),
        )

    def since_arrival(self, request: Any) -> PredictionRequest:
        """Return the prediction request with the generated tokens alone.

        If they are as many as the prompt's, the prompt is included, as a predictor tells the two
        apart by their number.
        """
        generated = list(request._output_token_ids)
        if len(generated) == request.num_prompt_tokens:
            return self(request)
        return PredictionRequest(
            request.request_id, generated, len(generated), self.cap(request), self._seen(request)
        )

    def _seen(self, request: Any) -> dict[str, Any]:
        if self._signals is None:
            return {}
        return _of_adapter(self._signals.seen(request.request_id), request)

    def cap(self, request: Any) -> int:
        """Return the largest number of tokens that the request may generate."""
        room = self._max_model_len - request.num_prompt_tokens
        return max(min(request.max_tokens, room), request.num_output_tokens, 1)

    def who(self, request: Any) -> dict[str, Any]:
        """Return the features that identify model, client and prefix, as far as they are known."""
        extra = request.sampling_params.extra_args
        lora, session = request.lora_request, request.session_id
        features: dict[str, Any] = {"model": self._model if lora is None else lora.lora_name}
        if extra or session is not None:
            extra = extra or {}
            client = extra.get("client_id") if self._trusts_body else named_client(extra)
            features |= _client_features(extra, client, session)
        if request.block_hashes:
            prefix = self.prefix(request)
            if prefix:
                features["prefix_hashes"] = prefix
        return features

    def temperature(self, request: Any) -> float | None:
        """Return the sampling temperature, or None if it is not a finite number."""
        temperature = request.sampling_params.temperature
        return (
            float(temperature)
            if isinstance(temperature, _NUMBER) and isfinite(temperature)
            else None
        )

    def prefix(self, request: Any) -> list[int]:
        """Return hashes of the prompt's prefixes, one per 512 tokens; none without prefix cache."""
        blocks = request.num_prompt_tokens // self._block_size
        hashes = request.block_hashes[self._stride - 1 : blocks : self._stride]
        return [
            int.from_bytes(block_hash[:8], "little") & _HASH_BITS
            for block_hash in hashes[:PREFIX_HEAD]
        ]

    def features(self, request: Any) -> dict[str, Any]:
        """Return the ``prompt_features`` that an engine knows."""
        features = self.who(request)
        features["prompt_length"] = request.num_prompt_tokens
        features["arrival_time"] = request.arrival_time
        temperature = self.temperature(request)
        if temperature is not None:
            features["temperature"] = temperature
        if request.structured_output_request is not None:
            features["response_format"] = "json"
        return features

    def row(
        self,
        request: Any,
        seconds: float,
        reason: str,
        content: bool,
        signals: dict[str, Any],
    ) -> dict[str, Any]:
        """Return a completion as a row of the history format.

        Args:
            request: vLLM's, which has ended.
            seconds: since its arrival.
            reason: ``stop``, ``length``, ``abort`` or ``error``.
            content: True to include token ids.
            signals: columns of the model's own signals.
        """
        row = self.who(request) | _of_adapter(signals, request)
        sample, mark, parent = request.request_id.partition("_")
        if mark and sample.isdecimal():  # vLLM's id of one of n samples
            row["prompt_id"], row["sample"] = parent, int(sample)
        row["request_id"] = request.request_id
        row["arrival_time"] = request.arrival_time
        row["prompt_length"] = request.num_prompt_tokens
        row["max_length"] = self.cap(request)
        row["actual_length"] = request.num_output_tokens
        row["actual_time"] = seconds
        row["finish_reason"] = reason
        row["temperature"] = self.temperature(request)
        if content:
            row["prompt_token_ids"] = list(request.prompt_token_ids or ())
            row["output_token_ids"] = list(request._output_token_ids)
        return row


def _of_adapter(signals: dict[str, Any], request: Any) -> dict[str, Any]:
    """Return signals whose source names the LoRA adapter: it changes what the states mean."""
    if SOURCE in signals and request.lora_request is not None:
        return signals | {SOURCE: f"{signals[SOURCE]} {request.lora_request.lora_name}"}
    return signals


def _client_features(extra: dict[str, Any], client: Any, session: Any) -> dict[str, Any]:
    """Return the valid client features, with the engine's session id if the client gave none."""
    names = {"client_id": client, "session_id": extra.get("session_id")}
    if names["session_id"] is None:
        names["session_id"] = session
    features: dict[str, Any] = {
        name: str(value)[:_LONGEST_NAME]
        for name, value in names.items()
        if isinstance(value, str | int) and not isinstance(value, bool)
    }
    turn = extra.get("turn")
    if type(turn) is int and 0 <= turn <= _MOST_TURNS:
        features["turn"] = turn
    return features
