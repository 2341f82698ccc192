"""The KV memory of a running vLLM server, from its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final

from sagellm_lifetime.core.errors import LifetimeError

METRIC: Final = "vllm:cache_config_info"
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 16 << 20
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class ServerCache:
    """The KV cache of a server.

    Attributes:
        blocks: KV blocks of one engine core.
        block_size: tokens of a block.
        engines: number of engine cores of the server.
    """

    blocks: int
    block_size: int
    engines: int = 1

    @property
    def tokens(self) -> int:
        """Return the tokens that one engine core's cache holds."""
        return self.blocks * self.block_size


def ask_server(url: str, key: str | None = None) -> ServerCache:
    """Return the KV cache of the server at ``url``, from ``/metrics``.

    Args:
        url: ``http://HOST:PORT``.
        key: API key, if the server wants one for its metrics.

    Raises:
        LifetimeError: no vLLM server answers there, or it does not tell.
    """
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    address = url.rstrip("/") + "/metrics"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LifetimeError(f"{url}: not the address of an engine: use http://HOST:PORT")
        request = Request(address)
        if key:
            # A redirect to another server must not pass the key on.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LifetimeError(f"{address}: no engine answers there ({reason})") from error
    try:
        return read_metrics(text)
    except LifetimeError as error:
        raise LifetimeError(f"{address}: {error}") from None


def read_metrics(text: str) -> ServerCache:
    """Return the KV cache that the metrics of a vLLM server tell.

    Raises:
        LifetimeError: they do not.

    >>> line = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="27000"} 1.0'
    >>> read_metrics(line).tokens
    432000
    """
    lines = [line for line in text.splitlines() if line.startswith(METRIC + "{")]
    if not lines:
        raise LifetimeError(f"no {METRIC} among the metrics: give --kv-tokens N instead")
    labels = dict(_LABEL.findall(lines[0]))
    try:
        cache = ServerCache(int(labels["num_gpu_blocks"]), int(labels["block_size"]), len(lines))
    except (KeyError, ValueError):
        cache = ServerCache(0, 0)
    if cache.blocks < 2 or cache.block_size < 1:
        raise LifetimeError(f"{METRIC} has no number of blocks: give --kv-tokens N instead")
    return cache
