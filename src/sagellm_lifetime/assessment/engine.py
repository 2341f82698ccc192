"""The engine that a log is assessed on: its KV memory and the time of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from sagellm_lifetime.assessment.hardware import gpu_of, model_of, step_cost
from sagellm_lifetime.assessment.hardware import kv_tokens as tokens_of
from sagellm_lifetime.assessment.log_times import fit_times
from sagellm_lifetime.assessment.server import ask_server
from sagellm_lifetime.core.errors import HistoryError, RequestError
from sagellm_lifetime.replay.cost import StepCost
from sagellm_lifetime.replay.engine import EngineSettings

GPU: Final = "h100"
MODEL_SIZE: Final = "8b"
FEWEST_TOKENS: Final = 256
MOST_TOKENS: Final = 64_000_000


@dataclass(frozen=True)
class Engine:
    """An engine: memory, speed, and where the figures are from.

    Attributes:
        kv_tokens: tokens that the KV cache holds.
        cost: model of the seconds of a step.
        block_size: tokens of a KV block.
        max_num_seqs: largest number of running sequences.
        max_num_batched_tokens: largest number of tokens of a step.
        how: where memory and speed are from, a sentence each.

    >>> engine = Engine.of(gpu="h100", model_size="8b")
    >>> engine.settings(prefix_caching=False).blocks
    28368
    """

    kv_tokens: int
    cost: StepCost
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    how: tuple[str, ...] = field(default=())

    @classmethod
    def of(
        cls,
        *,
        gpu: str | None = None,
        model_size: str | None = None,
        kv_tokens: int | None = None,
        url: str | None = None,
        key: str | None = None,
        rows: pl.DataFrame | None = None,
    ) -> Engine:
        """Return the engine that a user describes.

        The memory is that of the server at ``url``, else ``kv_tokens``, else that of GPU and model.
        The step cost is that of GPU and model if either is named; else it is fitted to the
        durations of ``rows`` where these allow it; else that of the assumed GPU and model.

        Args:
            gpu: a name such as ``h100`` or ``2xh100``.
            model_size: a size such as ``8b``.
            kv_tokens: as vLLM's log prints it: "GPU KV cache size: N tokens".
            url: a running vLLM server.
            key: its API key.
            rows: the log.

        Raises:
            UnknownNameError: no GPU or model size has the name.
            RequestError: the memory is given twice, or is out of range.
            LifetimeError: the server does not tell.
        """
        cls.check(gpu=gpu, model_size=model_size, kv_tokens=kv_tokens, url=url)
        named = gpu is not None or model_size is not None
        card, size = gpu or GPU, model_size or MODEL_SIZE
        how = []
        block_size = 16
        if url is not None:
            cache = ask_server(url, key)
            tokens, block_size = cache.tokens, cache.block_size
            how.append(f"KV memory of {tokens:,} tokens, as {url} tells")
            if cache.engines > 1:
                how.append(f"One of its {cache.engines} engine cores is assessed")
        elif kv_tokens is not None:
            tokens = kv_tokens
            how.append(f"KV memory of {tokens:,} tokens, as given")
        else:
            tokens = tokens_of(card, size)
            assumed = (
                ""
                if named
                else ", ASSUMED: name yours with --gpu and --model-size, or give --kv-tokens"
            )
            how.append(f"KV memory of {tokens:,} tokens, by formula for {card} and {size}{assumed}")
        if not FEWEST_TOKENS <= tokens <= MOST_TOKENS:
            raise RequestError(
                f"a KV cache of {tokens:,} tokens: {FEWEST_TOKENS:,} to {MOST_TOKENS:,} can be"
            )
        cost, why_not = (None, "") if named or rows is None else _of_log(rows)
        if cost is None:
            cost = step_cost(card, size)
            if not named:
                reason = f" ({why_not})" if why_not else ""
                how.append(f"Step time ASSUMED to be that of {card} and {size}{reason}")
        how.append(f"Step time: {cost.source}; it {cost.fit}")
        kind = gpu_of(card)[0]
        return cls(
            tokens, cost, block_size, kind.max_num_seqs, kind.max_num_batched_tokens, tuple(how)
        )

    @staticmethod
    def check(
        *,
        gpu: str | None = None,
        model_size: str | None = None,
        kv_tokens: int | None = None,
        url: str | None = None,
    ) -> None:
        """Refuse an impossible description, before a log is read or a server asked.

        Raises:
            UnknownNameError: no GPU or model size has the name.
            RequestError: the memory is given twice, or the model does not fit.
        """
        if url is not None and kv_tokens is not None:
            raise RequestError("--kv-tokens and --engine both tell the KV memory: leave one out")
        gpu_of(gpu or GPU)
        model_of(model_size or MODEL_SIZE)
        if url is None and kv_tokens is None:
            tokens_of(gpu or GPU, model_size or MODEL_SIZE)

    def settings(self, *, prefix_caching: bool) -> EngineSettings:
        """Return the settings of the replayed engine."""
        return EngineSettings(
            blocks=self.kv_tokens // self.block_size,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=prefix_caching,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the engine for ``--json``."""
        cost = self.cost
        return {
            "kv_tokens": self.kv_tokens,
            "block_size": self.block_size,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "how": list(self.how),
            "step_cost": {
                "name": cost.name,
                "base_s": cost.base,
                "per_decode_s": cost.per_decode,
                "per_prefill_token_s": cost.per_prefill_token,
                "per_context_token_s": cost.per_context_token,
                "source": cost.source,
                "fit": cost.fit,
            },
        }


def _of_log(rows: pl.DataFrame) -> tuple[StepCost | None, str]:
    """Return the step cost of a log's own times, or None and the reason."""
    try:
        return fit_times(rows), ""
    except HistoryError as error:
        return None, str(error)
