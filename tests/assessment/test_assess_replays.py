"""An assessment from end to end, through vLLM's scheduler."""

import polars as pl
import pytest

from sagellm_lifetime.assessment.assessment import Assessment, AssessmentSettings
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.replays import DEFAULT, ORACLE, OURS, PROMPTS, TUNED
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.workloads import generate

SMALL = {
    "windows": 1,
    "cpu_s": 0.02,
    "predictors": ("baseline",),
    "precision": 2.0,
    "watermarks": (0.1,),
}


@pytest.fixture(scope="module")
def log():
    """Short requests, so that a replay takes little."""
    drawn = generate("chat", 400, seed=3)
    return drawn.filter((pl.col("prompt_length") < 1500) & (pl.col("actual_length") < 60))


def assessed(rows, kv_tokens, **settings):
    engine = Engine.of(gpu="a100", model_size="7b", kv_tokens=kv_tokens)
    return Assessment(
        Dataset.of(rows, "short"),
        engine,
        Objective(ttft_s=1.0),
        AssessmentSettings(**SMALL | settings),
    ).run()


def test_a_tight_engine(vllm, log):
    fast = log.with_columns(pl.col("arrival_time") / 400)
    told = []
    verdict = Assessment(
        Dataset.of(fast, "short"),
        Engine.of(gpu="a100", model_size="7b", kv_tokens=4000),
        Objective(ttft_s=1.0),
        AssessmentSettings(multiples=(1.0, 3.0), **SMALL),
    ).run(lambda what, share: told.append((what, share)))
    replay = verdict.replay
    assert [load.multiple for load in replay.loads] == [1.0, 3.0]
    busy = replay.loads[1]
    assert list(busy.figures) == [DEFAULT, TUNED, PROMPTS, OURS, ORACLE]
    assert not busy.nobody_waits
    means = {name: several[0].mean_s for name, several in busy.figures.items()}
    assert means[TUNED] <= means[DEFAULT]
    assert means[ORACLE] < means[DEFAULT]
    assert means[PROMPTS] < means[DEFAULT]  # other figures, so another schedule
    assert "Without a prediction: the shortest prompt first" in verdict.says()[2]
    assert set(replay.capacity) == {DEFAULT, TUNED, PROMPTS, OURS}
    assert replay.free is None
    assert any("window 1" in what for what, _ in told)
    assert all(0 <= share <= 1 for _, share in told)
    assert verdict.headline()


def test_where_nobody_waits_only_the_default_is_run(vllm, log):
    verdict = assessed(log, 400_000, multiples=(1.0,))
    (load,) = verdict.replay.loads
    assert load.nobody_waits
    assert load.figures[OURS] == load.figures[DEFAULT]
    assert verdict.headline().startswith("Nothing to gain")


def test_a_log_without_arrival_times(vllm, log):
    verdict = assessed(log.drop("arrival_time"), 4000, multiples=(1.0,))
    assert verdict.replay.rate is None
    assert "arrivals are drawn" in verdict.says()[-1]
