"""A check of the server's address before the model is loaded."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sagellm_lifetime.vllm.launch.vllm_args import LaunchError, is_option, option_of

PORT: Final = 8000
"""vLLM's default."""
_CONNECTIONS: Final = ("/proc/net/tcp", "/proc/net/tcp6")


def check_address(options: Sequence[str]) -> None:
    """Refuse an address that vLLM's server could not listen on.

    Args:
        options: of vLLM, with those of its ``--config`` file.

    Raises:
        LaunchError: if it is in use, invalid, or not permitted.
    """
    if any(is_option(option, "--headless") for option in options):
        return  # no server
    path = _value_of(options, "--uds")
    if path is not None:
        _check_socket(path)
        return
    host, text = _value_of(options, "--host") or "", _value_of(options, "--port")
    port = PORT if text is None else _port(text)
    if not 0 <= port <= 65535:
        raise LaunchError(f"--port {text}: not a port from 0 to 65535")
    place = f"[{host}]:{port}" if ":" in host else f"{host or '0.0.0.0'}:{port}"
    try:
        _bind(host, port, reuse=True)
        taken = _is_taken_silently(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise LaunchError(f"{place}: cannot listen there ({error.strerror or error})") from None
        taken = True
    except (TypeError, ValueError):  # Python's own check of the name
        raise LaunchError(f"{place}: cannot listen there (not the name of a host)") from None
    if taken:
        raise LaunchError(f"{place}: the port is in use; choose another with --port, or stop it")


def _port(text: str) -> int:
    """Return a port, -1 if invalid; texts of thousands of digits would make ``int`` raise."""
    digits = text.strip().lstrip("0") or "0"
    return int(digits) if digits.isdecimal() and len(digits) <= len("65535") else -1


def _value_of(options: Sequence[str], name: str) -> str | None:
    """Return the value of an option; an empty text and "None" count as unset, as in vLLM."""
    text = option_of(options, name)
    return None if text in ("", "None") else text


def _bind(host: str, port: int, *, reuse: bool) -> None:
    """Raise ``OSError`` if the address cannot be bound; it is free again afterwards."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
        tried.bind((host, port))
        if reuse:
            tried.listen(1)


def _is_taken_silently(host: str, port: int) -> bool:
    """Return True if another process has bound the port and does not listen yet.

    vLLM binds before it loads the model, and listens after: until then a second server binds the
    same port without an error, and ends when both listen. Only an exclusive bind detects that, but
    it also fails beside connections of an ended server, which are no obstacle.
    """
    try:
        _bind(host, port, reuse=False)
    except OSError as error:
        return error.errno == errno.EADDRINUSE and port not in _ports_of_connections()
    return False


def _ports_of_connections() -> set[int]:
    """Return the local ports of all connections of this machine, ended ones included."""
    ports: set[int] = set()
    for name in _CONNECTIONS:
        try:
            lines = Path(name).read_text(encoding="ascii").splitlines()[1:]
        except OSError:  # not Linux, or no IPv6
            continue
        ports.update(int(line.split()[1].rpartition(":")[2], 16) for line in lines)
    return ports


def _check_socket(path: str) -> None:
    """Refuse a path where no socket can be made; the test leaves no file."""
    if os.path.lexists(path):
        raise LaunchError(f"--uds {path}: exists already; remove it if no server uses it")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
            tried.bind(path)
        Path(path).unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LaunchError(f"--uds {path}: cannot listen there ({reason})") from None
