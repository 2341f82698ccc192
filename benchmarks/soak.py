"""A server under mixed load for a long time: does it leak, lose, miscount, or not answer?

    PYTHONPATH=src python benchmarks/soak.py models/smollm2 [--minutes 30] [--out runs/soak]

Clients ask, stream, hang up midway, ask for two answers, stop at strings, send prompts that are
too long and requests that are none (``live/mixture.py``); in the middle the server is killed (−9,
all of its processes) and started again. It predicts, acts, learns and records. Every ten seconds
its memory (of each process), its open files and its counts are written to ``OUT/samples.jsonl``.
Exit code 1 where a check failed (``live/verdict.py``). ``--control`` runs vLLM's server alone under
the same load: what it grows by itself. What is learned takes memory, too, up to a bound that a
server reaches after hours (``learned_memory.py``); here it is ``--nodes``, reached in a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import say, table
from live import mixture, vitals
from live.server import Server
from live.verdict import Life, checks, of_any_server

from sagellm_lifetime import create_predictor

START = (sys.executable, "-c", "from sagellm_lifetime.cli.main import main; main()")
OURS = (
    "--enable-lifetime-prediction",
    "--enable-online-learning",
    *("--lifetime-mode", "act"),
    *("--record", "rec"),
    *("--state", "state"),
)
SAMPLE_S = 10.0
SETTLE_S = 60.0
"""Time for what is under way to end when nothing new comes."""


class Soak:
    """The clients, and what they saw.

    Args:
        options: of the command line.
        server: not started yet.
    """

    def __init__(self, options: argparse.Namespace, server: Server) -> None:
        self.options, self.server = options, server
        self.asked: list[mixture.Asked] = []
        self.lives: list[Life] = []
        self._draw = random.Random(options.seed)
        self._samples = (options.out / "samples.jsonl").open("w", encoding="utf-8")

    async def life(self, seconds: float, *, killed: bool) -> None:
        """From the start of the server to its end."""
        import aiohttp

        started = time.monotonic()
        await asyncio.to_thread(self.server.start)
        say(f"the server answers after {time.monotonic() - started:.0f} s")
        life = Life(began=time.time())
        self.lives.append(life)
        ends = time.monotonic() + seconds
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        limit = aiohttp.ClientTimeout(total=self.options.patience)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
            watching = asyncio.create_task(self._watch(life))
            workers = [
                asyncio.create_task(self._work(session, ends)) for _ in range(self.options.clients)
            ]
            if killed:
                await asyncio.sleep(ends - time.monotonic())
                life.killed = time.time()
                self.server.kill()
                say("killed")
            await asyncio.gather(*workers)
            if not killed:
                await self._settle(life)
            watching.cancel()
        if not killed:
            await asyncio.to_thread(self.server.stop)

    async def _work(self, session: Any, ends: float) -> None:
        draw, options = random.Random(self._draw.random()), self.options
        kinds, weights = zip(*mixture.KINDS.items(), strict=True)
        while time.monotonic() < ends:
            (kind,) = draw.choices(kinds, weights)
            asked = mixture.Asked(kind, f"soak-{len(self.asked):07}", time.time())
            self.asked.append(asked)
            content = mixture.body(kind, "model", options.model_len, draw)
            await mixture.ask(session, self.server.url, asked, content, draw.uniform(0.0, 3.0))
            await asyncio.sleep(draw.expovariate(1.0 / options.pause))

    async def _watch(self, life: Life) -> None:
        while True:
            await self._sample(life)
            await asyncio.sleep(SAMPLE_S)

    async def _settle(self, life: Life) -> None:
        """Until nothing runs any more; statistics are a second old."""
        ends = time.monotonic() + SETTLE_S
        while time.monotonic() < ends:
            await asyncio.sleep(2.0)
            sample = await self._sample(life)
            if sample and not sample["stats"]["running"]:
                return

    async def _sample(self, life: Life) -> dict[str, Any] | None:
        assert self.server.process is not None
        stats, page = {"running": 0}, ""
        try:
            if not self.options.control:
                stats = await asyncio.to_thread(self.server.stats)
            page = await asyncio.to_thread(self.server.get, "/metrics")
        except (OSError, ValueError) as error:  # it has just been killed, or does not answer
            life.silent.append((time.time(), str(error)))
            return None
        sample = {
            "time": time.time(),
            **vitals.vitals(self.server.process.pid),
            "stats": stats,
            "metrics": vitals.parse_metrics(page),
        }
        life.samples.append(sample)
        self._samples.write(json.dumps(sample) + "\n")
        self._samples.flush()
        return sample


def recorded(folder: Path) -> list[str]:
    """The server's names of all requests in its record."""
    from sagellm_lifetime import read_history

    return read_history(folder).frame["request_id"].to_list()


def show(soak: Soak) -> str:
    """What was asked, and how the server was at the beginning and at the end of its lives."""
    rows = []
    for kind in mixture.KINDS:
        all_of = [asked for asked in soak.asked if asked.kind == kind]
        rows.append([kind, len(all_of), sum(asked.answered for asked in all_of)])
    parts = [table(["asked", "times", "answered as it should be"], rows)]
    for i, life in enumerate(soak.lives, 1):
        rows = [
            [f"{(s['time'] - life.began) / 60:.1f}", f"{s['resident'] / 2**20:,.0f}", s["files"],
             s["processes"], s["stats"].get("total_predictions"), s["stats"].get("lessons"),
             s["stats"].get("breaker")]
            for s in life.samples[:: max(len(life.samples) // 8, 1)]
        ]  # fmt: skip
        head = ["minute", "MiB", "files", "processes", "predictions", "lessons", "breaker"]
        parts.append(f"Life {i}:\n\n" + table(head, rows))
    return "\n\n".join(parts)


async def run(options: argparse.Namespace) -> int:
    """Two lives and the verdict."""
    options.out.mkdir(parents=True, exist_ok=True)
    for folder in ("rec", "state"):
        shutil.rmtree(options.out / folder, ignore_errors=True)
    create_predictor("survival", max_nodes=options.nodes).save(options.out / "start")
    server = Server(
        [
            *(*START, "engine", "start", str(options.model.resolve())),
            *(() if options.control else (*OURS, "--predictor-checkpoint", "start")),
        ],
        [
            *("--served-model-name", "model"),
            *("--block-size", "32"),
            *("--num-gpu-blocks-override", str(options.blocks)),
            *("--max-num-seqs", "32"),
            *("--max-model-len", str(options.model_len)),
            *("--dtype", "float32"),
            "--enforce-eager",
            "--disable-uvicorn-access-log",
            *options.vllm,
        ],
        options.out / "server.log",
        cwd=options.out,
    )
    soak = Soak(options, server)
    half = options.minutes * 30.0
    try:
        await soak.life(half, killed=True)
        await soak.life(half, killed=False)
    finally:
        server.stop()
    print(show(soak))
    bad = 0
    if options.control:
        found = of_any_server(soak.lives, soak.asked, leak=options.leak)
    else:
        names = recorded(options.out / "rec")
        found = checks(soak.lives, soak.asked, names, leak=options.leak)
    for name, good, says in found:
        bad += good is False
        print(f"{'ok    ' if good else '-     ' if good is None else 'FAILED'}  {name}: {says}")
    return int(bad > 0)


def main(argv: list[str] | None = None) -> None:
    """Soak, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("runs") / "soak")
    parser.add_argument("--clients", type=int, default=12, help="asking at once")
    parser.add_argument("--pause", type=float, default=0.5, help="of a client, s on average")
    parser.add_argument("--patience", type=float, default=300.0, help="of a client, s")
    parser.add_argument("--leak", type=float, default=1.0, help="most growth, MiB a minute")
    parser.add_argument("--nodes", type=int, default=256, help="of what is learned, at most")
    parser.add_argument("--blocks", type=int, default=128, help="of 32 tokens")
    parser.add_argument("--model-len", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help="vLLM's server alone")
    parser.add_argument("--vllm", nargs=argparse.REMAINDER, default=[], help="further options")
    raise SystemExit(asyncio.run(run(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
