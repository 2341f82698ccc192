"""The parts of an assessment that need no engine."""

import numpy as np
import polars as pl
import pytest

from sagellm_lifetime.assessment.assessment import Assessment, AssessmentSettings
from sagellm_lifetime.assessment.capacity import highest_load
from sagellm_lifetime.assessment.engine import Engine
from sagellm_lifetime.assessment.hardware import deviation, kv_tokens, step_cost
from sagellm_lifetime.assessment.intervals import saved_share
from sagellm_lifetime.assessment.log_times import fit_times
from sagellm_lifetime.assessment.objective import Objective
from sagellm_lifetime.assessment.predictor_choice import cut
from sagellm_lifetime.assessment.steady import steady_figures
from sagellm_lifetime.assessment.windows import draw_windows
from sagellm_lifetime.core.errors import (
    HistoryError,
    RequestError,
    UnknownNameError,
)
from sagellm_lifetime.evaluation.dataset import Dataset
from sagellm_lifetime.replay.result import RunResult
from sagellm_lifetime.replay.trace import rate_of
from sagellm_lifetime.workloads import generate


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ttft=2s,tpot=100ms,share=0.95", (2, 0.1, 0.95)),
        ("tpot = 50 ms", (2, 0.05, 0.95)),
        ("TTFT=1.5, share=90%", (1.5, 0.1, 0.9)),
    ],
)
def test_an_objective_is_read(text, values):
    found = Objective.parse(text)
    assert (found.ttft_s, found.tpot_s, found.share) == pytest.approx(values)


@pytest.mark.parametrize(
    "text",
    ["ttft", "ttft=fast", "ttft=2h", "tfft=2s", "ttft=1s,ttft=2s", "share=2", "tpot=0", "ttft=inf"],
)
def test_what_is_no_objective_is_refused(text):
    with pytest.raises(RequestError):
        Objective.parse(text)


def test_memory_and_speed_by_formula():
    assert max(deviation().values()) < 0.25
    assert kv_tokens("2xh100", "70b") < kv_tokens("4xh100", "70b")
    assert kv_tokens("h100", "70b-fp8") > 0
    assert step_cost("h200", "8b").base < step_cost("h100", "8b").base
    with pytest.raises(RequestError, match="70b-fp8"):
        kv_tokens("h100", "70b")
    for gpu, size in (("tpu", "8b"), ("h100", "9b"), ("0xh100", "8b")):
        with pytest.raises(UnknownNameError):
            step_cost(gpu, size)


def test_what_is_assumed_is_said():
    assert any("ASSUMED" in line for line in Engine.of(kv_tokens=9000).how)
    named = Engine.of(gpu="h100", model_size="8b", rows=generate("chat", 600, seed=1))
    assert not any("ASSUMED" in line for line in named.how)
    assert named.cost.name == "h100 8b"  # named: the log's own times are not asked
    assert Engine.of(kv_tokens=9000, rows=generate("chat", 600, seed=1)).cost.name == "log"
    with pytest.raises(RequestError, match="leave one out"):
        Engine.of(kv_tokens=9000, url="http://localhost:1")


def timed_log(n=600, base=0.01, per_decode=2e-4):
    """Requests whose durations follow a step cost exactly: each token costs base + what runs."""
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(0.5, n))
    output = rng.integers(50, 400, n)
    left = dict(zip(range(n), output.tolist(), strict=True))
    running, finish, now, came = set(), np.zeros(n), 0.0, 0
    while came < n or running:
        while came < n and arrival[came] <= now:
            running.add(came)
            came += 1
        if not running:
            now = float(arrival[came])
            continue
        now += base + per_decode * len(running)
        for row in list(running):
            left[row] -= 1
            if not left[row]:
                running.remove(row)
                finish[row] = now
    return pl.DataFrame(
        {
            "arrival_time": arrival,
            "actual_time": finish - arrival,
            "prompt_length": np.full(n, 10),
            "actual_length": output,
        }
    )


def test_a_step_cost_is_found_in_the_times_of_a_log():
    cost = fit_times(timed_log())
    pace = cost.seconds(5, 0, 5 * 120)
    assert pace == pytest.approx(0.01 + 2e-4 * 5, rel=0.05)
    assert "more than 1 %" in cost.fit or "more than 0 %" in cost.fit


def test_times_that_are_no_engines_are_refused():
    log = timed_log(300)
    with pytest.raises(HistoryError, match="wrong unit"):
        fit_times(log.with_columns(pl.col("actual_time") * 1e6))
    with pytest.raises(HistoryError, match="only 100 rows"):
        fit_times(log.head(100))
    with pytest.raises(HistoryError, match="no durations"):
        fit_times(log.drop("actual_time"))
    noise = np.exp(np.random.default_rng(1).normal(0, 3, 300))
    with pytest.raises(HistoryError, match="misses half"):
        fit_times(log.with_columns(actual_time=pl.Series(noise)))


@pytest.mark.parametrize("limit", [0.07, 0.9, 1.0, 2.6, 15.0])
def test_the_highest_load_is_found(limit):
    found = highest_load(lambda load: load <= limit)
    assert found.end == "found"
    assert found.load <= limit < found.load * 1.09


def test_the_highest_load_is_tried_from_anywhere():
    found = highest_load(lambda load: load <= 15.0, start=10.0)
    assert found.end == "found"
    assert found.load <= 15.0 < found.load * 1.09
    assert highest_load(lambda _: True, start=10.0).load == 16.0


def test_the_end_of_the_search_is_told():
    assert highest_load(lambda _: True).end == "more"
    assert highest_load(lambda _: False).end == "less"


def test_an_interval_of_blocks_is_wider_where_neighbours_are_alike():
    rng = np.random.default_rng(0)
    alone = rng.gamma(2, size=900)
    alike = np.repeat(rng.gamma(2, size=30), 30)
    ends = [saved_share(mine, np.full(900, 4.0)) for mine in (alone, alike)]
    widths = [found.high - found.low for found in ends]
    assert widths[1] > 3 * widths[0]
    assert all(found.low < found.middle < found.high for found in ends)


def result(arrival, first, finish, output, waited=None, preempted=None):
    n = len(arrival)
    return RunResult(
        arrival=np.asarray(arrival, dtype=float),
        first=np.asarray(first, dtype=float),
        finish=np.asarray(finish, dtype=float),
        waited=np.zeros(n) if waited is None else np.asarray(waited, dtype=float),
        prompt=np.ones(n),
        output=np.asarray(output),
        preempted=np.zeros(n, dtype=int) if preempted is None else preempted,
    )


def test_ramp_and_drain_are_left_out():
    arrival = np.arange(100.0)
    slow = np.where((arrival < 25) | (arrival >= 90), 50.0, 5.0)
    found = steady_figures(result(arrival, arrival + 1, arrival + slow, [50] * 100), Objective())
    assert found.requests == 65
    assert found.mean_s == 5
    assert found.within == 1
    assert found.kept_up == 1
    assert found.nobody_waits
    preempted = result(
        arrival, arrival + 1, arrival + 5, [50] * 100, preempted=(arrival % 10 == 0).astype(int)
    )
    assert not steady_figures(preempted, Objective()).nobody_waits, "computed twice is a wait, too"


def test_a_growing_queue_is_seen():
    arrival = np.arange(200.0)
    start = 2 * arrival  # served at half the rate of arrival
    found = steady_figures(
        result(arrival, start, start + 2, [50] * 200, waited=start - arrival), Objective()
    )
    assert found.kept_up < 0.6
    assert not found.keeps_up
    assert not found.meets(Objective(ttft_s=1000, share=0.5))


def test_windows_are_at_the_rate_of_the_log():
    data = Dataset.of(generate("chat", 1200, seed=1), "chat")
    engine = Engine.of(gpu="a100", model_size="7b")
    found = draw_windows(
        data, engine.settings(prefix_caching=False), engine.cost, count=3, cpu_s=0.1
    )
    assert len(found.windows) == 3
    for window in found.windows:
        assert rate_of(window.at(1.0)) == pytest.approx(found.rate)
        assert rate_of(window.at(3.0)) == pytest.approx(3 * found.rate)
        assert len(window.at(1.0)) == window.size


def test_engine_cores_share_the_load():
    data = Dataset.of(generate("chat", 1200, seed=1), "chat")
    engine = Engine.of(gpu="a100", model_size="7b")
    args = (engine.settings(prefix_caching=False), engine.cost)
    one, two = (draw_windows(data, *args, count=1, cpu_s=0.1, cores=n) for n in (1, 2))
    assert one.rate == two.rate == pytest.approx(2 * two.windows[0].rate)


def test_requests_that_do_not_fit_are_counted():
    data = Dataset.of(generate("chat", 600, seed=1), "chat")
    longest = (data.rows["prompt_length"] + data.rows["actual_length"]).sort(descending=True)
    engine = Engine.of(gpu="a100", model_size="7b", kv_tokens=int(longest[30]))
    args = (engine.settings(prefix_caching=False), engine.cost)
    found = draw_windows(data, *args, count=1, cpu_s=0.1)
    assert 25 <= found.left_out <= 35
    small = Engine.of(gpu="a100", model_size="7b", kv_tokens=256)
    with pytest.raises(HistoryError, match="do not fit"):
        draw_windows(data, small.settings(prefix_caching=False), small.cost, count=1, cpu_s=0.1)


def test_logs_that_cannot_be_assessed():
    few = Dataset.of(generate("chat", 60, seed=1))
    with pytest.raises(HistoryError, match="60 rows are too few"):
        cut(few)
    engine = Engine.of(gpu="a100", model_size="7b")
    moment = Dataset.of(generate("chat", 300, seed=1).with_columns(arrival_time=pl.lit(5.0)))
    with pytest.raises(HistoryError, match="at one moment"):
        Assessment(moment, engine)
    aborted = generate("chat", 300, seed=1).with_columns(finish_reason=pl.lit("abort"))
    with pytest.raises(HistoryError, match="end that is known"):
        Assessment(Dataset.of(aborted), engine)


def test_the_parts_follow_each_other_in_time():
    parts = cut(Dataset.of(generate("chat", 400, seed=1)))
    times = [part.rows["arrival_time"] for part in (parts.train, parts.choose, parts.test)]
    assert times[0].max() <= times[1].min()
    assert times[1].max() <= times[2].min()
    assert [len(column) for column in times] == [224, 56, 120]


def test_settings_are_checked():
    for wrong in ({"multiples": ()}, {"multiples": (0,)}, {"windows": 0}):
        with pytest.raises(RequestError):
            AssessmentSettings(**wrong)
    with pytest.raises(UnknownNameError):
        AssessmentSettings(predictors=("crystal-ball",))
