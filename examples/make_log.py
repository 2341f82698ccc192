"""Write a log to try things on: requests drawn from the published statistics of a public trace.

python examples/make_log.py log.csv [ROWS] [PROFILE]
"""

import sys

from sagellm_lifetime import write_history
from sagellm_lifetime.workloads import PROFILES, generate

path = sys.argv[1] if len(sys.argv) > 1 else "log.csv"
rows = int(sys.argv[2]) if len(sys.argv) > 2 else 3000
profile = sys.argv[3] if len(sys.argv) > 3 else "chat"
if profile not in PROFILES:
    sys.exit(f"no profile {profile}: choose among {', '.join(PROFILES)}")

log = generate(profile, rows, seed=0).drop("prefix_hashes", strict=False)
write_history(log, path)
minutes = (log["arrival_time"].max() - log["arrival_time"].min()) / 60
print(f"Wrote {len(log):,} finished requests of {minutes:,.0f} minutes to {path}")
print(f"median answer {log['actual_length'].median():.0f} tokens, ", end="")
print(f"longest {log['actual_length'].max():,}")
