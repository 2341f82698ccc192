"""Hidden states, from the worker's output to predictor, plan and record."""

import pickle
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from engine_help import Engine

from sagellm_lifetime import PredictionRequest, create_predictor
from sagellm_lifetime.vllm.launch.server import WORKER, command, environment
from sagellm_lifetime.vllm.model_signals import REPORT
from sagellm_lifetime.vllm.settings import LiveSettings

SOURCE = "tiny layer 2"
LONG, SHORT = np.float32([1.5, 0.0]), np.float32([-1.5, 0.0])


@pytest.fixture(autouse=True)
def source(vllm, monkeypatch):
    """The replay's configuration names no real model."""
    from sagellm_lifetime.vllm import hidden_watch

    monkeypatch.setattr(hidden_watch, "source_of", lambda *_: SOURCE)
    monkeypatch.setattr(hidden_watch, "layer_read", lambda _config: 2)


def taught():
    """A predictor that has learned that the first number is the logarithm of the length."""
    predictor = create_predictor("survival")
    rng = np.random.default_rng(0)
    for i, (one, two) in enumerate(rng.normal(size=(150, 2))):
        given = {"hidden_state": [one, two], "hidden_source": SOURCE, "prompt_length": 20}
        predictor.predict(PredictionRequest(i, [], 0, 400, given))
        predictor.update(i, max(int(60 * np.exp(0.8 * one)), 1), 1.0)
    return predictor


def receive(engine, report):
    """Process a step whose output has the report of a worker."""
    from vllm.v1.outputs import ModelRunnerOutput

    scheduler = engine.scheduler
    step = scheduler.schedule()
    names = list(step.num_scheduled_tokens)
    output = ModelRunnerOutput(names, {n: i for i, n in enumerate(names)}, [[7]] * len(names))
    setattr(output, REPORT, report)
    # As between two processes.
    scheduler.update_from_output(step, pickle.loads(pickle.dumps(output)))


def read(engine, name, age, vector):
    """What a worker reports at the end of a reading."""
    from sagellm_lifetime.vllm.hidden_watch import HiddenReport

    receive(engine, HiddenReport({name: {age: vector}}))


def tell(engine, name, age, vector):
    """The same between two steps."""
    from sagellm_lifetime.vllm.hidden_watch import HiddenReport

    output = SimpleNamespace(**{REPORT: HiddenReport({name: {age: vector}})})
    scheduler = engine.scheduler
    scheduler.request_events.signals.receive(output, scheduler.requests)


def remaining(predictor, engine, name):
    age = engine.scheduler.requests[name].num_output_tokens
    return int(predictor.quantiles([name], np.array([age]), 0.5)[0])


def test_a_reading_is_new_evidence_in_the_next_step():
    predictor = taught()
    engine = Engine().predict_with(predictor, hidden=True)
    engine.add(100, name="a")
    engine.add(100, name="b")
    asked = engine.scheduler.requests["a"].sampling_params.extra_args
    assert asked == {"watch_hidden": "a"}
    engine.step()
    before = remaining(predictor, engine, "a")
    read(engine, "a", 0, LONG)
    read(engine, "b", 0, SHORT)
    engine.step()
    assert remaining(predictor, engine, "a") > 1.5 * before > 3 * remaining(predictor, engine, "b")
    read(engine, "a", 32, SHORT)  # no stage has learned of later readings: nothing changes
    engine.step()
    engine.run()
    assert engine.advisor.breaker.state == "closed"
    assert not engine.scheduler.request_events.signals._readings


def test_victims_feel_a_reading_at_once():
    predictor = taught()
    engine = Engine().predict_with(predictor, hidden=True, mode="act")
    for name in "abc":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    scheduler, advisor = engine.scheduler, engine.advisor

    def order():
        views = [scheduler._view(request) for request in scheduler.running]
        places = advisor._advisor.victims(views)
        return [views[place].id for place in places]

    first = order()[-1]  # looks at all of them, and keeps the answers for some steps
    assert order()[-1] == first
    for name in "abc":
        read(engine, name, 0, SHORT if name == first else LONG)
    engine.step()
    assert order()[-1] != first
    assert advisor.breaker.state == "closed"


def test_the_reservation_feels_a_reading_at_once():
    engine = Engine().predict_with(taught(), hidden=True, mode="act", policy="reserve")
    for name in "abc":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    advisor = engine.advisor._advisor
    scheduler = engine.scheduler
    advisor.growth()  # a look at all of them, after which the next one is some steps away
    before = advisor.withheld
    for name in "abc":
        tell(engine, name, 0, LONG)
    engine.step()
    longer = advisor.withheld
    assert longer > before
    for name in "abc":
        scheduler.request_events.signals._readings[name] = {0: SHORT}
    assert advisor.withheld == longer, "evidence counts where it is told to be new"
    assert engine.advisor.breaker.state == "closed"


@pytest.mark.parametrize("first", "ab")
def test_the_order_of_resumed_requests_feels_a_reading_at_once(first):
    """Also where the reading comes after the preemption, from the step before it."""
    engine = Engine().predict_with(taught(), hidden=True, mode="act", policy="sjf")
    for name in "ab":
        engine.add(300, name=name)
    for _ in range(3):
        engine.step()
    scheduler, advisor = engine.scheduler, engine.advisor._advisor
    for name in "ab":
        request = scheduler.requests[name]
        scheduler.running.remove(request)
        scheduler._preempt_request(request, engine.now)

    def order():
        views = [scheduler._view(request) for request in scheduler.waiting]
        return [views[place].id for place in advisor.order(views, 0)]

    assert len(order()) == 2
    for name in "ab":
        tell(engine, name, 0, SHORT if name == first else LONG)
    engine.advisor.begin_step(
        0, tuple(map(scheduler._view, scheduler.request_events.grown(scheduler.requests)))
    )
    engine.advisor.flush()
    assert order()[0] == first


def test_rows_of_a_record_hold_states_only_with_content(tmp_path):
    for content in (False, True):
        folder = tmp_path / str(content)
        engine = Engine().on(hidden=True, record=str(folder), content=content)
        engine.add(10, name="a")
        engine.step()
        read(engine, "a", 0, np.float32([0.5, -0.25]))
        engine.run()
        engine.scheduler.shutdown()
        row = pl.concat([pl.read_parquet(path) for path in folder.glob("*.parquet")]).row(
            0, named=True
        )
        if content:
            assert (row["hidden_state"], row["hidden_source"]) == ([0.5, -0.25], SOURCE)
        else:
            assert not {"hidden_state", "hidden_source", "prompt_token_ids"} & set(row)


def test_a_fault_of_the_watch_is_one_of_the_breaker_and_the_engine_goes_on():
    engine = Engine().on(hidden=True)
    engine.add(50, name="a")
    engine.step()
    from sagellm_lifetime.vllm.hidden_watch import HiddenReport

    receive(engine, HiddenReport({}, "ValueError"))
    assert engine.stats()["breaker"] != "closed"
    engine.run()
    assert not engine.scheduler.requests


def test_without_the_option_nothing_is_read_and_no_worker_is_changed():
    engine = Engine().on()
    engine.add(5, name="a")
    engine.step()
    assert not engine.scheduler.requests["a"].sampling_params.extra_args
    assert engine.scheduler.request_events.signals is None
    line = command("m", LiveSettings(signals=True), [])
    assert "--worker-cls" not in line


def test_a_reading_that_comes_too_late_is_not_kept():
    engine = Engine().on(hidden=True)
    engine.add(5, name="a")
    engine.step()
    read(engine, "gone", 0, LONG)
    assert not engine.scheduler.request_events.signals._readings
    assert engine.advisor.breaker.state == "closed"


def test_a_reading_in_the_output_that_ends_the_answer_is_recorded(tmp_path):
    engine = Engine().on(hidden=True, record=str(tmp_path), content=True)
    engine.add(2, name="a", max_tokens=2)
    engine.step()
    read(engine, "a", 0, LONG)
    assert not engine.scheduler.requests
    engine.scheduler.shutdown()
    (row,) = pl.concat([pl.read_parquet(path) for path in tmp_path.glob("*.parquet")]).to_dicts()
    assert row["hidden_state"] == LONG.tolist()


def test_each_adapter_is_a_source_of_its_own_for_predictor_and_record(tmp_path):
    from vllm.lora.request import LoRARequest

    engine = Engine().on(hidden=True, record=str(tmp_path), content=True)
    for name, lora in (("a", None), ("b", LoRARequest("mine", 1, "/nowhere"))):
        engine.add(9, name=name).lora_request = lora
    engine.step()
    for name in "ab":
        read(engine, name, 0, LONG)
    adapter = engine.scheduler.request_events.adapter
    told = [adapter(engine.scheduler.requests[name]).prompt_features for name in "ab"]
    assert [one["hidden_source"] for one in told] == [SOURCE, f"{SOURCE} mine"]
    engine.run()
    engine.scheduler.shutdown()
    rows = pl.concat([pl.read_parquet(path) for path in tmp_path.glob("*.parquet")])
    recorded = dict(zip(rows["request_id"], rows["hidden_source"], strict=True))
    assert recorded == {"a": SOURCE, "b": f"{SOURCE} mine"}


def test_both_watches_go_together():
    engine = Engine().on(hidden=True, signals=True)
    engine.add(5, name="a")
    asked = engine.scheduler.requests["a"].sampling_params.extra_args
    assert asked == {"watch_eos": "a", "watch_hidden": "a"}
    engine.run()


def test_the_worker_is_named_where_it_is_asked_for():
    line = command("m", LiveSettings(hidden=True), ["-tp=2", "-pp", "2", "-sc", "{}"])
    assert line[line.index("--worker-cls") + 1] == WORKER
    assert "--logits-processors" not in line
    assert environment(LiveSettings(hidden=True)) == {}


@pytest.fixture
def worker(vllm, monkeypatch):
    """Our worker on a model runner of the test, as after ``load_model``."""
    from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput, ModelRunnerOutput

    from sagellm_lifetime.vllm import hidden_worker
    from sagellm_lifetime.vllm.hidden_watch import HiddenReader

    class Late(AsyncModelRunnerOutput):
        def get_output(self):
            return ModelRunnerOutput(["a"], {"a": 0}, [[7]])

    class Runner:
        def __init__(self):
            self.outputs = []
            self.execute_model_state = None

        def sample_tokens(self, _grammar):
            return self.outputs.pop(0)

    base = hidden_worker.HiddenWorker.__bases__[0]
    monkeypatch.setattr(base, "execute_model", lambda self, step: self.run(step))
    monkeypatch.setattr(base, "sample_tokens", lambda self, g: self.model_runner.sample_tokens(g))
    made = object.__new__(hidden_worker.HiddenWorker)
    made.model_runner = Runner()
    made.vllm_config = SimpleNamespace(model_config=SimpleNamespace(enforce_eager=True))
    made._reader = HiddenReader()
    made.late, made.empty = Late(), EMPTY_MODEL_RUNNER_OUTPUT
    return made


def one_step(worker, batch_in):
    """Run a step of one prompt; ``batch_in`` says where the model runner has its batch, if any."""
    import torch

    params = SimpleNamespace(extra_args={"watch_hidden": "a"})
    new = SimpleNamespace(
        req_id="a", sampling_params=params, prompt_token_ids=[1, 2, 3], num_computed_tokens=0
    )
    step = SimpleNamespace(
        finished_req_ids=set(),
        num_scheduled_tokens={"a": 3},
        scheduled_spec_decode_tokens={},
        scheduled_new_reqs=[new],
        scheduled_cached_reqs=SimpleNamespace(req_ids=[], num_computed_tokens=[]),
    )
    batch = SimpleNamespace(req_ids=["a"])
    state = SimpleNamespace(aux_hidden_states=None)

    def run(_step):
        worker._reader.capture(None, (), torch.arange(6.0).reshape(3, 2))
        (state if batch_in == "state" else worker.model_runner).input_batch = batch
        worker.model_runner.execute_model_state = state

    worker.run = run if batch_in else lambda _step: None
    worker.execute_model(step)


@pytest.mark.parametrize("batch_in", ["runner", "state"], ids=["runner V1", "runner V2"])
def test_readings_travel_with_an_output_that_comes_while_the_next_step_runs(worker, batch_in):
    """Asynchronous scheduling, which vLLM switches off on a CPU."""
    one_step(worker, batch_in)
    worker.model_runner.outputs = [worker.late]
    waiting = worker.sample_tokens(None)
    report = getattr(waiting.get_output(), REPORT)
    assert report.readings["a"][0].tolist() == [4.0, 5.0]
    worker.model_runner.outputs = [worker.late]
    assert worker.sample_tokens(None) is worker.late  # nothing to add


def test_the_output_of_an_empty_step_which_all_share_is_not_changed(worker):
    worker._reader.stop(ValueError("broken"))
    worker.model_runner.outputs = [worker.empty]
    assert not hasattr(worker.sample_tokens(None), REPORT)


def test_a_runner_without_its_batch_is_a_fault_and_the_answer_goes_on(worker):
    one_step(worker, "")
    worker.model_runner.outputs = [worker.late]
    assert getattr(worker.sample_tokens(None).get_output(), REPORT).fault == "AttributeError"


def test_a_model_that_cannot_be_read_is_refused_with_what_to_do(vllm):
    import torch

    from sagellm_lifetime.core.errors import RequestError
    from sagellm_lifetime.vllm import hidden_worker
    from sagellm_lifetime.vllm.hidden_watch import HiddenReader

    model = SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=3))
    config = SimpleNamespace(model_config=model, speculative_config=None)
    runner = SimpleNamespace(get_model=lambda: torch.nn.Linear(2, 2))
    with pytest.raises(RequestError, match="add --enforce-eager: compiled, Linear"):
        hidden_worker.return_states(runner, config)
    config.speculative_config = SimpleNamespace(method="eagle3")
    with pytest.raises(RequestError, match="add --enforce-eager beside eagle3"):
        hidden_worker.return_states(runner, config)
    with pytest.raises(RequestError, match="Linear has no list of its 3 layers"):
        hidden_worker.hook_layer(torch.nn.Linear(2, 2), config, HiddenReader())


def test_layers_of_the_language_model_are_read_not_those_of_its_eyes(vllm, monkeypatch):
    import torch

    from sagellm_lifetime.vllm import hidden_worker
    from sagellm_lifetime.vllm.hidden_watch import HiddenReader

    class Seeing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.eyes = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
            self.language = torch.nn.Sequential(
                torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
            )

        def get_language_model(self):
            return self.language

    monkeypatch.setattr(hidden_worker, "layer_read", lambda _config: 2)
    model = SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=3))
    seeing = Seeing()
    hidden_worker.hook_layer(seeing, SimpleNamespace(model_config=model), HiddenReader())
    assert [len(layer._forward_hooks) for layer in seeing.language[0]] == [0, 1, 0]
    assert not any(layer._forward_hooks for layer in seeing.eyes)
