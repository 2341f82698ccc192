"""A recording as a load: its last rows are sent, the rows before teach the predictor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from sagellm_lifetime import create_predictor, read_history
from sagellm_lifetime.core.hidden_states import COLUMNS, layer_of
from sagellm_lifetime.features.hidden_state import reduced
from sagellm_lifetime.replay.trace import TraceRequest, at_once, at_rate, make_trace


class Material(NamedTuple):
    """Parts of a recording, in the order of arrival.

    Attributes:
        train: what the predictor learns from: came before the load, and answers no prompt of it.
        early: the last rows before the load, to measure the engine's capacity with.
        load: what is sent.
    """

    train: pl.DataFrame
    early: pl.DataFrame
    load: pl.DataFrame


def read(path: Path) -> pl.DataFrame:
    """The rows of a recording that generated something, by arrival.

    Raises:
        SystemExit: it has no token ids.
    """
    frame = read_history(path).frame
    if "prompt_token_ids" not in frame.columns:
        raise SystemExit(f"{path}: no column prompt_token_ids (record with --record-content)")
    generated = (pl.col("actual_length") > 0) & pl.col("prompt_token_ids").is_not_null()
    return frame.filter(generated).sort("arrival_time", maintain_order=True)


def parts(frame: pl.DataFrame, requests: int, *, prompt: int, answer: int) -> Material:
    """Cut a recording.

    Args:
        frame: its rows by arrival.
        requests: rows of the load.
        prompt: longest prompt that the engine takes, tokens.
        answer: longest answer.

    Raises:
        SystemExit: too few rows.
    """
    fits = frame.filter(
        (pl.col("prompt_token_ids").list.len() <= prompt) & (pl.col("actual_length") <= answer)
    )
    load = fits.tail(requests)
    begin = load["arrival_time"][0]
    before = pl.col("arrival_time") < begin
    early = fits.filter(before).tail(requests // 2)
    train = frame.filter(before)
    if "prompt_id" in frame.columns:
        # Another answer to the same prompt says nearly all about its length.
        train = train.filter(~pl.col("prompt_id").is_in(load["prompt_id"].drop_nulls().implode()))
    if len(load) < requests or len(train) < requests:
        raise SystemExit(f"{len(frame)} rows are too few for a load of {requests}")
    return Material(train, early, load)


def trace_of(frame: pl.DataFrame, *, seed: int, cap: int) -> list[TraceRequest]:
    """Requests that come as a Poisson process, one a second, in the order of the rows."""
    made = make_trace(frame.drop("arrival_time"), seed=seed)
    # All are given the same cap: it says nothing of the length.
    return [replace(request, max_length=cap) for request in made]


def at_load(trace: Sequence[TraceRequest], rate: float | None) -> list[TraceRequest]:
    """The same requests, ``rate`` of them a second, or all at once."""
    return at_once(trace) if rate is None else at_rate(trace, rate)


def teach(train: pl.DataFrame, name: str, folder: Path, cap: int) -> Path:
    """Train a predictor and save it."""
    taught = train.with_columns(pl.lit(cap, pl.Int64).alias("max_length"))
    create_predictor(name).fit(taught).save(folder)
    return folder


def with_states(frame: pl.DataFrame, states: Path, source: str) -> pl.DataFrame:
    """Return a recording with its hidden states, reduced as a live engine does it.

    Args:
        frame: the recording.
        states: what ``record_hidden.py`` keeps beside its output (``.states.npz``).
        source: what a live engine says that it reads.

    Raises:
        SystemExit: some of its answers have no states.
    """
    with np.load(states) as saved:
        found = dict(zip(saved["ids"].tolist(), saved["states"], strict=True))
    missing = [name for name in frame["request_id"] if name not in found]
    if missing:
        raise SystemExit(f"{states}: no states of {len(missing)} answers, such as {missing[0]}")
    columns = [pl.lit(source).alias("hidden_source")]
    for k, name in enumerate(COLUMNS):
        read = (found[request_id][k] for request_id in frame["request_id"])
        values = [None if np.isnan(one[0]) else reduced(one).tolist() for one in read]
        columns.append(pl.Series(name, values, dtype=pl.List(pl.Float64)))
    return frame.with_columns(columns)


def source_of(model: Path) -> str:
    """Return what a live engine with this model says that it reads."""
    from sagellm_lifetime.vllm import hidden_watch

    from vllm.config import ModelConfig  # isort: skip

    config = ModelConfig(model=str(model), tokenizer=str(model), dtype="float32")
    layers = int(config.hf_text_config.num_hidden_layers)
    return hidden_watch.source_of(config, layer_of(layers))


def served_name(frame: pl.DataFrame) -> str:
    """What the model is called in the recording, so that the predictor knows it again."""
    if "model" not in frame.columns or frame["model"].drop_nulls().is_empty():
        return "model"
    return str(frame["model"].drop_nulls()[0])


def mean_area(trace: Sequence[TraceRequest]) -> float:
    """Memory-time of a request, in token-steps, on average."""
    prompt = np.array([request.prompt_length for request in trace], dtype=np.float64)
    output = np.array([request.output_length for request in trace], dtype=np.float64)
    return float((prompt * output + output * (output + 1) / 2).mean())
