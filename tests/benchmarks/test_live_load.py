"""The parts of the live benchmarks that need no server: accounts, fit, figures, tables, the cut."""

from __future__ import annotations

import asyncio
import io
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def part(name):
    return import_module(f"live.{name}")


def steps_at(base, decode, prefill, context, n=400, noise=0.0):
    rng = np.random.default_rng(0)
    made = []
    for _ in range(n):
        step = {
            "decodes": int(rng.integers(1, 30)),
            "prefill": int(rng.integers(0, 2) * rng.integers(20, 300)),
            "context": int(rng.integers(100, 4000)),
        }
        step["seconds"] = (
            base + decode * step["decodes"] + prefill * step["prefill"] + context * step["context"]
        ) * (1.0 + noise * rng.standard_normal())
        made.append(step)
    return made


def test_the_fit_finds_what_a_step_costs():
    cost = part("steps").fit_cost(steps_at(0.04, 3e-3, 1.5e-3, 1e-6))
    assert cost.base == pytest.approx(0.04)
    assert cost.per_decode == pytest.approx(3e-3)
    assert cost.per_prefill_token == pytest.approx(1.5e-3)
    assert cost.per_context_token == pytest.approx(1e-6)
    assert "R² 1.000" in cost.fit


def test_no_part_of_the_fit_is_negative_and_the_sum_is_right():
    steps = steps_at(0.04, 3e-3, 1.5e-3, -2e-6, noise=0.05)
    cost = part("steps").fit_cost(steps)
    assert cost.per_context_token == 0.0
    assert cost.per_decode > 0
    said = sum(cost.seconds(s["decodes"], s["prefill"], s["context"]) for s in steps)
    assert said == pytest.approx(sum(s["seconds"] for s in steps))
    assert "400 steps" in part("steps").describe(cost)


def request(name, prompt, **more):
    return SimpleNamespace(
        request_id=name,
        num_prompt_tokens=prompt,
        num_tokens=prompt,
        num_output_tokens=0,
        num_computed_tokens=0,
        is_prefill_chunk=False,
        arrival_time=0.5,
        status=SimpleNamespace(name="FINISHED_STOPPED"),
        sampling_params=SimpleNamespace(extra_args={"key": name.upper()}),
        output_token_ids=[],
        **more,
    )


def output(counts, *, new=(), resumed=(), preempted=()):
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        scheduled_new_reqs=[SimpleNamespace(req_id=name) for name in new],
        scheduled_cached_reqs=SimpleNamespace(resumed_req_ids=set(resumed)),
        preempted_req_ids=set(preempted),
    )


class Told:
    """Accounts of made-up steps; a step takes a second."""

    def __init__(self):
        self.requests, self.file, self.now = {}, io.StringIO(), 100.0
        self.accounts = part("accounts").Accounts(
            self.requests, self.file, detail=True, clock=lambda: self.now
        )

    def add(self, one):
        self.requests[one.request_id] = one
        self.accounts.arrived(one)

    def step(self, counts, ending=(), **said):
        for name, count in counts.items():
            self.requests[name].num_computed_tokens += count
        running = [self.requests[name] for name in counts]
        started = self.now
        self.accounts.scheduled(output(counts, **said), started, running, 0)
        self.now += 1.0
        for name in counts:
            one = self.requests[name]
            if one.num_computed_tokens >= one.num_tokens:
                one.num_output_tokens += 1
                one.num_tokens += 1
        for name in ending:
            self.accounts.finished(self.requests.pop(name))
        self.accounts.updated()

    def lines(self):
        return [json.loads(line) for line in self.file.getvalue().splitlines()]


def test_accounts_of_a_preemption():
    told = Told()
    told.add(request("a", 10))
    told.step({"a": 10}, new=["a"])
    told.add(request("b", 4))
    told.step({"a": 1, "b": 4}, new=["b"])
    told.step({"a": 1, "b": 1})
    told.requests["b"].num_computed_tokens = 0
    told.step({"a": 1}, ending=["a"], preempted=["b"])
    # Of its six tokens the newest was never computed, and two are still in the cache.
    told.requests["b"].num_computed_tokens = 2
    told.step({"b": 4}, ending=["b"], resumed=["b"])
    lines = told.lines()
    steps = [line for line in lines if "step" in line]
    a, b = (line for line in lines if "request" in line)
    assert [step["prefill"] for step in steps] == [10, 4, 0, 0, 4]
    assert [step["decodes"] for step in steps] == [0, 1, 2, 1, 0]
    assert [step["preempted"] for step in steps] == [0, 0, 0, 1, 0]
    assert [step["left"] for step in steps] == [1, 2, 2, 1, 0]
    assert steps[1]["scheduled"] == [["A", 1], ["B", 4]]
    assert (a["request"], a["came"], a["first"], a["last"]) == ("A", 0, 0, 3)
    assert (b["request"], b["came"], b["first"], b["last"]) == ("B", 1, 1, 4)
    assert (b["preempted"], b["recomputed"], b["output"]) == (1, 3, 3)
    assert (b["came_at"], b["first_at"], b["end"]) == (101.0, 102.0, 105.0)


def test_an_answer_of_one_token():
    told = Told()
    told.add(request("a", 10))
    told.step({"a": 10}, new=["a"], ending=["a"])
    (line,) = [line for line in told.lines() if "request" in line]
    assert (line["first"], line["last"], line["first_at"]) == (0, 0, 101.0)


def test_figures_on_three_clocks(tmp_path):
    told = Told()
    told.add(request("w", 3))
    told.step({"w": 3}, new=["w"], ending=["w"])  # warming up
    told.add(request("a", 10))
    told.step({"a": 10}, new=["a"])
    told.add(request("b", 4))
    told.step({"a": 1, "b": 4}, new=["b"], ending=["b"])
    told.now += 2.0  # the engine thought for a while
    told.step({"a": 1}, ending=["a"])
    path = tmp_path / "log.jsonl"
    path.write_text(told.file.getvalue())
    log = part("steps").read(path, ["A", "B"])
    assert log.offset == 1
    assert [step["seconds"] for step in log.steps] == [1.0, 3.0, 1.0]
    cost = part("steps").StepCost("x", base=1.0, per_decode=0.1, per_prefill_token=0.01)
    seen = {
        "A": {"sent": 0.0, "first": 1.0, "last": 5.0},
        "B": {"sent": 1.0, "first": 2.0, "last": 2.0},
    }
    found = part("figures").figures(log, seen, cost)
    assert found["steps"]["mean_latency"] == pytest.approx((3 + 1) / 2)
    assert found["fitted"]["mean_latency"] == pytest.approx((1.1 + 1.14 + 1.1 + 1.14) / 2)
    assert found["fitted"]["mean_ttft"] == pytest.approx((1.1 + 1.14) / 2)
    assert found["wall"]["mean_latency"] == pytest.approx((5 + 1) / 2)
    assert found["wall"]["goodput"] == 0.0
    assert found["counts"]["tokens_per_s"] == pytest.approx(4 / 5)
    assert part("steps").pace(log, cost) == pytest.approx(5.0 / (1.1 + 1.14 + 1.1))
    log.requests["A"]["arrival"], log.requests["B"]["arrival"] = 101.0, 103.5
    came = part("steps").as_they_came(log, ["A", "B"], cost)
    assert came == pytest.approx([0.0, 1.1 + 1.14 * 1.5 / 3.0])
    with pytest.raises(SystemExit, match="1 requests never ended"):
        part("steps").read(path, ["A", "C"])


def made_up(mean):
    clock = {"mean_latency": mean, "p50_latency": 1.0, "p99_latency": 9.0, "mean_ttft": mean / 2}
    return {
        "steps": clock,
        "fitted": {**clock, "goodput": 0.5},
        "wall": {**clock, "goodput": 0.5},
        "counts": {
            "preemptions": 3,
            "recomputed_tokens": 1234,
            "tokens_per_s": 150.0,
            "pace": 1.02,
        },
    }


def test_the_page_says_whether_the_orders_agree():
    page = part("page")
    live = {"fcfs": made_up(10.0), "shadow": made_up(10.1), "lifetime": made_up(6.0)}
    alike = {"fcfs": made_up(11.0), "lifetime": made_up(7.0)}
    stats = {
        "overhead_seconds": 0.5,
        "step_seconds": 100.0,
        "faults": {"slow": 0},
        "decisions": {"admission": [50, 20], "preemption": [9, 3]},
    }
    load = {"title": "Knee", "live": live, "replayed": alike, "stats": {"shadow": stats}}
    load["came"] = alike
    text = page.section(load)
    assert "shadow: 0.50% of the steps' time" in text
    assert "no fault; 20 of 50 admissions and 3 of 9 preemptions" in text
    assert "fcfs +10.0% (3 preemptions, live 3), lifetime +16.7% (3 preemptions" in text
    assert "live: lifetime < fcfs; replayed: lifetime < fcfs: the same order." in text
    assert "shadow +1.0% in the mean in fitted time" in text
    assert " 1,234 |" in text
    other = {"fcfs": made_up(7.0), "lifetime": made_up(7.7)}
    text = page.section({**load, "replayed": other})
    assert "not the same: lifetime before fcfs by 66.7% live, behind it by 10.0% replayed" in text


def test_the_page_says_what_it_leaves_out():
    left_out = part("page").left_out
    assert left_out([], []) == ""
    run = {"load": "knee", "arm": "shadow", "pace": 1.5}
    assert "knee, shadow (pace 1.50)." in left_out([run], ["knee, shadow"])
    assert "an end that counts: knee, shadow." in left_out([], ["knee, shadow"])


def recording(n=40):
    return pl.DataFrame(
        {
            "request_id": [f"q{i}" for i in range(n)],
            "prompt_id": [f"p{i % 30}" for i in range(n)],
            "arrival_time": [float(i) for i in range(n)],
            "prompt_token_ids": [[i] * (5 if i % 2 else 500) for i in range(n)],
            "actual_length": [i + 1 for i in range(n)],
        }
    )


def test_nothing_of_the_load_is_learned_before():
    cut = part("material").parts(recording(), 6, prompt=100, answer=1000)
    assert cut.load["request_id"].to_list() == ["q29", "q31", "q33", "q35", "q37", "q39"]
    assert cut.early["request_id"].to_list() == ["q23", "q25", "q27"]
    assert cut.train["arrival_time"].max() < 29
    assert not set(cut.train["prompt_id"]) & set(cut.load["prompt_id"])
    assert len(cut.train) == 29 - 5  # q29 is p29 itself; five others answer prompts of the load
    with pytest.raises(SystemExit, match="rows are too few"):
        part("material").parts(recording(), 30, prompt=100, answer=1000)


def test_a_length_is_told_to_nobody_who_predicts():
    from sagellm_lifetime.vllm.request_adapter import RequestAdapter

    client = part("client")
    describe = RequestAdapter("m", 2048, 32)

    def question(length):
        trace = import_module("sagellm_lifetime.replay.trace")
        one = trace.TraceRequest("r1", 0.0, 3, length, 1024, client_id="c", given=(1, 2, 3))
        body = client.body_of(one, "m")
        assert body["vllm_xargs"]["end_at"] == length
        asked = SimpleNamespace(
            request_id="r1",
            prompt_token_ids=body["prompt"],
            _all_token_ids=body["prompt"],
            num_output_tokens=0,
            num_prompt_tokens=3,
            max_tokens=body["max_tokens"],
            arrival_time=1.0,
            block_hashes=[],
            lora_request=None,
            session_id=None,
            structured_output_request=None,
            sampling_params=SimpleNamespace(extra_args=body["vllm_xargs"], temperature=1.0),
        )
        return describe(asked)

    assert question(3) == question(900)
    assert question(3).prompt_features["client_id"] == "c"


def test_an_answer_ends_where_it_was_told_to(vllm):
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    model = SimpleNamespace(
        hf_text_config=SimpleNamespace(eos_token_id=2),
        try_get_generation_config=lambda: {"eos_token_id": [5, 2]},
    )
    end_at = part("end_at").EndAt(SimpleNamespace(model_config=model), torch.device("cpu"), False)
    outputs = [[], [], []]
    asked = [{"end_at": 3}, {"end_at": 1, "key": "x"}, None]
    added = [(i, SamplingParams(extra_args=asked[i]), [1], outputs[i]) for i in range(3)]
    end_at.update_state(BatchUpdate(3, [], added, []))
    said = []
    for _ in range(3):
        logits = torch.zeros(3, 8)
        logits[:, 2] = 9.0
        said.append(end_at.apply(logits).argmax(dim=1).tolist())
        for output_ids in outputs:
            output_ids.append(7)
    assert [row[0] in (2, 5) for row in said] == [False, False, True]
    assert said[0][1:] == [2, 2]
    untouched = torch.zeros(3, 8)
    untouched[2, 4] = 1.0
    assert end_at.apply(untouched)[2].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]


def test_accounts_are_those_of_the_replay(vllm):
    """On made-up lengths, without a model, in a pool that is too small."""
    from sagellm_lifetime.replay.cost import CPU_SMALL
    from sagellm_lifetime.replay.engine import EngineSettings
    from sagellm_lifetime.replay.policies import ReplayPolicy
    from sagellm_lifetime.replay.run import Run
    from sagellm_lifetime.replay.trace import TraceRequest

    rng = np.random.default_rng(1)
    trace = [
        TraceRequest(
            f"r{i}", i * 0.3, int(rng.integers(5, 90)), int(rng.integers(1, 150)), 256, row=i
        )
        for i in range(60)
    ]
    settings = EngineSettings(
        blocks=40,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        max_model_len=512,
        prefix_caching=True,
    )
    run = Run(
        trace, settings, CPU_SMALL, ReplayPolicy("logged", scheduler_cls="logged_scheduler:Logged")
    )
    done = run.execute()
    lines = [json.loads(line) for line in run.scheduler.file.getvalue().splitlines()]
    steps = [line for line in lines if "step" in line]
    requests = {line["request"]: line for line in lines if "request" in line}
    assert len(steps) == done.steps
    assert sum(step["prefill"] for step in steps) == done.prefill_tokens
    assert sum(step["preempted"] for step in steps) == done.preemptions > 0
    assert sum(line["recomputed"] for line in requests.values()) == done.recomputed_tokens > 0
    fitted = [CPU_SMALL.seconds(s["decodes"], s["prefill"], s["context"]) for s in steps]
    for i, each in enumerate(trace):
        line = requests[each.id]
        assert line["output"] == each.output_length
        latency = sum(fitted[line["came"] : line["last"] + 1])
        # It may have come in the middle of a step.
        assert 0.0 <= done.finish[i] - done.arrival[i] - latency <= max(fitted)


def test_every_arm_has_the_logging_scheduler(tmp_path):
    from sagellm_lifetime.vllm.settings import LiveSettings

    arms, start = part("arms"), part("start")
    setting = arms.Setting(96, 32, 16, 2048, 2048)
    for arm in arms.ARMS:
        options = setting.options("m", arms.theirs(arm, tmp_path / "log", 0.1))
        settings = None if arm.startswith("fcfs") else LiveSettings(mode="act", state="/s")
        line = start.command("model", settings, options)
        assert line.count("--scheduler-cls") == 1
        assert line[line.index("--scheduler-cls") + 1] == "live.watched.scheduler"
        said = json.loads(line[line.index("--additional-config") + 1])
        assert said["load"] == {"log": str(tmp_path / "log")} | (
            {"oracle": True} if arm == "lifetime-oracle" else {}
        )
        assert ("lifetime" in said) == (settings is not None)
        assert ("--watermark" in line) == (arm == "fcfs-watermark")
        own = arms.ours(arm, tmp_path, tmp_path)
        assert bool(own) == (settings is not None)
        assert ("--watch-hidden" in own) == (arm == "lifetime-hidden")
    assert set(arms.REPLAYED) < set(arms.ARMS)


def test_states_of_a_recording_are_reduced_as_in_a_live_engine(tmp_path):
    from sagellm_lifetime.features.hidden_state import reduced

    states = np.random.default_rng(0).normal(size=(2, 3, 300)).astype(np.float32)
    states[1, 1:] = np.nan
    np.savez(tmp_path / "x.npz", ids=np.array(["b", "a"]), states=states)
    frame = pl.DataFrame({"request_id": ["a", "b"], "actual_length": [20, 70]})
    found = part("material").with_states(frame, tmp_path / "x.npz", "tiny layer 2")
    assert found["hidden_source"].to_list() == ["tiny layer 2"] * 2
    assert found["hidden_state_32"][0] is None
    assert np.array_equal(np.float32(found["hidden_state_64"][1]), reduced(states[0, 2]))
    other = pl.DataFrame({"request_id": ["c"], "actual_length": [3]})
    with pytest.raises(SystemExit, match="no states of 1 answers, such as c"):
        part("material").with_states(other, tmp_path / "x.npz", "tiny layer 2")


def test_two_logs_that_differ_are_told_apart():
    compare = part("unchanged").compare
    log = [
        {"step": 0, "scheduled": [["a", 5]], "preempted": 0},
        {"step": 1, "scheduled": [["a", 1]], "preempted": 1},
        {"request": "a", "tokens": [7, 2], "preempted": 1},
    ]
    lines, differing = compare(log, log)
    assert not differing
    assert lines[0] == "steps: 2 and 2, all alike"
    other = [log[0], {**log[1], "scheduled": [["b", 1]]}, log[2]]
    lines, differing = compare(log, other)
    assert differing
    assert lines[0].endswith("different from step 1 on")
    assert compare(log, log[:1] + log[2:])[1]
    lines, differing = compare(log, [*log[:2], {**log[2], "tokens": [7, 3]}])
    assert differing
    assert "1 differ, a among them" in lines[2]


def test_engine_clock_advances_with_the_engine_and_skips_what_is_idle(tmp_path):
    clocks = part("clocks")
    cost = import_module("sagellm_lifetime.replay.cost").StepCost("c", 1.0, 0.5, 0.01)
    step = {"decodes": 2, "prefill": 100, "context": 0, "left": 1}  # three seconds of it
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 0, **step}) + "\n")  # of the warming up
    clock = clocks.EngineClock(path, cost)

    async def reached(arrival, *, idle=False):
        try:
            await asyncio.wait_for(clock.reach(arrival, lambda: idle), 0.05)
        except TimeoutError:
            return False
        return True

    def told(text):
        with path.open("a") as file:
            file.write(text)

    async def all_of_it():
        assert not await reached(2.0)
        assert await reached(2.0, idle=True)  # nothing to do: it is two o'clock at once
        assert clock.now == 2.0
        line = json.dumps({"step": 1, **step}) + "\n"
        told(line[:20])
        assert not await reached(7.0)
        told(line[20:] + json.dumps({"request": "r0", "output": 1}) + "\n")
        assert await reached(7.9)  # in the step after this one, which began at five
        assert clock.now == 5.0
        assert not await reached(8.1)
        told(json.dumps({"step": 2, **step}) + "\n")
        assert await reached(8.1)

    asyncio.run(all_of_it())
    clock.close()
