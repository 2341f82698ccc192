"""From a log to a trained predictor, and what it is worth on requests that it has not seen.

python examples/train_on_a_log.py [LOG [FOLDER]]
"""

import sys

from sagellm_lifetime import create_predictor, load_predictor, read_history
from sagellm_lifetime.evaluation.protocol import evaluate
from sagellm_lifetime.evaluation.rivals import fit_rivals
from sagellm_lifetime.history.splits import split
from sagellm_lifetime.workloads import generate

log = read_history(sys.argv[1]).frame if len(sys.argv) > 1 else generate("chat", 2000, seed=1)
parts = split(log)  # by time where there is a clock, else by session or prompt; never by row
print(f"{len(log):,} requests; trained on {len(parts.train):,}, scored on {len(parts.test):,}")

predictor = create_predictor("survival", seed=0).fit(parts.train)
if len(sys.argv) > 2:
    predictor.save(sys.argv[2])
    predictor = load_predictor(sys.argv[2])
    print(f"saved to {sys.argv[2]}")

rivals = fit_rivals(parts.train, ["constant_median", "residual_life"])
scores = evaluate(predictor, parts.test, rivals=rivals).scores
print("Mean absolute error in tokens (lower is better):")
print(f"{'':>16} {'at admission':>14} {'over all steps':>15}")
for name, groups in scores.items():
    print(f"{name:>16} {groups['admission']['mae']:14.1f} {groups['steps']['mae']:15.1f}")
covered = scores["survival"]["steps"]["coverage_90"]
print(f"The 90 % interval of survival held {100 * covered:.0f} % of the lengths.")
