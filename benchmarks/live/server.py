"""A server process, started by our command, and how to talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

BENCHMARKS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Lets ``--distributed-executor-backend uni`` be; the server has an engine core all the same.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
PATIENCE_S = 600.0


class Server:
    """Runs from ``with`` to the end of the block; nothing of it stays behind.

    Args:
        command: the program and its options before ``--``.
        options: of vLLM; host and port are added.
        log: what the server prints goes to its end.
        cwd: where it runs.
    """

    def __init__(
        self, command: Sequence[str], options: Sequence[str], log: Path, cwd: Path | None = None
    ) -> None:
        self.command, self.options = list(command), list(options)
        self.log, self.cwd = log, cwd
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, and wait until it answers.

        Raises:
            SystemExit: it ended, or did not answer in ten minutes; with the end of its log.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.command,
                    "--",
                    *self.options,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self.port),
                ],
                cwd=self.cwd,
                env={**ENVIRONMENT, **os.environ, "PYTHONPATH": python_path()},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.get("/health")
                return self
            time.sleep(0.3)
        self.kill()
        raise SystemExit(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> str:
        """The body of an answer."""
        with urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def stats(self) -> dict[str, Any]:
        """What ``GET /lifetime/stats`` says."""
        return json.loads(self.get("/lifetime/stats"))

    def stop(self) -> None:
        """In order: SIGTERM, and what is not gone after a minute is killed."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.kill()

    def kill(self) -> None:
        """The whole group at once, kill −9; its ports and locks are free afterwards."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def python_path() -> str:
    """So that the server finds this folder's modules, and those this process found."""
    return os.pathsep.join(filter(None, [str(BENCHMARKS), os.environ.get("PYTHONPATH")]))
