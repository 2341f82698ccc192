"""A headless Chromium, driven over its debugging pipe without a further package.

>>> from headless import chromium_path
>>> chromium_path() is None or chromium_path().endswith(("chromium", "chrome", "browser"))
True
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
"""Start options: nothing is fetched but what the page asks for."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 60.0
_END = b"\0"


def chromium_path() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab of a new browser with an empty profile; a context manager.

    Args:
        path: of the program.

    Attributes:
        errors: lines of the console that are errors, and uncaught exceptions.
        requested: addresses that were asked for.
    """

    def __init__(self, path: str) -> None:
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="headless-", ignore_cleanup_errors=True)
        orders_there, self._orders = os.pipe()
        self._answers, answers_there = os.pipe()
        shell = f'exec "$0" "$@" 3<&{orders_there} 4>&{answers_there}'
        self._process = subprocess.Popen(
            [
                *("bash", "-c", shell, path, *FLAGS, f"--user-data-dir={self._profile.name}"),
                "about:blank",
            ],
            pass_fds=(orders_there, answers_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(orders_there)
        os.close(answers_there)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._orders)
        os.close(self._answers)
        self._profile.cleanup()

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window in CSS pixels, and the colour scheme."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Open a page."""
        self._ask("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """Return the value of an expression in the page, awaited if it is a promise."""
        answer = self._ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Return the value of an expression once it is true.

        Raises:
            TimeoutError: it has not become true within a minute.
        """
        ends = time.monotonic() + _PATIENCE_S
        while not (found := self.value(script)):
            if time.monotonic() > ends:
                raise TimeoutError(f"{script}; errors: {self.errors}")
            time.sleep(0.1)
        return found

    def picture(self, path: Path) -> None:
        """Write a PNG of the whole page, as wide as the window."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self._ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        order: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            order["sessionId"] = self._session
        os.write(self._orders, json.dumps(order).encode() + _END)
        while True:
            message = self._next()
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _next(self) -> dict[str, Any]:
        while _END not in self._buffer:
            if not select.select([self._answers], [], [], _PATIENCE_S)[0]:
                raise TimeoutError("the browser does not answer")
            data = os.read(self._answers, 1 << 20)
            if not data:
                raise RuntimeError("the browser has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(_END)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        """Keep errors and addresses of an event."""
        said = event.get("params", {})
        method = event.get("method")
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.errors.append(json.dumps(said["args"])[:500])
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(said["request"]["url"])
