"""The KV memory and the limits of a running vLLM server, from its metrics and its own settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any, Final

from sagellm_lifetime.core.errors import LifetimeError

METRIC: Final = "vllm:cache_config_info"
KEY_VARIABLE: Final = "VLLM_API_KEY"
INSTEAD: Final = "give --kv-tokens N instead"
_TIMEOUT_S: Final = 5.0
_SETTINGS_S: Final = 20.0
"""Time limit for ``/server_info``, which describes the whole machine beside the settings."""
_MOST_BYTES: Final = 16 << 20
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_PATHS: Final = re.compile(r"/+(?:v1|metrics)?/*$")
"""Ends of an address that clients and Prometheus use."""


@dataclass(frozen=True, slots=True)
class ServerEngine:
    """Settings of one engine core as its server reports them; ``None`` where it reports none.

    Attributes:
        tokens: tokens that the KV cache holds.
        block_size: tokens of a block.
        engines: number of engine cores of the server.
        prefix_caching: whether equal prompts share blocks.
        max_num_seqs: largest number of running sequences.
        max_num_batched_tokens: largest number of tokens of a step.
        version: of vLLM.
    """

    tokens: int
    block_size: int
    engines: int = 1
    prefix_caching: bool | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    version: str | None = None


def ask_server(url: str, key: str | None = None) -> ServerEngine:
    """Return what the server at ``url`` tells of its engine.

    The memory is that of ``/metrics``. The limits of a step stand in no metric: they are asked for
    at ``/server_info``, which vLLM has with ``VLLM_SERVER_DEV_MODE=1`` alone.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        key: API key, if the server wants one.

    Raises:
        LifetimeError: no vLLM server answers there, or it does not tell its memory.
    """
    base = _PATHS.sub("", check_url(url))
    address = f"{base}/metrics"
    text = _get(address, key, _TIMEOUT_S)
    try:
        found = read_metrics(text)
    except LifetimeError as error:
        raise LifetimeError(f"{address}: {error}") from None
    limits = read_limits(_json(f"{base}/server_info?config_format=json", key, _SETTINGS_S))
    version = _json(f"{base}/version", key, _TIMEOUT_S).get("version")
    return replace(
        found,
        max_num_seqs=limits.get("max_num_seqs"),
        max_num_batched_tokens=limits.get("max_num_batched_tokens"),
        version=version if isinstance(version, str) else None,
    )


def check_url(url: str) -> str:
    """Return an address as it is.

    Raises:
        LifetimeError: it is none of a server.

    >>> check_url("https://localhost:8000")
    'https://localhost:8000'
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or half of an IPv6 address
        good = False
    if not good or parts.query or parts.fragment:
        raise LifetimeError(f"{url}: not the address of an engine: use http://HOST:PORT")
    return url


def read_metrics(text: str) -> ServerEngine:
    """Return the KV cache that the metrics of a vLLM server tell.

    ``kv_cache_size_tokens`` counts where there is one: with several kinds of attention layers a
    cache holds other than its blocks times their size. ``num_gpu_blocks`` is the sum over all
    engine cores, in the line of each of them.

    Raises:
        LifetimeError: they do not.

    >>> line = 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="27000"} 1.0'
    >>> read_metrics(line).tokens
    432000
    """
    lines = [line for line in text.splitlines() if line.startswith(METRIC + "{")]
    if not lines:
        theirs = any(line.startswith("vllm:") for line in text.splitlines())
        reason = (
            f"no {METRIC} among the metrics"
            if theirs
            else "no metrics of vLLM: another server, or one with --disable-log-stats"
        )
        raise LifetimeError(f"{reason}: {INSTEAD}")
    cores = {labels.get("engine", ""): labels for labels in map(_labels, lines)}
    labels = cores[min(cores)]
    blocks, block_size = _whole(labels, "num_gpu_blocks"), _whole(labels, "block_size")
    each = (blocks or 0) // len(cores) * (block_size or 0)
    tokens = _whole(labels, "kv_cache_size_tokens") or each
    if not tokens or not block_size:
        raise LifetimeError(f"{METRIC} has no number of blocks: {INSTEAD}")
    shared = {"True": True, "False": False}.get(labels.get("enable_prefix_caching", ""))
    return ServerEngine(tokens, block_size, len(cores), shared)


def read_limits(answer: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits of a step in an answer of ``/server_info``; nothing where there are none.

    >>> read_limits({"vllm_config": {"scheduler_config": {"max_num_seqs": 8}}})
    {'max_num_seqs': 8}
    """
    config = answer.get("vllm_config")
    limits = config.get("scheduler_config") if isinstance(config, dict) else None
    if not isinstance(limits, dict):
        return {}
    names = ("max_num_seqs", "max_num_batched_tokens")
    return {name: limits[name] for name in names if type(limits.get(name)) is int}


def _labels(line: str) -> dict[str, str]:
    """Return the labels of a line of metrics."""
    return dict(_LABEL.findall(line))


def _whole(labels: Mapping[str, str], name: str) -> int | None:
    """Return a label as a number of 1 or more, or None."""
    text = labels.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 16 and int(text) > 0 else None


def _json(address: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    """Return an answer that a server need not give; an empty one if it gives none."""
    try:
        found = json.loads(_get(address, key, timeout_s))
    except (LifetimeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _get(address: str, key: str | None, timeout_s: float) -> str:
    """Return the text at an address.

    Raises:
        LifetimeError: there is none.
    """
    from ssl import SSLCertVerificationError, SSLError
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    request = Request(address)
    if key:
        # A redirect to another server must not pass the key on.
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            return str(answer.read(_MOST_BYTES).decode("utf-8", "replace"))
    except HTTPError as error:
        error.close()
        raise LifetimeError(f"{address}: {_refusal(error.code, bool(key))}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, SSLCertVerificationError):
            told = f"its certificate is not trusted ({reason.verify_message})"
            told += ": name that of its authority in the variable SSL_CERT_FILE"
        elif isinstance(reason, SSLError):
            told = "no TLS is spoken there: use http://"
        else:
            told = f"no engine answers there ({reason})"
        raise LifetimeError(f"{address}: {told}") from error


def _refusal(status: int, has_key: bool) -> str:
    """Return what an HTTP status other than success means, and what to do."""
    if status in (401, 403):
        state = "this API key is refused" if has_key else "an API key is wanted"
        return f"{state} (HTTP {status}): set the variable {KEY_VARIABLE}"
    if status == 404:
        return f"no metrics there (HTTP 404), so no vLLM server: check the address, or {INSTEAD}"
    return f"no metrics there (HTTP {status}): {INSTEAD}"
