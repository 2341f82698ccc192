"""Rebuild the requests of a history: only what an engine would have known at an age."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT
from sagellm_lifetime.core.logit_signals import SIGNAL_EVERY, SIGNALS
from sagellm_lifetime.core.protocol import PredictionRequest, SequenceId

FEATURES: Final = (
    "prompt_length",
    "prompt_text",
    "model",
    "client_id",
    "session_id",
    "turn",
    "arrival_time",
    "prefix_hashes",
    "temperature",
    "has_tools",
    "response_format",
    "enable_thinking",
    "hidden_source",
)
"""Columns that are passed on as ``prompt_features`` where they are not null."""


class HistoryRequests:
    """The requests of a frame, at any age.

    ``token_ids`` are the prompt's ids and the first ``age`` generated ids, if the frame has them;
    without generated ids they are the prompt's at age 0 and empty later (a prompt could be taken
    for generated tokens).

    The signals (``eos_logprob``, ``entropy``) are the entries that are complete at ``age``, the
    readings of the hidden state those that an engine has by then: at age 0 the one after prefill.

    Without generated ids, ``output_text`` is cut at the share ``age / actual_length`` of its
    characters. The total length only locates the end of the text of ``age`` tokens; it reveals the
    average number of characters per token and nothing of the length.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        self._lengths: list[int] = frame["actual_length"].to_list()
        self._caps = _column(frame, "max_length")
        self._prompt_ids = _column(frame, "prompt_token_ids")
        self._output_ids = _column(frame, "output_token_ids")
        self._text = _column(frame, "output_text")
        self._features = _features(frame)
        self._signals = {name: _column(frame, name) for name in SIGNALS if name in frame.columns}
        self._hidden = [
            (age, _column(frame, name))
            for age, name in zip(READ_AT, COLUMNS, strict=True)
            if name in frame.columns
        ]
        self.has_content = any(self._output_ids) or any(self._text)
        """True if any row has generated tokens or text."""

    def __len__(self) -> int:
        return len(self._lengths)

    def request(
        self, row: int, age: int = 0, sequence_id: SequenceId | None = None
    ) -> PredictionRequest:
        """Return the request of a row at an age in tokens; its id is the row unless given."""
        return PredictionRequest(
            sequence_id=row if sequence_id is None else sequence_id,
            token_ids=self._tokens(row, age),
            current_length=age,
            max_length=self._caps[row],
            prompt_features=self._prompt_features(row, age) or None,
        )

    def _tokens(self, row: int, age: int) -> list[int]:
        prompt, output = self._prompt_ids[row] or [], self._output_ids[row] or []
        if len(output) >= age > 0:
            return [*prompt, *output[:age]]
        return list(prompt) if age == 0 else []

    def _prompt_features(self, row: int, age: int) -> dict[str, Any]:
        features = dict(self._features[row])
        for name, column in self._signals.items():
            entries = (column[row] or [])[: age // SIGNAL_EVERY]
            if entries:
                features[name] = entries
        vectors = {at: column[row] for at, column in self._hidden if at <= age and column[row]}
        if vectors:
            features["hidden_state"] = vectors
        text = self._text[row]
        if text and age and not self._output_ids[row]:
            features["output_text"] = text[: len(text) * age // max(self._lengths[row], 1)]
        return features


def _column(frame: pl.DataFrame, name: str) -> list[Any]:
    return frame[name].to_list() if name in frame.columns else [None] * len(frame)


def _features(frame: pl.DataFrame) -> list[dict[str, Any]]:
    names = [name for name in FEATURES if name in frame.columns]
    if not names:
        return [{} for _ in range(len(frame))]
    rows = frame.select(names).iter_rows()
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in rows
    ]
