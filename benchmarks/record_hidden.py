"""Hidden states of the recorded answers: teacher-forced through the model, a few numbers each.

    python tools/fetch_model.py smollm2 models/smollm2
    PYTHONPATH=src python benchmarks/record_hidden.py models/smollm2 --output smollm2-hidden.parquet

Each recorded prompt and the first 63 tokens of its answer go once through the lower two thirds of
the model. What is read is the residual stream after block 20 of 30: of the last prompt token, and
the means over the inputs behind which 32 and 64 tokens were generated (the last 16 of each). The
states are centred, and each of the three is reduced to its own principal components, which are made
of the states alone, without a length. Needs ``transformers``. About a quarter of an hour on one
core; an interrupted run goes on where it stopped, also when there are more answers by then. With
``--low`` those of the recording at low temperatures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from common import say

from sagellm_lifetime import read_history
from sagellm_lifetime.core.hidden_states import COLUMNS, READ_AT, WINDOW, layer_of
from sagellm_lifetime.workloads.recorded import recorded

COMPONENTS = 16
BATCH_TOKENS = 4096
SAVED_EVERY = 5
Span = tuple[int, int]


class States:
    """The lower blocks of a model, from token ids to the residual stream.

    Args:
        folder: folder of the model.
    """

    def __init__(self, folder: Path) -> None:
        from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

        ready_for_vllm()  # the same broken companions of PyTorch break transformers

        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model
        layers = self._model.layers
        self.blocks = layer_of(len(layers))
        self._model.layers = layers[: self.blocks]
        self._model.norm = torch.nn.Identity()

    def __call__(self, sequences: list[list[int]]) -> list[np.ndarray]:
        """Return the states of each sequence, float32 of shape ``(tokens, width)``."""
        torch = self._torch
        longest = max(map(len, sequences))
        # Padding comes after the tokens, which do not look ahead, so it needs no mask.
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in sequences])
        with torch.inference_mode():
            out = self._model(input_ids=ids, use_cache=False).last_hidden_state
        return [out[i, : len(one)].numpy() for i, one in enumerate(sequences)]


def spans(prompt: int, length: int) -> list[Span]:
    """Return the inputs whose states are averaged for each reading, as far as there are any.

    Args:
        prompt: tokens of the prompt.
        length: tokens of the answer.
    """
    ends = [prompt + age - 1 for age in READ_AT[1:] if length > age]
    return [(prompt - 1, prompt), *((end - WINDOW, end) for end in ends)]


def merged(
    wanted: list[tuple[list[int], list[Span]]],
) -> list[tuple[list[int], list[tuple[int, int, Span]]]]:
    """Return distinct sequences of tokens, of which none begins another, with what is read of each.

    Args:
        wanted: tokens and spans of each row.

    Returns:
        Tokens, and row, number of the reading and span of all that is read of them.
    """
    order = sorted(range(len(wanted)), key=lambda row: wanted[row][0])
    groups: list[tuple[list[int], list[tuple[int, int, Span]]]] = []
    for row in order:
        tokens, row_spans = wanted[row]
        reads = [(row, k, span) for k, span in enumerate(row_spans)]
        if groups and tokens[: len(groups[-1][0])] == groups[-1][0]:
            groups[-1] = (tokens, groups[-1][1] + reads)
        else:
            groups.append((tokens, reads))
    return sorted(groups, key=lambda group: len(group[0]))


def batches(groups: list[Any]) -> list[list[Any]]:
    """Return the groups in batches of about as many tokens."""
    found: list[list[Any]] = []
    for group in groups:
        if found and len(group[0]) * (len(found[-1]) + 1) <= BATCH_TOKENS:
            found[-1].append(group)
        else:
            found.append([group])
    return found


def read_states(frame: pl.DataFrame, folder: Path, cache: Path) -> np.ndarray:
    """Return the states of all rows, float32 of shape ``(rows, readings, width)``, NaN for none."""
    known: dict[str, np.ndarray] = {}
    if cache.exists():
        with np.load(cache) as saved:
            known = dict(zip(saved["ids"].tolist(), saved["states"], strict=True))
    left = frame.filter(~pl.col("request_id").is_in(list(known)))
    wanted = []
    for prompt, output in left.select("prompt_token_ids", "output_token_ids").iter_rows():
        row_spans = spans(len(prompt), len(output))
        wanted.append(([*prompt, *output][: row_spans[-1][1]], row_spans))
    ids, parts = left["request_id"].to_list(), batches(merged(wanted))
    model = States(folder) if parts else None
    say(f"{len(known):,} answers are there, {len(ids):,} to read in {len(parts):,} batches")
    for i, group in enumerate(parts, 1):
        assert model is not None
        for (_, reads), rows in zip(group, model([tokens for tokens, _ in group]), strict=True):
            for row, k, (begin, end) in reads:
                empty = np.full((len(READ_AT), rows.shape[1]), np.nan, np.float32)
                known.setdefault(ids[row], empty)[k] = rows[begin:end].mean(axis=0)
        if i % SAVED_EVERY == 0 or i == len(parts):
            np.savez(cache, ids=np.array(list(known)), states=np.stack(list(known.values())))
            say(f"{i:,} of {len(parts):,}")
    return np.stack([known[name] for name in frame["request_id"]])


def components(states: np.ndarray, count: int) -> np.ndarray:
    """Return the leading principal components of states, float32 of shape ``(rows, count)``.

    They have a variance of 1 in the mean over all components, the first the largest.
    """
    known = np.isfinite(states[:, 0])
    compressed = compress(states[known].astype(np.float64))
    centred = compressed - compressed.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    found = np.full((len(states), count), np.nan, dtype=np.float32)
    found[known] = centred @ vectors[:, ::-1][:, :count] / np.sqrt(values[::-1][:count].mean())
    return found


def compress(states: np.ndarray) -> np.ndarray:
    """Return states without their few huge entries, as the score reads them."""
    from sagellm_lifetime.core.hidden_states import compressed

    return compressed(states)


def main(argv: list[str] | None = None) -> None:
    """Read the states, and write the recording with their components."""
    from answers.recording import write_parquet

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--output", type=Path, default=Path("smollm2-hidden.parquet"))
    parser.add_argument("--low", action="store_true", help="the recording at low temperatures")
    parser.add_argument("--answers", type=Path, help="another recording, with token ids")
    args = parser.parse_args(argv)
    frame = read_history(args.answers).frame if args.answers else recorded(low=args.low)
    states = read_states(frame, args.model, args.output.with_suffix(".states.npz"))
    columns: dict[str, Any] = {"request_id": frame["request_id"]}
    for k, name in enumerate(COLUMNS):
        # Float16 in its precision; what is stored are float32, which every reader knows.
        few = components(states[:, k], COMPONENTS).astype(np.float16).astype(np.float32)
        values = [None if np.isnan(row[0]) else row.tolist() for row in few]
        columns[name] = pl.Series(values, dtype=pl.List(pl.Float32))
    write_parquet(pl.DataFrame(columns), args.output)
    say(f"{len(frame):,} answers in {args.output} ({args.output.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
