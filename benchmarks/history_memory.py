"""Peak memory and time of reading a long history: ten million rows have to fit in 2 GB.

    PYTHONPATH=src python benchmarks/history_memory.py [--rows 10000000] [--kind parquet|csv|jsonl]

The file is written by one process and read by another, so that only the reading is measured. Ids,
texts and token lists are not in it: whoever has ten million rows reads the columns he needs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

READ = """
import resource, sys, time
from sagellm_lifetime.history import read_history
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = time.perf_counter()
history = read_history(sys.argv[1])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
frame = history.frame
size = frame.estimated_size("mb")
print(f"{frame.height:,} rows x {frame.width} columns, {size:.0f} MB as a frame")
print(f"peak RSS {peak:.0f} MB (of which {before:.0f} MB imports), {seconds:.1f} s")
"""

WRITE = """
import sys
import polars as pl
rows, path = int(sys.argv[1]), sys.argv[2]
i = pl.int_range(rows, dtype=pl.Int64, eager=False)
noise = (i.hash(7) % 100_000) / 100_000
frame = pl.LazyFrame({"i": [0]}).select(
    arrival_time=i * 0.01, turn=i % 7, sample=i % 4, max_length=pl.lit(4096, pl.Int64),
    prompt_length=(noise * 4000).cast(pl.Int64) + 1,
    actual_length=(noise**3 * 4000).cast(pl.Int64) + 1,
    actual_time=noise * 60,
    finish_reason=pl.when(noise < 0.9).then(pl.lit("stop")).otherwise(pl.lit("length")),
)
sink = {"parquet": frame.sink_parquet, "csv": frame.sink_csv, "jsonl": frame.sink_ndjson}
sink[path.rsplit(".", 1)[1]](path)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kind", choices=("parquet", "csv", "jsonl"), default="parquet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"history.{options.kind}"
        subprocess.run([sys.executable, "-c", WRITE, str(options.rows), str(path)], check=True)
        print(f"{path.name}: {path.stat().st_size / 2**20:.0f} MB", flush=True)
        subprocess.run([sys.executable, "-c", READ, str(path)], check=True)


if __name__ == "__main__":
    main()
