"""What is measured of a server from outside: its processes, its files, its own counts."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "lifetime_predictor_"
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def processes(session: int) -> list[int]:
    """All of a session, which is what the server's first process began."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # Behind the name, which is in brackets: state, parent, group, session.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return sorted(found)


def vitals(session: int) -> dict[str, Any]:
    """Resident bytes and open files of a server's processes: together, and the bytes of each.

    Each is called by its name and, in the order in which they were started, its number.
    """
    files = 0
    each: dict[str, int] = {}
    pids = processes(session)
    for number, pid in enumerate(pids, 1):
        folder = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            name = (folder / "comm").read_text().strip()
            each[f"{number} {name}"] = int((folder / "statm").read_text().split()[1]) * _PAGE
            files += len(os.listdir(folder / "fd"))
    return {
        "resident": sum(each.values()),
        "each": each,
        "files": files,
        "processes": len(pids),
    }


def parse_metrics(text: str) -> dict[str, float]:
    """Our samples of a Prometheus page, summed over the engine cores."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match and match[1].startswith(PREFIX):
            name = match[1].removeprefix(PREFIX)
            found[name] = found.get(name, 0.0) + float(match[3])
    return found


def adds_up(metrics: dict[str, float]) -> bool:
    """Whether every prediction is accounted for."""
    ended = metrics["completions_total"] + metrics["censored_total"]
    return metrics["predictions_total"] == ended + metrics["running_sequences"]


def slope(times: list[float], values: list[float]) -> float:
    """Growth per second: the median over all pairs (Theil–Sen), which a few jumps do not move."""
    t, v = np.array(times), np.array(values)
    i, j = np.triu_indices(len(t), 1)
    if not len(i):
        return 0.0
    return float(np.median((v[j] - v[i]) / (t[j] - t[i])))
