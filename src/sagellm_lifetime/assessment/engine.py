"""The engine that a log is assessed on: its KV memory and the time of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from sagellm_lifetime.assessment.hardware import gpu_of, model_of, step_cost
from sagellm_lifetime.assessment.hardware import kv_tokens as tokens_of
from sagellm_lifetime.assessment.log_times import fit_times
from sagellm_lifetime.assessment.server import ServerEngine, ask_server, check_url
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
        cores: number of engine cores that share the log's load evenly, each with such a memory.
        prefix_caching: False if equal prompts share no blocks.
        how: where memory, limits and speed are from, a sentence each.

    >>> engine = Engine.of(gpu="h100", model_size="8b")
    >>> engine.settings(prefix_caching=False).blocks
    28368
    """

    kv_tokens: int
    cost: StepCost
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    cores: int = 1
    prefix_caching: bool = True
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
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        rows: pl.DataFrame | None = None,
    ) -> Engine:
        """Return the engine that a user describes.

        The memory is that of the server at ``url``, else ``kv_tokens``, else that of GPU and model.
        The limits of a step are those given, else those that the server tells, else vLLM's defaults
        on the GPU.
        The step cost is that of GPU and model if either is named; else it is fitted to the
        durations of ``rows`` where these allow it; else that of the assumed GPU and model.

        Args:
            gpu: a name such as ``h100`` or ``2xh100``.
            model_size: a size such as ``8b``.
            kv_tokens: as vLLM's log prints it: "GPU KV cache size: N tokens".
            url: a running vLLM server.
            key: its API key.
            max_num_seqs: vLLM's option of this name.
            max_num_batched_tokens: vLLM's option of this name.
            rows: the log.

        Raises:
            UnknownNameError: no GPU or model size has the name.
            RequestError: the memory is given twice, or is out of range.
            LifetimeError: the server does not tell.
        """
        cls.check(gpu=gpu, model_size=model_size, kv_tokens=kv_tokens, url=url)
        named = gpu is not None or model_size is not None
        card, size = gpu or GPU, model_size or MODEL_SIZE
        server = None if url is None else ask_server(url, key)
        if server is not None:
            tokens, how = server.tokens, _told(server, str(url))
        elif kv_tokens is not None:
            tokens, how = kv_tokens, [f"KV memory of {kv_tokens:,} tokens, as given"]
        else:
            tokens, how = tokens_of(card, size), [_by_formula(card, size, named=named)]
        if not FEWEST_TOKENS <= tokens <= MOST_TOKENS:
            raise RequestError(
                f"a KV cache of {tokens:,} tokens: {FEWEST_TOKENS:,} to {MOST_TOKENS:,} can be"
            )
        limits, told = _limits(card, server, max_num_seqs, max_num_batched_tokens)
        how.append(told)
        cost, why_not = (None, "") if named or rows is None else _of_log(rows)
        if cost is None:
            cost = step_cost(card, size)
            if not named:
                reason = f" ({why_not})" if why_not else ""
                how.append(f"Step time ASSUMED to be that of {card} and {size}{reason}")
        how.append(f"Step time: {cost.source}; it {cost.fit}")
        return cls(
            tokens,
            cost,
            16 if server is None else server.block_size,
            *limits,
            1 if server is None else server.engines,
            server is None or server.prefix_caching is not False,
            tuple(how),
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
            LifetimeError: the address is none of a server.
        """
        if url is not None and kv_tokens is not None:
            raise RequestError("--kv-tokens and --engine both tell the KV memory: leave one out")
        if url is not None:
            check_url(url)
        gpu_of(gpu or GPU)
        model_of(model_size or MODEL_SIZE)
        if url is None and kv_tokens is None:
            tokens_of(gpu or GPU, model_size or MODEL_SIZE)

    def settings(self, *, prefix_caching: bool) -> EngineSettings:
        """Return the settings of the replayed engine.

        Args:
            prefix_caching: whether the log tells which prompts are equal.
        """
        return EngineSettings(
            blocks=self.kv_tokens // self.block_size,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefix_caching=prefix_caching and self.prefix_caching,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the engine for ``--json``."""
        cost = self.cost
        return {
            "kv_tokens": self.kv_tokens,
            "block_size": self.block_size,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "cores": self.cores,
            "prefix_caching": self.prefix_caching,
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


def _told(server: ServerEngine, url: str) -> list[str]:
    """Return what a server tells, a sentence each."""
    version = f" (vLLM {server.version})" if server.version else ""
    each = " each" if server.engines > 1 else ""
    how = [
        f"KV memory of {server.tokens:,} tokens{each} in blocks of {server.block_size}, "
        f"as {url}{version} tells"
    ]
    if server.engines > 1:
        how.append(
            f"Its {server.engines} engine cores are taken to share the load evenly: one of them is "
            "replayed, and requests/s are those of all"
        )
    if server.prefix_caching is False:
        how.append("Its prefix cache is off")
    return how


def _by_formula(card: str, size: str, *, named: bool) -> str:
    """Return where a memory by formula is from, a sentence."""
    text = f"KV memory of {tokens_of(card, size):,} tokens, by formula for {card} and {size}"
    if named:
        return text
    return f"{text}, ASSUMED: name yours with --gpu and --model-size, or give --kv-tokens"


def _limits(
    card: str, server: ServerEngine | None, seqs: int | None, tokens: int | None
) -> tuple[tuple[int, int], str]:
    """Return the limits of a step, sequences and tokens, and where they are from."""
    kind = gpu_of(card)[0]
    defaults = (kind.max_num_seqs, kind.max_num_batched_tokens)
    theirs: tuple[int | None, int | None] = (None, None)
    if server is not None:
        theirs = (server.max_num_seqs, server.max_num_batched_tokens)
    found, sources = [], []
    for given, told, default in zip((seqs, tokens), theirs, defaults, strict=True):
        if given is not None:
            found.append(given)
            sources.append("as given")
        elif told is not None:
            found.append(told)
            sources.append("as the server tells")
        else:
            found.append(default)
            sources.append(f"vLLM's default on {card}")
    first, second = sources
    where = ("", f", {first}") if first == second else (f" ({first})", f" ({second})")
    text = f"At most {found[0]:,} running sequences{where[0]} and {found[1]:,} tokens a step"
    text += where[1]
    if server is not None and any("default" in source for source in sources):
        text += ": its metrics do not tell, so give --max-num-seqs and --max-num-batched-tokens"
        text += " if yours differ"
    return (found[0], found[1]), text


def _of_log(rows: pl.DataFrame) -> tuple[StepCost | None, str]:
    """Return the step cost of a log's own times, or None and the reason."""
    try:
        return fit_times(rows), ""
    except HistoryError as error:
        return None, str(error)
