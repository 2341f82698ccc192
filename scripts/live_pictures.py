#!/usr/bin/env python3
"""Take the pictures of the live page in docs: python scripts/live_pictures.py [URL]

Without the URL of a server the page shows vLLM's own scheduler, stepped without a model: made-up
requests of four clients, from which the predictor has learned since the first of them. Needs
vLLM, Chromium, and Pillow to make the files small.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests" / "engines")]

from headless import Browser, chromium_path  # noqa: E402

FOLDER = ROOT / "docs" / "how-to"
PICTURES = (("live-page.png", 1100, False), ("live-page-phone.png", 390, True))
"""Name, width in CSS pixels, and whether it is dark."""
CLIENTS = {"titles": (12, 0.3), "summaries": (60, 0.3), "chat": (110, 0.7), "essays": (260, 0.25)}
"""Median and spread (of the logarithm) of the answers of each client, tokens."""
_COLOURS = 128
_REQUESTS = 900
_SEED = 1


def small(path: Path) -> None:
    """Reduce a picture to few colours, which a page of text and lines does not miss."""
    from PIL import Image

    with Image.open(path) as picture:
        reduced = picture.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)


def take(url: str) -> None:
    """Write the pictures of the page at ``url``."""
    program = chromium_path()
    if program is None:
        sys.exit("error: no Chromium here: apt-get install chromium")
    with Browser(program) as browser:
        for name, width, dark in PICTURES:
            browser.look(width, 800, dark=dark)
            browser.open(url)
            browser.until("document.querySelectorAll('#queue tr').length > 3")
            browser.picture(FOLDER / name)
            small(FOLDER / name)
        if browser.errors:
            sys.exit(f"error: {browser.errors[0]}")


def busy_engine(folder: Path) -> Any:
    """Return an engine that has learned from some hundred requests and is under load."""
    from engine_help import Engine

    from sagellm_lifetime import create_predictor
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.vllm.compat.torch_companions import ready_for_vllm

    ready_for_vllm()
    draw = random.Random(_SEED)
    predictor = create_predictor("survival", seed=_SEED)
    engine: Any = Engine(EngineSettings(blocks=150, max_num_seqs=24, max_num_batched_tokens=512))
    engine.predict_with(predictor, mode="act", state=str(folder))
    engine.advisor._forecaster._learn = True  # here, without a process for it
    for i in range(_REQUESTS):
        client = draw.choices(list(CLIENTS), (4, 3, 3, 1))[0]
        median, spread = CLIENTS[client]
        length = max(2, min(380, round(median * draw.lognormvariate(0.0, spread))))
        engine.add(length, name=f"{client}-{i:04}", prompt=draw.randrange(16, 60),
                   extra_args={"client_id": client})  # fmt: skip
        engine.run(draw.randrange(1, 6))
    engine.advisor.seconds = 0.0  # without a model a step has no duration to be a share of
    engine.scheduler._service._jobs.round()
    return engine


def main() -> None:
    """Take the pictures of a server, or of an engine without a model."""
    if len(sys.argv) > 1:
        take(f"{sys.argv[1].rstrip('/')}/lifetime")
        return
    from route_help import http_server

    with tempfile.TemporaryDirectory() as folder, http_server() as server:
        busy_engine(Path(folder))
        server.folder = Path(folder)
        take(server.url)
        sys.stdout.flush()
        os._exit(0)  # the scheduler is not shut down: nothing is to be kept


if __name__ == "__main__":
    main()
