"""The live page at ``/lifetime``: one static file, which asks ``/lifetime/stats`` once a second.

It has no data in it, loads nothing else, and may run no script and no style but its own, by their
hashes in its content security policy: what clients name themselves can be shown, and not executed.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PARTS: Final = ("page.css", "page.js")
_BLOCK: Final = re.compile(r"<(style|script)>(.*?)</\1>", re.S)


@lru_cache(maxsize=1)
def page() -> bytes:
    """Return the page, style and script in it."""
    folder = files(__package__)
    css, js = (folder.joinpath(name).read_text(encoding="utf-8") for name in _PARTS)
    html = folder.joinpath("page.html").read_text(encoding="utf-8")
    html = html.replace("/* page.css */", css).replace("/* page.js */", js)
    return html.encode()


@lru_cache(maxsize=1)
def policy() -> str:
    """Return the page's content security policy: its own style and script, and this server.

    >>> policy().split("; ")[0]
    "default-src 'none'"
    """
    allowed: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _BLOCK.findall(page().decode()):
        digest = b64encode(sha256(text.encode()).digest()).decode()
        allowed[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {' '.join(allowed['style'])}",
            f"script-src {' '.join(allowed['script'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


async def send_page(
    send: Send, status: int, more: Sequence[tuple[bytes, bytes]] = (), *, head: bool = False
) -> None:
    """Send the page.

    Args:
        send: of the request.
        status: of HTTP.
        more: further headers.
        head: True to send the headers alone.
    """
    body = page()
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"content-security-policy", policy().encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
