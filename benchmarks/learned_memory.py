"""Memory of an engine's process while it learns online: does it stop growing?

    PYTHONPATH=src python benchmarks/learned_memory.py [--nodes 2000] [--lessons 30000]

Every completion is of a session of its own, the most there can be to remember; another process
learns, and the state is swapped in. A predictor keeps ``max_nodes`` nodes at most (20,000 by
default, 3.4 kB each), so what a server's memory grows by in its first hours is what it learns, and
has an end: with few nodes it is seen in minutes.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from common import say, single_thread, table

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.predictor.background_learner import BackgroundLearner

ROWS = 15
_DRAIN_S = 60.0


def resident():
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2000)
    parser.add_argument("--lessons", type=int, default=30_000)
    args = parser.parse_args()
    single_thread()
    predictor = create_predictor("survival", max_nodes=args.nodes)
    rng = np.random.default_rng(0)
    rows, every = [], args.lessons // ROWS
    with BackgroundLearner(predictor, every=0.5) as learning:
        for i in range(args.lessons + 1):
            if i % every == 0:
                if not learning.drain(_DRAIN_S):
                    raise SystemExit("the process that learns does not answer")
                nodes = len(predictor.model.tables._nodes)
                rows.append([f"{i:,}", f"{nodes:,}", f"{resident():.1f}"])
                say(f"{i:,} lessons, {nodes:,} nodes, {resident():.1f} MiB")
            features = {"session_id": f"s{i}", "prompt_length": int(rng.integers(10, 4000))}
            predictor.predict(PredictionRequest(i, [], 0, 4096, features))
            predictor.update(i, int(rng.exponential(400)) + 2, 1.0)
            if i % 500 == 0:
                learning.drain(_DRAIN_S)  # or the queue is full, and lessons are dropped
        counts = learning.counts()
    print(table(["lessons", "nodes", "MiB"], rows))
    print(f"{counts['learner_swaps']} swaps, {counts['lessons_dropped']} lessons dropped")


if __name__ == "__main__":
    main()
