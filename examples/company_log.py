"""Write a log as a gateway of your own might: other column names, other units, other words.

python examples/company_log.py requests.csv [ROWS]
"""

import sys
from datetime import UTC, datetime

import polars as pl

from sagellm_lifetime.workloads import generate

START = datetime(2026, 5, 4, 10, tzinfo=UTC)
WORDS = {"stop": "completed", "length": "max_tokens", "abort": "cancelled", "error": "failed"}

path = sys.argv[1] if len(sys.argv) > 1 else "requests.csv"
rows = int(sys.argv[2]) if len(sys.argv) > 2 else 3000

log = generate("chat", rows, seed=0, rate_scale=12)
arrived = pl.lit(START).cast(pl.Datetime("ms", "UTC")) + pl.duration(
    milliseconds=(pl.col("arrival_time") * 1000).round()
)
log.select(
    received=arrived.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
    team="client_id",
    tokens_in="prompt_length",
    tokens_out="actual_length",
    took_ms=(pl.col("actual_time") * 1000).round().cast(pl.Int64),
    outcome=pl.col("finish_reason").replace_strict(WORDS),
    region=pl.lit("eu-1"),
).write_csv(path)
print(f"Wrote {len(log):,} requests of {log['client_id'].n_unique()} teams to {path}")
